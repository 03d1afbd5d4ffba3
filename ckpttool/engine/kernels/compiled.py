"""The compiled kernel, if it was built when ckpttool was installed: a plain C library, loaded with ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ckpttool.reading.dtypes import numpy_dtype

__all__ = ["ABI", "LIBRARY", "CompiledKernel", "compiled_kernels"]

Bytes: TypeAlias = NDArray[np.uint8]

LIBRARY = Path(__file__).with_name("_kernel.so")
"""Where hatch_build.py puts it."""

ABI = 1
"""As in kernel.c; a library that was built from other sources is not used."""

_TYPES = {
    name: number
    for number, name in enumerate(
        (
            "float32",
            "bfloat16",
            "float16",
            "float64",
            "float8_e4m3fn",
            "float8_e4m3fnuz",
            "float8_e5m2",
            "float8_e5m2fnuz",
        )
    )
}
"""As kernel.c numbers them."""


class CompiledKernel:
    """One variant of the library; see `ckpttool.engine.kernels.Kernel`."""

    def __init__(self, library: ctypes.CDLL, variant: int, name: str) -> None:
        self.name = name
        self._variant = variant
        self._mean = library.ckpttool_weighted_mean

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
        terms = len(raws)
        count = out.nbytes // numpy_dtype(out_dtype).itemsize
        for raw, dtype in zip(raws, dtypes, strict=True):
            # C cannot know: what is checked here is never read or written beyond its end.
            if raw.nbytes != count * numpy_dtype(dtype).itemsize or not raw.flags.c_contiguous:
                raise ValueError(f"{raw.nbytes} bytes are not {count} elements of {dtype}, one after another")
        if not (out.flags.c_contiguous and out.flags.writeable and len(weights) == terms and terms):
            raise ValueError("one weight for each term, at least one, and a contiguous output")
        precise = out_dtype == "float64" or "float64" in dtypes
        nonfinite: int = self._mean(
            self._variant,
            (ctypes.c_void_p * terms)(*[raw.__array_interface__["data"][0] for raw in raws]),
            bytes([_TYPES[dtype] for dtype in dtypes]),
            (ctypes.c_double * terms)(*weights),
            terms,
            count,
            divisor,
            precise,
            _TYPES[out_dtype],
            out.__array_interface__["data"][0],
        )
        return bool(nonfinite)


def compiled_kernels(path: Path = LIBRARY) -> list[CompiledKernel]:
    """The library's variants that this processor can run, the fastest first; none where it is not there."""
    try:
        library = ctypes.CDLL(str(path))
        library.ckpttool_kernel_abi.restype = ctypes.c_int
        if library.ckpttool_kernel_abi() != ABI:
            return []
    except (OSError, AttributeError):  # not built, built for another system, or not this library
        return []
    library.ckpttool_kernel_name.restype = ctypes.c_char_p
    library.ckpttool_kernel_name.argtypes = [ctypes.c_int]
    library.ckpttool_kernel_supported.restype = ctypes.c_int
    library.ckpttool_kernel_supported.argtypes = [ctypes.c_int]
    library.ckpttool_kernel_set_table.restype = None
    library.ckpttool_kernel_set_table.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.ckpttool_weighted_mean.restype = ctypes.c_int
    library.ckpttool_weighted_mean.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.c_double,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_void_p,
    ]
    for name, number in _TYPES.items():
        if name.startswith("float8"):
            with np.errstate(invalid="ignore"):
                values = np.arange(256, dtype=np.uint8).view(numpy_dtype(name)).astype(np.float32)
            library.ckpttool_kernel_set_table(number, values.ctypes.data)
    kernels = []
    variant = 0
    while (name_bytes := library.ckpttool_kernel_name(variant)) is not None:
        if library.ckpttool_kernel_supported(variant):
            kernels.append(CompiledKernel(library, variant, name_bytes.decode()))
        variant += 1
    kernels.reverse()
    return kernels
