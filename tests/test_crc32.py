"""CRC-32 of a whole from the CRC-32s of its parts, and by the processor's instructions, against zlib."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpttool.checksums import crc32c
from ckpttool.checksums.by_kind import checksum
from ckpttool.checksums.compiled import LIBRARY, load
from ckpttool.checksums.crc32 import combine_crc32


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=6))
def test_checksums_of_parts_make_the_checksum_of_the_whole(parts):
    assert combine_crc32((zlib.crc32(part), len(part)) for part in parts) == zlib.crc32(b"".join(parts))


COMPILED = load(LIBRARY)


@pytest.mark.skipif(COMPILED is None, reason="the compiled checksums are not built here")
@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(0, 3000), seed=st.integers(0, 2**32), start=st.integers(0, 2**32 - 1), offset=st.integers(0, 70)
)
def test_the_instructions_of_the_processor_give_the_same(size, seed, start, offset):
    data = memoryview(random.Random(seed).randbytes(size + offset))[offset:]
    assert COMPILED("crc32", start, data) == zlib.crc32(data, start)
    assert COMPILED("crc32c", start, data) == crc32c.extend(start, data)


def test_long_data_has_the_checksum_of_zlib():
    data = random.Random(0).randbytes(100_001)
    assert checksum("crc32", data) == zlib.crc32(data)
    assert checksum("crc32c", data) == crc32c.extend(0, data)


def test_what_is_not_the_library_is_left_alone(tmp_path):
    assert load(tmp_path / "missing.so") is None
