"""Sorted tables: what is written is read, in order and whole, and damage is always found."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpttool.checksums import crc32c
from ckpttool.formats.tensorflow import leveldb as leveldb_table
from ckpttool.formats.tensorflow import protobuf as protobuf_wire
from ckpttool.formats.tensorflow.leveldb import CompressedBlockError, read_table, write_table

KEYS = st.lists(st.binary(max_size=12), unique=True, max_size=60).map(sorted)


@settings(max_examples=60, deadline=None)
@given(KEYS, st.integers(1, 64))
def test_what_is_written_is_read(keys, block_bytes):
    entries = [(key, key[::-1] * 3) for key in keys]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leveldb_table, "_BLOCK_BYTES", block_bytes)  # many data blocks
        table = write_table(entries)
    assert list(read_table(table)) == entries


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_changed_byte_is_found_unless_it_is_padding(data):
    entries = [(f"model/layer/{i}".encode(), b"value" * i) for i in range(40)]
    table = bytearray(write_table(entries))
    table[data.draw(st.integers(0, len(table) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        read = list(read_table(bytes(table)))
    except ValueError:
        return
    assert read == entries


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 60), st.integers(0, 60))
def test_any_bytes_before_a_footer_give_entries_or_a_value_error(data, offset, size):
    handles = protobuf_wire.write_varints(0, 0, offset, size)
    table = data + handles.ljust(40, b"\0") + leveldb_table.MAGIC.to_bytes(8, "little")
    with pytest.raises(ValueError, match=r"."):
        list(read_table(table))


def rebuilt(block: bytes, kind: int = 0, *, named: int = 1) -> bytes:
    """A table whose one data block is given, with checksums that match. The index names the block so many times."""
    out = bytearray()

    def append(content: bytes, kind: int = 0) -> bytes:
        handle = protobuf_wire.write_varints(len(out), len(content))
        out.extend(content + bytes([kind]))
        out.extend(crc32c.mask(crc32c.extend(0, content + bytes([kind]))).to_bytes(4, "little"))
        return handle

    handle = append(block, kind)
    entries = [protobuf_wire.write_varints(0, 1, len(handle)) + bytes([97 + i]) + handle for i in range(named)]
    index = append(b"".join(entries) + TAIL)
    footer = protobuf_wire.write_varints(0, 0) + index
    return bytes(out) + footer.ljust(40, b"\0") + leveldb_table.MAGIC.to_bytes(8, "little")


TAIL = bytes(4) + b"\1\0\0\0"


def test_a_well_formed_block_is_taken():
    assert list(read_table(rebuilt(b"\0\1\1ab\1\1\1cd" + TAIL))) == [(b"a", b"b"), (b"ac", b"d")]


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (b"", "too short"),
        (b"\xff\xff\xff\xff", "restart"),
        (b"\1\1\1ab" + TAIL, "does not fit"),  # shares a byte with nothing
        (b"\0\x7f\1ab" + TAIL, "does not fit"),
        (b"\0\1" + b"\xff" * 9 + b"\1ab" + TAIL, "does not fit"),
        (b"\0\1" + b"\xff" * 11 + TAIL, "64 bits"),
        (b"\0\1\1ab\0\1\1ab" + TAIL, "sorted"),
    ],
)
def test_a_block_with_a_right_checksum_and_wrong_content_is_refused(block, says):
    with pytest.raises(ValueError, match=says):
        list(read_table(rebuilt(block)))


def test_a_small_index_cannot_name_one_block_again_and_again():
    with pytest.raises(ValueError, match="overlaps"):
        list(read_table(rebuilt(TAIL, named=2)))


def test_a_compressed_block_is_told_apart_from_damage():
    with pytest.raises(CompressedBlockError, match="snappy"):
        list(read_table(rebuilt(b"\0\1\1ab" + TAIL, kind=1)))


def test_shared_prefixes_cannot_blow_a_small_table_up(monkeypatch):
    monkeypatch.setattr(leveldb_table, "_MAX_KEY_BYTES", 1000)
    block = b"\0" + protobuf_wire.write_varints(100, 0) + b"k" * 100
    block += b"".join(protobuf_wire.write_varints(100 + i, 1, 0) + b"x" for i in range(20))
    with pytest.raises(ValueError, match="too long"):
        list(read_table(rebuilt(block + TAIL)))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=30))
def test_any_bytes_are_fields_or_a_value_error(data):
    try:
        for number, value in protobuf_wire.fields(data):
            assert number > 0
            assert isinstance(value, (int, bytes))
    except ValueError:
        pass


@settings(max_examples=100, deadline=None)
@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_numbers_survive_as_varints(value):
    data = protobuf_wire.write_varints(value)
    assert len(data) <= 10
    read, end = protobuf_wire.read_varint(data, 0)
    assert (protobuf_wire.signed(read), end) == (value, len(data))
