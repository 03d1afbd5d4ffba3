"""Tensors that are stored in pieces: put them together, and cut regions out of them. Arithmetic on offsets, no bytes.

A sharded checkpoint keeps a tensor as rectangular pieces, cut along any dimensions and as unevenly as the run had
ranks. Whatever the cut, one member's pieces need not be another's.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from ckpttool.tensors import Piece, Region, TensorSpec, c_strides

__all__ = ["TilingError", "assembled", "check_tiling", "in_runs", "intersection", "narrow", "regions_of_run"]

_MAX_WORK = 1 << 24
"""Pieces that may be looked at to check one tensor; 4096 pieces of any arrangement take fewer."""


class TilingError(ValueError):
    """Pieces that are not exactly the tensor; the message says why, as a phrase."""


def assembled(shape: tuple[int, ...], pieces: Iterable[Piece]) -> TensorSpec:
    """The tensor that pieces make up.

    Args:
        shape: Its shape.
        pieces: At least one, in any order; empty ones count for nothing. They have one dtype and one byte order.

    Raises:
        TilingError: They leave holes, overlap, reach outside, or are of different kinds.
    """
    given = list(pieces)
    if not given:
        raise TilingError("nothing of it is there")
    first = given[0].spec
    if any((piece.spec.dtype, piece.spec.big_endian) != (first.dtype, first.big_endian) for piece in given):
        raise TilingError("its pieces have different element types")
    check_tiling(shape, [Region(piece.offsets, piece.spec.shape) for piece in given])
    if not math.prod(shape):
        return TensorSpec(first.dtype, shape, first.storage, big_endian=first.big_endian)
    filled = sorted((piece for piece in given if piece.spec.numel), key=lambda piece: piece.offsets)
    if len(filled) == 1:
        return filled[0].spec
    return TensorSpec(first.dtype, shape, filled[0].spec.storage, big_endian=first.big_endian, pieces=tuple(filled))


def in_runs(shape: tuple[int, ...], runs: Iterable[TensorSpec]) -> TensorSpec:
    """The tensor whose elements, in C order, are in several runs: how an optimizer that flattens everything keeps it.

    Args:
        shape: Its shape.
        runs: The runs in their order, each a tensor of one dimension in C order, with as many elements together as the
            tensor has. At least one; empty ones count for nothing. They have one dtype and one byte order.

    Raises:
        TilingError: They have more or fewer elements, or are of different kinds.
    """
    given = list(runs)
    first = given[0]
    if any((run.dtype, run.big_endian) != (first.dtype, first.big_endian) for run in given):
        raise TilingError("its pieces have different element types")
    there, wanted = sum(run.numel for run in given), math.prod(shape)
    if there != wanted:
        raise TilingError(f"its pieces have {there:,} elements, and it has {wanted:,}")
    filled = [run for run in given if run.numel] or given[:1]
    if len(filled) == 1:
        run = filled[0]
        return TensorSpec(run.dtype, shape, run.storage, run.offset, big_endian=run.big_endian)
    # Later elements begin later in the first dimension in which they differ: the pieces come out sorted.
    pieces, start = [], 0
    for run in filled:
        stop, at = start + run.numel, run.offset
        for offsets, sizes in regions_of_run(shape, start, stop):
            pieces.append(Piece(offsets, TensorSpec(run.dtype, sizes, run.storage, at, big_endian=run.big_endian)))
            at += math.prod(sizes)
        start = stop
    begin = filled[0]
    return TensorSpec(
        first.dtype, shape, begin.storage, begin.offset, big_endian=first.big_endian, pieces=tuple(pieces)
    )


def regions_of_run(shape: tuple[int, ...], start: int, stop: int) -> list[Region]:
    """Cut elements [start, stop) of a tensor, counted in C order, into rectangular regions, in their order.

    At most two for each dimension but the last: what is left of the first row and of the last one, and what is whole.
    """
    if start >= stop:
        return []
    if not shape:
        return [Region((), ())]
    if len(shape) == 1:
        return [Region((start,), (stop - start,))]
    inner = math.prod(shape[1:])
    first, head = divmod(start, inner)
    last, tail = divmod(stop, inner)

    def within(row: int, low: int, high: int) -> list[Region]:
        return [Region((row, *at), (1, *sizes)) for at, sizes in regions_of_run(shape[1:], low, high)]

    if first == last:
        return within(first, head, tail)
    cut = []
    if head:
        cut += within(first, head, inner)
        first += 1
    if first < last:
        cut.append(Region((first, *(0 for _ in shape[1:])), (last - first, *shape[1:])))
    return cut + within(last, 0, tail)


def check_tiling(shape: tuple[int, ...], regions: Sequence[Region]) -> None:
    """Make sure that regions cover a tensor exactly once.

    Raises:
        TilingError: They do not.
    """
    for offsets, sizes in regions:
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            raise TilingError("a piece has another number of dimensions")
        for offset, size, whole in zip(offsets, sizes, shape, strict=True):
            if offset < 0 or size < 0 or offset + size > whole:
                raise TilingError(f"a piece reaches outside: {list(sizes)} at {list(offsets)} of {list(shape)}")
    filled = [region for region in regions if math.prod(region.sizes)]
    there, wanted = sum(math.prod(region.sizes) for region in filled), math.prod(shape)
    if there < wanted:
        raise TilingError(f"{wanted - there:,} of its {wanted:,} elements are in no piece")
    if there > wanted:
        raise TilingError(f"its pieces overlap: they have {there:,} elements, and it has {wanted:,}")
    if len(filled) > 1:
        _check_disjoint(filled, 0, len(shape), [_MAX_WORK])


def _check_disjoint(regions: list[Region], axis: int, rank: int, budget: list[int]) -> None:
    """Make sure that no two regions overlap, by looking at the slabs between their ends along one axis after another.

    With as many elements as the whole, regions that do not overlap leave no hole either.
    """
    if len(regions) == 1:
        return
    if axis == rank:
        raise TilingError(f"two pieces overlap at {list(regions[0].offsets)}")
    pending = sorted(regions, key=lambda region: -region.offsets[axis])
    active: list[Region] = []
    while pending:
        start = pending[-1].offsets[axis]
        active = [region for region in active if region.offsets[axis] + region.sizes[axis] > start]
        while pending and pending[-1].offsets[axis] == start:
            active.append(pending.pop())
        budget[0] -= len(active)
        if budget[0] < 0:
            raise TilingError("its pieces are too many to be sure that they do not overlap")
        _check_disjoint(active, axis + 1, rank, budget)


def narrow(spec: TensorSpec, region: Region) -> TensorSpec:
    """A region of a tensor, as a tensor of its own. The region is inside."""
    if region.sizes == spec.shape:
        return spec
    if not spec.pieces:
        strides = c_strides(spec.shape) if spec.strides is None else spec.strides
        first = spec.offset + sum(offset * step for offset, step in zip(region.offsets, strides, strict=True))
        if not math.prod(region.sizes):
            first = spec.offset
        return TensorSpec.view(spec.dtype, spec.storage, first, region.sizes, strides, big_endian=spec.big_endian)
    at = bisect_left(spec.pieces, region.offsets, key=lambda piece: piece.offsets)
    if at < len(spec.pieces) and (spec.pieces[at].offsets, spec.pieces[at].spec.shape) == region:
        return spec.pieces[at].spec
    parts = []
    for piece in spec.pieces:
        common = intersection(region, Region(piece.offsets, piece.spec.shape))
        if common is not None:
            inside = Region(_minus(common.offsets, piece.offsets), common.sizes)
            parts.append(Piece(_minus(common.offsets, region.offsets), narrow(piece.spec, inside)))
    if not parts:
        return TensorSpec(spec.dtype, region.sizes, spec.storage, big_endian=spec.big_endian)
    if len(parts) == 1:
        return parts[0].spec
    return TensorSpec(spec.dtype, region.sizes, parts[0].spec.storage, big_endian=spec.big_endian, pieces=tuple(parts))


def intersection(one: Region, other: Region) -> Region | None:
    """What two regions have in common; None if that is nothing."""
    offsets, sizes = [], []
    for a, n, b, m in zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True):
        low, high = max(a, b), min(a + n, b + m)
        if high <= low:
            return None
        offsets.append(low)
        sizes.append(high - low)
    return Region(tuple(offsets), tuple(sizes))


def _minus(offsets: tuple[int, ...], origin: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(offset - start for offset, start in zip(offsets, origin, strict=True))
