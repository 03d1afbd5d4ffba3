"""Reading tensors: from the extents of files into buffers, with every byte accounted for.

Files are read with `pread` into buffers that already exist, never mapped: a file that is cut short while it is
mapped kills the process, one that is read says so. Memory stays bounded whatever a view looks like.
"""

from __future__ import annotations

import errno
import math
import os
import tempfile
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ckpttool.engine import numerics
from ckpttool.engine.verification import Verification
from ckpttool.errors import UnreadableError
from ckpttool.tensors import Extent, TensorSpec, c_strides

__all__ = ["Source", "Sources", "View", "blocks"]

Bytes: TypeAlias = NDArray[np.uint8]

_CHANGED_HINT = "Is the run still saving? Try again when it is done."

_SMALL_SPAN = 16 << 10
"""A read this small costs as much as one of a few bytes, whatever part of it is used."""

_LARGE_SPAN = 32 << 20
"""The most that is read at once for the sake of elements that lie scattered in it."""

_SPARSEST = 64
"""Of how many bytes read at least one must be used, beyond `_SMALL_SPAN`."""

_INFLATE_STEP = 1 << 20


@dataclass(slots=True)
class Source:
    """An open input file.

    Attributes:
        path: Its name, for messages.
        descriptor: Where it is read.
        size: In bytes, when it was opened.
        stamp: Size and modification time (ns) when it was opened.
    """

    path: Path
    descriptor: int
    size: int
    stamp: tuple[int, int]

    def read_into(self, buffer: memoryview, offset: int, tensor: str) -> None:
        """Fill a buffer of bytes from `offset` on.

        Raises:
            UnreadableError: The file ends before the buffer is full, or the disk fails.
        """
        try:
            done = _pread_into(self.descriptor, buffer, offset)
            while 0 < done < len(buffer):
                more = _pread_into(self.descriptor, buffer[done:], offset + done)
                if not more:
                    break
                done += more
        except OSError as error:
            raise UnreadableError(
                f"{self.path}: {tensor}: cannot be read ({error.strerror})", path=self.path, tensor=tensor
            ) from error
        if done < len(buffer):
            raise UnreadableError(
                f"{self.path}: {tensor}: the file became shorter while it was read",
                path=self.path,
                tensor=tensor,
                hint=_CHANGED_HINT,
            )


