"""A checkpoint that may hold an average, and the two ways to pair an average's tensors with its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ckpttool.ema.alignment import Values, align
from ckpttool.ema.name_maps import NameMap, match_names
from ckpttool.ema.stored_average import Origin, StoredAverage, pair_with_weights
from ckpttool.errors import MismatchError, UnsupportedError
from ckpttool.formats import get_format
from ckpttool.tensors import Checkpoint, TensorSpec
from ckpttool.text import first_names, parameter

__all__ = ["Candidate", "pair_by_name", "pair_list"]


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that is searched for an average.

    Attributes:
        checkpoint: The checkpoint.
        tree: What its container holds; see `ckpttool.formats.container.tree_of`.
        weights: Its weights.
        names_from: A checkpoint of the same model, for averages without names.
        values: How tensors are read where only values tell; None: `ckpttool.reading.values`.
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


def pair_by_name(
    candidate: Candidate,
    average: Mapping[str, TensorSpec],
    origin: Origin,
    *,
    weights: Mapping[str, TensorSpec] | None = None,
) -> StoredAverage:
    """Pair named tensors with the weights.

    Args:
        candidate: The checkpoint.
        average: The average's tensors, by its own names.
        origin: Where they were found.
        weights: The trained weights; None: those of the candidate.

    Raises:
        MismatchError: Half of them or more belong to no weight.
    """
    weights = candidate.weights if weights is None else weights
    names = match_names(average, weights)
    if names is None:
        raise MismatchError(
            f"{candidate.path}: the average at {origin.where} does not match the weights by name and shape: "
            f"{first_names(average)}",
            path=candidate.path,
            hint=f"{parameter('section')} says where the weights are, where another set was taken for them.",
        )
    return pair_with_weights(candidate.checkpoint, weights, average, names, origin)


def pair_list(
    candidate: Candidate,
    average: Sequence[TensorSpec],
    origin: Origin,
    *,
    weights: Mapping[str, TensorSpec] | None = None,
    ordered: bool = True,
) -> StoredAverage:
    """Pair a list without names with the weights.

    Args:
        candidate: The checkpoint.
        average: The list.
        origin: Where it was found.
        weights: The trained weights; None: those of the candidate.
        ordered: Whether the list is in the model's order.

    Raises:
        UnsupportedError: There are no weights next to the list, and no other checkpoint was named.
        MismatchError: The list does not fit, or stays ambiguous.
    """
    weights = candidate.weights if weights is None else weights
    owner = candidate.names_from if candidate.names_from is not None else candidate.checkpoint
    if candidate.names_from is not None:
        weights = candidate.names_from.weights
    where = f"{candidate.path}: {origin.where}"
    if set(weights.values()) <= set(average):
        raise UnsupportedError(
            f"{where}: the average is a list without names, and there are no weights next to it",
            path=candidate.path,
            hint=f"{parameter('names_from')} takes the names, and what the average does not cover, from a checkpoint "
            "of the model.",
        )
    keeps_order = ordered and get_format(owner.format).keeps_order
    found = align(average, weights, ordered=keeps_order, where=where, values=candidate.values)
    tensors = {str(index): spec for index, spec in enumerate(average)}
    names = NameMap({name: str(index) for name, index in found.indices.items()})
    return pair_with_weights(
        owner,
        weights,
        tensors,
        names,
        origin if owner is candidate.checkpoint else replace(origin, drop=()),
        source=candidate.checkpoint,
        notes=(f"the list was aligned {found.why}",),
    )
