"""The input files of a run: opened once, read at any place, and the same in the end as in the beginning.

Files are read with `pread` into buffers that already exist, never mapped: a file that is cut short while it is
mapped kills the process, one that is read says so.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path

from ckpttool.errors import UnreadableError
from ckpttool.tensors import Extent

__all__ = ["Source", "Sources"]

_CHANGED_HINT = "Is the run still saving? Try again when it is done."

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
