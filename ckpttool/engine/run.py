"""Executes plans: read, add, write; then publish.

Every tensor is cut into chunks; each chunk is read from all members, summed, rounded and written at its place by one
of a few threads. Small tensors of the same recipe share a chunk. Neither the order in which chunks are done, nor
their size, nor the number of threads shows in the output, because every element is the same sum of the same terms in
the same order wherever it is computed. Memory is a few chunks, whatever the model's size.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ckpttool.checksums.by_kind import checksum, combined
from ckpttool.engine import numerics
from ckpttool.engine.output import StagedOutput, check_output, terminate_as_interrupt
from ckpttool.engine.piece_io import PiecedView, read_values
from ckpttool.engine.storage_io import Source, Sources, View
from ckpttool.engine.tasks import (
    Chunk,
    Comparison,
    Copying,
    Preparation,
    SumRecipe,
    Task,
    TensorTask,
    not_tied,
)
from ckpttool.engine.verification import Verification
from ckpttool.errors import CkpttoolError, MismatchError, NonFiniteError, UsageError
from ckpttool.formats import get_format
from ckpttool.matching import spoken
from ckpttool.plan import Plan
from ckpttool.tensors import ChecksumKind, TensorId, TensorSpec

__all__ = ["Result", "execute", "execute_together", "expected_memory", "read_values"]

Bytes: TypeAlias = NDArray[np.uint8]

CHUNK_ELEMENTS = 1 << 18
"""Elements that are summed at a time: large enough that Python's part does not show, small enough for the cache."""

_MOST_JOBS = 4
_REPORT_BYTES = 1 << 26
"""A thread reports after so many bytes: each report wakes the main thread, which takes a core from the work."""
_PROCESS_BYTES = 44_000_000
"""Measured: the interpreter with click, numpy and ml_dtypes imported."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was done.

    Attributes:
        output: Path of the output.
        bytes_read: From the members' files, as tensors and as verbatim copies.
        bytes_written: Size of the output.
        seconds: Wall-clock time.
        differing: Tensors taken from the newest member that did not hold the same values in every member.
        infinite: Averaged tensors with infinities that are the same in every member, and so in the output.
    """

    output: Path
    bytes_read: int
    bytes_written: int
    seconds: float
    differing: tuple[TensorId, ...] = ()
    infinite: tuple[TensorId, ...] = ()


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
    outputs = {os.path.realpath(plan.output) for plan in plans}
    if len(outputs) < len(plans):
        raise UsageError("two plans have the same output", hint="Give every output a path of its own.")
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(terminate_as_interrupt())
        inputs = _input_paths(plans)
        for plan in plans:
            check_output(plan.output, plan.files, force=plan.force, inputs=inputs)
        first_parent = Path(os.path.realpath(plans[0].output)).parent
        sources = stack.enter_context(contextlib.closing(Sources(first_parent if first_parent.is_dir() else None)))
        preparation = Preparation(plans, sources)
        tasks = preparation.tasks(max(1, chunk_elements))
        stages = [
            stack.enter_context(StagedOutput(plan.output, plan.files, force=plan.force, inputs=inputs))
            for plan in plans
        ]
        run = _Run(plans, stages)
        bytes_read = run.do(tasks, jobs, on_progress or _ignore)
        sources.check_unchanged()
        preparation.check_verified()
        run.seal()
        for plan, stage in zip(plans, stages, strict=True):
            stage.publish(_verifier(plan))
    seconds = time.perf_counter() - began
    return [
        Result(
            output=plan.output,
            bytes_read=bytes_read,
            bytes_written=plan.bytes_to_write,
            seconds=seconds,
            differing=tuple(tensor.id for tensor in plan.tensors if tensor.id in differing),
            infinite=tuple(tensor.id for tensor in plan.tensors if tensor.id in infinite),
        )
        for plan, differing, infinite in zip(plans, run.differing, run.infinite, strict=True)
    ]


def expected_memory(jobs: int | None = None) -> int:
    """Peak memory, in bytes, that executing a plan takes in a process of its own, whatever the size of the model.

    Python with numpy, and for each thread a few buffers of a chunk: bytes as read, sum, product, bytes to write.
    """
    threads = jobs if jobs is not None else min(_available_cores(), _MOST_JOBS)
    return _PROCESS_BYTES + threads * 4 * 8 * CHUNK_ELEMENTS


