"""A checkpoint that is looked into for an average, and the two ways to put what is found beside its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckpttool.ema.alignment import Values, align
from ckpttool.ema.name_maps import NameMap, fit
from ckpttool.ema.stored_average import StoredAverage, covering
from ckpttool.errors import MismatchError, UnsupportedError
from ckpttool.formats.section_names import KeyPath
from ckpttool.tensors import Checkpoint, TensorSpec
from ckpttool.text import first_names

__all__ = ["MOVING_AVERAGE", "RUNNING_MEAN", "SWA", "TEACHER", "Seen", "aligned", "covered"]

MOVING_AVERAGE = "moving average"
RUNNING_MEAN = "running mean of the whole run"
TEACHER = "teacher (a moving average of the student)"
SWA = "uniform average (SWA)"


@dataclass(frozen=True)
class Seen:
    """A checkpoint to look into.

    Attributes:
        checkpoint: The checkpoint.
        tree: What its container holds; see `ckpttool.ema.trees.tree_of`.
        weights: Its weights.
        names_from: A checkpoint of the same model, for averages without names.
        values: How tensors are read where only values tell; None: by the engine's own reader.
    """

    checkpoint: Checkpoint
    tree: Mapping[Any, Any]
    weights: Mapping[str, TensorSpec]
    names_from: Checkpoint | None
    values: Values | None

    @property
    def path(self) -> str:
        """The file, for messages."""
        return str(self.checkpoint.path)


def covered(
    seen: Seen,
    average: Mapping[str, TensorSpec],
    framework: str,
    where: str,
    why: str,
    *,
    weights: Mapping[str, TensorSpec] | None = None,
    drop: Sequence[KeyPath] = (),
    kind: str = MOVING_AVERAGE,
) -> StoredAverage:
    """Put named tensors beside the weights; see `covering` for the arguments.

    Raises:
        MismatchError: Most of them answer to no weight.
    """
    weights = seen.weights if weights is None else weights
    names = fit(average, weights)
    if names is None:
        raise MismatchError(
            f"{seen.path}: the average at {where} does not answer to the weights by name and shape: "
            f"{first_names(average)}",
            path=seen.path,
            hint="--section says where the weights are, where another set was taken for them.",
        )
    return covering(
        seen.checkpoint, weights, average, names, framework=framework, where=where, why=why, drop=drop, kind=kind
    )


def aligned(
    seen: Seen,
    average: Sequence[TensorSpec],
    weights: Mapping[str, TensorSpec],
    framework: str,
    where: str,
    why: str,
    *,
    ordered: bool = True,
    drop: Sequence[KeyPath] = (),
) -> StoredAverage:
    """Put a list without names beside the weights; see `align` and `covering` for the arguments.

    Raises:
        UnsupportedError: There are no weights beside the list, and no other checkpoint was named.
        MismatchError: The list does not fit, or stays ambiguous.
    """
    owner = seen.names_from if seen.names_from is not None else seen.checkpoint
    if seen.names_from is not None:
        weights = seen.names_from.weights
    if set(weights.values()) <= set(average):
        raise UnsupportedError(
            f"{seen.path}: the average at {where} is a list without names, and there are no weights beside it",
            path=seen.path,
            hint="--names-from CHECKPOINT takes the names, and what the average does not cover, from the model's file.",
        )
    keeps_order = ordered and owner.format != "safetensors"
    found = align(average, weights, ordered=keeps_order, where=f"{seen.path}: {where}", values=seen.values)
    tensors = {str(index): spec for index, spec in enumerate(average)}
    names = NameMap({name: str(index) for name, index in found.indices.items()})
    return covering(
        owner,
        weights,
        tensors,
        names,
        framework=framework,
        where=where,
        why=why,
        source=seen.checkpoint,
        drop=drop if owner is seen.checkpoint else (),
        notes=(f"the list was aligned {found.why}",),
    )
