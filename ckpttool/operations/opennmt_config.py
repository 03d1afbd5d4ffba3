"""What an OpenNMT-tf configuration says about averages: which the checkpoints are, and which are made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckpttool.errors import NotFoundError, UnreadableError
from ckpttool.operations.records import Selection
from ckpttool.reading.snapshot import Snapshot
from ckpttool.reading.yaml_text import load_yaml
from ckpttool.text import Message, parameter

__all__ = ["AveragingConfig", "read_averaging_config"]

_MOST_BYTES = 1 << 22
"""Larger files are not configurations."""


@dataclass(frozen=True)
class AveragingConfig:
    """The part of a configuration that is about averages.

    Attributes:
        path: The file.
        moving_average_decay: ``train: moving_average_decay``. OpenNMT-tf then saves the moving average of that decay,
            with the warm-up min(decay, (1+n)/(10+n)), in the weights' place; the trained weights are not saved.
        average_last_checkpoints: ``train: average_last_checkpoints``, where it is two or more.
    """

    path: Path
    moving_average_decay: float | None = None
    average_last_checkpoints: int | None = None

    def completed(self, selection: Selection, *, counted: bool) -> tuple[Selection, tuple[str, ...]]:
        """The selection with what the configuration says where nothing else was said, and a note about it.

        Args:
            selection: What was asked for.
            counted: Whether the number of checkpoints is said in another way, or none is needed.
        """
        said = (selection.last, selection.every, selection.from_step, selection.to_step, selection.best)
        if self.average_last_checkpoints is None or counted or any(value is not None for value in said):
            return selection, ()
        note = Message(
            f"average_last_checkpoints in {self.path.name} asks for {parameter('last', self.average_last_checkpoints)}"
        )
        return replace(selection, last=self.average_last_checkpoints), (note,)

    def notes(self) -> tuple[str, ...]:
        """That the weights are averages already, where they are."""
        if self.moving_average_decay is None:
            return ()
        note = (
            f"the checkpoints were saved with moving_average_decay {self.moving_average_decay:g} ({self.path.name}): "
            "their weights are a moving average already, so this is an average of averages"
        )
        return (note,)


def read_averaging_config(path: Path, snapshot: Snapshot) -> AveragingConfig:
    """Read the part of an OpenNMT-tf configuration that is about averages.

    Raises:
        NotFoundError: There is no such file.
        UnreadableError: It is not YAML, or a value in it cannot be what it is.
    """
    if not snapshot.exists(path):
        raise NotFoundError(f"{path}: no such file or directory", path=path)
    try:
        root = load_yaml(snapshot.read(path, _MOST_BYTES))
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})", path=path) from error
    except ValueError as error:
        raise UnreadableError(
            f"{path}: not a YAML file",
            path=path,
            hint=f"{parameter('config')} is the configuration that OpenNMT-tf was started with.",
        ) from error
    if root is not None and not isinstance(root, Mapping):
        raise UnreadableError(f"{path}: not a configuration: it has no keys", path=path)
    train: Any = (root or {}).get("train") or {}
    if not isinstance(train, Mapping):
        raise UnreadableError(f"{path}: train must hold keys and values, not {train!r}", path=path)
    return AveragingConfig(path, _decay(path, train), _count(path, train))


def _decay(path: Path, train: Mapping[Any, Any]) -> float | None:
    value = train.get("moving_average_decay")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1 or math.isnan(value):
        raise UnreadableError(f"{path}: train: moving_average_decay must be between 0 and 1, not {value!r}", path=path)
    return float(value)


def _count(path: Path, train: Mapping[Any, Any]) -> int | None:
    value = train.get("average_last_checkpoints", 0)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UnreadableError(
            f"{path}: train: average_last_checkpoints must be a whole number of at least 0, not {value!r}", path=path
        )
    return value if value > 1 else None
