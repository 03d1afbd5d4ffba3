"""The wire format of protocol buffers, as much of it as checkpoints need.

A message is a sequence of fields: a varint ``number << 3 | wire type``, then a varint (type 0), eight bytes (1), a
length and as many bytes (2), or four bytes (5); https://protobuf.dev/programming-guides/encoding/. Groups (3, 4) were
never used here. Every read is bounds-checked; what does not fit raises `ValueError`, which the caller turns into an
error that names the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = [
    "Field",
    "fields",
    "message",
    "number",
    "read_varint",
    "signed",
    "write_bytes",
    "write_fixed32",
    "write_varint",
    "write_varints",
]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Field = tuple[int, int | bytes]
"""(field number, value): an int for varint and fixed fields, bytes for the others."""


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The unsigned 64-bit varint at `position`, and the position after it."""
    value = 0
    for index in range(10):
        if position + index >= len(data):
            raise ValueError("a number is cut off")
        byte = data[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if value >> 64:
                break
            return value, position + index + 1
    raise ValueError("a number has more than 64 bits")


def signed(value: int) -> int:
    """An unsigned 64-bit varint read as int64 (or int32, which is sign-extended on the wire)."""
    return value - (1 << 64) if value >> 63 else value


def fields(data: bytes) -> Iterator[Field]:
    """The fields of a message in their order."""
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        field, kind = tag >> 3, tag & 7
        if field == 0:
            raise ValueError("a field has the number 0")
        if kind == VARINT:
            value, position = read_varint(data, position)
            yield field, value
            continue
        if kind == BYTES:
            size, position = read_varint(data, position)
        elif kind in {FIXED32, FIXED64}:
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"field {field} has the unknown wire type {kind}")
        if size > len(data) - position:
            raise ValueError(f"field {field} is cut off")
        piece = data[position : position + size]
        position += size
        yield field, piece if kind == BYTES else int.from_bytes(piece, "little")


def number(value: int | bytes) -> int:
    """The value of a field that must be a number."""
    if isinstance(value, bytes):
        raise ValueError("a field that must be a number is not")  # noqa: TRY004  a damaged file is a matter of values
    return value


def message(value: int | bytes) -> bytes:
    """The value of a field that must be bytes."""
    if isinstance(value, int):
        raise ValueError("a field that must be a message is not")  # noqa: TRY004
    return value


def write_varints(*values: int) -> bytes:
    """Numbers as varints, one after the other; negative ones as 64-bit two's complement."""
    out = bytearray()
    for value in values:
        rest = value & (1 << 64) - 1
        while rest >= 0x80:
            out.append(rest & 0x7F | 0x80)
            rest >>= 7
        out.append(rest)
    return bytes(out)


def write_varint(field: int, value: int) -> bytes:
    """A varint field. Zero is written as nothing at all, as proto3 does."""
    return write_varints(field << 3 | VARINT, value) if value else b""


def write_fixed32(field: int, value: int) -> bytes:
    """A fixed32 field, written even when it is zero: its size must not depend on its value."""
    return write_varints(field << 3 | FIXED32) + value.to_bytes(4, "little")


def write_bytes(field: int, value: bytes | Iterable[bytes]) -> bytes:
    """A field of bytes, a string, or an embedded message (given whole or in parts)."""
    whole = value if isinstance(value, bytes) else b"".join(value)
    return write_varints(field << 3 | BYTES, len(whole)) + whole
