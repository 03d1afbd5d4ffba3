"""Either checksum, by the name that extents and output files call it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

from ckpttool.checksums import crc32c
from ckpttool.checksums.compiled import compiled_checksum
from ckpttool.checksums.crc32 import combine_crc32
from ckpttool.errors import UnreadableError
from ckpttool.tensors import ChecksumKind

__all__ = ["checksum", "combined", "damaged"]


_SHORT = 4096
"""Fewer bytes are not worth a call of the compiled function."""


def checksum(kind: ChecksumKind, data: bytes | memoryview) -> int:
    """The checksum of some contiguous bytes."""
    if len(data) >= _SHORT:
        extend = compiled_checksum()
        if extend is not None:
            return extend(kind, 0, data)
    return zlib.crc32(data) if kind == "crc32" else crc32c.extend(0, data)


def combined(kind: ChecksumKind, parts: Iterable[tuple[int, int]]) -> int:
    """The checksum of a concatenation of parts, each given as (checksum, length in bytes), in order."""
    return combine_crc32(parts) if kind == "crc32" else crc32c.combine(parts)


def damaged(path: Path, label: str) -> UnreadableError:
    """The error for bytes that are not those that were written."""
    return UnreadableError(
        f"{path}: {label} is damaged (its checksum does not match)",
        path=path,
        tensor=label,
        hint="Leave this checkpoint out, or copy it again from where it was written.",
    )
