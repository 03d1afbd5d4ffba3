"""A moving average that was found in a checkpoint: which tensor is the average of which weight.

Whatever the layout, the result is the same record: for each weight, the tensor that the average has for it; what the
average does not cover; and what is left out when the average takes the weights' place. No weight is read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ckpttool.ema.name_maps import NameMap, describe_unmatched
from ckpttool.errors import MismatchError
from ckpttool.formats.average_keys import MOVING_AVERAGE, AverageKind
from ckpttool.formats.container import KeyPath
from ckpttool.planning.matching import ties
from ckpttool.tensors import Checkpoint, TensorSpec
from ckpttool.text import ending, first_names

__all__ = ["BATCH_NORM_STATISTICS", "Origin", "StoredAverage", "already_in_place", "pair_with_weights"]

BATCH_NORM_STATISTICS = ("running_mean", "running_var")
"""Endings of the names of buffers that batch norm keeps."""


@dataclass(frozen=True)
class Origin:
    """Where an average was found, and by what.

    Attributes:
        framework: Whose layout it is: "timm, open_clip".
        where: Where it is in the file (a dotted key path, or a pattern of names), or the file's name.
        why: A phrase: what it was recognised by.
        drop: Key paths of the container that are left out when the average takes the weights' place.
        kind: What it is; see `ckpttool.formats.average_keys`.
    """

    framework: str
    where: str
    why: str
    drop: tuple[KeyPath, ...] = ()
    kind: AverageKind = MOVING_AVERAGE


@dataclass(frozen=True)
class StoredAverage:
    """A moving average that was found, paired with the weights.

    Attributes:
        framework: Whose layout it is: "timm, open_clip".
        where: Where it is in the file (a dotted key path, or a pattern of names), or the file's name.
        why: A phrase: what it was recognised by.
        averaged: Weight name to the average's tensor, in the order of the weights.
        kept: Weights that the average does not cover, integers among them: name to the trained tensor.
        trained: The trained weights under the same names; empty where the file does not hold them.
        order: Every name of the output, in output order.
        checkpoint: The checkpoint whose container is kept.
        source: The checkpoint that holds the average; another one for averages in files of their own.
        drop: Key paths of the container that are left out when the average takes the weights' place.
        in_place: The average is stored where the weights are loaded from, so that nothing has to be applied.
        renamed: The output's names are not those of the container, so that only a plain file can hold them.
        kind: What it is; see `ckpttool.formats.average_keys`.
        notes: Sentences that a user should read.
        warnings: Sentences that a user must read.
    """

    framework: str
    where: str
    why: str
    averaged: Mapping[str, TensorSpec]
    kept: Mapping[str, TensorSpec]
    trained: Mapping[str, TensorSpec]
    order: tuple[str, ...]
    checkpoint: Checkpoint
    source: Checkpoint
    drop: tuple[KeyPath, ...] = ()
    in_place: bool = False
    renamed: bool = False
    kind: AverageKind = MOVING_AVERAGE
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        said = f"the {self.kind} at {ending(self.where, 40)} ({ending(self.framework, 40)})"
        covers = f"{len(self.averaged):,} of {len(self.order):,} tensors"
        return f"<StoredAverage {ending(self.checkpoint.path, 60)}: {said}, {covers}>"

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Weights of real numbers that keep their trained value."""
        return tuple(name for name, spec in self.kept.items() if spec.dtype.is_averaged)

    @property
    def statistics(self) -> tuple[str, ...]:
        """Batch-norm statistics of the trained weights, next to averaged parameters."""
        return tuple(name for name in self.uncovered if name.endswith(BATCH_NORM_STATISTICS))

    def weights(self) -> dict[str, TensorSpec]:
        """Every tensor of the output, in order: the average where it covers a weight, else the trained weight."""
        return {name: self.averaged.get(name) or self.kept[name] for name in self.order}


