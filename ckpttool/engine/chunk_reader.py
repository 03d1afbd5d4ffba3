"""Reads a chunk of work: the bytes of each term, checked as they are read."""

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
from ckpttool.reading.verification import Verification

__all__ = ["ChunkReader"]

Bytes: TypeAlias = NDArray[np.uint8]


class ChunkReader:
    """Reads a chunk's terms; each once where several plans want them."""

    def __init__(self, chunk: Chunk, scratch: Scratch, *, keep: bool) -> None:
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
            dtypes.swap_bytes(buffer, recipe.components[index])
        if self._keep:
            self._known[index] = buffer
        return buffer
