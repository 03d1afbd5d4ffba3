"""A whole tensor as a numpy array."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpttool.errors import UnsupportedError
from ckpttool.reading import dtypes
from ckpttool.reading.scratch import Scratch
from ckpttool.reading.sources import Sources
from ckpttool.reading.tiled import MAX_NUMPY_RANK, open_view
from ckpttool.tensors import TensorSpec

__all__ = ["read_values"]


def read_values(spec: TensorSpec, *, name: str = "the tensor") -> NDArray[Any]:
    """A tensor's values as a numpy array of its shape and dtype, in C order and native byte order. For small tensors.

    Raises:
        UnreadableError: The file cannot be read, or the tensor is not inside it.
        UnsupportedError: It has more dimensions than numpy knows.
    """
    if len(spec.shape) > MAX_NUMPY_RANK:
        raise UnsupportedError(
            f"{spec.storage.path}: {name}: {len(spec.shape)} dimensions are more than can be shown",
            path=spec.storage.path,
            tensor=name,
        )
    with contextlib.closing(Sources()) as sources:
        view = open_view(spec, None, sources, name)
        raw = np.empty(spec.nbytes, np.uint8)
        view.read_into(raw, 0, spec.numel, name, Scratch())
        if view.swap:
            dtypes.swap_bytes(raw, view.component)
    return raw.view(dtypes.numpy_dtype(spec.dtype.name)).reshape(spec.shape)
