"""Reading tensors: from the extents of files into buffers, with every byte accounted for.

Memory stays bounded whatever a view looks like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ckpttool.errors import UnreadableError
from ckpttool.reading import dtypes
from ckpttool.reading.scratch import Scratch
from ckpttool.reading.sources import Source, Sources
from ckpttool.reading.verification import Verification
from ckpttool.tensors import TensorSpec, c_strides

__all__ = ["View", "blocks"]

Bytes: TypeAlias = NDArray[np.uint8]

_SMALL_SPAN = 16 << 10
"""A read this small costs as much as one of a few bytes, whatever part of it is used."""

_LARGE_SPAN = 32 << 20
"""The most that is read at once for elements that are scattered in it."""

_SPARSEST = 64
"""Of how many bytes read at least one must be used, beyond `_SMALL_SPAN`."""


@dataclass(slots=True)
class View:
    """A tensor in an open file, its dimensions in the order in which the output stores them.

    Attributes:
        source: The file.
        base: Byte offset of its storage (`shape` given) or of its first element (`shape` None).
        first: Index of its first element in the storage.
        itemsize: Bytes of an element.
        component: Name of the real dtype that an element is made of.
        swap: Whether its bytes stand in the other order.
        shape: Sizes in storage order of the output; None where the elements are one gapless run in that order.
        strides: In elements, one for each dimension of `shape`.
        verification: Of its storage, where a checksum of that is stated.
    """

    source: Source
    base: int
    first: int
    itemsize: int
    component: str
    swap: bool
    shape: tuple[int, ...] | None
    strides: tuple[int, ...]
    verification: Verification | None = None

    @classmethod
    def of(cls, spec: TensorSpec, strides: Sequence[int] | None, sources: Sources, tensor: str) -> View:
        """Open a tensor to be read in the order of the output's dense `strides` (None: C order).

        Raises:
            UnreadableError: It is not inside its storage, or the storage is not inside its file.
        """
        source, base = sources.locate(spec.storage, tensor)
        itemsize = spec.dtype.itemsize
        shape = spec.shape
        numel = math.prod(shape)
        if spec.strides is None:  # by far the most, and there can be very many
            steps: tuple[int, ...] = ()
            low, high = spec.offset, spec.offset + numel - 1
        else:
            steps = spec.strides
            reach = [(size - 1) * step for size, step in zip(shape, steps, strict=True)]
            low = spec.offset + sum(part for part in reach if part < 0)
            high = spec.offset + sum(part for part in reach if part > 0)
        if numel and not (low >= 0 and (high + 1) * itemsize <= spec.storage.nbytes):
            raise UnreadableError(
                f"{spec.storage.path}: {tensor}: reaches beyond its storage of {spec.storage.nbytes:,} bytes",
                path=spec.storage.path,
                tensor=tensor,
            )
        component = dtypes.component(spec.dtype)
        plain = (spec.strides is None and strides is None) or not numel
        if not plain:
            shape, steps = _reorder(shape, steps or c_strides(shape), strides)
            plain = steps == c_strides(shape)
        if plain:
            return cls(source, base + spec.offset * itemsize, 0, itemsize, component, spec.big_endian, None, ())
        return cls(source, base, spec.offset, itemsize, component, spec.big_endian, shape, steps)

    def read_into(self, out: Bytes, start: int, stop: int, tensor: str, scratch: Scratch) -> None:
        """Read elements [start, stop), counted in the output's order, into `out`; bytes as they are in the file."""
        if self.shape is None:
            self.source.read_into(out.data, self.base + start * self.itemsize, tensor)
            return
        elements = out.view(f"V{self.itemsize}")
        done = 0
        for first, shape, strides in blocks(self.first, self.shape, self.strides, start, stop):
            count = math.prod(shape)
            self.read_block(elements[done : done + count].reshape(shape), first, strides, tensor, scratch)
            done += count

    def read_block(
        self, out: NDArray[Any], first: int, strides: tuple[int, ...], tensor: str, scratch: Scratch
    ) -> None:
        """Read a rectangular block whose first element is `first` and whose steps in the storage are `strides`.

        Its whole span is read at once where that is small or dense enough, else the block in halves.
        """
        reach = [(size - 1) * step for size, step in zip(out.shape, strides, strict=True)]
        low = first + sum(part for part in reach if part < 0)
        span = first + sum(part for part in reach if part > 0) - low + 1
        nbytes = span * self.itemsize
        if nbytes > _SMALL_SPAN and (nbytes > _LARGE_SPAN or span > _SPARSEST * out.size):
            axis = max(range(out.ndim), key=lambda index: abs(reach[index]))
            half = out.shape[axis] // 2
            lower = (slice(None),) * axis + (slice(None, half),)
            upper = (slice(None),) * axis + (slice(half, None),)
            self.read_block(out[lower], first, strides, tensor, scratch)
            self.read_block(out[upper], first + half * strides[axis], strides, tensor, scratch)
            return
        raw = scratch.take("span", nbytes, np.uint8)
        self.source.read_into(raw.data, self.base + low * self.itemsize, tensor)
        origin = raw.view(f"V{self.itemsize}")[first - low :]
        steps = tuple(step * self.itemsize for step in strides)
        np.copyto(out, np.lib.stride_tricks.as_strided(origin, out.shape, steps))


def _reorder(
    shape: tuple[int, ...], steps: tuple[int, ...], output: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides with the output's slowest dimension first, neighbours merged where they are one run.

    Dimensions of size 1 go: they mean nothing.
    """
    outputs = c_strides(shape) if output is None else tuple(output)
    axes = [axis for axis in range(len(shape)) if shape[axis] != 1]
    axes.sort(key=lambda axis: -outputs[axis])
    merged: list[tuple[int, int]] = []
    for axis in axes:
        if merged and merged[-1][1] == steps[axis] * shape[axis]:
            merged[-1] = (merged[-1][0] * shape[axis], steps[axis])
        else:
            merged.append((shape[axis], steps[axis]))
    return tuple(size for size, _ in merged), tuple(step for _, step in merged)


def blocks(
    first: int, shape: tuple[int, ...], strides: tuple[int, ...], start: int, stop: int
) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Cut elements [start, stop) of a view, in C order, into rectangular blocks: (first element, shape, strides)."""
    if start >= stop:
        return []
    if not shape:
        return [(first, (), ())]
    inner = math.prod(shape[1:])
    row, last = start // inner, (stop - 1) // inner
    head, tail = start - row * inner, stop - last * inner
    if row == last and (head or tail < inner):
        return blocks(first + row * strides[0], shape[1:], strides[1:], head, tail)
    cut = []
    if head:
        cut += blocks(first + row * strides[0], shape[1:], strides[1:], head, inner)
        row += 1
    whole = last if tail < inner else last + 1
    if whole > row:
        cut.append((first + row * strides[0], (whole - row, *shape[1:]), strides))
    if tail < inner:
        cut += blocks(first + last * strides[0], shape[1:], strides[1:], 0, tail)
    return cut
