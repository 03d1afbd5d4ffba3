"""Zip archives as places of bytes: where each record lies in one, and how to lay one out before its contents exist.

Reading takes the data's place from the record's own local header, never from what a writer usually does. Writing
follows PyTorch's own writer byte for byte where torch.load computes places from it (padding in the extra field "FB",
data descriptors, zip64), so that memory-mapped loading finds them.

The structures are those of PKWARE's APPNOTE.TXT 6.3, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ckpttool.errors import NotFoundError, UnreadableError, UnsupportedError
from ckpttool.tensors import Copy, Extent, OutputFile, Slot, TensorId

__all__ = ["ALIGNMENT", "Archive", "Entry", "ZipLayout", "archive_inside", "first_name", "open_archive"]

ALIGNMENT = 64
"""Of a record's first byte, in what is written: that of torch.save."""

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_CENTRAL_LENGTHS = struct.Struct("<4s24x3H12x")
_CENTRAL_SIZES = struct.Struct("<8x2H4x3I2H10xI")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")

_STORED, _DEFLATED = 0, 8
_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 20: "Zstandard", 93: "Zstandard", 95: "XZ", 99: "AES"}
_ENCRYPTED, _HAS_DESCRIPTOR, _UTF8 = 0x1, 0x8, 0x800
_NO_32 = 0xFFFFFFFF
_NO_16 = 0xFFFF
_JANUARY_1980 = 0x21

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
    _file: BinaryIO | None = field(default=None, repr=False)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the file open for a series of `extent` and `read`."""
        if self._file is not None:
            yield
            return
        with _open(self.path) as file:
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
        if _NO_32 in (packed, nbytes, header):
            start = at + _CENTRAL.size + name_length
            extra = self._directory[start : start + extra_length]
            nbytes, packed, header = _wide(self.path, name, extra, [nbytes, packed, header])
        return Entry(name, flags, method, crc, packed, nbytes, header)

    def extent(self, name: str) -> Extent:
        """Where the bytes of a record are.

        Raises:
            UnreadableError: There is no such record, or its header contradicts the directory.
            UnsupportedError: It is encrypted, or compressed by something other than DEFLATE.
        """
        entry = self.entry(name)
        if entry.flags & _ENCRYPTED:
            raise UnsupportedError(f"{self.path}: the record {name} is encrypted", path=self.path)
        if entry.method not in {_STORED, _DEFLATED}:
            what = _METHODS.get(entry.method, f"method {entry.method}")
            raise UnsupportedError(
                f"{self.path}: the record {name} is compressed with {what}",
                path=self.path,
                hint="Load it with torch and save it again, or unpack it and zip it with `zip -r -0`.",
            )
        if self._file is None:
            with self.opened():
                header = self._read_at(entry.header, _LOCAL.size)
        else:
            header = self._read_at(entry.header, _LOCAL.size)
        if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
            raise self._damaged(f"there is no header of the record {name} at byte {entry.header}")
        name_length, extra_length = struct.unpack_from("<2H", header, 26)
        start = entry.header + _LOCAL.size + int(name_length) + int(extra_length)
        if start + entry.packed > self.size:
            raise self._damaged(f"the record {name} ends beyond the end of the file")
        if entry.method == _STORED and entry.packed != entry.nbytes:
            raise self._damaged(f"the record {name} has two sizes")
        return Extent(
            self.path,
            self.base + start,
            entry.nbytes,
            entry.packed if entry.method == _DEFLATED else None,
            entry.crc32 or None,  # torch.save can be told to write none, and then writes 0
        )

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The bytes of a record, checked against its CRC where one is recorded.

        Args:
            name: Its name.
            limit: Give no more than so many bytes, unchecked.
        """
        with self.opened():
            extent = self.extent(name)
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
            if extent.crc32 is not None and zlib.crc32(data) != extent.crc32:
                raise self._damaged(f"the checksum of the record {name} is wrong")
        return data

    def _read_at(self, offset: int, nbytes: int) -> bytes:
        if self._file is None:
            raise ValueError("the archive is not open")
        try:
            if hasattr(os, "pread"):
                return os.pread(self._file.fileno(), nbytes, self.base + offset)
            self._file.seek(self.base + offset)
            return self._file.read(nbytes)
        except OSError as error:
            raise UnreadableError(f"{self.path}: cannot be read ({error.strerror})", path=self.path) from error

    def _damaged(self, what: str) -> UnreadableError:
        return _damaged(self.path, what)


def _damaged(path: Path, what: str) -> UnreadableError:
    return UnreadableError(
        f"{path}: {what}",
        path=path,
        hint="The file is damaged or incomplete: the run may have been interrupted while it was saving.",
    )


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file", path=path) from error
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})", path=path) from error


