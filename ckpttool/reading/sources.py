"""The input files of a run: opened once, read at any place, and the same in the end as in the beginning.

Files are read into buffers that already exist, never mapped: a file that is cut short while it is mapped kills the
process, one that is read says so.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path

from ckpttool.errors import UnreadableError
from ckpttool.reading.descriptors import FilePool
from ckpttool.reading.opened import unreadable
from ckpttool.reading.storage import Identity, LocalStorage, RangedFile, storage_of
from ckpttool.tensors import Extent

__all__ = ["Source", "Sources"]

_CHANGED_HINT = "Is the run still saving? Try again when it is done."

_INFLATE_STEP = 1 << 20

_SHARE = 0.6
"""Of the process's open files; the output has files as well."""


@dataclass(slots=True, eq=False)
class Source:
    """An input file.

    Attributes:
        path: Its name, for messages.
        nbytes: Its size when it was opened.
        identity: What it was when it was opened; see `ckpttool.reading.storage`.
        use: Gives the open file, which stays open meanwhile.
    """

    path: Path
    nbytes: int
    identity: Identity
    use: Callable[[], AbstractContextManager[RangedFile]]

    def read_into(self, buffer: memoryview, offset: int, tensor: str) -> None:
        """Fill a buffer of bytes from `offset` on.

        Raises:
            UnreadableError: The file ends before the buffer is full, or the disk fails.
        """
        try:
            with self.use() as file:
                done = file.read_into(buffer, offset)
                while 0 < done < len(buffer):
                    more = file.read_into(buffer[done:], offset + done)
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


class Sources:
    """The input files of a run: each opened once, deflated extents inflated once, all unchanged in the end.

    Where the system does not let a process have as many files open, some are closed and opened again.

    Args:
        temporary_directory: Where deflated extents are inflated to (into files without a name).
        identities: What files were when their headers were read, where that is known; they must still be that.
    """

    def __init__(
        self, temporary_directory: Path | None = None, identities: Mapping[Path, Identity] | None = None
    ) -> None:
        self._temporary_directory = temporary_directory
        self._identities = dict(identities or {})
        self._files: dict[Path, Source] = {}
        self._recent: dict[int, tuple[Path, Source]] = {}
        self._inflated: dict[Extent, Source] = {}
        self._copies: list[RangedFile] = []
        self._pool = FilePool[Path, RangedFile](self._open, methodcaller("close"), _SHARE)

    def close(self) -> None:
        """Close every file; inflated copies are gone with that."""
        self._pool.close()
        while self._copies:
            self._copies.pop().close()
        self._files.clear()
        self._recent.clear()
        self._inflated.clear()

    def locate(self, extent: Extent, tensor: str) -> tuple[Source, int]:
        """The file that holds an extent's plain bytes, and where in it they start. Opens and inflates as needed.

        Raises:
            UnreadableError: The file cannot be opened, is not the one whose header was read, is shorter than the
                extent, or does not inflate to it.
        """
        # By identity first: to hash a Path takes longer than all the rest, and a file's tensors share one.
        path, source = self._recent.get(id(extent.path), (None, None))
        if source is None or path is not extent.path:
            source = self._files.get(extent.path)
            if source is None:
                source = self._files[extent.path] = self._source(extent.path)
            self._recent[id(extent.path)] = (extent.path, source)
        stored = extent.nbytes if extent.deflated is None else extent.deflated
        if extent.offset < 0 or extent.offset + stored > source.nbytes:
            raise UnreadableError(
                f"{extent.path}: {tensor}: the file is truncated: {tensor} ends at byte"
                f" {extent.offset + stored:,}, the file at {source.nbytes:,}",
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

    def _source(self, path: Path) -> Source:
        try:
            with self._pool.use(path) as file:
                return Source(path, file.nbytes, file.identity, lambda: self._pool.use(path))
        except OSError as error:
            raise unreadable(path, error) from error

    def _open(self, path: Path) -> RangedFile:
        """Open a file for the first time, or again."""
        file = storage_of(path).open(path)
        if self._identities.setdefault(path, file.identity) != file.identity:
            file.close()
            raise _changed(path)
        return file

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
                        if written > extent.nbytes:  # its size is not what it states: nothing more is written
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
            copy = LocalStorage().adopt(os.dup(file.fileno()))
        self._copies.append(copy)
        return Source(extent.path, copy.nbytes, copy.identity, lambda: nullcontext(copy))

    def check_unchanged(self) -> None:
        """Make sure that no input was written to since it was opened.

        Raises:
            UnreadableError: One was.
        """
        for source in self._files.values():
            with source.use() as file:
                if file.current_identity() != source.identity:
                    raise _changed(source.path)


def _changed(path: Path) -> UnreadableError:
    return UnreadableError(
        f"{path}: the file changed while it was read; nothing was written", path=path, hint=_CHANGED_HINT
    )
