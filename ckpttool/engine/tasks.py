"""Cuts plans into tasks: what is read together, summed together and written together.

A task names open files and byte positions only. Files are opened here, and whatever can be refused about them is
refused here, before the output is begun.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ckpttool.checksums.compiled import compiled_checksum
from ckpttool.engine.neighbours import Part, Place, TensorTask
from ckpttool.engine.numerics import Weighting
from ckpttool.errors import CkpttoolError, MismatchError, UsageError
from ckpttool.planning.plan import Action, Plan, PlannedTensor
from ckpttool.reading import dtypes
from ckpttool.reading.sources import Source, Sources
from ckpttool.reading.strided import View
from ckpttool.reading.tiled import PiecedView, open_view
from ckpttool.reading.verification import Verification
from ckpttool.tensors import DTYPES, Checksum, Extent, Region, TensorId, TensorSpec
from ckpttool.text import tensor_label
from ckpttool.tiling import narrow

__all__ = [
    "Chunk",
    "Comparison",
    "Copying",
    "Preparation",
    "Range",
    "Recipe",
    "SumRecipe",
    "Task",
    "not_tied",
]

_SMALLEST_CHUNK = 1 << 14
_CHUNK_BYTES = 4 << 20
"""Of all members together, whose bytes are held at once."""

_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SumRecipe:
    """How one plan's value of a tensor follows from the views that are read.

    Attributes:
        action: What becomes of it.
        weighting: Dtypes and weights of the terms, divisor, and the output's real dtype.
        views: For each term, which of the views it is.
        newest: Index of the newest term.
        is_averaged: Whether NaN and infinity are looked for.
    """

    action: Action
    weighting: Weighting
    views: tuple[int, ...]
    newest: int
    is_averaged: bool


@dataclass(frozen=True, slots=True)
class Recipe:
    """What tensors must have in common to share a chunk."""

    sums: tuple[SumRecipe | None, ...]
    components: tuple[str, ...]
    swaps: tuple[bool, ...]
    lanes: int
    element_bytes: int
    """Of all views together."""


class Range(NamedTuple):
    """Elements [start, stop) of a tensor."""

    tensor: TensorTask
    start: int
    stop: int


@dataclass(slots=True)
class Chunk:
    """What is read, summed and written together: ranges of tensors, `size` elements in all."""

    recipe: Recipe
    ranges: list[Range] = field(default_factory=list)
    size: int = 0

    def parts(self) -> Iterator[Part]:
        """The ranges, tensor by tensor, with their positions in the chunk, in elements."""
        position = 0
        for tensor, start, stop in self.ranges:
            yield from tensor.parts(position, start, stop)
            position += stop - start


@dataclass(frozen=True, slots=True)
class Copying:
    """Bytes of an input that are written as they are."""

    plan: int
    file: int
    slot: int
    """Offset of the whole copy in the output file, by which its checksum is known."""
    start: int
    nbytes: int
    source: Source
    position: int
    verification: Verification | None = None
    """Of the whole copy, if it is this one's to check."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Elements of two views that must be equal."""

    path: Path
    label: str
    other: str
    views: tuple[View | PiecedView, View | PiecedView]
    start: int
    stop: int


Task: TypeAlias = "Chunk | Copying | Comparison | Verification"


_How: TypeAlias = tuple[Action, int, float, str, tuple[tuple[int, float], ...]]
"""Action, newest term, divisor, name of the output's dtype, and view and weight of each term."""


def _recipe(hows: Sequence[_How | None], views: Sequence[View | PiecedView], lanes: int) -> Recipe:
    """What one `_How` for each plan and the views' dtypes come to."""
    sums = [
        None
        if how is None
        else SumRecipe(
            action=how[0],
            weighting=Weighting(
                dtypes=tuple([views[index].component for index, _ in how[4]]),
                weights=tuple([weight for _, weight in how[4]]),
                divisor=how[2] if how[0] == "average" else 1,
                out_dtype=dtypes.component(DTYPES[how[3]]),
            ),
            views=tuple([index for index, _ in how[4]]),
            newest=how[1],
            is_averaged=DTYPES[how[3]].is_averaged,
        )
        for how in hows
    ]
    components, swaps = tuple([view.component for view in views]), tuple([view.swap for view in views])
    return Recipe(tuple(sums), components, swaps, lanes, sum(view.itemsize for view in views))


