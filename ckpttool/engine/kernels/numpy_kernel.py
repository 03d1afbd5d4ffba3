"""The kernel in numpy: what computes where no compiler was, and what the compiled kernel is held to, bit for bit.

The sum is carried in float64, and as pairs of float64 numbers where float64 itself goes in or comes out; means of
bfloat16 or float16 go the short way of `half_sums`, with the same bits. Blocks are small enough for the cache.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ckpttool.engine.kernels.double_double import precise_mean
from ckpttool.engine.kernels.half_sums import BLOCK, HALVES, pack_float16, quick_mean
from ckpttool.engine.nonfinite import has_nonfinite
from ckpttool.reading.dtypes import numpy_dtype
from ckpttool.reading.scratch import Scratch

__all__ = ["NumpyKernel"]

Bytes: TypeAlias = NDArray[np.uint8]
Doubles: TypeAlias = NDArray[np.float64]
Array: TypeAlias = NDArray[Any]

_FLOAT16_SHIFT = 13
"""float32 has 13 bits of mantissa more than float16."""

_FLOAT16_SCALE = 2.0**112
"""float32's exponent bias is 127, float16's 15: a float16's bits, moved into a float32, read 2^112 too small."""

_FLOAT16_OVERFLOW = 65520.0
"""Half way between float16's greatest value, 65504, and the next that it would have: rounds to infinity."""

_DENSE_TIES = 64
"""From one candidate for a tie in this many elements on, it pays to sift them before they are gathered."""

_NAN = {
    "float64": 0x7FF8000000000000,
    "float32": 0x7FC00000,
    "float16": 0x7E00,
    "bfloat16": 0x7FC0,
    "float8_e4m3fn": 0x7F,
    "float8_e4m3fnuz": 0x80,
    "float8_e5m2": 0x7E,
    "float8_e5m2fnuz": 0x80,
}
"""The one NaN that a result can be, of each dtype: quiet, positive, without a payload.

Which of two NaNs a sum passes on depends on the processor, and on which of them its compiler put first.
"""


class NumpyKernel:
    """See `ckpttool.engine.kernels.Kernel`."""

    name = "numpy"

    def __init__(self) -> None:
        self._threads = threading.local()

    def weighted_mean(
        self,
        raws: Sequence[Bytes],
        dtypes: Sequence[str],
        weights: Sequence[float],
        divisor: float,
        out_dtype: str,
        out: Bytes,
    ) -> bool:
        """See `ckpttool.engine.kernels.Kernel.weighted_mean`."""
        scratch: Scratch | None = getattr(self._threads, "scratch", None)
        if scratch is None:
            scratch = self._threads.scratch = Scratch()
        sizes = [numpy_dtype(dtype).itemsize for dtype in dtypes]
        out_size = numpy_dtype(out_dtype).itemsize
        short = out_dtype in HALVES and all(dtype == out_dtype for dtype in dtypes)
        nonfinite = False
        with np.errstate(all="ignore"):  # what is not finite in the end is found by looking, not by warnings
            for start in range(0, out.nbytes // out_size, BLOCK):
                parts = [raw[start * size : (start + BLOCK) * size] for raw, size in zip(raws, sizes, strict=True)]
                into = out[start * out_size : (start + BLOCK) * out_size]
                if short:
                    _half_mean(parts, weights, divisor, out_dtype, into, scratch)
                else:
                    into[:] = _mean(parts, dtypes, weights, divisor, out_dtype, scratch)
                if has_nonfinite(into, out_dtype):
                    nonfinite = True
                    values = into.view(numpy_dtype(out_dtype))
                    values.view(f"u{out_size}")[np.isnan(values)] = _NAN[out_dtype]
        return nonfinite


# ---------------------------------------------------------------------------------------------------------------
# Adding


def _half_mean(
    raws: Sequence[Bytes], weights: Sequence[float], divisor: float, dtype: str, out: Bytes, scratch: Scratch
) -> None:
    """The mean of bfloat16 or float16 in float32, with float64 for the elements where that could show."""
    parts = [raw.view(np.uint16) for raw in raws]
    result = out.view(np.uint16)
    bfloat16 = numpy_dtype(dtype) if dtype == "bfloat16" else None
    where = quick_mean(parts, weights, divisor, bfloat16, result, scratch.take)
    if where is not None and not where.size:
        return
    chosen = slice(None) if where is None else where
    doubtful = [np.ascontiguousarray(part[chosen]).view(np.uint8) for part in parts]
    mean = _mean(doubtful, [dtype] * len(raws), weights, divisor, dtype, scratch.inner)
    result[chosen] = mean.view(np.uint16)


def _mean(
    raws: Sequence[Bytes], dtypes: Sequence[str], weights: Sequence[float], divisor: float, dtype: str, scratch: Scratch
) -> Bytes:
    """(Σ weight · x) / divisor of one block in float64, in a scratch buffer."""
    if dtype == "float64" or "float64" in dtypes:

        def widened(term: int) -> Doubles:
            return _widen(raws[term], dtypes[term], scratch).astype(np.float64)

        return _round(precise_mean(widened, weights, divisor), 1, dtype, scratch)
    total: Doubles | None = None
    for raw, source, weight in zip(raws, dtypes, weights, strict=True):
        values = _widen(raw, source, scratch)
        if total is None:
            total = scratch.take("total", values.size, np.float64)
            if weight == 1:
                np.copyto(total, values)
            else:
                np.multiply(values, weight, out=total, dtype=np.float64)
        elif weight == 1:
            np.add(total, values, out=total)
        else:
            product = scratch.take("product", values.size, np.float64)
            np.multiply(values, weight, out=product, dtype=np.float64)
            np.add(total, product, out=total)
    assert total is not None
    return _round(total, divisor, dtype, scratch)


# ---------------------------------------------------------------------------------------------------------------
# Widening


def _widen(raw: Bytes, name: str, scratch: Scratch) -> Array:
    """A term's values as float32 or float64, exactly."""
    dtype = numpy_dtype(name)
    if name in {"float32", "float64"}:
        return raw.view(dtype)
    count = raw.nbytes // dtype.itemsize
    wide = scratch.take("wide", count, np.float32)
    if name == "float16" and not has_nonfinite(raw, "float16"):
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
    """Move float32 values that only look like ties off the tie, to the side of their float64 value.

    A float64 that is rounded to float32 and then to something narrower is rounded twice. That differs from rounding
    once only where the first step lands exactly half way between two values of the narrower dtype without having
    been there: one unit of float32 further, and the second step decides rightly (Boldo and Melquiond, "Emulation of
    FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).

    Args:
        exact: The values before the first step.
        rounded: After it; changed in place.
        candidate: Where `rounded` is a tie of the narrower dtype.
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
