"""CRC-32 of a whole from the CRC-32s of its parts, against zlib."""

from __future__ import annotations

import zlib

from hypothesis import given, settings
from hypothesis import strategies as st

from ckpttool.checksums.crc32 import combine_crc32


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=6))
def test_checksums_of_parts_make_the_checksum_of_the_whole(parts):
    assert combine_crc32((zlib.crc32(part), len(part)) for part in parts) == zlib.crc32(b"".join(parts))
