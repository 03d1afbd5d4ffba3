"""The entries of a TensorFlow checkpoint: what its index says about each tensor.

The index maps keys to messages. The key "" has the header (BundleHeaderProto: 1 number of data files, 2 endianness,
3 version), every other one a tensor (BundleEntryProto: 1 dtype, 2 shape, 3 data file, 4 offset, 5 size, 6 masked
CRC-32C, 7 slices); tensorflow/core/protobuf/tensor_bundle.proto.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpttool.checksums import crc32c
from ckpttool.checksums.by_kind import damaged
from ckpttool.errors import UnreadableError, UnsupportedError
from ckpttool.formats.tensorflow import protobuf
from ckpttool.formats.tensorflow.leveldb import CompressedBlockError, read_table, write_table
from ckpttool.reading.opened import OpenedFile
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import DTYPES, DType

__all__ = [
    "NOT_PLAIN",
    "STRING",
    "TF_NUMBERS",
    "Entry",
    "Index",
    "check_strings",
    "data_file",
    "encode_string",
    "index_bytes",
    "read_bytes",
    "read_index",
    "read_string",
    "sizes",
]

STRING = 7
NOT_PLAIN = frozenset({STRING, 20, 21})
"""Strings, resources and variants: their checksums are not those of their bytes in the data file."""

_DTYPES: Mapping[int, DType] = {
    number: DTYPES[name]
    for number, name in {
        1: "float32",
        2: "float64",
        3: "int32",
        4: "uint8",
        5: "int16",
        6: "int8",
        8: "complex64",
        9: "int64",
        10: "bool",
        11: "int8",  # qint8 and the like: integers whose scale is stored elsewhere
        12: "uint8",
        13: "int32",
        14: "bfloat16",
        15: "int16",
        16: "uint16",
        17: "uint16",
        18: "complex128",
        19: "float16",
        22: "uint32",
        23: "uint64",
        24: "float8_e5m2",
        25: "float8_e4m3fn",
        26: "float8_e4m3fnuz",
        28: "float8_e5m2fnuz",
    }.items()
}
"""Numbers of tensorflow/core/framework/types.proto."""

_QUANTIZED = {11, 12, 13, 15, 16}
TF_NUMBERS: Mapping[str, int] = {dtype.name: number for number, dtype in _DTYPES.items() if number not in _QUANTIZED}
"""The number of each element type that a bundle can hold."""

_MAX_INDEX_BYTES = 1 << 30
_MAX_RANK = 254  # as in TensorFlow
_VERSION = 1  # kTensorBundleVersion


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a bundle.

    Attributes:
        number: Its element type as TensorFlow numbers it.
        shape: Its shape.
        shard: Index of the data file that holds it.
        offset: Of its first byte in there.
        nbytes: Size in there.
        crc: Masked CRC-32C of its elements (for strings: of lengths and bytes, see `read_string`).
    """

    number: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    nbytes: int
    crc: int

    @property
    def dtype(self) -> DType | None:
        """Its element type; None for strings and what is not known."""
        return _DTYPES.get(self.number)

    def encode(self) -> bytes:
        """As a BundleEntryProto. Its size does not depend on the checksum."""
        shape = [protobuf.write_bytes(2, protobuf.write_varint(1, size)) for size in self.shape]
        return b"".join(
            (
                protobuf.write_varint(1, self.number),
                protobuf.write_bytes(2, shape),
                protobuf.write_varint(3, self.shard),
                protobuf.write_varint(4, self.offset),
                protobuf.write_varint(5, self.nbytes),
                protobuf.write_fixed32(6, self.crc),
            )
        )


@dataclass(frozen=True, slots=True)
class Index:
    """What the index of a bundle says."""

    shards: int
    big_endian: bool
    entries: Mapping[str, Entry]
    """By key, in the order of the keys."""


def data_file(prefix: Path, shard: int, shards: int) -> Path:
    """The data file of this number."""
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")


