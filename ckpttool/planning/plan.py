"""The plan as a record: what will be done. `ckpttool.planning.planner` makes it, `ckpttool.engine.run` executes it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from ckpttool.errors import MismatchError
from ckpttool.tensors import Artifact, Checkpoint, DType, OutputFile, OutputTensor, Skipped, TensorId, TensorSpec
from ckpttool.text import ending, parameter, tensor_label

__all__ = ["Action", "Equality", "Member", "Plan", "PlannedTensor", "Term"]

Action = Literal["average", "newest", "equal"]
"""What becomes of a tensor.

    average  the weighted sum of its terms
    newest   the newest member's bytes; the other members are compared, and a difference is reported
    equal    as newest, but a difference is an error
"""


@dataclass(frozen=True, slots=True)
class Member:
    """A checkpoint that takes part, with its share."""

    checkpoint: Checkpoint
    coefficient: float
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """One member's part in a tensor."""

    member: int
    """Index into `Plan.members`."""
    weight: float
    """What its elements are multiplied by before they are added (1 for a uniform mean)."""
    tensor: TensorSpec


@dataclass(frozen=True, slots=True)
class Equality:
    """Why a tensor must be the same in all members: what it is, as a phrase, and what to do where it is not."""

    what: str
    hint: str

    def violated(self, tensor: TensorId, dtype: DType, newest: Path, other: Path) -> MismatchError:
        """The error for a tensor that two members have different values of."""
        label = tensor_label(tensor)
        return MismatchError(
            f"{label} ({dtype}, {self.what}) is not the same in {other} and {newest}",
            path=other,
            tensor=label,
            hint=self.hint,
        )


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the output: out = (Σ weight · term) / divisor in float64, rounded once to `output.dtype`.

    Attributes:
        id: (section, name).
        action: What becomes of it.
        output: As it shall be written.
        terms: In canonical order (by step, then by name), which fixes the order of summation. Terms of weight 0 are
            left out for action "average", so that they are never read.
        newest: Index into `terms` of the newest member's.
        equality: Of action "equal": why.
        must_equal: Pairs of tensors of one member that must hold the same values (byte for byte): the output ties two
            names, and in this member they are two tensors. Before each pair, the name of its second.
    """

    id: TensorId
    action: Action
    output: OutputTensor
    terms: tuple[Term, ...]
    newest: int = 0
    equality: Equality = Equality(
        "which is not averaged", f"{parameter('integers', 'newest')} takes the newest member's values."
    )
    must_equal: tuple[tuple[str, TensorSpec, TensorSpec], ...] = ()


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        members: In canonical order: by step where steps are known, then by name. The last is the newest.
        divisor: What each sum is divided by: the number of members for a uniform mean (so that N identical members
            give the same bits back), 1 for any other coefficients.
        tensors: What is computed, in output order. Of tied tensors only the first is here.
        selection: How the members were recognised in their directory: which layout, and why. Empty for named members.
        unit: What the members' steps count: ``step``, ``epoch`` or ``date``.
        skipped: What was seen and left out, with reasons.
        notes: Sentences that the user should read.
        warnings: Sentences that the user must read.
        output: Path of the output.
        force: Whether an existing output may be replaced.
        allow_nonfinite: Whether NaN and infinity may pass.
        format: Name of the output's format.
        artifact: What the format was asked to lay out.
        files: The output, laid out.
    """

    members: tuple[Member, ...]
    divisor: float
    tensors: tuple[PlannedTensor, ...]
    output: Path
    format: str
    artifact: Artifact
    files: tuple[OutputFile, ...]
    selection: str = ""
    unit: str = "step"
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    force: bool = False
    allow_nonfinite: bool = False

    def __repr__(self) -> str:
        return (
            f"<Plan {ending(self.output)}: {self.format}, {len(self.artifact.tensors):,} tensors of "
            f"{len(self.members):,} checkpoints, {self.bytes_to_read:,} bytes to read>"
        )

    @property
    def left_out(self) -> tuple[Skipped, ...]:
        """What is next to the newest member's weights, and is not copied into an output like it, with the reasons."""
        return () if self.artifact.template is None else self.artifact.template.left_out

    @cached_property
    def bytes_to_read(self) -> int:
        """Bytes that will be read, all members together: weights, what they are compared with, and what is copied."""
        terms = sum(term.tensor.nbytes for tensor in self.tensors for term in tensor.terms)
        compared = {(first, second) for tensor in self.tensors for _, first, second in tensor.must_equal}
        terms += sum(first.nbytes + second.nbytes for first, second in compared)
        return terms + sum(copy.source.nbytes for file in self.files for copy in file.copies)

    @property
    def bytes_to_write(self) -> int:
        """Size of the output."""
        return sum(file.nbytes for file in self.files)
