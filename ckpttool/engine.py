"""Executes plans: read, add, write; then publish.

Every tensor is cut into chunks; each chunk is read from all members, summed, rounded and written at its place by one
of a few threads. Small tensors of the same recipe share a chunk. Neither the order in which chunks are done, nor
their size, nor the number of threads shows in the output, because every element is the same sum of the same terms in
the same order wherever it is computed. Memory is a few chunks, whatever the model's size.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ckpttool import numerics
from ckpttool.checksums import combine_crc32
from ckpttool.chunks import narrow
from ckpttool.errors import CkpttoolError, MismatchError, NonFiniteError, UsageError
from ckpttool.formats import get_format
from ckpttool.output import StagedOutput, check_output, terminate_as_interrupt
from ckpttool.piece_io import PiecedView, open_view, read_values
from ckpttool.plan import Action, Plan, PlannedTensor
from ckpttool.storage_io import Source, Sources, View
from ckpttool.tensors import OutputTensor, Region, TensorId, TensorSpec

__all__ = ["Result", "execute", "execute_together", "expected_memory", "read_values"]

Bytes: TypeAlias = NDArray[np.uint8]

CHUNK_ELEMENTS = 1 << 18
"""Elements that are summed at a time: large enough that Python's part does not show, small enough for the cache."""

_SMALLEST_CHUNK = 1 << 14
_MOST_JOBS = 4
_COPY_BYTES = 1 << 20
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
        notes: Sentences that a user should read.
    """

    output: Path
    bytes_read: int
    bytes_written: int
    seconds: float
    differing: tuple[TensorId, ...] = ()
    notes: tuple[str, ...] = ()


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
        tasks = _Preparation(plans, sources).tasks(max(1, chunk_elements))
        stages = [
            stack.enter_context(StagedOutput(plan.output, plan.files, force=plan.force, inputs=inputs))
            for plan in plans
        ]
        run = _Run(plans, stages)
        bytes_read = run.do(tasks, jobs, on_progress or _ignore)
        sources.check_unchanged()
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
            notes=(),
        )
        for plan, differing in zip(plans, run.differing, strict=True)
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


def _label(tensor_id: TensorId) -> str:
    """A tensor as messages name it."""
    section, name = tensor_id
    return f"{section}.{name}" if section else name


# ---------------------------------------------------------------------------------------------------------------
# What is to be done


@dataclass(frozen=True, slots=True)
class _Sum:
    """How one plan's value of a tensor follows from the views that are read.

    Attributes:
        action: What becomes of it.
        operands: Dtype and weight of each term.
        views: For each term, which of the views it is.
        newest: Index of the newest term.
        divisor: What the sum is divided by.
        component: The output's real dtype.
        is_averaged: Whether NaN and infinity are looked for.
    """

    action: Action
    operands: tuple[numerics.Operand, ...]
    views: tuple[int, ...]
    newest: int
    divisor: float
    component: str
    is_averaged: bool


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What tensors must have in common to share a chunk."""

    sums: tuple[_Sum | None, ...]
    components: tuple[str, ...]
    swaps: tuple[bool, ...]
    lanes: int


@dataclass(slots=True)
class _Tensor:
    """A tensor with its views and its places; one PlannedTensor and one place for each plan that writes it."""

    label: str
    numel: int
    views: list[View | PiecedView]
    planned: list[PlannedTensor | None]
    places: list[tuple[int, int] | None]
    """For each plan, (index of the file, offset in it)."""


@dataclass(slots=True)
class _Chunk:
    """Parts of tensors that are summed together: (tensor, first element, one past the last)."""

    recipe: _Recipe
    pieces: list[tuple[_Tensor, int, int]] = field(default_factory=list)
    size: int = 0


@dataclass(frozen=True, slots=True)
class _Copying:
    """Bytes of an input that are written as they are."""

    plan: int
    file: int
    slot: int
    """Offset of the whole copy in the output file, by which its checksum is known."""
    start: int
    nbytes: int
    source: Source
    position: int


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Elements of two views that must be equal."""

    path: Path
    label: str
    other: str
    views: tuple[View | PiecedView, View | PiecedView]
    start: int
    stop: int


_Task: TypeAlias = "_Chunk | _Copying | _Comparison"


class _Place(NamedTuple):
    """Where in a plan's files a tensor, or a region of one, is written."""

    file: int
    offset: int
    nbytes: int


