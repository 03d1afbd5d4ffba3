"""Element types as numpy has them, and the real numbers that elements are made of.

A complex element is two real ones next to each other, so that whatever acts on both alike only knows real types.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ckpttool.tensors import DType

__all__ = ["component", "lanes", "numpy_dtype", "swap_bytes"]

Bytes: TypeAlias = NDArray[np.uint8]

_NARROW = frozenset({"float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"})
_EXTENSIONS = frozenset({"bfloat16", "float8_e8m0fnu"}) | _NARROW
_COMPONENTS = {"complex64": "float32", "complex128": "float64"}


def component(dtype: DType) -> str:
    """Name of the real dtype that an element is made of: itself, or half a complex one."""
    return _COMPONENTS.get(dtype.name, dtype.name)


def lanes(dtype: DType) -> int:
    """How many real numbers an element is made of."""
    return 2 if dtype.name in _COMPONENTS else 1


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a name of `ckpttool.tensors.DTYPES`, in native byte order."""
    if name in _EXTENSIONS:
        import ml_dtypes

        name = getattr(ml_dtypes, name)
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def swap_bytes(raw: Bytes, dtype: str) -> None:
    """Turn the bytes of numbers of a real dtype round, in place."""
    itemsize = numpy_dtype(dtype).itemsize
    if itemsize > 1:
        raw.view(f"u{itemsize}").byteswap(inplace=True)
