"""Means of bfloat16 and float16 in float32, twice as fast as in float64 and with the same bits.

The result has 8 or 11 bits, and float32 has 24: nearly always its error cannot change the rounding. Whether it can is
decided for each element by a rigorous bound: with u = 2^-24, n terms, and m_i the greatest magnitude of term i in the
chunk, a float32 evaluation of (Σ w_i · x_i) / d differs from the exact value (and so does one in float64, by far less)
by less than

    δ = (n + 6) · u · Σ |w_i| · m_i / d + (n + 2) · 2^-149

(n - 1 additions, a rounded weight, a product, a quotient, and the two additions of the test itself; the second part
is for underflow; N. Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 4.2). Where q - δ and
q + δ round to the same number, so does the exact value. The other elements are named, to be computed in float64.

float16 is handled as float32 numbers of float16's own bit pattern, which are 2^112 too small: its subnormal numbers
are then cut at the same bit as all others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "HALVES", "pack_float16", "quick_mean"]

Array: TypeAlias = NDArray[Any]

HALVES = frozenset({"bfloat16", "float16"})

BLOCK = 1 << 17
"""Elements at a time: fewer, and the threads wait for each other; more, and the buffers leave the cache."""

_UNIT = 2.0**-24
_LEAST = 2.0**-149
_SLACK = 1.01
"""Covers the terms of second order and the rounding of the bound itself."""

_MOST_DOUBTFUL = 8
"""With more than one element in this many in doubt, float64 throughout is faster."""

_GREATEST_SUM = 2.0**126
_LEAST_WEIGHT = 2.0**-100
_FLOAT16_OVERFLOW = 65520.0 * 2.0**-112

_UPPER = 1 if sys.byteorder == "little" else 0
"""Which of a float32's two halves has the sign."""

Take: TypeAlias = Callable[[str, int, Any], Array]


def pack_float16(values: NDArray[np.float32], out: NDArray[np.uint16], take: Take) -> None:
    """Round float32 numbers of float16's bit pattern (2^112 too small) to float16, half to even. `values` are used up.

    Their magnitude must be below float16's limit.
    """
    bits = values.view(np.int32)
    work = take("bits", values.size, np.int32)
    # In integers: add half a unit less one, and one more where the kept part is odd.
    np.right_shift(bits, 13, out=work)
    np.bitwise_and(work, np.int32(1), out=work)
    np.add(work, np.int32(0xFFF), out=work)
    np.add(work, bits, out=work)
    np.right_shift(work, 13, out=work)
    np.right_shift(bits, 16, out=bits)
    np.bitwise_and(bits, np.int32(0x8000), out=bits)
    np.bitwise_or(work, bits, out=work)
    np.copyto(out, work, casting="unsafe")


def _greatest(raw: Array) -> int:
    """The greatest magnitude among 16-bit patterns of sign and magnitude, as a pattern without sign."""
    unsigned = int(raw.view(np.uint16).max())
    return max(int(raw.view(np.int16).max()), unsigned & 0x7FFF if unsigned & 0x8000 else 0)


def _widen(raw: Array, out: NDArray[np.float32], dtype: Any) -> None:
    """bfloat16 as it is; float16 with its bits moved to where float32 has them."""
    if dtype is None:
        bits = out.view(np.int32)
        np.copyto(bits, raw.view(np.int16))
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, np.int32(-0x70000001), out=bits)  # 0x8FFFFFFF: what the sign dragged along goes
    else:
        np.copyto(out, raw.view(dtype))


def quick_mean(
    raws: Sequence[Array],
    weights: Sequence[float],
    divisor: float,
    bfloat16: Any,
    out: NDArray[np.uint16],
    take: Take,
) -> NDArray[np.intp] | None:
    """(Σ weight · x) / divisor, rounded once to the terms' own dtype, but for some elements.

    Args:
        raws: Each term's bytes, native order.
        weights: Each term's weight.
        divisor: What the sum is divided by.
        bfloat16: The numpy dtype of bfloat16 if the terms are of it; None if they are float16.
        out: Receives the result's bits.
        take: Gives a scratch buffer for (purpose, count, dtype).

    Returns:
        The indices of the elements that are in doubt, whose values are not to be used. None where float32 is not the
        way: NaN, infinity, overflow, too many in doubt; nothing in `out` is to be used then.
    """
    count = raws[0].nbytes // 2
    shift, infinity = (13, 0x7C00) if bfloat16 is None else (16, 0x7F80)
    bound = 0.0
    for raw, weight in zip(raws, weights, strict=True):
        pattern = _greatest(raw) if count else 0
        if pattern >= infinity or not _LEAST_WEIGHT < abs(weight) < 1 / _LEAST_WEIGHT:
            return None
        bound += abs(weight) * float(np.array(pattern << shift, np.uint32).view(np.float32))
    quotient = bound / divisor
    if not (
        bound < _GREATEST_SUM
        and divisor >= 1
        and float(np.float32(divisor)) == divisor
        and (bfloat16 is not None or quotient < _FLOAT16_OVERFLOW)
    ):
        return None
    total = take("single", count, np.float32)
    for index, (raw, weight) in enumerate(zip(raws, weights, strict=True)):
        values = take("wide", count, np.float32) if index else total
        _widen(raw, values, bfloat16)
        if weight != 1:
            np.multiply(values, np.float32(weight), out=values)
        if index:
            np.add(total, values, out=total)
    if divisor != 1:
        np.divide(total, np.float32(divisor), out=total)

    delta = np.float32(((len(raws) + 6) * _UNIT * quotient + (len(raws) + 2) * _LEAST) * _SLACK + _LEAST)
    low = take("wide", count, np.float32)
    high = take("bits", count, np.float32)
    np.subtract(total, delta, out=low)
    np.add(total, delta, out=high)
    below, above = low.view(np.uint32), high.view(np.uint32)
    half = np.uint32(1 << (shift - 1))
    np.add(below, half, out=below)
    np.add(above, half, out=above)
    # What is not in doubt is not half way either, so that the carry of half a unit is its rounding.
    if bfloat16 is None:
        kept = total.view(np.uint32)
        np.right_shift(above, 13, out=kept)
        np.copyto(out, kept, casting="unsafe")  # the exponent's upper bits are zero, and the sign is lost
        sign = take("sign", count, np.uint16)
        np.bitwise_and(above.view(np.uint16)[_UPPER::2], np.uint16(0x8000), out=sign)
        np.bitwise_or(out, sign, out=out)
    else:
        np.copyto(out, above.view(np.uint16)[_UPPER::2])
    np.bitwise_xor(below, above, out=below)
    doubtful = take("ties", count, np.bool_)
    np.greater_equal(below, np.uint32(1 << shift), out=doubtful)
    where = np.flatnonzero(doubtful)
    if where.size * _MOST_DOUBTFUL > count:
        return None
    return where
