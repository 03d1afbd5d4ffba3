"""Executes plans: read, add, write; then publish.

Every tensor is cut into chunks; each chunk is read from all members, summed, rounded and written at its place by one
of a few threads. Small tensors of the same recipe share a chunk. Neither the order in which chunks are done, nor
their size, nor the number of threads shows in the output, because every element is the same sum of the same terms in
the same order wherever it is computed. Memory is a few chunks, whatever the model's size.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpttool.engine import kernels
from ckpttool.engine.output import StagedOutput
from ckpttool.engine.read_back import read_back
from ckpttool.engine.tasks import Preparation
from ckpttool.engine.work import CHUNK_ELEMENTS, Work, default_jobs
from ckpttool.planning.destination import check_destinations, destinations_of
from ckpttool.planning.plan import Plan
from ckpttool.reading.sources import Sources
from ckpttool.tensors import TensorId
from ckpttool.text import ending

__all__ = ["Result", "execute", "execute_together", "expected_memory"]

_PROCESS_BYTES = 44_000_000
"""Measured: the interpreter with click, numpy and ml_dtypes imported."""

_TENSOR_BYTES = 5_000
"""Measured: what the output's layout and the file that it is read back from take for each tensor; 3 to 6 kB."""

_PART_BYTES = 600
"""Measured: a member's tensor, or a slice of one, with the view that reads it."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was done.

    Attributes:
        output: Path of the output.
        bytes_read: From the members' files, as tensors and as verbatim copies.
        bytes_written: Size of the output.
        bytes_verified: Of the bytes read, those that were compared with the checksums that the files state.
        seconds: Wall-clock time.
        kernel: What computed the sums: avx512, avx2, neon or baseline (compiled), or numpy.
        differing: Tensors taken from the newest member that did not hold the same values in every member.
        infinite: Averaged tensors with infinities that are the same in every member, and so in the output.
    """

    output: Path
    bytes_read: int
    bytes_written: int
    bytes_verified: int
    seconds: float
    kernel: str
    differing: tuple[TensorId, ...] = ()
    infinite: tuple[TensorId, ...] = ()

    def __repr__(self) -> str:
        found = {"differing": self.differing, "infinite": self.infinite}
        counts = "".join(f", {len(names):,} {what}" for what, names in found.items() if names)
        return (
            f"<Result {ending(self.output)}: {self.bytes_read:,} bytes read, {self.bytes_written:,} written in "
            f"{self.seconds:.3g} s{counts}>"
        )


def execute(
    plan: Plan,
    *,
    jobs: int | None = None,
    on_progress: Callable[[int], None] | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Result:
    """Do what a plan says.

    Args:
        plan: What to do.
        jobs: Number of threads; the number of cores, at most four, by default.
        on_progress: Is given the bytes read since it was called last; always called from the calling thread.
        chunk_elements: Elements that are summed at a time. The output does not depend on it.

    Raises:
        MismatchError: Values differ that must be equal.
        NonFiniteError: A member holds NaN or infinity, or an average is too great for the output's dtype.
        OutputExistsError: The output exists, or is an input.
        UnreadableError: An input is truncated or corrupt, or changed while it was read.
        WriteError: The output could not be written.
    """
    return execute_together([plan], jobs=jobs, on_progress=on_progress, chunk_elements=chunk_elements)[0]


def execute_together(
    plans: Sequence[Plan],
    *,
    jobs: int | None = None,
    on_progress: Callable[[int], None] | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> list[Result]:
    """Execute plans that weigh the same checkpoints differently, reading each input once.

    The outputs are the same as from one `execute` after the other. They are published when all of them are complete.

    Args:
        plans: Plans of the same tensors with outputs of their own.
        jobs: As for `execute`.
        on_progress: As for `execute`.
        chunk_elements: As for `execute`.

    Raises:
        UsageError: The plans are not about the same tensors, or two have the same output.
        CkpttoolError: As for `execute`.
    """
    if not plans:
        return []
    began = time.perf_counter()
    kernel = kernels.active().name
    with contextlib.ExitStack() as stack:
        destinations = destinations_of(plans)
        check_destinations(destinations)
        first_parent = destinations[0].target.parent
        identities = {
            path: identity
            for plan in plans
            for member in plan.members
            for path, identity in member.checkpoint.identities.items()
        }
        inflating = first_parent if first_parent.is_dir() else None
        sources = stack.enter_context(contextlib.closing(Sources(inflating, identities)))
        preparation = Preparation(plans, sources)
        tasks = preparation.tasks(max(1, chunk_elements))
        stages = [
            stack.enter_context(StagedOutput(destination, plan.files))
            for destination, plan in zip(destinations, plans, strict=True)
        ]
        work = Work(plans, stages)
        bytes_read = work.do(tasks, jobs, on_progress or _ignore)
        sources.check_unchanged()
        preparation.check_verified()
        work.seal()
        for plan, stage in zip(plans, stages, strict=True):
            stage.publish(read_back(plan))
    seconds = time.perf_counter() - began
    return [
        Result(
            output=plan.output,
            bytes_read=bytes_read,
            bytes_written=plan.bytes_to_write,
            bytes_verified=preparation.bytes_verified,
            seconds=seconds,
            kernel=kernel,
            differing=tuple(tensor.id for tensor in plan.tensors if tensor.id in differing),
            infinite=tuple(tensor.id for tensor in plan.tensors if tensor.id in infinite),
        )
        for plan, differing, infinite in zip(plans, work.differing, work.infinite, strict=True)
    ]


def expected_memory(plans: Sequence[Plan], jobs: int | None = None) -> int:
    """Peak memory, in bytes, that executing plans together takes in a process of its own, however large their tensors.

    Python with numpy; for each thread a few buffers of a chunk: bytes as read, sum, product, bytes to write; and what
    is known of each tensor, and of each part of a file that is read for it.
    """
    threads = jobs if jobs is not None else default_jobs()
    parts = (sum(len(term.tensor.pieces) or 1 for tensor in plan.tensors for term in tensor.terms) for plan in plans)
    known = _TENSOR_BYTES * sum(len(plan.tensors) for plan in plans) + _PART_BYTES * max(parts, default=0)
    return _PROCESS_BYTES + threads * 4 * 8 * CHUNK_ELEMENTS + known


def _ignore(nbytes: int) -> None:
    """No one wants to know."""
