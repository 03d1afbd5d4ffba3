"""Sums of float64 as unevaluated pairs of float64 numbers: where float64 has no digits to spare.

Sums and products are error-free transformations (Knuth's TwoSum, Dekker's product), the quotient gets one correction,
as in Hida, Li and Bailey, "Library for double-double and quad-double arithmetic", 2000. The relative error of a pair is
a few 2^-105. Every operation is one of IEEE 754 in a fixed order, so that the compiled kernel can do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["precise_mean"]

Array: TypeAlias = NDArray[Any]
Doubles: TypeAlias = NDArray[np.float64]

_DEKKER = 134217729.0
"""2^27 + 1: splits a float64 into two halves of 26 bits each."""

_DOWN = 2.0**-128
"""Keeps a sum of huge float64 numbers from overflowing on its way to a mean that does not."""


def precise_mean(widened: Callable[[int], Doubles], weights: Sequence[float], divisor: float) -> Doubles:
    """(Σ weight · x) / divisor in double-double, rounded to float64.

    Args:
        widened: Gives term i's values as float64, in a fresh array. Called for each term in turn, and once more for
            each if a sum overflows on the way.
        weights: What each term is multiplied by.
        divisor: What the sum is divided by.
    """
    high, low = _pair_sum(widened, weights, 1)
    values = _pair_quotient(high, low, divisor)
    lost = ~np.isfinite(values)
    if lost.any():
        # NaN or infinity went in, or finite numbers so great that their sum or their splitting overflowed. The same
        # again on a smaller scale settles the second; what small numbers lose there is negligible.
        high, low = _pair_sum(widened, weights, _DOWN)
        again = _pair_quotient(high, low, divisor) / _DOWN
        values[lost] = again[lost]
        lost = np.isnan(values)
        if lost.any():
            # Error terms of infinity are NaN; the plain sum says which of the two it is.
            plain = high if divisor == 1 else high / divisor
            values[lost] = plain[lost] / _DOWN
    return values


def _pair_sum(widened: Callable[[int], Doubles], weights: Sequence[float], scale: float) -> tuple[Doubles, Doubles]:
    """Σ weight · (scale · x) as an unevaluated sum of two float64 arrays; `scale` is a power of two."""
    high = low = np.empty(0)
    for index, weight in enumerate(weights):
        values = widened(index)
        if scale != 1:
            values *= scale
        error: Doubles | None = None
        if weight != 1:
            values, error = _two_product(values, weight)
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