def first_name(head: bytes) -> str:
    """The name of the record that an archive starts with; empty if `head` is not the start of one."""
    if head[:4] != b"PK\x03\x04" or len(head) < _LOCAL.size:
        return ""
    return head[_LOCAL.size : _LOCAL.size + int.from_bytes(head[26:28], "little")].decode("utf-8", "replace")


def open_archive(path: Path) -> Archive:
    """Read the directory of an archive.

    Raises:
        UnreadableError: There is none: the file is truncated, or no zip archive.
        UnsupportedError: It is one of several parts.
    """
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        directory, count = _read_directory(Archive(path, size, {}, _file=file))
    return Archive(path, size, _names(path, directory, count), _directory=directory)


def archive_inside(path: Path, file: BinaryIO, base: int, nbytes: int) -> Archive:
    """Read the directory of an archive that is a part of a file.

    Args:
        path: The file.
        file: The same, open; it has to stay so as long as the archive is asked for anything.
        base: Where the archive begins.
        nbytes: How long it is. The file is no shorter.

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
    for longest in (_TAIL, _END.size + _NO_16 + _LOCATOR64.size + _END64.size):
        if found < _LOCATOR64.size:  # not there, or what stands before it is not
            tail_length = min(size, longest)
            tail = archive._read_at(size - tail_length, tail_length)  # noqa: SLF001
            found = tail.rfind(b"PK\x05\x06")
    if found < 0 or found + _END.size > len(tail):
        raise _damaged(path, "the zip archive has no directory at its end")
    _, disk, _, _, count, length, offset, _ = _END.unpack_from(tail, found)
    ends = found
    if tail[max(found - _LOCATOR64.size, 0) :][:4] == b"PK\x06\x07" and found >= _LOCATOR64.size:
        _, _, at64, _ = _LOCATOR64.unpack_from(tail, found - _LOCATOR64.size)
        end64 = archive._read_at(at64, _END64.size) if at64 <= size - _END64.size else b""  # noqa: SLF001
        if len(end64) < _END64.size or end64[:4] != b"PK\x06\x06":
            raise _damaged(path, "the zip64 directory is not where it should be")
        _, _, _, _, disk, _, _, count, length, offset = _END64.unpack(end64)
        ends = at64 - (size - tail_length)
    if disk not in {0, _NO_16}:
        raise UnsupportedError(f"{path}: one part of a zip archive of several", path=path)
    if offset + length != size - tail_length + ends:
        raise _damaged(path, "the directory of the zip archive is not where it should be")
    start = offset - (size - tail_length)
    return tail[start : start + length] if start >= 0 else archive._read_at(offset, length), count  # noqa: SLF001


def _names(path: Path, directory: bytes, count: int) -> dict[str, int]:
    names: dict[str, int] = {}
    unpack, fixed, end = _CENTRAL_LENGTHS.unpack_from, _CENTRAL.size, len(directory)
    at = seen = 0
    while at + fixed <= end:
        magic, name_length, extra_length, comment_length = unpack(directory, at)
        if magic != b"PK\x01\x02":
            break
        stop = at + fixed + name_length
        # All ASCII in files of torch.save but for the top directory, which torch writes as it is.
        name = directory[at + fixed : stop].decode("utf-8", "replace")
        if name in names:
            # torch.load finds either one, depending on how many records there are beside them.
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
                if value == _NO_32:
                    if len(wide) < 8:
                        break
                    values[index] = int.from_bytes(wide[:8], "little")
                    wide = wide[8:]
            else:
                return values
        at += 4 + length
    raise _damaged(path, f"the record {name} is too large for its entry in the directory")


@dataclass(slots=True)
class _Record:
    name: bytes
    nbytes: int
    header: int
    start: int
    content: bytes | None
    """None: a slot or a copy, whose CRC-32 comes at the end."""
    wide: bool
    local: bytes


class ZipLayout:
    """An archive in the making: records get their places one after the other, then `finish` gives the file.

    Args:
        top: The directory that all records are in.
    """

    def __init__(self, top: str) -> None:
        self._top = top
        self._records: list[_Record] = []
        self._slots: list[Slot] = []
        self._copies: list[Copy] = []
        self._at = 0

    def add(self, name: str, content: bytes) -> None:
        """A record whose bytes are known."""
        self._place(name, len(content), content)

    def add_slot(self, name: str, nbytes: int, tensor: TensorId) -> None:
        """A record that a tensor will fill."""
        if not nbytes:
            self.add(name, b"")
            return
        start = self._place(name, nbytes, None)
        self._slots.append(Slot(start, nbytes, tensor))

    def add_copy(self, name: str, source: Extent) -> None:
        """A record that an input's bytes will fill (inflated, where they are deflated there)."""
        if not source.nbytes:
            self.add(name, b"")
            return
        start = self._place(name, source.nbytes, None)
        self._copies.append(Copy(start, source))

    def _place(self, name: str, nbytes: int, content: bytes | None) -> int:
        encoded = f"{self._top}/{name}".encode("utf-8", "surrogateescape")
        header = self._at
        wide = nbytes >= _NO_32 or header >= _NO_32
        extra = b""
        if wide:
            # The sizes are those of a stream: zero here, and in the data descriptor behind the bytes.
            values = ([nbytes, nbytes] if nbytes >= _NO_32 else []) + ([header] if header >= _NO_32 else [])
            extra = struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)
        bare = header + _LOCAL.size + len(encoded) + len(extra) + 4
        padding = -bare % ALIGNMENT
        extra += struct.pack("<2s H", b"FB", padding) + b"Z" * padding
        flags = _UTF8 | (_HAS_DESCRIPTOR if nbytes else 0)
        local = _LOCAL.pack(
            b"PK\x03\x04", 45 if wide else 20, flags, _STORED, 0, _JANUARY_1980, 0, 0, 0, len(encoded), len(extra)
        )
        start = bare + padding
        self._records.append(_Record(encoded, nbytes, header, start, content, wide, local + encoded + extra))
        self._at = start + nbytes + (0 if not nbytes else 24 if wide else 16)
        return start

    def finish(self, name: str = "") -> OutputFile:
        """The file. Its last record, .data/serialization_id, tells files of different contents apart."""
        self._place(".data/serialization_id", 40, None)
        directory_at = self._at
        directory_length = sum(len(_central(record, 0)) for record in self._records)
        tail = _tail(len(self._records), directory_at, directory_length)
        records = tuple(self._records)

        def seal(crcs: Mapping[int, int]) -> list[tuple[int, bytes]]:
            return _seal(records, crcs, directory_at, tail)

        literals = tuple(
            (record.header, record.local + (record.content or b"") + _descriptor(record, zlib.crc32(record.content)))
            for record in records
            if record.content is not None
        )
        return OutputFile(
            name=name,
            nbytes=directory_at + directory_length + len(tail),
            literals=literals,
            slots=tuple(self._slots),
            copies=tuple(self._copies),
            seal=seal,
        )


