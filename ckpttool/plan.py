"""The plan: what will be done, and every reason not to.

A plan is made without reading a single weight, and all that can be refused is refused here.
`ckpttool.engine` executes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ckpttool.tensors import Artifact, Checkpoint, OutputFile, OutputTensor, Skipped, TensorId, TensorSpec

__all__ = ["Action", "Member", "Plan", "PlannedTensor", "Skipped", "Term"]

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
class PlannedTensor:
    """A tensor of the output: out = (Σ weight · term) / divisor in float64, rounded once to `output.dtype`.

    Attributes:
        id: (section, name).
        action: What becomes of it.
        output: As it shall be written.
        terms: In canonical order (by step, then by name), which fixes the order of summation. Terms of weight 0 are
            left out for action "average", so that they are never read.
        newest: Index into `terms` of the newest member's.
        must_equal: Pairs of tensors of one member that must hold the same values (byte for byte): the output ties two
            names, and in this member they are two tensors.
    """

    id: TensorId
    action: Action
    output: OutputTensor
    terms: tuple[Term, ...]
    newest: int = 0
    must_equal: tuple[tuple[str, TensorSpec, TensorSpec], ...] = ()


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        members: In canonical order: by step where steps are known, then by name.
        newest: Index into `members` of the newest.
        divisor: What each sum is divided by: the number of members for a uniform mean (so that N identical members
            give the same bits back), 1 for any other coefficients.
        tensors: What is computed, in output order. Of tied tensors only the first is here.
        skipped: What was seen and left out, with reasons.
        notes: Sentences that the user should read.
        warnings: Sentences that the user must read.
        output: Path of the output.
        force: Whether an existing output may be replaced.
        allow_nonfinite: Whether NaN and infinity may pass.
        format: Name of the output's format.
        artifact: What the format was asked to lay out.
        files: The output, laid out.
        summary: The facts that `--json` prints: counts and sizes, JSON-able.
    """

    members: tuple[Member, ...]
    newest: int
    divisor: float
    tensors: tuple[PlannedTensor, ...]
    output: Path
    format: str
    artifact: Artifact
    files: tuple[OutputFile, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    force: bool = False
    allow_nonfinite: bool = False
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes_to_read(self) -> int:
        """Bytes of weights that will be read, all members together."""
        terms = sum(term.tensor.nbytes for tensor in self.tensors for term in tensor.terms)
        return terms + sum(copy.source.nbytes for file in self.files for copy in file.copies)

    @property
    def bytes_to_write(self) -> int:
        """Size of the output."""
        return sum(file.nbytes for file in self.files)
