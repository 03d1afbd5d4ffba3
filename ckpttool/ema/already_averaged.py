"""Checkpoints whose weights are an average already: an average of those is an average of averages."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ckpttool.ema.locating import recognise
from ckpttool.ema.stored_average import StoredAverage
from ckpttool.errors import MismatchError, UnsupportedError, UsageError
from ckpttool.formats import get_format
from ckpttool.tensors import Checkpoint, TensorSpec
from ckpttool.text import first_names

__all__ = ["describe_averages_of_averages", "recognise_by_names"]


def recognise_by_names(checkpoint: Checkpoint) -> StoredAverage | None:
    """The average that a checkpoint holds, where names and shapes alone tell; None also where they do not suffice."""
    with suppress(MismatchError, UsageError, UnsupportedError):
        return recognise(checkpoint, values=_unread)
    return None


def _unread(_spec: TensorSpec) -> object:
    raise MismatchError("values are not read for a plan")


def describe_averages_of_averages(checkpoints: Sequence[Checkpoint]) -> tuple[str, ...]:
    """What to tell a user who averages weights that are averages already; nothing where none are. No weight is read.

    Recognised are outputs of ckpttool, by the provenance in them, and checkpoints whose framework saved the moving
    average in the weights' place.

    Args:
        checkpoints: The members of the average.
    """
    made: list[str] = []
    saved: dict[str, list[str]] = {}
    plain: Checkpoint | None = None
    for checkpoint in checkpoints:
        if checkpoint.provenance is not None:
            made.append(checkpoint.path.name)
            continue
        if plain is not None and _are_alike(plain, checkpoint):
            continue
        found = recognise_by_names(checkpoint)
        if found is None:
            plain = checkpoint
        if found is not None and found.in_place:
            saved.setdefault(found.framework, []).append(checkpoint.path.name)
    groups = [(made, "made by ckpttool"), *((names, framework) for framework, names in saved.items())]
    return tuple(
        f"the weights of {first_names(names)} are an average already ({by}), so this is an average of averages: longer "
        "than its members and coefficients say"
        for names, by in groups
        if names
    )


def _are_alike(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether names and shapes, which are all that two such checkpoints have, are the same."""
    flat = all(not each.copies and get_format(each.format).tree(each) is None for each in (one, other))
    return (
        flat
        and one.format == other.format
        and one.section == other.section
        and one.values.keys() == other.values.keys()
        and one.configurations == other.configurations
        and one.weights.keys() == other.weights.keys()
        and all(spec.shape == other.weights[name].shape for name, spec in one.weights.items())
    )