def _region_bytes(output: OutputTensor, region: Region | None) -> int:
    return output.nbytes if region is None else math.prod(region.sizes) * output.dtype.itemsize


class _Preparation:
    """Opens what the plans read, and cuts the work into tasks."""

    def __init__(self, plans: Sequence[Plan], sources: Sources) -> None:
        self._plans = plans
        self._sources = sources
        self._recipes: dict[_Recipe, _Recipe] = {}

    def tasks(self, chunk_elements: int) -> list[_Task]:
        """Everything that has to be done, in the order of the output's bytes."""
        tensors = self._tensors()
        tasks: list[_Task] = []
        self._compare(tasks, chunk_elements)
        open_chunks: dict[int, _Chunk] = {}
        for tensor, recipe in tensors:
            together = len(recipe.components) if len(self._plans) > 1 else 1
            limit = (
                chunk_elements
                if together == 1
                else max(min(_SMALLEST_CHUNK, chunk_elements), chunk_elements // together)
            )
            start = 0
            while start < tensor.numel:
                chunk = open_chunks.get(id(recipe))
                if chunk is None:
                    chunk = open_chunks[id(recipe)] = _Chunk(recipe)
                    tasks.append(chunk)
                stop = min(tensor.numel, start + limit - chunk.size)
                chunk.pieces.append((tensor, start, stop))
                chunk.size += stop - start
                if chunk.size >= limit:
                    del open_chunks[id(recipe)]
                start = stop
        self._copy(tasks)
        return tasks

    def _tensors(self) -> list[tuple[_Tensor, _Recipe]]:
        """The tensors that some plan has a place for, ordered by that place; of a tensor in pieces, each region."""
        places: list[dict[TensorId, dict[Region | None, _Place]]] = []
        for plan in self._plans:
            by_tensor: dict[TensorId, dict[Region | None, _Place]] = {}
            for index, file in enumerate(plan.files):
                for slot in file.slots:
                    place = _Place(index, slot.offset, slot.nbytes)
                    by_tensor.setdefault(slot.tensor, {})[slot.region] = place
            places.append(by_tensor)
        by_id = [{tensor.id: tensor for tensor in plan.tensors} for plan in self._plans]
        for index, plan in enumerate(self._plans):
            missing = next((key for key in places[index] if key not in by_id[index]), None)
            if missing is not None:
                raise CkpttoolError(f"{plan.output}: nothing was planned for {_label(missing)}", tensor=_label(missing))
            if index and by_id[index].keys() != by_id[0].keys():
                raise UsageError("the plans are not about the same tensors, and cannot be executed together")
        prepared = []
        for tensor_id in by_id[0]:
            planned = [by[tensor_id] for by in by_id]
            regions = dict.fromkeys(region for place in places for region in place.get(tensor_id, ()))
            for region in regions:
                where = [place.get(tensor_id, {}).get(region) for place in places]
                prepared.append((where[0] or _Place(0, 0, 0), self._tensor(tensor_id, region, planned, where)))
        prepared.sort(key=lambda entry: entry[0][:2])
        return [entry for _, entry in prepared]

    def _tensor(
        self,
        tensor_id: TensorId,
        region: Region | None,
        planned: list[PlannedTensor],
        where: list[_Place | None],
    ) -> tuple[_Tensor, _Recipe]:
        label = _label(tensor_id)
        output = planned[0].output
        views: list[View | PiecedView] = []
        known: dict[TensorSpec, int] = {}
        sums: list[_Sum | None] = []
        lanes = numerics.lanes(output.dtype)
        for plan, tensor, place in zip(self._plans, planned, where, strict=True):
            if place is None:
                sums.append(None)
                continue
            if tensor.output.shape != output.shape or tensor.output.strides != output.strides:
                raise UsageError(f"{label}: the plans store it in different ways, and cannot be executed together")
            taken = _region_bytes(tensor.output, region)
            if place.nbytes != taken:
                raise CkpttoolError(f"{plan.output}: {label} takes {taken} bytes, not {place.nbytes}", tensor=label)
            indices = []
            for term in tensor.terms:
                spec = term.tensor
                if spec.shape != output.shape or numerics.lanes(spec.dtype) != lanes:
                    raise MismatchError(
                        f"{plan.members[term.member].checkpoint.path}: {label} is {spec.dtype} {list(spec.shape)},"
                        f" and the output {output.dtype} {list(output.shape)}",
                        path=plan.members[term.member].checkpoint.path,
                        tensor=label,
                    )
                if region is not None:
                    spec = narrow(spec, region)
                index = known.get(spec) if len(self._plans) > 1 else None
                if index is None:
                    index = len(views)
                    views.append(open_view(spec, output.strides, self._sources, label))
                    if len(self._plans) > 1:
                        known[spec] = index
                indices.append(index)
            sums.append(
                _Sum(
                    tensor.action,
                    tuple(
                        [
                            numerics.Operand(views[index].component, term.weight)
                            for index, term in zip(indices, tensor.terms, strict=True)
                        ]
                    ),
                    tuple(indices),
                    tensor.newest,
                    plan.divisor if tensor.action == "average" else 1,
                    numerics.component(tensor.output.dtype),
                    tensor.output.dtype.is_averaged,
                )
            )
        recipe = _Recipe(
            tuple(sums), tuple([view.component for view in views]), tuple([view.swap for view in views]), lanes
        )
        recipe = self._recipes.setdefault(recipe, recipe)
        places = [None if place is None else (place.file, place.offset) for place in where]
        kept = [tensor if place is not None else None for tensor, place in zip(planned, where, strict=True)]
        numel = _region_bytes(output, region) // output.dtype.itemsize
        return _Tensor(label, numel, views, kept, places), recipe

    def _compare(self, tasks: list[_Task], chunk_elements: int) -> None:
        """Tasks that compare what the output ties and a member does not."""
        done = set()
        for plan in self._plans:
            for tensor in plan.tensors:
                for other, first, second in tensor.must_equal:
                    if (first, second) in done:
                        continue
                    done.add((first, second))
                    path, label = first.storage.path, _label(tensor.id)
                    if first.shape != second.shape or first.dtype != second.dtype:
                        raise _not_tied(path, label, other)
                    views = (
                        open_view(first, None, self._sources, label),
                        open_view(second, None, self._sources, other),
                    )
                    tasks.extend(
                        _Comparison(path, label, other, views, start, min(first.numel, start + chunk_elements))
                        for start in range(0, first.numel, chunk_elements)
                    )

    def _copy(self, tasks: list[_Task]) -> None:
        """Tasks that copy bytes of an input as they are."""
        for index, plan in enumerate(self._plans):
            for number, file in enumerate(plan.files):
                for copy in file.copies:
                    source, position = self._sources.locate(copy.source, "its training state")
                    tasks.extend(
                        _Copying(
                            index,
                            number,
                            copy.offset,
                            start,
                            min(_COPY_BYTES, copy.source.nbytes - start),
                            source,
                            position + start,
                        )
                        for start in range(0, copy.source.nbytes, _COPY_BYTES)
                    )


# ---------------------------------------------------------------------------------------------------------------
# Doing it


class _Run:
    """The tasks' doing: what the threads share."""

    def __init__(self, plans: Sequence[Plan], stages: Sequence[StagedOutput]) -> None:
        self._plans = plans
        self._stages = stages
        self._together = len(plans) > 1
        self._sealed = [[file.seal is not None for file in plan.files] for plan in plans]
        self._checksums: dict[tuple[int, int, int], list[tuple[int, int, int]]] = {}
        self._lock = threading.Lock()
        self.differing: list[set[TensorId]] = [set() for _ in plans]

    def do(self, tasks: Sequence[_Task], jobs: int | None, on_progress: Callable[[int], None]) -> int:
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
                elif isinstance(outcome, BaseException):
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
        pending: Iterator[tuple[int, _Task]],
        results: queue.SimpleQueue[tuple[int, int | BaseException]],
        stop: threading.Event,
    ) -> None:
        """One thread: tasks until there are none, or until one has failed."""
        scratch = numerics.Scratch()
        number = 0
        try:
            while not stop.is_set():
                with self._lock:
                    number, task = next(pending, (-1, None))
                if task is None:
                    break
                with np.errstate(all="ignore"):  # what is not finite in the end is found by looking
                    done = self._do(task, scratch)
                results.put((number, done))
        except BaseException as error:  # noqa: BLE001  # raised again where the run was started
            results.put((number, error))
        finally:
            results.put((-1, 0))

    def _do(self, task: _Task, scratch: numerics.Scratch) -> int:
        if isinstance(task, _Chunk):
            return self._sum(task, scratch)
        if isinstance(task, _Copying):
            return self._copy(task, scratch)
        return _compare(task, scratch)

    def _copy(self, task: _Copying, scratch: numerics.Scratch) -> int:
        data = scratch.take("raw", task.nbytes, np.uint8)
        task.source.read_into(data.data, task.position, "its training state")
        self._write(task.plan, task.file, task.slot, task.start, data)
        return task.nbytes

    def _write(self, plan: int, file: int, slot: int, start: int, data: Bytes) -> None:
        """Write part of a slot or copy, and keep its checksum where the file wants one."""
        self._stages[plan].write(file, slot + start, data.data)
        if self._sealed[plan][file]:
            self._note_checksum(plan, file, slot, start, data)

    def _note_checksum(self, plan: int, file: int, slot: int, start: int, data: Bytes) -> None:
        checksum = zlib.crc32(data.data)
        with self._lock:
            self._checksums.setdefault((plan, file, slot), []).append((start, checksum, data.nbytes))

    def seal(self) -> None:
        """Write what could only be known once the contents were: the checksums."""
        for index, plan in enumerate(self._plans):
            for number, file in enumerate(plan.files):
                if file.seal is None:
                    continue
                offsets = [slot.offset for slot in file.slots] + [copy.offset for copy in file.copies]
                checksums = {
                    offset: combine_crc32(
                        (checksum, nbytes)
                        for _, checksum, nbytes in sorted(self._checksums.get((index, number, offset), ()))
                    )
                    for offset in offsets
                }
                for offset, data in file.seal(checksums):
                    self._stages[index].write(number, offset, data)

    def _sum(self, chunk: _Chunk, scratch: numerics.Scratch) -> int:
        """Read, add, round and write one chunk."""
        recipe = chunk.recipe
        reader = _ChunkReader(chunk, scratch, keep=self._together)
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
                )
            else:
                result = self._newest(index, how, chunk, reader, scratch)
            if (
                how.is_averaged
                and not self._plans[index].allow_nonfinite
                and numerics.has_nonfinite(result, how.component)
            ):
                raise self._explain_nonfinite(index, how, chunk, result, scratch)
            self._write_chunk(index, chunk, result)
        return reader.bytes_read

    def _newest(self, index: int, how: _Sum, chunk: _Chunk, reader: _ChunkReader, scratch: numerics.Scratch) -> Bytes:
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
            for position, (tensor, start, stop) in _positions(chunk):
                ends = (position * chunk.recipe.lanes, (position + stop - start) * chunk.recipe.lanes)
                if numerics.same_values(
                    _part(base, newest, *ends), newest, _part(other, operand.dtype, *ends), operand.dtype
                ):
                    continue
                self._note_difference(index, how, tensor, term)
        if newest == how.component:
            return base
        return numerics.convert(base, newest, how.component, scratch)

    def _note_difference(self, index: int, how: _Sum, tensor: _Tensor, term: int) -> None:
        planned = tensor.planned[index]
        assert planned is not None
        if how.action == "newest":
            with self._lock:
                self.differing[index].add(planned.id)
            return
        members = self._plans[index].members
        newest, other = (members[planned.terms[number].member].checkpoint.path for number in (how.newest, term))
        raise MismatchError(
            f"{tensor.label} ({planned.output.dtype}) is not the same in {other} and {newest}",
            path=other,
            tensor=tensor.label,
            hint="Such tensors are not averaged. Take the newest one's with --integers newest.",
        )

    def _write_chunk(self, index: int, chunk: _Chunk, result: Bytes) -> None:
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
            if sealed[file]:
                self._note_checksum(index, file, slot, start, result[position:end])
            if file == run_file and offset == run_offset + run_end - run_start:
                run_end = end
            else:
                if run_end > run_start:
                    stage.write(run_file, run_offset, result[run_start:run_end].data)
                run_file, run_offset, run_start, run_end = file, offset, position, end
            position = end
        stage.write(run_file, run_offset, result[run_start:run_end].data)

    def _explain_nonfinite(
        self, index: int, how: _Sum, chunk: _Chunk, result: Bytes, scratch: numerics.Scratch
    ) -> NonFiniteError:
        """Find the tensor, and the member that is to blame."""
        lanes = chunk.recipe.lanes
        tensor = next(
            tensor
            for position, (tensor, start, stop) in _positions(chunk)
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

    def __init__(self, chunk: _Chunk, scratch: numerics.Scratch, *, keep: bool) -> None:
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
        for tensor, start, stop in chunk.pieces:
            view = tensor.views[index]
            end = position + (stop - start) * itemsize
            if isinstance(view, PiecedView) or view.shape is not None:
                view.read_into(buffer[position:end], start, stop, tensor.label, self._scratch)
                position = end
                continue
            offset = view.base + start * itemsize
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
        if recipe.swaps[index]:
            numerics.swap_bytes(buffer, recipe.components[index])
        if index not in self._seen:
            self._seen.add(index)
            self.bytes_read += buffer.nbytes
        if self._keep:
            self._known[index] = buffer
        return buffer


def _positions(chunk: _Chunk) -> Iterator[tuple[int, tuple[_Tensor, int, int]]]:
    """The pieces of a chunk with their positions in it, in elements."""
    position = 0
    for piece in chunk.pieces:
        yield position, piece
        position += piece[2] - piece[1]


def _part(raw: Bytes, dtype: str, start: int, stop: int) -> Bytes:
    """Numbers [start, stop) of a chunk's bytes."""
    itemsize = numerics.numpy_dtype(dtype).itemsize
    return raw[start * itemsize : stop * itemsize]


def _compare(task: _Comparison, scratch: numerics.Scratch) -> int:
    total = 0
    buffers = []
    for number, view in enumerate(task.views):
        raw = scratch.take(f"compare {number}", (task.stop - task.start) * view.itemsize, np.uint8)
        view.read_into(raw, task.start, task.stop, (task.label, task.other)[number], scratch)
        if view.swap:
            numerics.swap_bytes(raw, view.component)
        total += raw.nbytes
        buffers.append(raw)
    if not np.array_equal(buffers[0], buffers[1]):
        raise _not_tied(task.path, task.label, task.other)
    return total


def _not_tied(path: Path, label: str, other: str) -> MismatchError:
    return MismatchError(
        f"{path}: {label} and {other} differ, and the output makes one tensor of them",
        path=path,
        tensor=label,
        hint="The newest checkpoint ties these two and this one does not: it may be from another model.",
    )


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
                        f"{plan.output}: {_label(slot.tensor)} does not read back as it was planned; nothing was kept",
                        path=plan.output,
                        tensor=_label(slot.tensor),
                        hint="This is a defect of ckpttool. Please report it with the plan (--dry-run --json).",
                    )

    return verify


def _parts(spec: TensorSpec) -> Sequence[TensorSpec]:
    """A tensor, or the pieces that it lies in."""
    return [piece.spec for piece in spec.pieces] or [spec]


def _place(spec: TensorSpec) -> tuple[Path, int]:
    """File and byte offset of a tensor's first element."""
    return spec.storage.path, spec.storage.offset + spec.offset * spec.dtype.itemsize