def read_index(path: Path) -> Index:
    """Read and check the index of a bundle.

    Raises:
        UnreadableError: It is truncated, damaged, or states what cannot be.
        UnsupportedError: It is compressed, of a later version, or has partitioned variables.
    """
    with OpenedFile(path) as file:
        if file.nbytes > _MAX_INDEX_BYTES:
            raise UnreadableError(f"{path}: too large for the index of a checkpoint", path=path)
        data = file.read_at(0, file.nbytes)
    try:
        return _decode(path, data)
    except CompressedBlockError as error:
        raise UnsupportedError(
            f"{path}: the index is compressed ({error}), which is not supported",
            path=path,
            hint="TensorFlow itself writes plain ones: load and save the checkpoint with tf.train.Checkpoint.",
        ) from error
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{path}: damaged index: a name is not UTF-8 ({error.object!r})", path=path) from error
    except UnreadableError:
        raise
    except ValueError as error:
        raise UnreadableError(
            f"{path}: damaged index: {error}",
            path=path,
            hint="The run may have been interrupted while it was saving. Leave this checkpoint out.",
        ) from error


def _decode(path: Path, data: bytes) -> Index:
    table = list(read_table(data))
    if not table or table[0][0] != b"":
        raise ValueError("it has no header")
    shards, big_endian = _decode_header(path, table[0][1])
    decoded = [(key, _decode_entry(path, key, value)) for key, value in table[1:]]
    entries = {key.decode(): entry for key, entry in decoded}
    for key, entry in entries.items():
        _check(key, entry, shards)
    return Index(shards, big_endian, entries)


def _decode_header(path: Path, data: bytes) -> tuple[int, bool]:
    shards = endianness = oldest_reader = 0
    for number, value in protobuf.fields(data):
        if number == 1:
            shards = protobuf.number(value)
        elif number == 2:
            endianness = protobuf.number(value)
        elif number == 3:
            oldest_reader = next(
                (protobuf.number(inner) for n, inner in protobuf.fields(protobuf.message(value)) if n == 2), 0
            )
    if endianness > 1:
        raise ValueError(f"the byte order {endianness} does not exist")
    if oldest_reader > _VERSION:
        raise UnsupportedError(f"{path}: needs a reader of version {oldest_reader} (known is {_VERSION})", path=path)
    return shards, endianness == 1


def _decode_entry(path: Path, key: bytes, data: bytes) -> Entry:
    dtype = shard = offset = size = crc = 0
    shape: tuple[int, ...] = ()
    for number, value in protobuf.fields(data):
        if number == 1:
            dtype = protobuf.number(value)
        elif number == 2:
            shape = _decode_shape(protobuf.message(value))
        elif number == 3:
            shard = protobuf.signed(protobuf.number(value))
        elif number == 4:
            offset = protobuf.signed(protobuf.number(value))
        elif number == 5:
            size = protobuf.signed(protobuf.number(value))
        elif number == 6:
            crc = protobuf.number(value) & 0xFFFFFFFF
        elif number == 7:
            name = key.decode(errors="replace")
            raise UnsupportedError(
                f"{path}: {name} is partitioned: saved in slices, which is not supported",
                path=path,
                tensor=name,
                hint="Restore it into a model whose variables are not partitioned, and save it again.",
            )
    return Entry(dtype, shape, shard, offset, size, crc)


def _decode_shape(data: bytes) -> tuple[int, ...]:
    shape = []
    for number, value in protobuf.fields(data):
        if number == 2:
            size = next((protobuf.number(inner) for n, inner in protobuf.fields(protobuf.message(value)) if n == 1), 0)
            shape.append(protobuf.signed(size))
        elif number == 3 and value:
            raise ValueError("a tensor has no shape")
    if len(shape) > _MAX_RANK or any(size < 0 for size in shape):
        raise ValueError(f"the shape {shape} cannot be")
    return tuple(shape)