def _seal(
    records: tuple[_Record, ...], crcs: Mapping[int, int], directory_at: int, tail: bytes
) -> list[tuple[int, bytes]]:
    pieces: list[tuple[int, bytes]] = []
    directory: list[bytes] = []
    # As torch.save does it: a digest of the contents, so that equal files have equal bytes.
    digest = hashlib.sha256()
    for record in records[:-1]:
        crc = crcs[record.start] if record.content is None else zlib.crc32(record.content)
        directory.append(_central(record, crc))
        digest.update(directory[-1])
        if record.content is None:
            pieces += ((record.header, record.local), (record.start + record.nbytes, _descriptor(record, crc)))
    last = records[-1]
    number = f"{int.from_bytes(digest.digest(), 'big') % 10**40:040d}".encode()
    crc = zlib.crc32(number)
    directory.append(_central(last, crc))
    pieces += ((last.header, last.local + number + _descriptor(last, crc)), (directory_at, b"".join(directory) + tail))
    return _joined(pieces)


def _joined(pieces: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The same pieces with neighbours in one, to be written by fewer calls."""
    joined: list[tuple[int, bytes]] = []
    for offset, piece in pieces:
        if joined and joined[-1][0] + len(joined[-1][1]) == offset:
            joined[-1] = (joined[-1][0], joined[-1][1] + piece)
        else:
            joined.append((offset, piece))
    return joined


def _descriptor(record: _Record, crc: int) -> bytes:
    if not record.nbytes:
        return b""
    return struct.pack("<4sI2Q" if record.wide else "<4s3I", b"PK\x07\x08", crc, record.nbytes, record.nbytes)


def _central(record: _Record, crc: int) -> bytes:
    values = ([record.nbytes] * 2 if record.nbytes >= _NO_32 else []) + (
        [record.header] if record.header >= _NO_32 else []
    )
    extra = struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""
    version = 45 if record.wide else 20
    flags = _UTF8 | (_HAS_DESCRIPTOR if record.nbytes else 0)
    nbytes = min(record.nbytes, _NO_32)
    return (
        _CENTRAL.pack(
            *(b"PK\x01\x02", version, version, flags, _STORED, 0, _JANUARY_1980, crc, nbytes, nbytes),
            *(len(record.name), len(extra), 0, 0, 0, 0, min(record.header, _NO_32)),
        )
        + record.name
        + extra
    )


def _tail(count: int, directory_at: int, directory_length: int) -> bytes:
    """The ends of the directory, zip64's first; torch.save always writes both."""
    at = directory_at + directory_length
    return (
        _END64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, directory_length, directory_at)
        + _LOCATOR64.pack(b"PK\x06\x07", 0, at, 1)
        + _END.pack(
            *(b"PK\x05\x06", 0, 0, min(count, _NO_16), min(count, _NO_16)),
            *(min(directory_length, _NO_32), min(directory_at, _NO_32), 0),
        )
    )
