"""Both checksums by the instructions that processors have for them, if that was built when ckpttool was installed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from ckpttool.tensors import ChecksumKind

__all__ = ["LIBRARY", "compiled_checksum"]

LIBRARY = Path(__file__).with_name("_crc.so")
"""Where hatch_build.py puts it."""

_ABI = 1
"""As in crc.c; a library that was built from other sources is not used."""

_KINDS: dict[ChecksumKind, int] = {"crc32": 0, "crc32c": 1}
"""As crc.c numbers them."""

Extend = Callable[[ChecksumKind, int, "bytes | memoryview"], int]


@lru_cache(maxsize=1)
def compiled_checksum() -> Extend | None:
    """What continues a checksum with contiguous bytes; None where it was not built, or CKPTTOOL_KERNEL is `no`."""
    return None if os.environ.get("CKPTTOOL_KERNEL") == "no" else load(LIBRARY)


def load(path: Path) -> Extend | None:
    """The function of a library; None where it is not there, or this processor lacks the instructions."""
    try:
        library = ctypes.CDLL(str(path))
        if library.ckpttool_crc_abi() != _ABI or not library.ckpttool_crc_supported():
            return None
        compute = library.ckpttool_crc
    except (OSError, AttributeError):  # not built, built for another system, or not this library
        return None
    compute.restype = ctypes.c_uint32
    compute.argtypes = [ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t]

    def extend(kind: ChecksumKind, value: int, data: bytes | memoryview) -> int:
        import numpy as np

        raw = np.frombuffer(data, np.uint8)
        result: int = compute(_KINDS[kind], value, raw.__array_interface__["data"][0], raw.nbytes)
        return result

    return extend
