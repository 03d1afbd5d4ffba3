"""The arithmetic on a chunk's elements: means, conversions, comparisons.

Everything here works on flat arrays; nothing opens a file. A complex element is two real ones next to each other, since
a mean acts on both alike, so that only real dtypes remain. The law is

    out = round_to_dtype((Σ weight · x) / divisor)

with sum and quotient in float64, and one rounding to the output's dtype. Where float64 itself goes in or comes out,
float64 has no digits to spare, and the sum is carried as an unevaluated pair of float64 numbers (double-double).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ckpttool.engine import kernels
from ckpttool.engine.nonfinite import has_nonfinite
from ckpttool.reading.dtypes import numpy_dtype
from ckpttool.reading.scratch import Scratch

__all__ = ["Weighting", "convert", "same_values", "weighted_mean"]

Bytes: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Weighting:
    """How a mean follows from its terms; all dtypes are real (`ckpttool.reading.dtypes.component`).

    Attributes:
        dtypes: Of each term, in the order of summation; at least one.
        weights: What each term is multiplied by.
        divisor: What the sum is divided by.
        out_dtype: Of the mean.
    """

    dtypes: tuple[str, ...]
    weights: tuple[float, ...]
    divisor: float
    out_dtype: str

    @property
    def is_identity(self) -> bool:
        """Whether the mean is the only term as it is."""
        return self.dtypes == (self.out_dtype,) and self.weights == (1.0,) and self.divisor == 1


def weighted_mean(weighting: Weighting, raws: Sequence[Bytes], scratch: Scratch) -> tuple[Bytes, bool]:
    """(Σ weight · x) / divisor of one chunk, rounded once.

    The first term is assigned, not added to zero: a single term of weight 1 comes out as it went in, -0.0 and all.

    Args:
        weighting: The terms.
        raws: Each term's bytes in native order.
        scratch: This thread's buffers.

    Returns:
        The mean's bytes in native order, in a scratch buffer or in `raws`; and whether NaN or infinity is among them.
    """
    if weighting.is_identity:
        return raws[0], has_nonfinite(raws[0], weighting.out_dtype)
    count = raws[0].nbytes // numpy_dtype(weighting.dtypes[0]).itemsize
    out = scratch.take("mean", count * numpy_dtype(weighting.out_dtype).itemsize, np.uint8)
    nonfinite = kernels.active().weighted_mean(
        raws, weighting.dtypes, weighting.weights, weighting.divisor, weighting.out_dtype, out
    )
    return out, nonfinite


def convert(raw: Bytes, source: str, target: str, scratch: Scratch) -> Bytes:
    """Values as they are, in another dtype: integers as numpy converts them, other numbers rounded once."""
    if source == target:
        return raw
    values = raw.view(numpy_dtype(source))
    dtype = numpy_dtype(target)
    if values.dtype.kind in "iub" or dtype.kind in "iub":
        with np.errstate(all="ignore"):
            return values.astype(dtype).view(np.uint8)
    return weighted_mean(Weighting((source,), (1,), 1, target), [raw], scratch)[0]


def same_values(first: Bytes, first_dtype: str, second: Bytes, second_dtype: str) -> bool:
    """Whether two chunks in native byte order hold the same values: bytes of one dtype, numbers across dtypes."""
    if first_dtype == second_dtype:
        return bool(np.array_equal(first, second))
    one, other = first.view(numpy_dtype(first_dtype)), second.view(numpy_dtype(second_dtype))
    if one.dtype.kind in "iub" and other.dtype.kind in "iub":
        return bool(np.array_equal(one, other))  # numpy compares int64 with uint64 exactly
    return bool(np.array_equal(one.astype(np.float64), other.astype(np.float64), equal_nan=True))