class Preparation:
    """Opens what the plans read, and cuts the work into tasks."""

    def __init__(self, plans: Sequence[Plan], sources: Sources) -> None:
        self._plans = plans
        self._sources = sources
        self._recipes: dict[object, Recipe] = {}
        self._verifications: dict[tuple[int, int, int, Checksum], Verification] = {}

    def tasks(self, chunk_elements: int) -> list[Task]:
        """Everything that has to be done, in the order of the output's bytes."""
        tensors = self._tensors()
        tasks: list[Task] = []
        self._compare(tasks, chunk_elements)
        open_chunks: dict[int, Chunk] = {}
        for tensor, recipe in tensors:
            limit = min(chunk_elements, max(_SMALLEST_CHUNK, _CHUNK_BYTES // max(1, recipe.element_bytes)))
            start = 0
            while start < tensor.numel:
                chunk = open_chunks.get(id(recipe))
                if chunk is None:
                    chunk = open_chunks[id(recipe)] = Chunk(recipe)
                    tasks.append(chunk)
                stop = min(tensor.numel, start + limit - chunk.size)
                chunk.ranges.append(Range(tensor, start, stop))
                chunk.size += stop - start
                if chunk.size >= limit:
                    del open_chunks[id(recipe)]
                start = stop
        self._copy(tasks)
        tasks.extend(each for each in self._verifications.values() if each.reader is None)
        return tasks

    @property
    def bytes_verified(self) -> int:
        """How many bytes are compared with checksums that the inputs state."""
        return sum(verification.nbytes for verification in self._verifications.values())

    def check_verified(self) -> None:
        """Make sure, when all tasks are done, that what has a checksum was compared with it.

        Raises:
            CkpttoolError: Something was not.
        """
        for verification in self._verifications.values():
            verification.check_done()

    def _tensors(self) -> list[tuple[TensorTask, Recipe]]:
        """The tensors that some plan has a place for, ordered by that place; of a tensor in pieces, each region."""
        places: list[dict[TensorId, dict[Region | None, Place]]] = []
        for plan in self._plans:
            by_tensor: dict[TensorId, dict[Region | None, Place]] = {}
            for index, file in enumerate(plan.files):
                for slot in file.slots:
                    by_tensor.setdefault(slot.tensor, {})[slot.region] = Place(index, slot.offset, slot.nbytes)
            places.append(by_tensor)
        by_id = [{tensor.id: tensor for tensor in plan.tensors} for plan in self._plans]
        for index, plan in enumerate(self._plans):
            missing = next((key for key in places[index] if key not in by_id[index]), None)
            if missing is not None:
                raise CkpttoolError(
                    f"{plan.output}: nothing was planned for {tensor_label(missing)}", tensor=tensor_label(missing)
                )
            if index and by_id[index].keys() != by_id[0].keys():
                raise UsageError("the plans are not about the same tensors, and cannot be executed together")
        ordered = []
        for tensor_id in by_id[0]:
            found = [place.get(tensor_id, {}) for place in places]
            planned = [by[tensor_id] for by in by_id]
            for region in dict.fromkeys(region for regions in found for region in regions):
                where = [regions.get(region) for regions in found]
                ordered.append((where[0] or Place(0, 0, 0), tensor_id, region, planned, where))
        ordered.sort(key=lambda entry: entry[0][:2])
        # Where checksums are written, each slot has its own.
        alone = len(self._plans) > 1 or any(file.seal is not None for file in self._plans[0].files)
        prepared: list[tuple[TensorTask, Recipe]] = []
        for place, tensor_id, region, planned, where in ordered:
            if alone or region is not None or not prepared or not prepared[-1][0].join(planned[0], place):
                prepared.append(self._tensor(tensor_id, region, planned, where))
        return prepared

    def _tensor(
        self, tensor_id: TensorId, region: Region | None, planned: list[PlannedTensor], where: list[Place | None]
    ) -> tuple[TensorTask, Recipe]:
        label = tensor_label(tensor_id)
        output = planned[0].output
        numel = math.prod(output.shape if region is None else region.sizes)
        lanes = dtypes.lanes(output.dtype)
        together = len(planned) > 1
        views: list[View | PiecedView] = []
        known: dict[TensorSpec, int] = {}
        hows: list[_How | None] = []
        for plan, tensor, place in zip(self._plans, planned, where, strict=True):
            if place is None:
                hows.append(None)
                continue
            if tensor.output.shape != output.shape or tensor.output.strides != output.strides:
                raise UsageError(f"{label}: the plans store it in different ways, and cannot be executed together")
            taken = numel * tensor.output.dtype.itemsize
            if place[2] != taken:
                raise CkpttoolError(f"{plan.output}: {label} takes {taken} bytes, not {place[2]}", tensor=label)
            terms = []
            for term in tensor.terms:
                spec = term.tensor
                if spec.shape != output.shape or dtypes.lanes(spec.dtype) != lanes:
                    raise MismatchError(
                        f"{plan.members[term.member].checkpoint.path}: {label} is {spec.dtype} {list(spec.shape)},"
                        f" and the output {output.dtype} {list(output.shape)}",
                        path=plan.members[term.member].checkpoint.path,
                        tensor=label,
                    )
                if region is not None:
                    spec = narrow(spec, region)
                index = known.get(spec) if together else None
                if index is None:
                    index = len(views)
                    views.append(self._open(spec, output.strides, label))
                    if together:
                        known[spec] = index
                terms.append((index, term.weight))
            hows.append((tensor.action, tensor.newest, plan.divisor, tensor.output.dtype.name, tuple(terms)))
        # Looked up by plain tuples: to build a recipe for each of very many tensors would cost more than to read them.
        key = (tuple(hows), tuple([(view.component, view.swap) for view in views]))
        recipe = self._recipes.get(key)
        if recipe is None:
            recipe = self._recipes[key] = _recipe(hows, views, lanes)
        kept = [tensor if place is not None else None for tensor, place in zip(planned, where, strict=True)]
        return TensorTask(label, numel, views, kept, where), recipe

    def _open(self, spec: TensorSpec, strides: Sequence[int] | None, label: str) -> View | PiecedView:
        """Open a tensor, and see to it that its bytes are checked where a checksum of them is stated."""
        view = open_view(spec, strides, self._sources, label)
        if isinstance(view, PiecedView):
            for piece in spec.pieces:
                self._verification(piece.spec.storage, label, whole=False)
            return view
        storage = spec.storage
        if storage.checksum is not None:
            # Only who reads the whole from end to end can check it on the way.
            whole = view.shape is None and not spec.offset and spec.nbytes == storage.nbytes
            view.verification = found = self._verification(storage, label, whole=whole)
            if found is not None and found.reader is None and whole:
                found.reader = view
        return view

    def _verification(self, extent: Extent, label: str, *, whole: bool) -> Verification | None:
        """What checks these bytes, once in a run; None where nothing is stated, or inflating has checked it.

        Args:
            extent: The bytes.
            label: What they are, for messages.
            whole: Whether they are read from end to end. An optional checksum is not compared otherwise; nor by zlib,
                which would take a sixth of the time.
        """
        stated = extent.checksum
        if stated is None or extent.deflated is not None or not extent.nbytes:
            return None
        if stated.optional and not (whole and compiled_checksum() is not None):
            return None
        source, position = self._sources.locate(extent, label)
        key = (id(source), position, extent.nbytes, stated)
        found = self._verifications.get(key)
        if found is None:
            found = Verification(source, position, extent.nbytes, stated, label)
            self._verifications[key] = found
        return found

    def _compare(self, tasks: list[Task], chunk_elements: int) -> None:
        """Tasks that compare what the output ties and a member does not."""
        done = set()
        for plan in self._plans:
            for tensor in plan.tensors:
                for other, first, second in tensor.must_equal:
                    if (first, second) in done:
                        continue
                    done.add((first, second))
                    path, label = first.storage.path, tensor_label(tensor.id)
                    if first.shape != second.shape or first.dtype != second.dtype:
                        raise not_tied(path, label, other)
                    views = (self._open(first, None, label), self._open(second, None, other))
                    tasks.extend(
                        Comparison(path, label, other, views, start, min(first.numel, start + chunk_elements))
                        for start in range(0, first.numel, chunk_elements)
                    )

    def _copy(self, tasks: list[Task]) -> None:
        """Tasks that copy bytes of an input as they are."""
        for index, plan in enumerate(self._plans):
            for number, file in enumerate(plan.files):
                for copy in file.copies:
                    source, position = self._sources.locate(copy.source, "its training state")
                    verification = self._verification(copy.source, "what is copied from it", whole=True)
                    if verification is not None:
                        if verification.reader is None:
                            verification.reader = copy
                        elif verification.reader is not copy:
                            verification = None
                    tasks.extend(
                        Copying(
                            index,
                            number,
                            copy.offset,
                            start,
                            min(_COPY_BYTES, copy.source.nbytes - start),
                            source,
                            position + start,
                            verification,
                        )
                        for start in range(0, copy.source.nbytes, _COPY_BYTES)
                    )


def not_tied(path: Path, label: str, other: str) -> MismatchError:
    """The error for two tensors of a member that differ although the output ties them."""
    return MismatchError(
        f"{path}: {label} and {other} differ, and the output makes one tensor of them",
        path=path,
        tensor=label,
        hint="The newest checkpoint ties these two and this one does not: it may be from another model.",
    )
