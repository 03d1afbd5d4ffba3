"""CRC-32C (Castagnoli), the checksum of TensorFlow checkpoints: with google-crc32c where it is, with numpy where not.

A CRC is linear over GF(2): the checksum of a buffer is the exclusive or of the checksums of its words, each advanced
over the zero bytes that follow it. So many words advance side by side in a numpy array, and no compiled extension is
needed for a useful speed (about 0.5 GB/s; google-crc32c runs at the speed of memory).

The parameters are those of RFC 3720, appendix B.4: polynomial 0x1EDC6F41 in reflected order, initial value and final
exclusive or 0xFFFFFFFF. "123456789" has the checksum 0xE3069283.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Words = npt.NDArray[np.uint32]

__all__ = ["combine", "extend", "is_accelerated", "mask", "unmask"]

_POLYNOMIAL = 0x82F63B78
_ONES = 0xFFFFFFFF
_SHORT = 4096  # bytes; below, a loop over a table is faster than setting arrays up
_LANES = 8192  # words that advance side by side: two tables of 256 KiB and three arrays of 32 KiB stay in cache

Matrix = tuple[int, ...]
"""A linear map of 32-bit words: the images of the 32 single bits, lowest first."""


def extend(crc: int, data: bytes | bytearray | memoryview) -> int:
    """The checksum of what `crc` is the checksum of (0: of nothing) and then `data`.

    Args:
        crc: In [0, 2**32).
        data: Contiguous bytes, of any length.
    """
    view = memoryview(data).cast("B")
    library = _library()
    if library is not None:
        return int(library.extend(crc, bytes(view)))
    if len(view) < _SHORT:
        return _extend_short(crc, view)
    # The initial value is advanced over all of data; the words of data are summed on their own.
    return _advance_one(crc ^ _ONES, len(view)) ^ _sum(view) ^ _ONES


def combine(parts: Iterable[tuple[int, int]]) -> int:
    """The checksum of a concatenation of parts, each given as (checksum, length in bytes), in order."""
    total = 0
    for crc, nbytes in parts:
        total = _advance_one(total, nbytes) ^ crc
    return total


def mask(crc: int) -> int:
    """A checksum as LevelDB and TensorFlow store it: rotated right by 15 bits, plus a constant (modulo 2**32).

    They do so because the checksum of data that contains its own checksum is degenerate.
    """
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & _ONES


def unmask(masked: int) -> int:
    """The checksum that `mask` has made this of."""
    rotated = (masked - 0xA282EAD8) & _ONES
    return ((rotated >> 17) | (rotated << 15)) & _ONES


def is_accelerated() -> bool:
    """Whether google-crc32c with its compiled part is installed."""
    return _library() is not None


@functools.cache
def _library() -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it says that it has no compiled part; then it is not used
        try:
            import google_crc32c
        except ImportError:
            return None
    return google_crc32c if google_crc32c.implementation == "c" else None


def _extend_short(crc: int, data: memoryview) -> int:
    table = _byte_table()
    crc ^= _ONES
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ _ONES


@functools.cache
def _byte_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


def _apply(matrix: Matrix, word: int) -> int:
    image = 0
    for bit, column in enumerate(matrix):
        if word >> bit & 1:
            image ^= column
    return image


@functools.cache
def _power(exponent: int) -> Matrix:
    """The map that advances a word over 2**exponent zero bytes."""
    if exponent == 0:
        table = _byte_table()
        return tuple(table[1 << bit & 0xFF] ^ (1 << bit >> 8) for bit in range(32))
    half = _power(exponent - 1)
    return tuple(_apply(half, column) for column in half)


def _advance_one(word: int, count: int) -> int:
    """A word, advanced over `count` zero bytes."""
    exponent = 0
    while count >> exponent:
        if count >> exponent & 1:
            word = _apply(_power(exponent), word)
        exponent += 1
    return word


def _advance(exponent: int, words: Words) -> Words:
    """Words, advanced over 2**exponent zero bytes: a look-up for each of their bytes."""
    import numpy as np

    lowest, *others = _byte_images(exponent)
    image: Words = lowest[words & np.uint32(0xFF)]
    for place, table in enumerate(others, start=1):
        image ^= table[words >> np.uint32(8 * place) & np.uint32(0xFF)]
    return image


@functools.cache
def _byte_images(exponent: int) -> tuple[Words, Words, Words, Words]:
    """The images of the 256 values of each byte of a word."""
    import numpy as np

    matrix = _power(exponent)
    first, second, third, fourth = (
        np.array([_apply(matrix, byte << shift) for byte in range(256)], dtype=np.uint32) for shift in (0, 8, 16, 24)
    )
    return first, second, third, fourth


@functools.cache
def _row_tables() -> tuple[Words, Words]:
    """Advance a word over a row of lanes: one look-up for its low half, one for its high half."""
    import numpy as np

    over_row = (_LANES * 4).bit_length() - 1
    halves = np.arange(65536, dtype=np.uint32)
    return _advance(over_row, halves), _advance(over_row, halves << np.uint32(16))


def _sum(view: memoryview) -> int:
    """The linear part of the checksum: initial value and final exclusive or are zero."""
    import numpy as np

    data = np.frombuffer(view, dtype=np.uint8)
    first = data.size % (_LANES * 4)
    # Zero bytes in front change nothing, so the odd bytes fill the end of a row of their own.
    row = np.zeros(_LANES * 4, dtype=np.uint8)
    row[row.size - first :] = data[:first]
    lanes = row.view("<u4").astype(np.uint32)
    low, high = _row_tables()
    # "<u4" on data that does not start on a multiple of four is fine: numpy reads it unaligned.
    for words in data[first:].view("<u4").reshape(-1, _LANES):
        lanes = low[lanes & np.uint32(0xFFFF)] ^ high[lanes >> np.uint32(16)]
        lanes ^= words
    while lanes.size > 1:
        half = lanes.size // 2
        lanes = _advance((half * 4).bit_length() - 1, lanes[:half]) ^ lanes[half:]
    return _advance_one(int(lanes[0]), 4)
