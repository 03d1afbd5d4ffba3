"""Does the tasks of plans on a few threads: reads, adds, rounds, writes."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ckpttool.checksums.by_kind import checksum, combined
from ckpttool.engine import numerics
from ckpttool.engine.chunk_reader import read_chunk
from ckpttool.engine.neighbours import TensorTask
from ckpttool.engine.nonfinite import count_nonfinite, has_nonfinite, settle_infinities
from ckpttool.engine.output import StagedOutput
from ckpttool.engine.tasks import Chunk, Comparison, Copying, SumRecipe, Task, not_tied
from ckpttool.errors import NonFiniteError
from ckpttool.planning.plan import Plan
from ckpttool.reading import dtypes
from ckpttool.reading.scratch import Scratch
from ckpttool.reading.strided import View
from ckpttool.reading.tiled import PiecedView
from ckpttool.reading.verification import Verification
from ckpttool.tensors import ChecksumKind, TensorId
from ckpttool.text import parameter

__all__ = ["CHUNK_ELEMENTS", "Work", "default_jobs"]

Bytes: TypeAlias = NDArray[np.uint8]

CHUNK_ELEMENTS = 1 << 18
"""Elements that are summed at a time: large enough that Python's part does not show, small enough for the cache."""

_MOST_JOBS = 4
_REPORT_BYTES = 1 << 26
"""A thread reports after so many bytes: each report wakes the main thread, which takes a core from the work."""


