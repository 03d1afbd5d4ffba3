"""CRC-32C (Castagnoli), the checksum of TensorFlow checkpoints: with google-crc32c where it is, with numpy where not.

A CRC is the remainder of a polynomial over GF(2), and a multiple of the CRC's own polynomial with few terms shortens a
message by a few exclusive ors: each word of 32 bits is added to three further on, and is zero from then on.
Where these are far away, thousands of words go in one numpy operation (S. Russell, "Chorba: a novel CRC32
implementation", 2024, has the idea). What is left is short, and what each of its bits adds is in a table. So no
compiled extension is needed for a useful speed: about 2 GB/s on a thread, where google-crc32c does 5 to 10.

The parameters are those of RFC 3720, appendix B.4: polynomial 0x1EDC6F41 in reflected order, initial value and final
exclusive or 0xFFFFFFFF. "123456789" has the checksum 0xE3069283.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Words = npt.NDArray[np.uint32]

__all__ = ["combine", "extend", "mask", "unmask"]

_POLYNOMIAL = 0x82F63B78
_ONES = 0xFFFFFFFF
_SHORT = 1024  # bytes; below, a loop over a table of bytes is faster than to set arrays up

_STEPS = (4535, 5560, 6829)
"""How many words further on a word is added: x^(32 * 6829) + x^(32 * 2294) + x^(32 * 1269) + 1 is a multiple of the
polynomial, and 6829 - 2294 = 4535 and 6829 - 1269 = 5560. Of all such below 12,000, that with the longest first step
for its reach. Found by looking for three powers of x^32 whose remainders add up to 1; no multiple has three terms only.
"""

_REACH = _STEPS[-1]
_SEGMENT = 1 << 20  # bytes

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
def _bit_images() -> Words:
    """What each bit of `_REACH` words adds to the checksum, in the order of the bits; the last word ends the data."""
    import numpy as np

    # A word adds what it comes to when it is advanced over itself and all that follows.
    images = _advance(2, np.uint32(1) << np.arange(32, dtype=np.uint32))
    exponent = 2
    while images.size < 32 * _REACH:
        images = np.concatenate([_advance(exponent, images), images])
        exponent += 1
    return np.ascontiguousarray(images[-32 * _REACH :])


class _Buffer(threading.local):
    """A thread's buffers for a segment: fresh memory would be cleared by the kernel every time."""

    words: Words | None = None

    def take(self, count: int) -> Words:
        import numpy as np

        if self.words is None:
            self.words = np.empty(_SEGMENT // 4, dtype=np.uint32)
        return self.words[:count]


_buffer = _Buffer()


def _sum(view: memoryview) -> int:
    """The linear part of the checksum, of any length: initial value and final exclusive or are zero."""
    total = 0
    for start in range(0, len(view), _SEGMENT):
        segment = view[start : start + _SEGMENT]
        total = _advance_one(total, len(segment)) ^ _sum_segment(segment)
    return total


def _sum_segment(view: memoryview) -> int:
    import numpy as np

    words = _buffer.take(-(-len(view) // 4))
    raw = words.view(np.uint8)
    padding = raw.size - len(view)
    raw[:padding] = 0  # zero bytes in front change nothing
    raw[padding:] = np.frombuffer(view, dtype=np.uint8)
    ends = words.size - _REACH
    for start in range(0, ends, _STEPS[0]):
        stop = min(start + _STEPS[0], ends)
        for step in _STEPS:
            later = words[start + step : stop + step]
            np.bitwise_xor(later, words[start:stop], out=later)
    left = words[-_REACH:].view(np.uint8)
    bits = np.unpackbits(left, bitorder="little")
    return int(np.bitwise_xor.reduce(_bit_images()[-bits.size :] * bits))
