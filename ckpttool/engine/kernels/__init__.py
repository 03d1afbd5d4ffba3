"""What computes the means: compiled C or numpy, with the same bits.

compiled        loads the C library, if it was built (sources: kernel.c, kernel_body.h)
numpy_kernel    the same in numpy
half_sums       its short way for 16-bit members
double_double   its way for float64

The environment variable CKPTTOOL_KERNEL chooses: `auto` (the default) takes the compiled kernel if it is there, `yes`
insists on it, `no` takes numpy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ckpttool.errors import UsageError

__all__ = ["VARIABLE", "Kernel", "active", "available"]

Bytes: TypeAlias = NDArray[np.uint8]

VARIABLE = "CKPTTOOL_KERNEL"


class Kernel(Protocol):
    """Computes means of chunks. Any number of threads may use one at the same time."""

    @property
    def name(self) -> str:
        """avx512, avx2, neon or baseline (compiled, by instruction set), or numpy."""

    def weighted_mean(
        self,
        raws: Sequence[Bytes],
        dtypes: Sequence[str],
        weights: Sequence[float],
        divisor: float,
        out_dtype: str,
        out: Bytes,
    ) -> bool:
        """Store (Σ weight · x) / divisor, rounded once. The bits are the same whichever kernel computes them.

        Sum and quotient are in float64, and in double-double where a term or the output is float64. NaN comes out as
        the one positive quiet NaN without payload.

        Args:
            raws: Each term's bytes in native order, all of the same number of elements; at least one term.
            dtypes: Each term's real dtype.
            weights: What each term is multiplied by.
            divisor: What the sum is divided by.
            out_dtype: The output's real dtype.
            out: Receives the output's bytes in native order.

        Returns:
            Whether NaN or infinity is among the output.
        """


@lru_cache(maxsize=1)
def available() -> tuple[Kernel, ...]:
    """Every kernel that this machine can use, the fastest first; numpy is always the last."""
    from ckpttool.engine.kernels.compiled import compiled_kernels
    from ckpttool.engine.kernels.numpy_kernel import NumpyKernel

    return (*compiled_kernels(), NumpyKernel())


def active() -> Kernel:
    """The kernel that is used.

    Raises:
        UsageError: CKPTTOOL_KERNEL asks for the compiled kernel, which is not there, or is none of its three words.
    """
    return _chosen(os.environ.get(VARIABLE, "auto"))


@lru_cache(maxsize=8)
def _chosen(wish: str) -> Kernel:
    kernels = available()
    if wish in {"auto", ""}:
        return kernels[0]
    if wish == "no":
        return kernels[-1]
    if wish != "yes":
        raise UsageError(f"{VARIABLE}={wish}: is none of auto, yes, no", hint="Unset it for the fastest kernel.")
    if len(kernels) == 1:
        raise UsageError(
            f"{VARIABLE}=yes: the compiled kernel is not installed",
            hint="Install ckpttool where a C compiler is, or unset the variable to compute with numpy.",
        )
    return kernels[0]
