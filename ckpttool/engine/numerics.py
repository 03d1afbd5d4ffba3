"""The arithmetic: widen to float64, add, divide once, round once.

Everything here works on flat arrays of a chunk's elements; nothing opens a file. A complex element is two real
ones beside each other, since a mean acts on both alike, so that only real dtypes remain. The law is

    out = round_to_dtype((Σ weight · x) / divisor)

with sum and quotient in float64, and one rounding to the output's dtype. Where float64 itself goes in or comes out,
float64 has no digits to spare, and the sum is carried as an unevaluated pair of float64 numbers (double-double).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ckpttool.engine.half_sums import BLOCK, HALVES, pack_float16, quick_mean
from ckpttool.reading.dtypes import numpy_dtype
from ckpttool.reading.scratch import Scratch

__all__ = [
    "Operand",
    "convert",
    "count_nonfinite",
    "has_nonfinite",
    "needs_all",
    "same_values",
    "settle_infinities",
    "weighted_mean",
]

Bytes: TypeAlias = NDArray[np.uint8]
Doubles: TypeAlias = NDArray[np.float64]
Array: TypeAlias = NDArray[Any]

_FLOAT16_SHIFT = 13
"""float32 has 13 bits of mantissa more than float16."""

_FLOAT16_SCALE = 2.0**112
"""float32's exponent bias is 127, float16's 15: a float16's bits, moved into a float32, read 2^112 too small."""

_FLOAT16_OVERFLOW = 65520.0
"""Half way between float16's greatest value, 65504, and the next that it would have: rounds to infinity."""

_DEKKER = 134217729.0
"""2^27 + 1: splits a float64 into two halves of 26 bits each."""

_DOWN = 2.0**-128
"""Keeps a sum of huge float64 numbers from overflowing on its way to a mean that does not."""

_DENSE_TIES = 64
"""From one candidate for a tie in this many elements on, it pays to sift them before they are gathered."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A term's real dtype (`component`), and what its values are multiplied by."""

    dtype: str
    weight: float


# ---------------------------------------------------------------------------------------------------------------
# Is it finite?


def has_nonfinite(raw: Bytes, dtype: str) -> bool:
    """Whether NaN or infinity is among numbers of a real dtype (native byte order)."""
    if raw.nbytes == 0:
        return False
    if dtype in {"float32", "float64"}:
        values = raw.view(dtype)
        # NaN passes through both, infinity shows in one of them; twice as fast as isfinite.
        return not (np.isfinite(values.max()) and np.isfinite(values.min()))
    if dtype in {"float16", "bfloat16"}:
        # As integers, the patterns of infinity and NaN are the greatest: among the positive ones when read as signed,
        # among all when read as unsigned.
        exponent = 0x7C00 if dtype == "float16" else 0x7F80
        return bool(raw.view(np.int16).max() >= exponent or raw.view(np.uint16).max() >= exponent + 0x8000)
    return count_nonfinite(raw, dtype) > 0


def count_nonfinite(raw: Bytes, dtype: str) -> int:
    """How many of the numbers are NaN or infinite (native byte order)."""
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of the NaN that it is asked to find
        return int(np.count_nonzero(~np.isfinite(raw.view(numpy_dtype(dtype)))))


def settle_infinities(
    result: Bytes, dtype: str, operands: Sequence[Operand], fetch: Callable[[int], Bytes]
) -> NDArray[np.intp] | None:
    """Where a mean is not finite because every term is the same infinity there, make it that infinity.

    A constant's mean is the constant: the mask of a causal attention holds -inf in every checkpoint. Arithmetic does
    not say so, since weights of both signs make NaN of infinities.

    Args:
        result: The mean, of real dtype `dtype`; changed in place.
        dtype: See there.
        operands: The terms.
        fetch: Gives term i's bytes in native order, in a buffer that is used up before the next call.

    Returns:
        Where such infinities are, ascending. None where anything else is not finite: `result` is as it was then.
    """
    values = result.view(numpy_dtype(dtype))
    where = np.flatnonzero(~np.isfinite(values))
    common: Array | None = None
    for term, operand in enumerate(operands):
        found = fetch(term).view(numpy_dtype(operand.dtype))[where].astype(np.float64)
        if common is None:
            common = found
        if not (np.isinf(found).all() and np.array_equal(found, common)):
            return None
    assert common is not None
    settled = common.astype(values.dtype)
    if not np.isinf(settled).all():  # a dtype without infinity
        return None
    values[where] = settled
    return where


# ---------------------------------------------------------------------------------------------------------------
# Widening