def _check(key: str, entry: Entry, shards: int) -> None:
    if not 0 <= entry.shard < shards:
        raise ValueError(f"{key} is in data file {entry.shard} of {shards}")
    if entry.offset < 0 or entry.nbytes < 0:
        raise ValueError(f"{key} has {entry.nbytes} bytes at byte {entry.offset}")
    if entry.dtype is not None and math.prod(entry.shape) * entry.dtype.itemsize != entry.nbytes:
        raise ValueError(f"{key} ({entry.dtype}, {list(entry.shape)}) has {entry.nbytes} bytes")


def index_bytes(entries: Mapping[str, Entry]) -> bytes:
    """An index of one little-endian data file with these entries. Its size does not depend on the checksums."""
    header = protobuf.write_varint(1, 1) + protobuf.write_bytes(3, protobuf.write_varint(1, _VERSION))
    table = sorted((key.encode(), entry.encode()) for key, entry in entries.items())
    return write_table([(b"", header), *table])


def read_bytes(path: Path, key: str, entry: Entry) -> bytes:
    """The bytes of one tensor, not checked. `path` is its data file, which must be as long as the entry says."""
    with OpenedFile(path) as file:
        data = file.read_at(entry.offset, entry.nbytes)
    if len(data) != entry.nbytes:
        raise UnreadableError(f"{path}: truncated: {key} ends at byte {entry.offset + entry.nbytes}", path=path)
    return data


def _lengths_crc(lengths: Sequence[int]) -> int:
    # As 32 bits where they suffice: that is older than strings of more than 4 GiB.
    packed = b"".join(size.to_bytes(4 if size < 1 << 32 else 8, "little") for size in lengths)
    return crc32c.extend(0, packed)


def encode_string(value: bytes) -> tuple[bytes, int]:
    """A scalar string as it is in a data file, and its masked checksum.

    In the file are its length as a varint, the masked checksum of the length, and its bytes; the checksum of the
    tensor goes over the length as uint32, that checksum, and the bytes.
    """
    lengths = _lengths_crc([len(value)])
    stored = crc32c.mask(lengths).to_bytes(4, "little")
    return protobuf.write_varints(len(value)) + stored + value, crc32c.mask(crc32c.extend(lengths, stored + value))


def read_string(path: Path, key: str, entry: Entry) -> bytes:
    """A scalar string, checked.

    Raises:
        UnreadableError: It is not a scalar string, or damaged.
    """
    if entry.number != STRING or entry.shape:
        raise UnreadableError(f"{path}: {key} is not a string", path=path, tensor=key)
    return check_strings(path, key, entry)


def check_strings(path: Path, key: str, entry: Entry) -> bytes:
    """The strings of an array, one after the other, checked.

    Raises:
        UnreadableError: They are not what was written.
    """
    data = read_bytes(path, key, entry)
    lengths: list[int] = []
    position = 0
    with contextlib.suppress(ValueError):  # more strings than bytes: the sizes do not add up then
        for _ in range(math.prod(entry.shape)):
            size, position = protobuf.read_varint(data, position)
            lengths.append(size)
    rest = data[position:]
    crc = _lengths_crc(lengths)
    if (
        len(lengths) != math.prod(entry.shape)
        or len(rest) != 4 + sum(lengths)
        or rest[:4] != crc32c.mask(crc).to_bytes(4, "little")
        or crc32c.mask(crc32c.extend(crc, rest)) != entry.crc
    ):
        raise damaged(path, key)
    return rest[4:]


def sizes(paths: Sequence[Path], snapshot: Snapshot) -> dict[Path, int]:
    """The size of each data file.

    Raises:
        UnreadableError: One of them is missing.
    """
    items = {path: snapshot.item(path) for path in paths}
    missing = next((path for path, item in items.items() if item is None or item.kind != "file"), None)
    if missing is not None:
        raise UnreadableError(
            f"{missing}: missing, or not a file; the checkpoint is incomplete",
            path=missing,
            hint="A checkpoint is its .index and all its .data files: copy them together.",
        )
    return {path: item.nbytes for path, item in items.items() if item is not None}
