"""What a plan is asked for, as records: which members, by which policy, and what of the container is kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ckpttool.tensors import Checkpoint, Skipped, TensorSpec

__all__ = [
    "Entry",
    "IntegerPolicy",
    "KeyPolicy",
    "Members",
    "Operation",
    "OutputDType",
    "OutputForm",
    "Policy",
    "Selected",
    "members_of",
]

OutputDType = Literal["same", "float32", "bfloat16", "float16", "float64"]
KeyPolicy = Literal["strict", "intersection", "newest"]
IntegerPolicy = Literal["newest", "error"]


@dataclass(frozen=True)
class Policy:
    """What to do where members differ, and what the output keeps. The defaults are those of every command.

    Attributes:
        dtype: Element type of the averaged tensors; "same" keeps that of the newest member, tensor by tensor.
        keys: What to do about tensors that not all members have. "strict": an error. "intersection": leave them out.
            "newest": keep the newest's names; what another member lacks keeps the newest's value.
        integers: Integer and bool tensors are never averaged. "newest": take the newest member's, report differences.
            "error": a difference is an error.
        keep_state: Keep the newest member's training state (optimizer, scaler, scheduler).
        allow_nonfinite: Let NaN and infinity pass.
        max_shard_size: Split the output's weights into files of at most so many bytes of tensors, for formats that
            have shards; None keeps the newest member's files.
        force: Replace an existing output.
    """

    dtype: OutputDType = "same"
    keys: KeyPolicy = "strict"
    integers: IntegerPolicy = "newest"
    keep_state: bool = False
    allow_nonfinite: bool = False
    max_shard_size: int | None = None
    force: bool = False


class Entry(Protocol):
    """A checkpoint that was selected: what `ckpttool.selection.choice` yields."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, opened."""

    @property
    def step(self) -> int | None:
        """Its training step, where one is known."""


class Selected(Protocol):
    """Checkpoints that were selected, with what is reported of the selection.

    `ckpttool.selection.choice.Discovery` and `Members` are such.
    """

    @property
    def entries(self) -> Sequence[Entry]:
        """The checkpoints, in the order of the coefficients."""

    @property
    def why(self) -> str:
        """How they were recognised in their directory: which layout, and why. Empty for a list."""

    @property
    def unit(self) -> str:
        """What their steps count: ``step``, ``epoch``, ``date``, or ``number`` if that is not known."""

    @property
    def skipped(self) -> Sequence[Skipped]:
        """What was seen and left out, with reasons."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences that the user should read."""

    @property
    def warnings(self) -> Sequence[str]:
        """Sentences that the user must read."""


@dataclass(frozen=True)
class Members:
    """The members of a plan, with what is reported of their selection. See `Selected`."""

    entries: Sequence[Entry]
    why: str = ""
    unit: str = "step"
    skipped: Sequence[Skipped] = ()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()


def members_of(
    selected: Selected,
    *,
    entries: Sequence[Entry] | None = None,
    skipped: Sequence[Skipped] = (),
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> Members:
    """The members of a selection, with other entries in place of its own where given, and with more to report."""
    return Members(
        selected.entries if entries is None else entries,
        selected.why,
        selected.unit,
        (*selected.skipped, *skipped),
        (*selected.notes, *notes),
        (*selected.warnings, *warnings),
    )


@dataclass(frozen=True)
class Operation:
    """What the coefficients mean, for the provenance in the output: a name, and more facts, JSON-able."""

    name: str = "average"
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputForm:
    """What the output takes from the newest member, in addition to the names of its tensors.

    Attributes:
        keep_container: Keep what else the newest member's file holds, where the output is of its format.
        drop: Key paths of the newest member's container that are left out.
        like: Weights whose dtype and order of dimensions the averaged tensors are written in, by name; of others, and
            for None, the newest member's.
        from_newest: Names of weights that are not averaged: the newest member's are taken, as they are.
    """

    keep_container: bool = True
    drop: Sequence[tuple[str | int, ...]] = ()
    like: Mapping[str, TensorSpec] | None = None
    from_newest: Collection[str] = ()
