"""Tensors that are neighbours in every member and in the output: read, summed and written as if they were one.

A mixture-of-experts model has a hundred thousand small tensors, one after another in each file. What is done for each
of them takes longer than their bytes; what is done for a run of them does not.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ckpttool.planning.plan import PlannedTensor
from ckpttool.reading.strided import View
from ckpttool.reading.tiled import PiecedView
from ckpttool.text import tensor_label

__all__ = ["Part", "Place", "TensorTask"]


class Place(NamedTuple):
    """Where in an output a tensor goes: index of the file, offset in it, number of bytes."""

    file: int
    offset: int
    nbytes: int


class Part(NamedTuple):
    """Elements [start, stop) of a tensor, at `position` in what is read together."""

    position: int
    tensor: TensorTask
    start: int
    stop: int


@dataclass(slots=True)
class TensorTask:
    """A tensor with its views and its places; one PlannedTensor and one place for each plan that writes it.

    Attributes:
        label: Its name, for messages.
        numel: Its number of elements, or that of all neighbours that have joined.
        views: What is read.
        planned: For each plan, what was planned.
        places: For each plan, where it goes.
        joined: Further tensors that follow it, with their first elements, counted from this one's.
    """

    label: str
    numel: int
    views: list[View | PiecedView]
    planned: list[PlannedTensor | None]
    places: list[Place | None]
    joined: list[tuple[int, PlannedTensor]] = field(default_factory=list)

    def join(self, tensor: PlannedTensor, place: Place) -> bool:
        """Let a tensor join if it is a neighbour: in the file of every term, and in that of the output.

        Only of one plan, of plain bytes of one dtype in the order of the output, without checksums.
        """
        first, mine = self.planned[0], self.places[0]
        output = tensor.output
        if first is None or mine is None or output.strides is not None or len(tensor.terms) != len(self.views):
            return False
        if not (
            tensor.action == first.action == "average"
            and output.dtype is first.output.dtype
            and place.file == mine.file
            and place.offset == mine.offset + self.numel * output.dtype.itemsize
        ):
            return False
        count = place.nbytes // output.dtype.itemsize
        for view, old, new in zip(self.views, first.terms, tensor.terms, strict=True):
            spec = new.tensor
            storage, dtype = spec.storage, spec.dtype
            if not (
                new.member == old.member
                and new.weight == old.weight
                and dtype is old.tensor.dtype
                and spec.shape == output.shape
                and spec.strides is None
                and not spec.offset
                and not spec.pieces
                and spec.big_endian == old.tensor.big_endian
                and storage.path is old.tensor.storage.path
                and storage.checksum is None
                and storage.deflated is None
                and storage.nbytes == count * dtype.itemsize
                and isinstance(view, View)
                and view.shape is None
                and view.verification is None
                and old.tensor.storage.deflated is None
                and storage.offset == view.base + self.numel * dtype.itemsize
                and storage.offset + storage.nbytes <= view.source.nbytes
            ):
                return False
        self.joined.append((self.numel, tensor))
        self.numel += count
        return True

    def parts(self, position: int, start: int, stop: int) -> Iterator[Part]:
        """Elements [start, stop), tensor by tensor."""
        if not self.joined:
            yield Part(position, self, start, stop)
            return
        firsts = [0, *(first for first, _ in self.joined)]
        for index in range(bisect_right(firsts, start) - 1, len(firsts)):
            first, last = firsts[index], firsts[index + 1] if index + 1 < len(firsts) else self.numel
            if first >= stop:
                return
            low, high = max(start, first), min(stop, last)
            yield Part(position + low - start, self._alone(index, first, last), low - first, high - first)

    def _alone(self, index: int, first: int, last: int) -> TensorTask:
        """One of the tensors by itself."""
        planned = self.planned[0] if not index else self.joined[index - 1][1]
        place = self.places[0]
        assert planned is not None
        assert place is not None
        itemsize = planned.output.dtype.itemsize
        views = [replace(view, base=view.base + first * view.itemsize) for view in self.views if isinstance(view, View)]
        return TensorTask(
            tensor_label(planned.id),
            last - first,
            [*views],
            [planned],
            [Place(place.file, place.offset + first * itemsize, (last - first) * itemsize)],
        )
