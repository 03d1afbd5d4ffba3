"""Reading tensors that are stored in pieces: any range of their elements, with no more memory than the range needs."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ckpttool.errors import UnsupportedError
from ckpttool.reading import dtypes
from ckpttool.reading.scratch import Scratch
from ckpttool.reading.sources import Source, Sources
from ckpttool.reading.strided import View
from ckpttool.tensors import Region, TensorSpec, c_strides
from ckpttool.tiling import intersection, regions_of_run

__all__ = ["MAX_NUMPY_RANK", "PiecedView", "open_view", "pieces_of"]

Bytes: TypeAlias = NDArray[np.uint8]


MAX_NUMPY_RANK = 32
"""Of numpy 1; numpy 2 allows 64."""


class _Part(NamedTuple):
    """A piece in an open file. There can be very many: what it shares with its spec or with others is not made anew.

    Attributes:
        offsets: Where in the tensor it begins.
        sizes: How long it is there.
        source: The file.
        base: Byte offset of its first element.
        strides: The steps between its elements in the file; None where they are one run in this order.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    source: Source
    base: int
    strides: tuple[int, ...] | None


@dataclass(slots=True)
class PiecedView:
    """A tensor in pieces, its dimensions in the order in which the output stores them. It reads like a `View`.

    Attributes:
        itemsize: Bytes of an element.
        component: Name of the real dtype that an element is made of.
        swap: Whether its bytes stand in the other order.
        shape: Sizes in storage order of the output, slowest first.
    """

    itemsize: int
    component: str
    swap: bool
    shape: tuple[int, ...]
    _parts: list[_Part]
    _starts: list[int]
    """Where the parts begin in the first dimension, ascending."""
    _longest: int
    """The most that a part takes of the first dimension."""

    @classmethod
    def of(cls, spec: TensorSpec, strides: Sequence[int] | None, sources: Sources, tensor: str) -> PiecedView:
        """Open a tensor that has pieces, to be read in the order of the output's dense `strides` (None: C order).

        Raises:
            UnreadableError: A piece is not inside its file.
            UnsupportedError: It has more dimensions than numpy knows.
        """
        order = c_strides(spec.shape) if strides is None else strides
        axes = [axis for axis in range(len(spec.shape)) if spec.shape[axis] != 1]
        axes.sort(key=lambda axis: -order[axis])
        if len(axes) > MAX_NUMPY_RANK:
            raise UnsupportedError(
                f"{spec.storage.path}: {tensor}: in pieces of {len(axes)} dimensions",
                path=spec.storage.path,
                tensor=tensor,
                hint="Save it unsharded, for instance as a safetensors file.",
            )

        as_they_are = axes == list(range(len(spec.shape)))

        def reordered(numbers: tuple[int, ...]) -> tuple[int, ...]:
            return numbers if as_they_are else tuple([numbers[axis] for axis in axes])

        parts = []
        for offsets, piece in spec.pieces:
            view = View.of(piece, None, sources, tensor)
            sizes = reordered(piece.shape)
            steps = None
            if piece.strides is not None or not as_they_are:
                steps = reordered(c_strides(piece.shape) if piece.strides is None else piece.strides)
                if steps == c_strides(sizes):
                    steps = None
            # A view of a gapless run counts from its own first element; any other from that of its storage.
            base = view.base + view.first * view.itemsize
            parts.append(_Part(reordered(offsets), sizes, view.source, base, steps))
        parts.sort(key=lambda part: part.offsets)
        return cls(
            spec.dtype.itemsize,
            dtypes.component(spec.dtype),
            spec.big_endian,
            reordered(spec.shape),
            parts,
            [part.offsets[0] for part in parts],
            max(part.sizes[0] for part in parts),
        )

    def read_into(self, out: Bytes, start: int, stop: int, tensor: str, scratch: Scratch) -> None:
        """Read elements [start, stop), counted in the output's order, into `out`; bytes as they are in the files."""
        elements = out.view(f"V{self.itemsize}")
        done = 0
        for block in regions_of_run(self.shape, start, stop):
            count = math.prod(block.sizes)
            self._read_block(elements[done : done + count].reshape(block.sizes), block, tensor, scratch)
            done += count

    def _read_block(self, out: NDArray[Any], block: Region, tensor: str, scratch: Scratch) -> None:
        """Read a rectangular block from all the pieces that have a part of it."""
        low, high = block.offsets[0], block.offsets[0] + block.sizes[0]
        near = slice(bisect_right(self._starts, low - self._longest), bisect_left(self._starts, high))
        for part in self._parts[near]:
            common = intersection(block, Region(part.offsets, part.sizes))
            if common is None:
                continue
            strides = c_strides(part.sizes) if part.strides is None else part.strides
            inside = [a - b for a, b in zip(common.offsets, part.offsets, strict=True)]
            there = [a - b for a, b in zip(common.offsets, block.offsets, strict=True)]
            target = out[tuple(slice(a, a + size) for a, size in zip(there, common.sizes, strict=True))]
            first = sum(a * step for a, step in zip(inside, strides, strict=True))
            if target.flags.c_contiguous and _is_run(common.sizes, strides):
                into = target.reshape(-1).view(np.uint8)
                part.source.read_into(into.data, part.base + first * self.itemsize, tensor)
            else:
                view = View(part.source, part.base, 0, self.itemsize, self.component, self.swap, part.sizes, strides)
                view.read_block(target, first, strides, tensor, scratch)


def _is_run(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether a block's elements follow each other in the storage in C order."""
    return all(size == 1 or step == wanted for size, step, wanted in zip(sizes, strides, c_strides(sizes), strict=True))


def open_view(spec: TensorSpec, strides: Sequence[int] | None, sources: Sources, tensor: str) -> View | PiecedView:
    """Open a tensor, in pieces or not, to be read in the order of the output's dense `strides` (None: C order).

    Raises:
        UnreadableError: It is not inside its file.
    """
    return (PiecedView if spec.pieces else View).of(spec, strides, sources, tensor)


def pieces_of(spec: TensorSpec) -> Sequence[TensorSpec]:
    """A tensor, or the pieces that it is stored in."""
    return [piece.spec for piece in spec.pieces] or [spec]
