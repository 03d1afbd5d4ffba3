"""What Hugging Face's trainer and models record next to the weights: step, metrics, configuration, element type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ckpttool.errors import CkpttoolError
from ckpttool.formats.directories.common import load_json
from ckpttool.reading.snapshot import Snapshot

__all__ = ["TRAINER_STATE", "configurations", "stated_dtype", "trainer_state"]

TRAINER_STATE = "trainer_state.json"
_CONFIGURATIONS = ("config.json", "adapter_config.json", "params.json")


def trainer_state(path: Path, snapshot: Snapshot, notes: list[str]) -> tuple[int | None, dict[str, Any]]:
    """The step, and the plain values, of the trainer's record in a directory."""
    place = path / TRAINER_STATE
    if not snapshot.is_file(place):
        return None, {}
    try:
        content = load_json(place, snapshot)
    except CkpttoolError:
        notes.append(f"{TRAINER_STATE} cannot be read")
        return None, {}
    if not isinstance(content, dict):
        return None, {}
    plain = {key: value for key, value in content.items() if isinstance(value, (int, float, str))}
    step = content.get("global_step")
    return step if type(step) is int and step >= 0 else None, plain


def configurations(path: Path, snapshot: Snapshot, folders: Iterable[str] = ("",)) -> dict[str, dict[str, Any]]:
    """The model's configurations in a directory, and in folders of it; see `Checkpoint.configurations`.

    What cannot be read, or is not a JSON object, is not among them.
    """
    found = {}
    for folder in folders:
        for name in _CONFIGURATIONS:
            place = path / folder / name
            with suppress(CkpttoolError):
                content = load_json(place, snapshot) if snapshot.is_file(place) else None
                if isinstance(content, dict):
                    found[f"{folder}/{name}" if folder else name] = content
    return found


def stated_dtype(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The element type that a model's ``config.json`` states, by which transformers loads the weights."""
    stated = configuration.get("dtype", configuration.get("torch_dtype"))
    return {"config.dtype": stated} if isinstance(stated, str) else {}
