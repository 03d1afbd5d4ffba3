"""Fill a laid-out output from arrays in memory: what the engine does, as plainly as can be."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from ckpttool.checksums import crc32c
from ckpttool.checksums.by_kind import checksum
from ckpttool.errors import UnreadableError
from ckpttool.tensors import Artifact, Checkpoint, Extent, OutputFile, OutputTensor, TensorId, TensorSpec


def numpy_dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def extent_bytes(extent: Extent) -> bytes:
    """The plain bytes of an extent."""
    with extent.path.open("rb") as file:
        file.seek(extent.offset)
        if extent.deflated is None:
            data = file.read(extent.nbytes)
        else:
            data = zlib.decompress(file.read(extent.deflated), wbits=-15)
    assert len(data) == extent.nbytes
    return data


def load(spec: TensorSpec) -> np.ndarray:
    """A tensor's elements, in native byte order."""
    data = extent_bytes(spec.storage)
    stated = spec.storage.checksum
    if stated is not None and checksum(stated.kind, data) != stated.value:
        raise UnreadableError(f"{spec.storage.path}: damaged")
    dtype = numpy_dtype(spec.dtype.name)
    flat = np.frombuffer(data, np.uint8).view(dtype) if data else np.empty(0, dtype)
    if spec.big_endian:
        flat = flat.byteswap()
    if spec.strides is None:
        return flat[spec.offset : spec.offset + spec.numel].reshape(spec.shape)
    strides = [stride * dtype.itemsize for stride in spec.strides]
    return np.lib.stride_tricks.as_strided(flat[spec.offset :], spec.shape, strides)


def loaded(checkpoint: Checkpoint) -> dict[TensorId, np.ndarray]:
    return {tensor: load(spec) for tensor, spec in checkpoint.tensors().items()}


def artifact_like(checkpoint: Checkpoint, **changes: object) -> Artifact:
    """What shall be written to get the weights of this checkpoint again."""
    tensors = {
        tensor: OutputTensor(spec.dtype, spec.shape, spec.strides if spec.is_dense else None)
        for tensor, spec in checkpoint.tensors().items()
    }
    return Artifact(**{"tensors": tensors, "template": checkpoint, **changes})


def element_bytes(array: np.ndarray, tensor: OutputTensor) -> bytes:
    """The elements in the output's dtype and order of memory."""
    array = array.astype(numpy_dtype(tensor.dtype.name))
    axes = range(array.ndim) if tensor.strides is None else sorted(range(array.ndim), key=lambda a: -tensor.strides[a])
    return np.ascontiguousarray(array.transpose(list(axes))).tobytes()


def fill(
    files: Sequence[OutputFile], output: Path, artifact: Artifact, arrays: Mapping[TensorId, np.ndarray | bytes]
) -> None:
    """Write the files of an output. Nothing may overlap, and nothing may reach beyond a file's end."""
    checksums: dict[str, dict[int, int]] = {}
    contents: dict[str, bytearray] = {}
    for file in files:
        content = contents[file.name] = bytearray(file.nbytes)
        pieces = list(file.literals)
        summed = {}
        for slot in file.slots:
            data = arrays[slot.tensor]
            summed[slot.offset] = (
                data if isinstance(data, bytes) else element_bytes(data, artifact.tensors[slot.tensor])
            )
            assert len(summed[slot.offset]) == slot.nbytes
        for copy in file.copies:
            summed[copy.offset] = extent_bytes(copy.source)
        assert len(summed) == len(file.slots) + len(file.copies)
        add = (lambda data: crc32c.extend(0, data)) if file.checksum == "crc32c" else zlib.crc32
        checksums[file.name] = {offset: add(data) for offset, data in summed.items()}
        end = 0
        for offset, data in sorted([*pieces, *summed.items()], key=lambda piece: piece[0]):
            assert end <= offset
            end = offset + len(data)
            assert end <= file.nbytes
            content[offset:end] = data
    for file in files:
        if file.seal is not None:
            of = file.name if file.checksums_of is None else file.checksums_of
            for offset, data in file.seal(checksums[of]):
                assert offset + len(data) <= file.nbytes
                contents[file.name][offset : offset + len(data)] = data
    for name, content in contents.items():
        path = output / name if name else output
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def mean(checkpoints: Sequence[Checkpoint]) -> dict[TensorId, np.ndarray]:
    """Sum in float64 divided by the number, rounded once; integers are the last one's."""
    members = [loaded(checkpoint) for checkpoint in checkpoints]
    out = {}
    for tensor, last in members[-1].items():
        if checkpoints[-1].tensors()[tensor].dtype.is_averaged:
            out[tensor] = (sum(m[tensor].astype(np.float64) for m in members) / len(members)).astype(last.dtype)
        else:
            out[tensor] = last
    return out