def _widen(raw: Bytes, operand: Operand, scratch: Scratch) -> Array:
    """A term's values as float32 or float64, exactly."""
    dtype = numpy_dtype(operand.dtype)
    if operand.dtype in {"float32", "float64"}:
        return raw.view(dtype)
    count = raw.nbytes // dtype.itemsize
    wide = scratch.take("wide", count, np.float32)
    if operand.dtype == "float16" and not has_nonfinite(raw, "float16"):
        # The bits move to where float32 has them; the mask removes what the sign dragged along; the product sets the
        # exponent right, subnormals included. All exact, and more than twice as fast as numpy's own conversion.
        # Method: F. Giesen, "Half to float done quic", https://fgiesen.wordpress.com/2012/03/28/.
        bits = wide.view(np.int32)
        np.copyto(bits, raw.view(np.int16))
        np.left_shift(bits, _FLOAT16_SHIFT, out=bits)
        np.bitwise_and(bits, np.int32(-0x70000001), out=bits)  # 0x8FFFFFFF
        np.multiply(wide, np.float32(_FLOAT16_SCALE), out=wide)
        return wide
    np.copyto(wide, raw.view(dtype))
    return wide


# ---------------------------------------------------------------------------------------------------------------
# Rounding once


def _nudge_ties(exact: Doubles, rounded: NDArray[np.float32], candidate: NDArray[np.bool_]) -> None:
    """Move float32 values that only look like ties off the tie, to the side on which their float64 value lies.

    A float64 that is rounded to float32 and then to something narrower is rounded twice. That differs from rounding
    once only where the first step lands exactly half way between two values of the narrower dtype without having
    been there: one unit of float32 further, and the second step decides rightly (Boldo and Melquiond, "Emulation of
    FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).

    Args:
        exact: The values before the first step.
        rounded: After it; changed in place.
        candidate: Where `rounded` stands at a tie of the narrower dtype.
    """
    count = np.count_nonzero(candidate)
    if not count:
        return
    if count * _DENSE_TIES > candidate.size:
        candidate &= np.not_equal(exact, rounded)  # most ties are true ones: of a mean of two, every other element
    where = np.flatnonzero(candidate)
    if not where.size:
        return
    near = rounded[where]
    rest = exact[where] - near
    away = np.where((rest > 0) == (near > 0), np.int32(1), np.int32(-1))
    away[rest == 0] = 0
    rounded[where] = (near.view(np.int32) + away).view(np.float32)


def _round_to_odd(exact: Doubles, scratch: Scratch) -> NDArray[np.float32]:
    """float64 to float32 so that a further rounding to a narrower dtype acts as if it were the only one.

    Inexact values end in an odd mantissa, which no tie of a narrower dtype has.
    """
    rounded = scratch.take("single", exact.size, np.float32)
    np.copyto(rounded, exact, casting="same_kind")
    bits = rounded.view(np.int32)
    with np.errstate(invalid="ignore"):
        rest = exact - rounded
    inexact = (rest != 0) & ((bits & 1) == 0) & ~np.isnan(rest)
    # Toward the exact value: away from zero (one more, whatever the sign) when it is the greater in magnitude.
    away = np.where(np.signbit(rest) == np.signbit(rounded), np.int32(1), np.int32(-1))
    bits += np.where(inexact, away, np.int32(0))
    return rounded


def _quotient(total: Doubles, divisor: float, out: Array) -> None:
    """Total / divisor in float64, rounded once to `out`'s dtype (float64 or float32)."""
    if divisor == 1:
        np.copyto(out, total, casting="same_kind")
    else:
        np.divide(total, divisor, out=out, dtype=np.float64, casting="same_kind")


def _round(total: Doubles, divisor: float, dtype: str, scratch: Scratch) -> Bytes:
    """(total / divisor) in float64, rounded once to a real dtype; `total` is used up.

    Returns:
        The bytes, in a scratch buffer.
    """
    count = total.size
    if dtype in {"float64", "float32"}:
        out = scratch.take("out", count, dtype)
        _quotient(total, divisor, out)
        return out.view(np.uint8)
    if divisor != 1:
        np.divide(total, divisor, out=total)
    if dtype == "bfloat16":
        return _round_to_bfloat16(total, scratch)
    if dtype == "float16":
        return _round_to_float16(total, scratch)
    target = numpy_dtype(dtype)
    out = scratch.take("out", count, target)
    np.copyto(out, _round_to_odd(total, scratch), casting="unsafe")
    return out.view(np.uint8)


def _round_to_bfloat16(values: Doubles, scratch: Scratch) -> Bytes:
    single = scratch.take("single", values.size, np.float32)
    np.copyto(single, values, casting="same_kind")
    low = scratch.take("bits", values.size, np.uint32)
    np.bitwise_and(single.view(np.uint32), np.uint32(0xFFFF), out=low)
    tie = scratch.take("ties", values.size, np.bool_)
    np.equal(low, np.uint32(0x8000), out=tie)
    _nudge_ties(values, single, tie)
    out = scratch.take("out", values.size, numpy_dtype("bfloat16"))
    np.copyto(out, single, casting="unsafe")
    return out.view(np.uint8)


