"""Zip archives as places of bytes: where each record is in one.

The data's place is taken from the record's own local header, never from what a writer usually does.

The structures are those of PKWARE's APPNOTE.TXT 6.3, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ckpttool.errors import UnreadableError, UnsupportedError
from ckpttool.reading.opened import OpenedFile
from ckpttool.tensors import Checksum, Extent

__all__ = [
    "CENTRAL",
    "END",
    "END64",
    "LOCAL",
    "LOCATOR64",
    "NO_16",
    "NO_32",
    "STORED",
    "Archive",
    "Entry",
    "archive_inside",
    "first_name",
    "open_archive",
]

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL_LENGTHS = struct.Struct("<26x2H")
_CENTRAL_LENGTHS = struct.Struct("<4s24x3H12x")
_CENTRAL_SIZES = struct.Struct("<8x2H4x3I2H10xI")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR64 = struct.Struct("<4sIQI")

STORED, _DEFLATED = 0, 8
_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 20: "Zstandard", 93: "Zstandard", 95: "XZ", 99: "AES"}
_ENCRYPTED = 0x1
NO_32 = 0xFFFFFFFF
NO_16 = 0xFFFF

_TAIL = 2048
"""Bytes at the end of an archive that are read first: they hold the whole directory of one tensor."""

_MAX_INFLATED = 1 << 28
"""Bytes that a compressed record may have when it is taken into memory."""


class Entry(NamedTuple):
    """A record, as the central directory describes it."""

    name: str
    flags: int
    method: int
    crc32: int
    packed: int
    nbytes: int
    header: int


@dataclass
class Archive:
    """The directory of an archive.

    Attributes:
        path: The file.
        size: Its size in bytes.
        names: The records' names, in the file's order.
        base: Where in the file the archive begins.
    """

    path: Path
    size: int
    names: dict[str, int]
    """With the place of each in the directory: an archive has thousands of records, and few are ever asked for."""
    base: int = 0
    _directory: bytes = field(default=b"", repr=False)
    _file: OpenedFile | None = field(default=None, repr=False)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the file open for a series of `extent` and `read`."""
        if self._file is not None:
            yield
            return
        with OpenedFile(self.path) as file:
            self._file = file
            try:
                yield
            finally:
                self._file = None

    def entry(self, name: str) -> Entry:
        """What the directory says of a record.

        Raises:
            UnreadableError: There is no such record.
        """
        at = self.names.get(name)
        if at is None:
            raise self._damaged(f"the record {name} is missing")
        flags, method, crc, packed, nbytes, name_length, extra_length, header = _CENTRAL_SIZES.unpack_from(
            self._directory, at
        )
        if NO_32 in (packed, nbytes, header):
            start = at + CENTRAL.size + name_length
            extra = self._directory[start : start + extra_length]
            nbytes, packed, header = _wide(self.path, name, extra, [nbytes, packed, header])
        return Entry(name, flags, method, crc, packed, nbytes, header)

    def extent(self, name: str, *, checked: bool = False) -> Extent:
        """Where the bytes of a record are.

        Args:
            name: Its name.
            checked: Whether they shall be checked whenever they are read, and not only where all of them are read from
                end to end. A deflated record always is: inflating it costs more than that, and a flipped bit in it
                spoils all that follows.

        Raises:
            UnreadableError: There is no such record, or its header contradicts the directory.
            UnsupportedError: It is encrypted, or compressed by something other than DEFLATE.
        """
        _, flags, method, crc, packed, nbytes, at = self.entry(name)
        if flags & _ENCRYPTED:
            raise UnsupportedError(f"{self.path}: the record {name} is encrypted", path=self.path)
        if method not in {STORED, _DEFLATED}:
            raise UnsupportedError(
                f"{self.path}: the record {name} is compressed with {_METHODS.get(method, f'method {method}')}",
                path=self.path,
                hint="Load it with torch and save it again, or unpack it and zip it with `zip -r -0`.",
            )
        if self._file is None:
            with self.opened():
                header = self._read_at(at, LOCAL.size)
        else:
            header = self._read_at(at, LOCAL.size)
        if len(header) < LOCAL.size or header[:4] != b"PK\x03\x04":
            raise self._damaged(f"there is no header of the record {name} at byte {at}")
        name_length, extra_length = _LOCAL_LENGTHS.unpack_from(header)
        start = at + LOCAL.size + name_length + extra_length
        if start + packed > self.size:
            raise self._damaged(f"the record {name} ends beyond the end of the file")
        if method == STORED and packed != nbytes:
            raise self._damaged(f"the record {name} has two sizes")
        deflated = packed if method == _DEFLATED else None
        # torch.save can be told to write no CRC, and then writes 0.
        stated = Checksum("crc32", crc, optional=not checked and deflated is None) if crc else None
        return Extent(self.path, self.base + start, nbytes, deflated, stated)

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The bytes of a record, checked against its CRC where one is recorded.

        Args:
            name: Its name.
            limit: Give no more than so many bytes, unchecked.
        """
        with self.opened():
            extent = self.extent(name, checked=True)
            packed = extent.nbytes if extent.deflated is None else extent.deflated
            if extent.deflated is None:
                data = self._read_at(extent.offset - self.base, packed if limit is None else min(packed, limit))
            else:
                if extent.nbytes > _MAX_INFLATED and limit is None:
                    raise UnsupportedError(
                        f"{self.path}: the compressed record {name} is {extent.nbytes} bytes long", path=self.path
                    )
                try:
                    data = zlib.decompressobj(-15).decompress(
                        self._read_at(extent.offset - self.base, packed),
                        min(extent.nbytes + 1, limit or extent.nbytes + 1),
                    )
                except zlib.error as error:
                    raise self._damaged(f"the record {name} does not inflate ({error})") from error
        if limit is None:
            if len(data) != extent.nbytes:
                raise self._damaged(f"the record {name} is {len(data)} bytes long, not {extent.nbytes}")
            if extent.checksum is not None and zlib.crc32(data) != extent.checksum.value:
                raise self._damaged(f"the checksum of the record {name} is wrong")
        return data

    def _read_at(self, offset: int, nbytes: int) -> bytes:
        if self._file is None:
            raise ValueError("the archive is not open")
        return self._file.read_at(self.base + offset, nbytes)

    def _damaged(self, what: str) -> UnreadableError:
        return _damaged(self.path, what)


def _damaged(path: Path, what: str) -> UnreadableError:
    return UnreadableError(
        f"{path}: {what}",
        path=path,
        hint="The file is damaged or incomplete: the run may have been interrupted while it was saving.",
    )


def first_name(head: bytes) -> str:
    """The name of the record that an archive starts with; empty if `head` is not the start of one."""
    if head[:4] != b"PK\x03\x04" or len(head) < LOCAL.size:
        return ""
    return head[LOCAL.size : LOCAL.size + int.from_bytes(head[26:28], "little")].decode("utf-8", "replace")


def open_archive(path: Path, *, base: int = 0, nbytes: int | None = None) -> Archive:
    """Read the directory of an archive.

    Args:
        path: The file.
        base: Where in it the archive begins.
        nbytes: How long it is. The file is not shorter. None: all of the file.

    Raises:
        UnreadableError: There is none: the file is truncated, or no zip archive.
        UnsupportedError: It is one of several parts.
    """
    with OpenedFile(path) as file:
        size = file.nbytes if nbytes is None else nbytes
        directory, count = _read_directory(Archive(path, size, {}, base, _file=file))
    return Archive(path, size, _names(path, directory, count), base, directory)


def archive_inside(path: Path, file: OpenedFile, base: int, nbytes: int) -> Archive:
    """Read the directory of an archive that is a part of a file.

    Args:
        path: The file.
        file: The same, open; it has to stay so as long as the archive is asked for anything.
        base: Where the archive begins.
        nbytes: How long it is. The file is not shorter.

    Raises:
        UnreadableError: There is none.
        UnsupportedError: It is one of several parts.
    """
    archive = Archive(path, nbytes, {}, base, _file=file)
    directory, count = _read_directory(archive)
    return Archive(path, nbytes, _names(path, directory, count), base, directory, file)


def _read_directory(archive: Archive) -> tuple[bytes, int]:
    """The central directory, and how many records it has."""
    path, size = archive.path, archive.size
    found, tail_length, tail = -1, 0, b""
    # The end of the directory is at the end of the file, unless a comment follows: no one writes such.
    for longest in (_TAIL, END.size + NO_16 + LOCATOR64.size + END64.size):
        if found < LOCATOR64.size:  # not there, or what is before it is not
            tail_length = min(size, longest)
            tail = archive._read_at(size - tail_length, tail_length)  # noqa: SLF001
            found = tail.rfind(b"PK\x05\x06")
    if found < 0 or found + END.size > len(tail):
        raise _damaged(path, "the zip archive has no directory at its end")
    _, disk, _, _, count, length, offset, _ = END.unpack_from(tail, found)
    ends = found
    if tail[max(found - LOCATOR64.size, 0) :][:4] == b"PK\x06\x07" and found >= LOCATOR64.size:
        _, _, at64, _ = LOCATOR64.unpack_from(tail, found - LOCATOR64.size)
        end64 = archive._read_at(at64, END64.size) if at64 <= size - END64.size else b""  # noqa: SLF001
        if len(end64) < END64.size or end64[:4] != b"PK\x06\x06":
            raise _damaged(path, "the zip64 directory is not where it should be")
        _, _, _, _, disk, _, _, count, length, offset = END64.unpack(end64)
        ends = at64 - (size - tail_length)
    if disk not in {0, NO_16}:
        raise UnsupportedError(f"{path}: one part of a zip archive of several", path=path)
    if offset + length != size - tail_length + ends:
        raise _damaged(path, "the directory of the zip archive is not where it should be")
    start = offset - (size - tail_length)
    return tail[start : start + length] if start >= 0 else archive._read_at(offset, length), count  # noqa: SLF001


def _names(path: Path, directory: bytes, count: int) -> dict[str, int]:
    names: dict[str, int] = {}
    unpack, fixed, end = _CENTRAL_LENGTHS.unpack_from, CENTRAL.size, len(directory)
    at = seen = 0
    while at + fixed <= end:
        magic, name_length, extra_length, comment_length = unpack(directory, at)
        if magic != b"PK\x01\x02":
            break
        stop = at + fixed + name_length
        # All ASCII in files of torch.save but for the top directory, which torch writes as it is.
        name = directory[at + fixed : stop].decode("utf-8", "replace")
        if name in names:
            # torch.load finds either one, depending on how many other records there are.
            raise _damaged(path, f"there are two records named {name}")
        names[name] = at
        at = stop + extra_length + comment_length
        seen += 1
    if at != end or seen != count:
        raise _damaged(path, f"the directory of the zip archive is damaged (record {seen + 1} of {count})")
    return names


def _wide(path: Path, name: str, extra: bytes, values: list[int]) -> list[int]:
    """Sizes and offset of a record with zip64's extra field: those that do not fit into 32 bits stand there."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = extra[at + 4 : at + 4 + length]
            for index, value in enumerate(values):
                if value == NO_32:
                    if len(wide) < 8:
                        break
                    values[index] = int.from_bytes(wide[:8], "little")
                    wide = wide[8:]
            else:
                return values
        at += 4 + length
    raise _damaged(path, f"the record {name} is too large for its entry in the directory")
