"""NaN and infinity: finding them, and telling those that are meant from those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ckpttool.reading.dtypes import numpy_dtype

__all__ = ["count_nonfinite", "has_nonfinite", "settle_infinities"]

Bytes: TypeAlias = NDArray[np.uint8]
Array: TypeAlias = NDArray[Any]


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
    result: Bytes, dtype: str, raws: Sequence[Bytes], dtypes: Sequence[str]
) -> NDArray[np.intp] | None:
    """Where a mean is not finite because every term is the same infinity there, make it that infinity.

    A constant's mean is the constant: the mask of a causal attention holds -inf in every checkpoint. Arithmetic does
    not say so, since weights of both signs make NaN of infinities.

    Args:
        result: The mean, of real dtype `dtype`; changed in place.
        dtype: See there.
        raws: Each term's bytes in native order.
        dtypes: Each term's real dtype.

    Returns:
        Where such infinities are, ascending. None where anything else is not finite: `result` is as it was then.
    """
    values = result.view(numpy_dtype(dtype))
    where = np.flatnonzero(~np.isfinite(values))
    common: Array | None = None
    for raw, name in zip(raws, dtypes, strict=True):
        found = raw.view(numpy_dtype(name))[where].astype(np.float64)
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
