"""A zip archive as numpy.savez writes it, laid out before its contents exist.

Sizes and checksums are in the local headers, none after the data, because Marian's reader goes from header to
header. zip64's fields are written only where a number needs them. PKWARE's APPNOTE.TXT 6.3, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from ckpttool.checksums.crc32 import combine_crc32
from ckpttool.tensors import Copy, Extent, OutputFile, Slot, TensorId

__all__ = ["MAX_COMMENT", "NpzLayout"]

MAX_COMMENT = 0xFFFF

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_NO_32 = 0xFFFFFFFF
_NO_16 = 0xFFFF
_UTF8 = 0x800
_JANUARY_1980 = 0x21


@dataclass(frozen=True, slots=True)
class _Record:
    """A record: its local header at `at`, then `prefix`, then `nbytes` bytes that a slot or copy fills."""

    name: bytes
    at: int
    prefix: bytes
    nbytes: int

    @property
    def size(self) -> int:
        return len(self.prefix) + self.nbytes

    @property
    def start(self) -> int:
        """Of what is filled in."""
        return self.at + len(self.local(0)) + len(self.prefix)

    @property
    def flags(self) -> int:
        return 0 if self.name.isascii() else _UTF8

    def crc(self, checksums: Mapping[int, int]) -> int:
        filled = checksums[self.start] if self.nbytes else 0
        return combine_crc32([(zlib.crc32(self.prefix), len(self.prefix)), (filled, self.nbytes)])

    def local(self, crc: int) -> bytes:
        wide = self.size >= _NO_32
        extra = struct.pack("<2H2Q", 1, 16, self.size, self.size) if wide else b""
        size = _NO_32 if wide else self.size
        fields = (45 if wide else 20, self.flags, 0, 0, _JANUARY_1980, crc, size, size, len(self.name), len(extra))
        return _LOCAL.pack(b"PK\x03\x04", *fields) + self.name + extra

    def central(self, crc: int) -> bytes:
        wide = [self.size] * 2 if self.size >= _NO_32 else []
        if self.at >= _NO_32:
            wide.append(self.at)
        extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        version, size = 45 if wide else 20, min(self.size, _NO_32)
        fields = (version, version, self.flags, 0, 0, _JANUARY_1980, crc, size, size, len(self.name), len(extra))
        return _CENTRAL.pack(b"PK\x01\x02", *fields, 0, 0, 0, 0, min(self.at, _NO_32)) + self.name + extra


class NpzLayout:
    """An archive in the making: records get their places one after the other, then `finish` gives the file."""

    def __init__(self) -> None:
        self._records: list[_Record] = []
        self._slots: list[Slot] = []
        self._copies: list[Copy] = []
        self._end = 0

    def add_slot(self, name: str, header: bytes, nbytes: int, tensor: TensorId) -> None:
        """A record of a header and what a tensor will fill."""
        record = self._add(name, header, nbytes)
        if nbytes:
            self._slots.append(Slot(record.start, nbytes, tensor))

    def add_copy(self, name: str, source: Extent) -> None:
        """A record that an input's bytes will fill (inflated, where they are deflated there)."""
        record = self._add(name, b"", source.nbytes)
        if source.nbytes:
            self._copies.append(Copy(record.start, source))

    def _add(self, name: str, prefix: bytes, nbytes: int) -> _Record:
        record = _Record(name.encode("utf-8", "surrogateescape"), self._end, prefix, nbytes)
        self._records.append(record)
        self._end = record.start + nbytes
        return record

    def finish(self, comment: bytes) -> OutputFile:
        """The file. All that is not filled comes at the end, with the checksums in it."""
        records, directory_at = tuple(self._records), self._end
        length = sum(len(record.central(0)) for record in records)
        tail = _tail(len(records), directory_at, length, comment)

        def seal(checksums: Mapping[int, int]) -> list[tuple[int, bytes]]:
            crcs = [record.crc(checksums) for record in records]
            pairs = list(zip(records, crcs, strict=True))
            directory = b"".join(record.central(crc) for record, crc in pairs)
            return [
                *((record.at, record.local(crc) + record.prefix) for record, crc in pairs),
                (directory_at, directory + tail),
            ]

        return OutputFile(
            "", directory_at + length + len(tail), slots=tuple(self._slots), copies=tuple(self._copies), seal=seal
        )


def _tail(count: int, at: int, length: int, comment: bytes) -> bytes:
    end = _END.pack(
        *(b"PK\x05\x06", 0, 0, min(count, _NO_16), min(count, _NO_16)),
        *(min(length, _NO_32), min(at, _NO_32), len(comment)),
    )
    if count < _NO_16 and at < _NO_32 and length < _NO_32:
        return end + comment
    end64 = _END64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, at)
    return end64 + _LOCATOR64.pack(b"PK\x06\x07", 0, at + length, 1) + end + comment
