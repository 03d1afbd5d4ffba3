"""CRC-32C: known values, and two implementations that agree."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpttool.checksums import crc32c


@pytest.fixture(params=["numpy", "library"])
def implementation(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(crc32c, "_library", lambda: None)
    elif not crc32c.is_accelerated():
        pytest.skip("google-crc32c is not installed")


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # these four: RFC 3720, appendix B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_known_values(implementation, data, crc):
    assert crc32c.extend(0, data) == crc


@pytest.mark.parametrize("nbytes", [4095, 4096, 16384, 32767, 32768, 32769, 300_001])
def test_long_data_has_the_checksum_that_a_loop_over_its_bytes_finds(implementation, nbytes):
    data = random.Random(nbytes).randbytes(nbytes)
    assert crc32c.extend(7, data) == crc32c._extend_short(7, memoryview(data))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=5))
def test_extending_is_the_same_as_joining_and_as_combining(parts):
    crc = 0
    for part in parts:
        crc = crc32c.extend(crc, part)
    assert crc == crc32c.extend(0, b"".join(parts))
    assert crc == crc32c.combine((crc32c.extend(0, part), len(part)) for part in parts)


def test_writable_buffers_are_taken_as_they_are(implementation):
    assert crc32c.extend(0, memoryview(bytearray(b"123456789"))) == 0xE3069283


def test_mask_is_that_of_leveldb():
    """The masked checksum of nothing, as every empty tensor of a bundle has it."""
    assert crc32c.mask(0) == 0xA282EAD8
    assert crc32c.mask(0xFFFFFFFF) == 0xA282EAD7