def pair_with_weights(
    checkpoint: Checkpoint,
    weights: Mapping[str, TensorSpec],
    average: Mapping[str, TensorSpec],
    names: NameMap,
    origin: Origin,
    *,
    source: Checkpoint | None = None,
    renamed: bool = False,
    notes: Sequence[str] = (),
) -> StoredAverage:
    """Pair an average with the trained weights.

    Integer and bool tensors stay the trained ones, and so does what the average does not have. A weight that is tied
    to another (embeddings, mostly) is covered with it: EMA implementations store tied tensors once.

    Args:
        checkpoint: The checkpoint whose container is kept.
        weights: The trained weights, by the names of the output.
        average: The average's tensors, by its own names.
        names: Which is which.
        origin: Where it was found.
        source: The checkpoint that holds the average; None: `checkpoint`.
        renamed: See `StoredAverage`.
        notes: Notes in front of those on what is covered.

    Raises:
        MismatchError: A weight and its average have other shapes, or other kinds of numbers.
    """
    place = str(checkpoint.path if source is None else source.path)
    for name, own in names.misshapen:
        raise MismatchError(
            f"{place}: {name} has shape {list(weights[name].shape)}, "
            f"and its average ({own}) {list(average[own].shape)}",
            path=place,
            tensor=name,
            hint="The average belongs to another model, or to an earlier shape of this one.",
        )
    found = {name: average[own] for name, own in names.pairs.items()}
    tied = {alias[1]: original[1] for alias, original in ties({("", name): weights[name] for name in weights}).items()}
    for alias, original in tied.items():
        if original not in found and alias in found:
            found[original] = found[alias]
    for alias, original in tied.items():
        if alias not in found and original in found:
            found[alias] = found[original]
    for name, spec in found.items():
        if spec.dtype.kind != weights[name].dtype.kind and weights[name].dtype.is_averaged:
            raise MismatchError(
                f"{place}: {name} is {weights[name].dtype}, and its average {spec.dtype}", path=place, tensor=name
            )
    averaged = {name: found[name] for name, spec in weights.items() if name in found and spec.dtype.is_averaged}
    kept = {name: spec for name, spec in weights.items() if name not in averaged}
    all_notes = list(notes)
    if names.changed:
        all_notes.append(f"names of the average were matched with {names.changed}")
    return _with_coverage_notes(
        StoredAverage(
            framework=origin.framework,
            where=origin.where,
            why=origin.why,
            averaged=averaged,
            kept=kept,
            trained=weights,
            order=tuple(weights),
            checkpoint=checkpoint,
            source=source or checkpoint,
            drop=origin.drop,
            kind=origin.kind,
            renamed=renamed,
            notes=tuple(all_notes),
            warnings=(describe_unmatched(names.unmatched),) if names.unmatched else (),
        )
    )


def _with_coverage_notes(found: StoredAverage) -> StoredAverage:
    """Add the notes on what is covered and what is not."""
    notes = list(found.notes)
    others = [name for name in found.uncovered if name not in found.statistics]
    if others:
        keeps = "which keeps its trained value" if len(others) == 1 else "which keep their trained values"
        notes.append(f"the average does not cover {_count(others)}, {keeps}: {first_names(others)}")
    integers = [name for name in found.kept if name not in found.uncovered]
    if integers:
        noun = "integer or bool tensor keeps its" if len(integers) == 1 else "integer or bool tensors keep their"
        notes.append(f"{len(integers):,} {noun} trained values: {first_names(integers)}")
    if found.statistics:
        notes.append(
            "batch-norm statistics of the trained weights are next to averaged parameters "
            f"({first_names(found.statistics)}); re-estimate them on data if accuracy depends on it"
        )
    return replace(found, notes=tuple(notes))


def already_in_place(
    checkpoint: Checkpoint,
    average: Mapping[str, TensorSpec],
    origin: Origin,
    *,
    trained: Mapping[str, TensorSpec] | None = None,
    renamed: bool = False,
    notes: Sequence[str] = (),
) -> StoredAverage:
    """An average that is stored in the weights' place.

    Args:
        checkpoint: The checkpoint.
        average: The average, which is what is loaded as the weights.
        origin: Where it was found.
        trained: The trained weights under the same names, where the file has them.
        renamed: See `StoredAverage`.
        notes: Sentences that a user should read.
    """
    return StoredAverage(
        framework=origin.framework,
        where=origin.where,
        why=origin.why,
        averaged={name: spec for name, spec in average.items() if spec.dtype.is_averaged},
        kept={name: spec for name, spec in average.items() if not spec.dtype.is_averaged},
        trained=trained or {},
        order=tuple(average),
        checkpoint=checkpoint,
        source=checkpoint,
        drop=origin.drop,
        in_place=True,
        kind=origin.kind,
        renamed=renamed,
        notes=tuple(notes),
    )


def _count(names: Sequence[str]) -> str:
    return f"{len(names):,} tensor" + ("" if len(names) == 1 else "s")