if hasattr(os, "preadv"):

    def _pread_into(descriptor: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(descriptor, [buffer], offset)

else:
    # Windows: one position for a descriptor, so that only one thread at a time may use it.
    _seek_lock = threading.Lock()

    def _pread_into(descriptor: int, buffer: memoryview, offset: int) -> int:
        with _seek_lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Sources:
    """The input files of a run: each opened once, deflated extents inflated once, all unchanged in the end.

    Args:
        temporary_directory: Where deflated extents are inflated to (into files without a name).
    """

    def __init__(self, temporary_directory: Path | None = None) -> None:
        self._temporary_directory = temporary_directory
        self._files: dict[Path, Source] = {}
        self._recent: dict[int, tuple[Path, Source]] = {}
        self._inflated: dict[Extent, Source] = {}

    def close(self) -> None:
        """Close every file; inflated copies are gone with that."""
        for source in (*self._files.values(), *self._inflated.values()):
            os.close(source.descriptor)
        self._files.clear()
        self._recent.clear()
        self._inflated.clear()

    def locate(self, extent: Extent, tensor: str) -> tuple[Source, int]:
        """The file that holds an extent's plain bytes, and where in it they start. Opens and inflates as needed.

        Raises:
            UnreadableError: The file cannot be opened, is shorter than the extent, or does not inflate to it.
        """
        # By identity first: to hash a Path takes longer than all the rest, and a file's tensors share one.
        path, source = self._recent.get(id(extent.path), (None, None))
        if source is None or path is not extent.path:
            source = self._files.get(extent.path)
            if source is None:
                source = self._files[extent.path] = _open(extent.path)
            self._recent[id(extent.path)] = (extent.path, source)
        stored = extent.nbytes if extent.deflated is None else extent.deflated
        if extent.offset < 0 or extent.offset + stored > source.size:
            raise UnreadableError(
                f"{extent.path}: {tensor}: the file is truncated: {tensor} ends at byte"
                f" {extent.offset + stored:,}, the file at {source.size:,}",
                path=extent.path,
                tensor=tensor,
                hint="The run may have been interrupted while it was saving, or a copy was not finished.",
            )
        if extent.deflated is None:
            return source, extent.offset
        inflated = self._inflated.get(extent)
        if inflated is None:
            inflated = self._inflated[extent] = self._inflate(source, extent, tensor)
        return inflated, 0

    def _inflate(self, source: Source, extent: Extent, tensor: str) -> Source:
        """The plain bytes of a deflated extent, in a file that has no name and goes when it is closed."""
        assert extent.deflated is not None
        corrupt = UnreadableError(
            f"{extent.path}: {tensor}: the compressed data are corrupt", path=extent.path, tensor=tensor
        )
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        buffer = bytearray(min(_INFLATE_STEP, max(extent.deflated, 1)))
        written = checksum = consumed = 0
        with tempfile.TemporaryFile(dir=self._temporary_directory) as file:
            try:
                while consumed < extent.deflated and not inflater.eof:
                    part = memoryview(buffer)[: min(len(buffer), extent.deflated - consumed)]
                    source.read_into(part, extent.offset + consumed, tensor)
                    consumed += len(part)
                    pending: bytes | memoryview = part
                    while pending and not inflater.eof:
                        plain = inflater.decompress(pending, _INFLATE_STEP)
                        pending = inflater.unconsumed_tail
                        written += len(plain)
                        if written > extent.nbytes:  # it lies about its size: no more of the disk is given to it
                            raise corrupt
                        checksum = zlib.crc32(plain, checksum)
                        file.write(plain)
                rest = inflater.flush()
                written += len(rest)
                checksum = zlib.crc32(rest, checksum)
                file.write(rest)
                file.flush()
            except zlib.error as error:
                raise corrupt from error
            if written != extent.nbytes or (extent.checksum is not None and checksum != extent.checksum.value):
                raise corrupt
            descriptor = os.dup(file.fileno())
        return Source(extent.path, descriptor, extent.nbytes, _stamp(descriptor))

    def check_unchanged(self) -> None:
        """Make sure that no input was written to since it was opened.

        Raises:
            UnreadableError: One was.
        """
        for source in self._files.values():
            if _stamp(source.descriptor) != source.stamp:
                raise UnreadableError(
                    f"{source.path}: the file changed while it was read; nothing was written",
                    path=source.path,
                    hint=_CHANGED_HINT,
                )


def _stamp(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _open(path: Path) -> Source:
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        try:
            descriptor = os.open(path, flags)
        except OSError as error:
            if error.errno != errno.EMFILE or not _allow_more_files():
                raise
            descriptor = os.open(path, flags)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})", path=path) from error
    stamp = _stamp(descriptor)
    return Source(path, descriptor, stamp[0], stamp)


def _allow_more_files() -> bool:
    """Raise this process's limit of open files to what it may have: many members of many shards need it."""
    try:
        import resource
    except ImportError:
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------
# Views


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
            UnreadableError: It does not lie inside its storage, or the storage not inside its file.
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
        component = numerics.component(spec.dtype)
        plain = (spec.strides is None and strides is None) or not numel
        if not plain:
            shape, steps = _reorder(shape, steps or c_strides(shape), strides)
            plain = steps == c_strides(shape)
        if plain:
            return cls(source, base + spec.offset * itemsize, 0, itemsize, component, spec.big_endian, None, ())
        return cls(source, base, spec.offset, itemsize, component, spec.big_endian, shape, steps)

    def read_into(self, out: Bytes, start: int, stop: int, tensor: str, scratch: numerics.Scratch) -> None:
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
        self, out: NDArray[Any], first: int, strides: tuple[int, ...], tensor: str, scratch: numerics.Scratch
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
