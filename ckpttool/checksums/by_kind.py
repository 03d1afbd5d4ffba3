"""Either checksum, by the name that extents and output files call it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from ckpttool.checksums import crc32c
from ckpttool.checksums.crc32 import combine_crc32
from ckpttool.tensors import ChecksumKind

__all__ = ["checksum", "combined"]


def checksum(kind: ChecksumKind, data: bytes | memoryview) -> int:
    """The checksum of some contiguous bytes."""
    return zlib.crc32(data) if kind == "crc32" else crc32c.extend(0, data)


def combined(kind: ChecksumKind, parts: Iterable[tuple[int, int]]) -> int:
    """The checksum of a concatenation of parts, each given as (checksum, length in bytes), in order."""
    return combine_crc32(parts) if kind == "crc32" else crc32c.combine(parts)
