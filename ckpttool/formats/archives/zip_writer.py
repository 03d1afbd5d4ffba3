"""Zip archives laid out before their contents exist.

What is written follows PyTorch's own writer byte for byte where torch.load computes places from it (padding in the
extra field "FB", data descriptors, zip64), so that memory-mapped loading finds them.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from ckpttool.formats.archives.zip_reader import CENTRAL, END, END64, LOCAL, LOCATOR64, NO_16, NO_32, STORED
from ckpttool.tensors import Copy, Extent, OutputFile, Slot, TensorId

__all__ = ["ALIGNMENT", "ZipLayout"]

ALIGNMENT = 64
"""Of a record's first byte, in what is written: that of torch.save."""

_HAS_DESCRIPTOR, _UTF8 = 0x8, 0x800
_JANUARY_1980 = 0x21


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
        wide = nbytes >= NO_32 or header >= NO_32
        extra = b""
        if wide:
            # The sizes are those of a stream: zero here, and in the data descriptor behind the bytes.
            values = ([nbytes, nbytes] if nbytes >= NO_32 else []) + ([header] if header >= NO_32 else [])
            extra = struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)
        bare = header + LOCAL.size + len(encoded) + len(extra) + 4
        padding = -bare % ALIGNMENT
        extra += struct.pack("<2s H", b"FB", padding) + b"Z" * padding
        flags = _UTF8 | (_HAS_DESCRIPTOR if nbytes else 0)
        local = LOCAL.pack(
            b"PK\x03\x04", 45 if wide else 20, flags, STORED, 0, _JANUARY_1980, 0, 0, 0, len(encoded), len(extra)
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
    values = ([record.nbytes] * 2 if record.nbytes >= NO_32 else []) + (
        [record.header] if record.header >= NO_32 else []
    )
    extra = struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""
    version = 45 if record.wide else 20
    flags = _UTF8 | (_HAS_DESCRIPTOR if record.nbytes else 0)
    nbytes = min(record.nbytes, NO_32)
    return (
        CENTRAL.pack(
            *(b"PK\x01\x02", version, version, flags, STORED, 0, _JANUARY_1980, crc, nbytes, nbytes),
            *(len(record.name), len(extra), 0, 0, 0, 0, min(record.header, NO_32)),
        )
        + record.name
        + extra
    )


def _tail(count: int, directory_at: int, directory_length: int) -> bytes:
    """The ends of the directory, zip64's first; torch.save always writes both."""
    at = directory_at + directory_length
    return (
        END64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, directory_length, directory_at)
        + LOCATOR64.pack(b"PK\x06\x07", 0, at, 1)
        + END.pack(
            *(b"PK\x05\x06", 0, 0, min(count, NO_16), min(count, NO_16)),
            *(min(directory_length, NO_32), min(directory_at, NO_32), 0),
        )
    )
