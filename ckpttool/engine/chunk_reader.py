"""Reads a chunk of work: the bytes of all members' tensors, checked as they are read."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ckpttool.checksums.by_kind import checksum
from ckpttool.engine.tasks import Chunk
from ckpttool.reading import dtypes
from ckpttool.reading.scratch import Scratch
from ckpttool.reading.sources import Source
from ckpttool.reading.tiled import PiecedView

__all__ = ["read_chunk"]

Bytes: TypeAlias = NDArray[np.uint8]


def read_chunk(chunk: Chunk, scratch: Scratch) -> list[Bytes]:
    """The bytes of each view: those of the chunk's ranges, one after another, in native order.

    Args:
        chunk: What to read.
        scratch: This thread's buffers; what is returned is valid until the next chunk is read.

    Raises:
        UnreadableError: A file is too short, damaged, or cannot be read.
    """
    raws = []
    for index, (component, swap) in enumerate(zip(chunk.recipe.components, chunk.recipe.swaps, strict=True)):
        raw = scratch.take(f"raw {index}", chunk.size * chunk.ranges[0].tensor.views[index].itemsize, np.uint8)
        _read_view(chunk, index, raw, scratch)
        if swap:
            dtypes.swap_bytes(raw, component)
        raws.append(raw)
    return raws


def _read_view(chunk: Chunk, index: int, buffer: Bytes, scratch: Scratch) -> None:
    """Fill a buffer with the chunk's ranges of one view; ranges that are neighbours in the file in one go."""
    run_source: Source | None = None
    run_offset = run_start = run_end = position = 0
    label = ""
    checked = []
    for tensor, start, stop in chunk.ranges:
        view = tensor.views[index]
        end = position + (stop - start) * view.itemsize
        if isinstance(view, PiecedView) or view.shape is not None:
            view.read_into(buffer[position:end], start, stop, tensor.label, scratch)
            position = end
            continue
        offset = view.base + start * view.itemsize
        if view.verification is not None and view.verification.reader is view:
            checked.append((view.verification, start * view.itemsize, position, end))
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
    for verification, at, begin, end in checked:
        part = buffer[begin:end]
        verification.note(at, part.nbytes, checksum(verification.stated.kind, part.data))
