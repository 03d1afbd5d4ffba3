"""CRC-32C: known values, and two implementations that agree."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpttool.checksums import crc32c


@pytest.fixture(params=["numpy", "library"])
def implementation(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(crc32c, "_library", lambda: None)
    elif crc32c._library() is None:
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


@pytest.mark.parametrize("nbytes", [1023, 1024, 4097, 27315, 27316, 27317, 45456, 45457, 300_001, (1 << 20) + 1])
def test_long_data_has_the_checksum_that_a_loop_over_its_bytes_finds(implementation, nbytes):
    data = random.Random(nbytes).randbytes(nbytes)
    assert crc32c.extend(7, data) == crc32c._extend_short(7, memoryview(data))


def test_what_is_added_further_on_is_a_multiple_of_the_polynomial():
    reach = crc32c._STEPS[-1]
    powers = [crc32c._advance_one(1 << 31, 4 * (reach - step)) for step in (0, *crc32c._STEPS)]
    assert powers[-1] == 1 << 31  # x^0: bits are in reflected order
    assert powers[0] ^ powers[1] ^ powers[2] ^ powers[3] == 0


def test_threads_do_not_disturb_each_other(monkeypatch):
    monkeypatch.setattr(crc32c, "_library", lambda: None)
    data = [random.Random(seed).randbytes(100_000 + seed) for seed in range(8)]
    expected = [crc32c.extend(0, each) for each in data]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda each: crc32c.extend(0, each), data * 10)) == expected * 10


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