def default_jobs() -> int:
    """Number of threads where none is asked for: the cores that this process may use, at most four."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    return min(cores, _MOST_JOBS)


def _checksums_wanted(plan: Plan) -> list[ChecksumKind | None]:
    """For each file of a plan the checksum that some seal asks for."""
    names = {file.checksums_of or file.name for file in plan.files if file.seal is not None}
    return [file.checksum if file.name in names else None for file in plan.files]


class Work:
    """The doing of tasks: what the threads share.

    Attributes:
        differing: For each plan, the tensors taken from the newest member that differ in another.
        infinite: For each plan, the averaged tensors with infinities that every member has.
    """

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
        jobs = max(1, min(default_jobs() if jobs is None else jobs, len(tasks)))
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
        scratch = Scratch()
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

    def _do(self, task: Task, scratch: Scratch) -> int:
        if isinstance(task, Chunk):
            return self._sum(task, scratch)
        if isinstance(task, Copying):
            return self._copy(task, scratch)
        if isinstance(task, Verification):
            task.read(scratch)
            return 0  # these bytes were counted where they were read for their own sake
        return _compare(task, scratch)

    def _copy(self, task: Copying, scratch: Scratch) -> int:
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

    def _sum(self, chunk: Chunk, scratch: Scratch) -> int:
        """Read, add, round and write one chunk."""
        raws = read_chunk(chunk, scratch)
        for index, how in enumerate(chunk.recipe.sums):
            if how is None:
                continue
            terms = [raws[view] for view in how.views]
            if how.action == "average":
                result, nonfinite = numerics.weighted_mean(how.weighting, terms, scratch)
            else:
                result = self._newest(index, how, chunk, terms, scratch)
                nonfinite = how.is_averaged and has_nonfinite(result, how.weighting.out_dtype)
            if nonfinite and how.is_averaged and not self._plans[index].allow_nonfinite:
                self._settle_infinities(index, how, chunk, terms, result, scratch)
            self._write_chunk(index, chunk, result)
        return sum(raw.nbytes for raw in raws)

    def _newest(self, index: int, how: SumRecipe, chunk: Chunk, terms: Sequence[Bytes], scratch: Scratch) -> Bytes:
        """The newest member's values, after comparing every other's with them."""
        lanes = chunk.recipe.lanes
        newest, base = how.weighting.dtypes[how.newest], terms[how.newest]
        for term, (dtype, other) in enumerate(zip(how.weighting.dtypes, terms, strict=True)):
            if term == how.newest or numerics.same_values(base, newest, other, dtype):
                continue
            for position, tensor, start, stop in chunk.parts():
                ends = (position * lanes, (position + stop - start) * lanes)
                if not numerics.same_values(_part(base, newest, *ends), newest, _part(other, dtype, *ends), dtype):
                    self._note_difference(index, how, tensor, term, scratch)
        return numerics.convert(base, newest, how.weighting.out_dtype, scratch)

    def _note_difference(self, index: int, how: SumRecipe, tensor: TensorTask, term: int, scratch: Scratch) -> None:
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
        raise planned.equality.violated(planned.id, planned.output.dtype, newest, other)

    def _write_chunk(self, index: int, chunk: Chunk, result: Bytes) -> None:
        """Write each range at its place; neighbours that are neighbours there, too, in one go."""
        element = result.nbytes // chunk.size
        stage = self._stages[index]
        sealed = self._sealed[index]
        run_file = run_offset = -1
        run_start = run_end = 0
        position = 0
        for tensor, start, stop in chunk.ranges:
            place = tensor.places[index]
            assert place is not None
            file, slot = place.file, place.offset
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
        self, index: int, how: SumRecipe, chunk: Chunk, terms: Sequence[Bytes], result: Bytes, scratch: Scratch
    ) -> None:
        """Let infinities that are the same in every member stay, as those of a mask are; refuse all else."""
        where = settle_infinities(result, how.weighting.out_dtype, terms, how.weighting.dtypes)
        if where is None:
            raise self._explain_nonfinite(index, how, chunk, result, scratch)
        for position, tensor, start, stop in chunk.parts():
            first, last = np.searchsorted(where // chunk.recipe.lanes, [position, position + stop - start])
            planned = tensor.planned[index]
            if first < last and planned is not None:
                with self._lock:
                    self.infinite[index].add(planned.id)

    def _explain_nonfinite(
        self, index: int, how: SumRecipe, chunk: Chunk, result: Bytes, scratch: Scratch
    ) -> NonFiniteError:
        """Find the tensor, and the member that is to blame."""
        lanes, dtype = chunk.recipe.lanes, how.weighting.out_dtype
        tensor = next(
            tensor
            for position, tensor, start, stop in chunk.parts()
            if has_nonfinite(_part(result, dtype, position * lanes, (position + stop - start) * lanes), dtype)
        )
        planned = tensor.planned[index]
        assert planned is not None
        members = self._plans[index].members
        step = CHUNK_ELEMENTS
        terms = [how.newest] if how.action != "average" else range(len(how.views))
        for term in terms:
            view = tensor.views[how.views[term]]
            _verify(view, scratch)
            count = 0
            for start in range(0, tensor.numel, step):
                stop = min(tensor.numel, start + step)
                raw = scratch.take("explain", (stop - start) * view.itemsize, np.uint8)
                view.read_into(raw, start, stop, tensor.label, scratch)
                if view.swap:
                    dtypes.swap_bytes(raw, view.component)
                count += count_nonfinite(raw, view.component)
            if count:
                path = members[planned.terms[term].member].checkpoint.path
                total = tensor.numel * lanes
                return NonFiniteError(
                    f"{path}: {tensor.label} holds NaN or infinity ({count:,} of {total:,} values)",
                    path=path,
                    tensor=tensor.label,
                    hint=f"Leave this checkpoint out, or let such values pass: {parameter('allow_nonfinite', True)}.",
                )
        return NonFiniteError(
            f"{tensor.label}: an average is too great for {planned.output.dtype}",
            tensor=tensor.label,
            hint=f"Choose a greater range: {parameter('dtype', 'float32')} or {parameter('dtype', 'bfloat16')}.",
        )


def _part(raw: Bytes, dtype: str, start: int, stop: int) -> Bytes:
    """Numbers [start, stop) of a chunk's bytes."""
    itemsize = dtypes.numpy_dtype(dtype).itemsize
    return raw[start * itemsize : stop * itemsize]


def _verify(view: View | PiecedView, scratch: Scratch) -> None:
    """Make sure, before its values are blamed, that a tensor is what was written."""
    if isinstance(view, View) and view.verification is not None:
        view.verification.read(scratch)


def _compare(task: Comparison, scratch: Scratch) -> int:
    total = 0
    buffers = []
    for number, view in enumerate(task.views):
        raw = scratch.take(f"compare {number}", (task.stop - task.start) * view.itemsize, np.uint8)
        view.read_into(raw, task.start, task.stop, (task.label, task.other)[number], scratch)
        if isinstance(view, View) and view.verification is not None and view.verification.reader is view:
            value = checksum(view.verification.stated.kind, raw.data)
            view.verification.note(task.start * view.itemsize, raw.nbytes, value)
        if view.swap:
            dtypes.swap_bytes(raw, view.component)
        total += raw.nbytes
        buffers.append(raw)
    if not np.array_equal(buffers[0], buffers[1]):
        for view in task.views:
            _verify(view, scratch)
        raise not_tied(task.path, task.label, task.other)
    return total