def _round_to_float16(values: Doubles, scratch: Scratch) -> Bytes:
    """By float32 with float16's own exponent range, where float16's ties, subnormal or not, are one bit pattern."""
    count = values.size
    out = scratch.take("out", count, np.uint16)
    greatest = max(values.max(), -values.min()) if count else 0.0
    if not greatest < _FLOAT16_OVERFLOW:  # NaN, infinity, or what becomes infinity
        np.copyto(out.view(np.float16), values, casting="same_kind")
        return out.view(np.uint8)
    np.multiply(values, 1 / _FLOAT16_SCALE, out=values)  # exact: far from float64's own limits
    single = scratch.take("single", count, np.float32)
    np.copyto(single, values, casting="same_kind")
    bits = single.view(np.int32)
    work = scratch.take("bits", count, np.int32)
    np.bitwise_and(bits, np.int32(0x1FFF), out=work)
    tie = scratch.take("ties", count, np.bool_)
    np.equal(work, np.int32(0x1000), out=tie)
    _nudge_ties(values, single, tie)
    pack_float16(single, out, scratch.take)
    return out.view(np.uint8)


# ---------------------------------------------------------------------------------------------------------------
# Adding


def weighted_mean(
    operands: Sequence[Operand],
    fetch: Callable[[int], Bytes],
    *,
    divisor: float,
    dtype: str,
    scratch: Scratch,
    kept: bool = False,
) -> Bytes:
    """(Σ weight · x) / divisor of one chunk, rounded once.

    The first term is assigned, not added to zero, and weight 1 multiplies nothing: a single term of weight 1 comes
    out as it went in, -0.0 and all.

    Args:
        operands: The terms, in the order of summation; at least one. Dtypes are real (`component`).
        fetch: Gives term i's bytes in native order, in a buffer that is used up before the next call. Called for each
            term in turn; once more for each if a sum of float64 numbers overflows on the way.
        divisor: What the sum is divided by.
        dtype: The output's real dtype.
        scratch: This thread's buffers.
        kept: Whether what `fetch` returned stays valid after the next call; only makes it faster (`needs_all`).

    Returns:
        The output's bytes, in native order: a view of a scratch buffer or of what `fetch` returned.
    """
    first = operands[0]
    if len(operands) == 1 and first.weight == 1 and divisor == 1 and first.dtype == dtype:
        return fetch(0)
    with np.errstate(all="ignore"):  # what is not finite in the end is found by looking, not by warnings
        if kept and needs_all(operands, dtype):
            return _half_mean(operands, fetch, divisor, dtype, scratch)
        return _weighted_mean(operands, fetch, divisor, dtype, scratch)


def needs_all(operands: Sequence[Operand], dtype: str) -> bool:
    """Whether the mean is computed faster when the bytes of all terms are there at once."""
    return dtype in HALVES and all(operand.dtype == dtype for operand in operands)


def _half_mean(
    operands: Sequence[Operand], fetch: Callable[[int], Bytes], divisor: float, dtype: str, scratch: Scratch
) -> Bytes:
    """The mean of bfloat16 or float16 in float32, with float64 for the elements where that could show."""
    raws = [fetch(index).view(np.uint16) for index in range(len(operands))]
    weights = [operand.weight for operand in operands]
    bfloat16 = numpy_dtype(dtype) if dtype == "bfloat16" else None
    result = scratch.take("halves", raws[0].size, np.uint16)
    for start in range(0, result.size, BLOCK):
        parts = [raw[start : start + BLOCK] for raw in raws]
        out = result[start : start + BLOCK]
        where = quick_mean(parts, weights, divisor, bfloat16, out, scratch.take)
        if where is not None and not where.size:
            continue
        chosen = slice(None) if where is None else where
        doubtful = [np.ascontiguousarray(part[chosen]).view(np.uint8) for part in parts]
        out[chosen] = _weighted_mean(operands, doubtful.__getitem__, divisor, dtype, scratch.inner).view(np.uint16)
    return result.view(np.uint8)


def _weighted_mean(
    operands: Sequence[Operand], fetch: Callable[[int], Bytes], divisor: float, dtype: str, scratch: Scratch
) -> Bytes:
    if dtype == "float64" or any(operand.dtype == "float64" for operand in operands):
        values = _precise_mean(operands, fetch, divisor, scratch)
        return _round(values, 1, dtype, scratch)
    total: Doubles | None = None
    for index, operand in enumerate(operands):
        values = _widen(fetch(index), operand, scratch)
        if total is None:
            total = scratch.take("total", values.size, np.float64)
            if operand.weight == 1:
                np.copyto(total, values)
            else:
                np.multiply(values, operand.weight, out=total, dtype=np.float64)
        elif operand.weight == 1:
            np.add(total, values, out=total)
        else:
            product = scratch.take("product", values.size, np.float64)
            np.multiply(values, operand.weight, out=product, dtype=np.float64)
            np.add(total, product, out=total)
    assert total is not None
    return _round(total, divisor, dtype, scratch)


