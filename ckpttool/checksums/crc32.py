"""CRC-32 of a whole from the CRC-32s of its parts, so that the parts can be computed in any order and by any thread.

A CRC is the remainder of a polynomial over GF(2). To append `n` bytes to a message multiplies its polynomial by
x^(8n), and remainders add by exclusive or: crc(a + b) = crc(a) · x^(8·len(b)) + crc(b). Bits are reversed, as zip
files have them: the highest bit is the coefficient of x^0. Method: M. Adler, `crc32_combine` of zlib 1.2.12.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

__all__ = ["combine_crc32"]

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31


def _multiply(first: int, second: int) -> int:
    """Product of two polynomials modulo the CRC's."""
    product = 0
    mask = _ONE
    while mask:
        if first & mask:
            product ^= second
        mask >>= 1
        second = second >> 1 ^ (_POLYNOMIAL if second & 1 else 0)
    return product


@lru_cache(maxsize=256)
def _shift(nbytes: int) -> int:
    """x^(8 · nbytes) modulo the CRC's polynomial, by repeated squaring."""
    power = _ONE >> 8  # x^8
    result = _ONE
    while nbytes:
        if nbytes & 1:
            result = _multiply(power, result)
        power = _multiply(power, power)
        nbytes >>= 1
    return result


def combine_crc32(parts: Iterable[tuple[int, int]]) -> int:
    """CRC-32 of the concatenation of parts, each given as (CRC-32, length in bytes), in order."""
    total = 0
    for crc, nbytes in parts:
        total = _multiply(_shift(nbytes), total) ^ crc
    return total
