"""Buffers of one thread, reused from chunk to chunk."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Scratch"]

Bytes: TypeAlias = NDArray[np.uint8]
Array: TypeAlias = NDArray[Any]


class Scratch:
    """One thread's buffers, by purpose: made when first asked for, grown when too small, never given back.

    Fresh arrays of megabytes would be mapped and cleared by the kernel again and again.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Bytes] = {}
        self._inner: Scratch | None = None

    @property
    def inner(self) -> Scratch:
        """Another set of buffers, for a computation inside one that uses these."""
        if self._inner is None:
            self._inner = Scratch()
        return self._inner

    def take(self, purpose: str, count: int, dtype: Any) -> Array:
        """An array of `count` elements, uninitialised; it is valid until the same purpose is asked for again."""
        nbytes = count * np.dtype(dtype).itemsize
        buffer = self._buffers.get(purpose)
        if buffer is None or buffer.nbytes < nbytes:
            buffer = self._buffers[purpose] = np.empty(nbytes, np.uint8)
        return buffer[:nbytes].view(dtype)