def _precise_mean(
    operands: Sequence[Operand], fetch: Callable[[int], Bytes], divisor: float, scratch: Scratch
) -> Doubles:
    """(Σ weight · x) / divisor in double-double, rounded to float64.

    Sums and products are error-free transformations (Knuth's TwoSum, Dekker's product), the quotient gets one
    correction, as in Hida, Li and Bailey, "Library for double-double and quad-double arithmetic", 2000. The relative
    error of the pair is a few 2^-105.
    """
    high, low = _pair_sum(operands, fetch, scratch, 1)
    values = _pair_quotient(high, low, divisor)
    lost = ~np.isfinite(values)
    if lost.any():
        # NaN or infinity went in, or finite numbers so great that their sum or their splitting overflowed. The same
        # again on a smaller scale settles the second; what small numbers lose there does not show beside these.
        high, low = _pair_sum(operands, fetch, scratch, _DOWN)
        again = _pair_quotient(high, low, divisor) / _DOWN
        values[lost] = again[lost]
        lost = np.isnan(values)
        if lost.any():
            # Error terms of infinity are NaN; the plain sum says which of the two it is.
            plain = high if divisor == 1 else high / divisor
            values[lost] = plain[lost] / _DOWN
    return values


def _pair_sum(
    operands: Sequence[Operand], fetch: Callable[[int], Bytes], scratch: Scratch, scale: float
) -> tuple[Doubles, Doubles]:
    """Σ weight · (scale · x) as an unevaluated sum of two float64 arrays; `scale` is a power of two."""
    high = low = np.empty(0)
    for index, operand in enumerate(operands):
        values = _widen(fetch(index), operand, scratch).astype(np.float64)
        if scale != 1:
            values *= scale
        error: Doubles | None = None
        if operand.weight != 1:
            values, error = _two_product(values, operand.weight)
        if index == 0:
            high, low = values, np.zeros_like(values) if error is None else error
            continue
        total = high + values
        virtual = total - high
        low += (high - (total - virtual)) + (values - virtual)
        if error is not None:
            low += error
        high = total
    return high, low


def _two_product(values: Doubles, factor: float) -> tuple[Doubles, Doubles]:
    """The product of values and a factor, as rounded product and exact error."""
    product = values * factor
    spread = values * _DEKKER
    values_high = spread - (spread - values)
    values_low = values - values_high
    factor_spread = factor * _DEKKER
    factor_high = factor_spread - (factor_spread - factor)
    factor_low = factor - factor_high
    error = (
        (values_high * factor_high - product) + values_high * factor_low + values_low * factor_high
    ) + values_low * factor_low
    return product, error


def _pair_quotient(high: Doubles, low: Doubles, divisor: float) -> Doubles:
    """(high + low) / divisor, rounded to float64. Signed zeros survive: nothing is added where nothing is missing."""
    if divisor == 1:
        quotient, rest = high, low
    else:
        quotient = high / divisor
        product, error = _two_product(quotient, divisor)
        rest = (((high - product) - error) + low) / divisor
    result: Doubles = np.where(rest == 0, quotient, quotient + rest)
    return result


# ---------------------------------------------------------------------------------------------------------------
# Comparing


def convert(raw: Bytes, source: str, target: str, scratch: Scratch) -> Bytes:
    """Values as they are, in another dtype: integers as numpy converts them, other numbers rounded once."""
    values = raw.view(numpy_dtype(source))
    dtype = numpy_dtype(target)
    if values.dtype.kind in "iub" or dtype.kind in "iub":
        with np.errstate(all="ignore"):
            return values.astype(dtype).view(np.uint8)
    return weighted_mean([Operand(source, 1)], lambda _: raw, divisor=1, dtype=target, scratch=scratch)


def same_values(first: Bytes, first_dtype: str, second: Bytes, second_dtype: str) -> bool:
    """Whether two chunks in native byte order hold the same values: bytes of one dtype, numbers across dtypes."""
    if first_dtype == second_dtype:
        return bool(np.array_equal(first, second))
    one, other = first.view(numpy_dtype(first_dtype)), second.view(numpy_dtype(second_dtype))
    if one.dtype.kind in "iub" and other.dtype.kind in "iub":
        return bool(np.array_equal(one, other))  # numpy compares int64 with uint64 exactly
    return bool(np.array_equal(one.astype(np.float64), other.astype(np.float64), equal_nan=True))
