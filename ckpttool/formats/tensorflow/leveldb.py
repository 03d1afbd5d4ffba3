"""Sorted tables of keys and values, as LevelDB has them and TensorFlow uses them for the index of a checkpoint.

    file   = data blocks, metaindex block, index block, footer
    block  = entries, restart offsets (uint32 each), their number (uint32), then a trailer:
             one byte of compression (0 none, 1 snappy), masked CRC-32C of block and that byte (uint32)
    entry  = varints (bytes of the key shared with the one before, further bytes, bytes of the value), key, value
    footer = handles (varints offset, size) of metaindex and index, padded to 40 bytes; magic number (uint64)

The value of an index entry is the handle of a data block, its key is not less than any key in there. All numbers are
little-endian. https://github.com/google/leveldb/blob/main/doc/table_format.md. What does not fit raises `ValueError`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from ckpttool.checksums import crc32c
from ckpttool.formats.tensorflow.protobuf import read_varint, write_varints

__all__ = ["FOOTER_BYTES", "MAGIC", "CompressedBlockError", "read_table", "write_table"]

MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
_TRAILER_BYTES = 5
_BLOCK_BYTES = 256 * 1024  # as TensorFlow writes them; a reader takes any size
_RESTART_INTERVAL = 16  # entries
_MAX_KEY_BYTES = 256 << 20  # of all keys together: shared prefixes could blow a small file up to any size


class CompressedBlockError(ValueError):
    """A block is compressed."""


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a table in their order.

    Raises:
        ValueError: The table is truncated or damaged. May come after some entries have been yielded.
    """
    if len(data) < FOOTER_BYTES or int.from_bytes(data[-8:], "little") != MAGIC:
        raise ValueError("it does not end as an index does (truncated, or still being written)")
    footer = data[-FOOTER_BYTES:-8]
    _, _, position = _read_handle(footer, 0)  # the metaindex, which is empty
    offset, size, _ = _read_handle(footer, position)
    last: bytes | None = None
    key_bytes = end = 0
    for _, handle in _entries(_block(data, offset, size)):
        offset, size, _ = _read_handle(handle, 0)
        if offset < end:  # else a small file could name one large block any number of times
            raise ValueError(f"the block at byte {offset} overlaps the one before")
        end = offset + size + _TRAILER_BYTES
        for key, value in _entries(_block(data, offset, size)):
            key_bytes += len(key)
            if key_bytes > _MAX_KEY_BYTES:
                raise ValueError("its keys are too long to be those of a checkpoint")
            if last is not None and key <= last:
                raise ValueError(f"its keys are not sorted ({key!r} after {last!r})")
            last = key
            yield key, value


def _read_handle(data: bytes, position: int) -> tuple[int, int, int]:
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return offset, size, position


def _block(data: bytes, offset: int, size: int) -> bytes:
    end = offset + size
    if end + _TRAILER_BYTES > len(data) - FOOTER_BYTES:
        raise ValueError(f"a block of {size} bytes at byte {offset} ends behind the end of the file")
    (stored,) = struct.unpack_from("<I", data, end + 1)
    if crc32c.mask(crc32c.extend(0, data[offset : end + 1])) != stored:
        raise ValueError(f"the checksum of the block at byte {offset} does not match")
    if data[end]:
        raise CompressedBlockError("snappy" if data[end] == 1 else f"method {data[end]}")
    return data[offset:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(block) < 4:
        raise ValueError("a block is too short")
    (restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise ValueError("a block is too short for its restart offsets")
    position, key, key_bytes = 0, b"", 0
    while position < end:
        shared, position = read_varint(block, position)
        unshared, position = read_varint(block, position)
        size, position = read_varint(block, position)
        if shared > len(key) or unshared + size > end - position:
            raise ValueError("an entry does not fit into its block")
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        key_bytes += len(key)
        if key_bytes > _MAX_KEY_BYTES:
            raise ValueError("its keys are too long to be those of a checkpoint")
        yield key, block[position : position + size]
        position += size


def write_table(entries: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A table of these entries, which must be sorted by key. Its size depends on the sizes of keys and values alone."""
    out = bytearray()
    index: list[tuple[bytes, bytes]] = []
    pending: list[tuple[bytes, bytes]] = []
    pending_bytes = 0
    for position, (key, value) in enumerate(entries):
        pending.append((key, value))
        pending_bytes += len(key) + len(value)
        if pending_bytes >= _BLOCK_BYTES or position + 1 == len(entries):
            index.append((key, _append_block(out, pending, _RESTART_INTERVAL)))
            pending, pending_bytes = [], 0
    metaindex = _append_block(out, [], 1)
    handles = metaindex + _append_block(out, index, 1)
    out += handles.ljust(FOOTER_BYTES - 8, b"\0") + MAGIC.to_bytes(8, "little")
    return bytes(out)


def _append_block(out: bytearray, entries: Sequence[tuple[bytes, bytes]], interval: int) -> bytes:
    """Append a block with its trailer; return its handle."""
    block = bytearray()
    restarts = [0]
    last = b""
    for position, (key, value) in enumerate(entries):
        shared = 0
        if position % interval:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        elif position:
            restarts.append(len(block))
        block += write_varints(shared, len(key) - shared, len(value)) + key[shared:] + value
        last = key
    block += struct.pack(f"<{len(restarts)}I", *restarts) + struct.pack("<I", len(restarts))
    handle = write_varints(len(out), len(block))
    block.append(0)  # not compressed
    out += block + struct.pack("<I", crc32c.mask(crc32c.extend(0, block)))
    return handle