def _ignore(nbytes: int) -> None:
    """No one wants to know."""


def _input_paths(plans: Sequence[Plan]) -> tuple[Path, ...]:
    """Every file that belongs to a member, each once."""
    paths = {
        path: None
        for plan in plans
        for member in plan.members
        for path in (member.checkpoint.path, *member.checkpoint.files)
    }
    for plan in plans:
        for tensor in plan.tensors:
            paths.update((part.storage.path, None) for term in tensor.terms for part in _parts(term.tensor))
    return tuple(paths)


# ---------------------------------------------------------------------------------------------------------------
# Doing it


def _checksums_wanted(plan: Plan) -> list[ChecksumKind | None]:
    """For each file of a plan the checksum that some seal asks for."""
    names = {file.checksums_of or file.name for file in plan.files if file.seal is not None}
    return [file.checksum if file.name in names else None for file in plan.files]


class _Run:
    """The tasks' doing: what the threads share."""

    def __init__(self, plans: Sequence[Plan], stages: Sequence[StagedOutput]) -> None:
        self._plans = plans
        self._stages = stages
        self._sealed = [_checksums_wanted(plan) for plan in plans]
        self._checksums: dict[tuple[int, int, int], list[tuple[int, int, int]]] = {}
        self._lock = threading.Lock()
        self.differing: list[set[TensorId]] = [set() for _ in plans]
        self.infinite: list[set[TensorId]] = [set() for _ in plans]

    def do(self, tasks: Sequence[Task], jobs: int | None, on_progress: Callable[[int], None]) -> int:
        """Do every task on a few threads, and report to `on_progress` from this one.

        Returns:
            The number of bytes read.
        """
        if jobs is None:
            jobs = min(_available_cores(), _MOST_JOBS)
        jobs = max(1, min(jobs, len(tasks)))
        results: queue.SimpleQueue[tuple[int, int | BaseException]] = queue.SimpleQueue()
        pending = iter(enumerate(tasks))
        stop = threading.Event()
        threads = [
            threading.Thread(target=self._work, args=(pending, results, stop), name=f"ckpttool-{number}", daemon=True)
            for number in range(jobs)
        ]
        total = 0
        failures: list[tuple[int, BaseException]] = []
        try:
            for thread in threads:
                thread.start()
            running = jobs
            while running:
                number, outcome = results.get()
                if number < 0:
                    running -= 1
                if isinstance(outcome, BaseException):
                    failures.append((number, outcome))
                    stop.set()
                elif outcome:
                    total += outcome
                    on_progress(outcome)
        finally:
            stop.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        if failures:
            raise min(failures, key=lambda failure: failure[0])[1]
        return total

    def _work(
        self,
        pending: Iterator[tuple[int, Task]],
        results: queue.SimpleQueue[tuple[int, int | BaseException]],
        stop: threading.Event,
    ) -> None:
        """One thread: tasks until there are none, or until one has failed."""
        scratch = numerics.Scratch()
        number = unreported = 0
        try:
            while not stop.is_set():
                with self._lock:
                    number, task = next(pending, (-1, None))
                if task is None:
                    break
                with np.errstate(all="ignore"):  # what is not finite in the end is found by looking
                    unreported += self._do(task, scratch)
                if unreported >= _REPORT_BYTES:
                    results.put((number, unreported))
                    unreported = 0
        except BaseException as error:  # noqa: BLE001  # raised again where the run was started
            results.put((number, error))
        finally:
            results.put((-1, unreported))

    def _do(self, task: Task, scratch: numerics.Scratch) -> int:
        if isinstance(task, Chunk):
            return self._sum(task, scratch)
        if isinstance(task, Copying):
            return self._copy(task, scratch)
        if isinstance(task, Verification):
            task.read(scratch)
            return 0  # these bytes were counted where they were read for their own sake
        return _compare(task, scratch)

    def _copy(self, task: Copying, scratch: numerics.Scratch) -> int:
        data = scratch.take("raw", task.nbytes, np.uint8)
        task.source.read_into(data.data, task.position, "its training state")
        self._stages[task.plan].write(task.file, task.slot + task.start, data.data)
        sealed, verification = self._sealed[task.plan][task.file], task.verification
        value = None
        if sealed is not None:
            value = self._note_checksum(task.plan, task.file, task.slot, task.start, data, sealed)
        if verification is not None:
            kind = verification.stated.kind
            verification.note(
                task.start, task.nbytes, value if value is not None and kind == sealed else checksum(kind, data.data)
            )
        return task.nbytes

    def _note_checksum(self, plan: int, file: int, slot: int, start: int, data: Bytes, kind: ChecksumKind) -> int:
        """Keep the checksum of part of a slot or copy until the file is sealed."""
        value = checksum(kind, data.data)
        with self._lock:
            self._checksums.setdefault((plan, file, slot), []).append((start, value, data.nbytes))
        return value

    def seal(self) -> None:
        """Write what could only be known once the contents were: the checksums."""
        for index, plan in enumerate(self._plans):
            numbers = {file.name: number for number, file in enumerate(plan.files)}
            for number, file in enumerate(plan.files):
                if file.seal is None:
                    continue
                summed = number if file.checksums_of is None else numbers[file.checksums_of]
                for offset, data in file.seal(self._checksums_of(index, summed)):
                    self._stages[index].write(number, offset, data)

    def _checksums_of(self, index: int, number: int) -> dict[int, int]:
        """The checksum of each slot and copy of a file, by offset."""
        file = self._plans[index].files[number]
        offsets = [slot.offset for slot in file.slots] + [copy.offset for copy in file.copies]
        return {
            offset: combined(
                file.checksum,
                ((value, nbytes) for _, value, nbytes in sorted(self._checksums.get((index, number, offset), ()))),
            )
            for offset in offsets
        }

    def _sum(self, chunk: Chunk, scratch: numerics.Scratch) -> int:
        """Read, add, round and write one chunk."""
        recipe = chunk.recipe
        reader = _ChunkReader(chunk, scratch, keep=recipe.keeps)
        for index, how in enumerate(recipe.sums):
            if how is None:
                continue
            if how.action == "average":
                result = numerics.weighted_mean(
                    how.operands,
                    lambda term, how=how: reader.fetch(how.views[term]),  # type: ignore[misc]
                    divisor=how.divisor,
                    dtype=how.component,
                    scratch=scratch,
                    kept=recipe.keeps,
                )
            else:
                result = self._newest(index, how, chunk, reader, scratch)
            if (
                how.is_averaged
                and not self._plans[index].allow_nonfinite
                and numerics.has_nonfinite(result, how.component)
            ):
                self._settle_infinities(index, how, chunk, reader, result, scratch)
            self._write_chunk(index, chunk, result)
        return reader.bytes_read

    def _newest(
        self, index: int, how: SumRecipe, chunk: Chunk, reader: _ChunkReader, scratch: numerics.Scratch
    ) -> Bytes:
        """The newest member's values, after comparing every other's with them."""
        newest = how.operands[how.newest].dtype
        base = scratch.take("base", chunk.size * chunk.recipe.lanes, numerics.numpy_dtype(newest)).view(np.uint8)
        base[:] = reader.fetch(how.views[how.newest])
        for term, operand in enumerate(how.operands):
            if term == how.newest:
                continue
            other = reader.fetch(how.views[term])
            if numerics.same_values(base, newest, other, operand.dtype):
                continue
            for position, (tensor, start, stop) in chunk.positions():
                ends = (position * chunk.recipe.lanes, (position + stop - start) * chunk.recipe.lanes)
                if numerics.same_values(
                    _part(base, newest, *ends), newest, _part(other, operand.dtype, *ends), operand.dtype
                ):
                    continue
                self._note_difference(index, how, tensor, term, scratch)
        if newest == how.component:
            return base
        return numerics.convert(base, newest, how.component, scratch)

    def _note_difference(
        self, index: int, how: SumRecipe, tensor: TensorTask, term: int, scratch: numerics.Scratch
    ) -> None:
        planned = tensor.planned[index]
        assert planned is not None
        if how.action == "newest":
            with self._lock:
                self.differing[index].add(planned.id)
            return
        for number in (how.newest, term):
            _verify(tensor.views[how.views[number]], scratch)
        members = self._plans[index].members
        newest, other = (members[planned.terms[number].member].checkpoint.path for number in (how.newest, term))
        raise MismatchError(
            f"{tensor.label} ({planned.output.dtype}) is not the same in {other} and {newest}",
            path=other,
            tensor=tensor.label,
            hint="Such tensors are not averaged. Take the newest one's with --integers newest.",
        )

    def _write_chunk(self, index: int, chunk: Chunk, result: Bytes) -> None:
        """Write each piece at its place; neighbours that are neighbours there, too, in one go."""
        element = result.nbytes // chunk.size
        stage = self._stages[index]
        sealed = self._sealed[index]
        run_file = run_offset = -1
        run_start = run_end = 0
        position = 0
        for tensor, start, stop in chunk.pieces:
            place = tensor.places[index]
            assert place is not None
            file, slot = place
            offset = slot + start * element
            end = position + (stop - start) * element
            kind = sealed[file]
            if kind is not None:
                self._note_checksum(index, file, slot, start, result[position:end], kind)
            if file == run_file and offset == run_offset + run_end - run_start:
                run_end = end
            else:
                if run_end > run_start:
                    stage.write(run_file, run_offset, result[run_start:run_end].data)
                run_file, run_offset, run_start, run_end = file, offset, position, end
            position = end
        stage.write(run_file, run_offset, result[run_start:run_end].data)

    def _settle_infinities(
        self, index: int, how: SumRecipe, chunk: Chunk, reader: _ChunkReader, result: Bytes, scratch: numerics.Scratch
    ) -> None:
        """Let infinities that are the same in every member stay, as those of a mask are; refuse all else."""
        where = numerics.settle_infinities(
            result, how.component, how.operands, lambda term: reader.fetch(how.views[term])
        )
        if where is None:
            raise self._explain_nonfinite(index, how, chunk, result, scratch)
        for position, (tensor, start, stop) in chunk.positions():
            first, last = np.searchsorted(where // chunk.recipe.lanes, [position, position + stop - start])
            planned = tensor.planned[index]
            if first < last and planned is not None:
                with self._lock:
                    self.infinite[index].add(planned.id)

    def _explain_nonfinite(
        self, index: int, how: SumRecipe, chunk: Chunk, result: Bytes, scratch: numerics.Scratch
    ) -> NonFiniteError:
        """Find the tensor, and the member that is to blame."""
        lanes = chunk.recipe.lanes
        tensor = next(
            tensor
            for position, (tensor, start, stop) in chunk.positions()
            if numerics.has_nonfinite(
                _part(result, how.component, position * lanes, (position + stop - start) * lanes), how.component
            )
        )
        planned = tensor.planned[index]
        assert planned is not None
        members = self._plans[index].members
        step = CHUNK_ELEMENTS
        terms = [how.newest] if how.action != "average" else range(len(how.operands))
        for term in terms:
            view = tensor.views[how.views[term]]
            _verify(view, scratch)
            count = 0
            for start in range(0, tensor.numel, step):
                stop = min(tensor.numel, start + step)
                raw = scratch.take("explain", (stop - start) * view.itemsize, np.uint8)
                view.read_into(raw, start, stop, tensor.label, scratch)
                if view.swap:
                    numerics.swap_bytes(raw, view.component)
                count += numerics.count_nonfinite(raw, view.component)
            if count:
                path = members[planned.terms[term].member].checkpoint.path
                total = tensor.numel * lanes
                return NonFiniteError(
                    f"{path}: {tensor.label} holds NaN or infinity ({count:,} of {total:,} values)",
                    path=path,
                    tensor=tensor.label,
                    hint="Leave this checkpoint out, or let such values pass with --allow-nonfinite.",
                )
        return NonFiniteError(
            f"{tensor.label}: an average is too great for {planned.output.dtype}",
            tensor=tensor.label,
            hint="Choose a dtype with a greater range: --dtype float32, or --dtype bfloat16.",
        )


class _ChunkReader:
    """Reads a chunk's terms; each once where several plans want them."""

    def __init__(self, chunk: Chunk, scratch: numerics.Scratch, *, keep: bool) -> None:
        self._chunk = chunk
        self._scratch = scratch
        self._keep = keep
        self._known: dict[int, Bytes] = {}
        self._seen: set[int] = set()
        self.bytes_read = 0

    def fetch(self, index: int) -> Bytes:
        """The bytes of view `index` of every piece, one after another, in native order."""
        known = self._known.get(index)
        if known is not None:
            return known
        chunk, recipe = self._chunk, self._chunk.recipe
        itemsize = chunk.pieces[0][0].views[index].itemsize
        buffer = self._scratch.take(f"raw {index}" if self._keep else "raw", chunk.size * itemsize, np.uint8)
        run_source: Source | None = None
        run_offset = run_start = run_end = position = 0
        label = ""
        checked: list[tuple[Verification, int, int, int]] = []
        for tensor, start, stop in chunk.pieces:
            view = tensor.views[index]
            end = position + (stop - start) * itemsize
            if isinstance(view, PiecedView) or view.shape is not None:
                view.read_into(buffer[position:end], start, stop, tensor.label, self._scratch)
                position = end
                continue
            offset = view.base + start * itemsize
            if view.verification is not None and view.verification.reader is view:
                checked.append((view.verification, start * itemsize, position, end))
            if view.source is run_source and position == run_end and offset == run_offset + run_end - run_start:
                run_end = end
            else:
                if run_source is not None:
                    run_source.read_into(buffer[run_start:run_end].data, run_offset, label)
                run_source, run_offset, run_start, run_end = view.source, offset, position, end
                label = tensor.label
            position = end
        if run_source is not None:
            run_source.read_into(buffer[run_start:run_end].data, run_offset, label)
        if index not in self._seen:
            self._seen.add(index)
            self.bytes_read += buffer.nbytes
            for verification, at, begin, end in checked:
                part = buffer[begin:end]
                verification.note(at, part.nbytes, checksum(verification.stated.kind, part.data))
        if recipe.swaps[index]:
            numerics.swap_bytes(buffer, recipe.components[index])
        if self._keep:
            self._known[index] = buffer
        return buffer


def _part(raw: Bytes, dtype: str, start: int, stop: int) -> Bytes:
    """Numbers [start, stop) of a chunk's bytes."""
    itemsize = numerics.numpy_dtype(dtype).itemsize
    return raw[start * itemsize : stop * itemsize]


def _verify(view: View | PiecedView, scratch: numerics.Scratch) -> None:
    """Make sure, before its values are blamed, that a tensor is what was written."""
    if isinstance(view, View) and view.verification is not None:
        view.verification.read(scratch)


def _compare(task: Comparison, scratch: numerics.Scratch) -> int:
    total = 0
    buffers = []
    for number, view in enumerate(task.views):
        raw = scratch.take(f"compare {number}", (task.stop - task.start) * view.itemsize, np.uint8)
        view.read_into(raw, task.start, task.stop, (task.label, task.other)[number], scratch)
        if isinstance(view, View) and view.verification is not None and view.verification.reader is view:
            value = checksum(view.verification.stated.kind, raw.data)
            view.verification.note(task.start * view.itemsize, raw.nbytes, value)
        if view.swap:
            numerics.swap_bytes(raw, view.component)
        total += raw.nbytes
        buffers.append(raw)
    if not np.array_equal(buffers[0], buffers[1]):
        for view in task.views:
            _verify(view, scratch)
        raise not_tied(task.path, task.label, task.other)
    return total


def _available_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


# ---------------------------------------------------------------------------------------------------------------
# Looking at what was written


def _verifier(plan: Plan) -> Callable[[Path], None]:
    """A check that the written file, read like any other, has the planned tensors in the planned places."""

    def verify(path: Path) -> None:
        template = plan.artifact.template
        section = template.section if template is not None and template.format == plan.format else None
        written = get_format(plan.format).read(path, section=section or None)
        found = {_place(part): part for spec in written.tensors().values() for part in _parts(spec)}
        for file in plan.files:
            place = path / file.name if file.name else path
            for slot in file.slots:
                output = plan.artifact.tensors[slot.tensor]
                shape = output.shape if slot.region is None else slot.region.sizes
                spec = found.get((place, slot.offset)) if slot.nbytes else None
                if slot.nbytes and (
                    spec is None or (spec.dtype, spec.shape, spec.strides) != (output.dtype, shape, output.strides)
                ):
                    raise CkpttoolError(
                        f"{plan.output}: {spoken(slot.tensor)} does not read back as planned; nothing was kept",
                        path=plan.output,
                        tensor=spoken(slot.tensor),
                        hint="This is a defect of ckpttool. Please report it with the plan (--dry-run --json).",
                    )

    return verify


def _parts(spec: TensorSpec) -> Sequence[TensorSpec]:
    """A tensor, or the pieces that it lies in."""
    return [piece.spec for piece in spec.pieces] or [spec]


def _place(spec: TensorSpec) -> tuple[Path, int]:
    """File and byte offset of a tensor's first element."""
    return spec.storage.path, spec.storage.offset + spec.offset * spec.dtype.itemsize
