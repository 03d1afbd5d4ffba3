"""A small stand-in for the engine: fill an output that a format laid out, from arrays."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

from ckpttool.tensors import Extent, OutputFile, TensorId


def extent_bytes(extent: Extent) -> bytes:
    """The plain bytes of an extent."""
    with extent.path.open("rb") as file:
        file.seek(extent.offset)
        if extent.deflated is None:
            return file.read(extent.nbytes)
        return zlib.decompress(file.read(extent.deflated), -15)


def fill(output: OutputFile, path: Path, contents: Mapping[TensorId, bytes]) -> None:
    """Write the file, and check on the way that no byte has two sources."""
    whole = bytearray(output.nbytes)
    taken = bytearray(output.nbytes)
    crcs = {}

    def put(offset: int, data: bytes) -> None:
        assert 0 <= offset <= output.nbytes - len(data)
        assert not any(taken[offset : offset + len(data)]), f"two sources for byte {offset}"
        taken[offset : offset + len(data)] = b"\1" * len(data)
        whole[offset : offset + len(data)] = data

    for offset, data in output.literals:
        put(offset, data)
    for slot in output.slots:
        data = contents[slot.tensor]
        assert len(data) == slot.nbytes
        crcs[slot.offset] = zlib.crc32(data)
        put(slot.offset, data)
    for copy in output.copies:
        data = extent_bytes(copy.source)
        assert len(data) == copy.source.nbytes
        crcs[copy.offset] = zlib.crc32(data)
        put(copy.offset, data)
    if output.seal is not None:
        for offset, data in output.seal(crcs):
            put(offset, data)
    path.write_bytes(bytes(whole))
