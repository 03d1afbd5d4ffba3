"""NumPy archives (.npz): a zip archive of one .npy file for each array. Marian and many JAX projects save these.

Arrays that are not weights stay out of the average and are kept as they are: Marian's ``special:model.yml`` (a text as
bytes), the ``history_errs`` of its forerunners, and whatever is not a number. Object arrays are pickles and refused,
even where they would only be copied: the next `numpy.load` of the output would run them.

What an output was made of is in the archive's comment, where neither `numpy.load` nor Marian looks: a further
array would be taken for a parameter.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpttool.checksums.crc32 import combine_crc32
from ckpttool.errors import UnreadableError, UnsupportedError, UsageError
from ckpttool.formats.archives.zip_reader import Archive, first_name, open_archive
from ckpttool.formats.description import Implementation
from ckpttool.formats.npz.header import CODES, MAX_BYTES, Header, parse, write
from ckpttool.formats.npz.writer import MAX_COMMENT, NpzLayout
from ckpttool.reading.opened import OpenedFile
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import (
    Artifact,
    Checkpoint,
    Checksum,
    Extent,
    OutputFile,
    OutputTensor,
    TensorId,
    TensorSpec,
    c_strides,
)

__all__ = ["IMPLEMENTATION", "NAME", "NpzContainer", "lay_out", "read", "recognise"]

NAME = "npz"

_NPY = ".npy"
_SPECIAL = "special:"
_HISTORY = "history_errs"
_STEPS = ("global_step", "num_updates", "step", "iteration")
_MAX_TEXT = 1 << 16
_MAX_SCALARS = 1000
_MAX_QUOTED = 200
_USUAL_HEADER = 256
"""Bytes that have all of most headers."""


@dataclass(frozen=True)
class NpzContainer:
    """What an archive holds, for writing one like it.

    Attributes:
        archive: The zip archive.
        records: The records in the file's order: name, and whether it is a weight.
    """

    archive: Archive
    records: Mapping[str, bool]


def recognise(path: Path, head: bytes, snapshot: Snapshot) -> bool:  # noqa: ARG001  # the same question to all formats
    """Whether this is a zip archive that starts with an array."""
    return first_name(head).endswith(_NPY)


def read(path: Path, *, section: str | None = None, snapshot: Snapshot | None = None) -> Checkpoint:  # noqa: ARG001
    """Open an archive without reading any weight; headers and single integers are read.

    Args:
        path: The file.
        section: Only arrays whose names start with this and "/" or "." are weights.
        snapshot: The operation's view of the storage; None: a new one.

    Raises:
        UnreadableError: The archive or a header in it is truncated or damaged.
        UnsupportedError: There is an object array in it, or numbers of an unknown kind.
        UsageError: Nothing is below `section`.
    """
    archive = open_archive(path)
    weights: dict[str, TensorSpec] = {}
    records: dict[str, bool] = {}
    values: dict[str, Any] = {}
    kept: list[str] = []
    with archive.opened():
        for record in archive.names:
            name = record.removesuffix(_NPY)
            spec = _read_array(archive, record) if name != record else None
            is_weight = spec is not None and not name.startswith(_SPECIAL) and name != _HISTORY
            if is_weight and section is not None:
                is_weight = name.startswith((f"{section}/", f"{section}."))
            records[record] = is_weight
            if spec is not None and is_weight:
                weights[name] = spec
                if spec.shape == () and spec.dtype.kind in {"integer", "bool"} and len(values) < _MAX_SCALARS:
                    values[name] = _scalar(archive, record, spec)
            else:
                kept.append(name)
                if spec is not None and spec.dtype.itemsize == 1 and spec.nbytes <= _MAX_TEXT:
                    values[name] = _text(archive.read(record)[-spec.nbytes :] if spec.nbytes else b"")
    if not weights:
        if section is not None:
            raise UsageError(
                f"{path}: has no arrays below {section!r}",
                path=path,
                hint=f"It starts with {', '.join(list(records)[:4])}.",
            )
        raise UnsupportedError(f"{path}: holds no array that could be averaged", path=path)
    return Checkpoint(
        path=path,
        format=NAME,
        weights=weights,
        section=section or "",
        step=next((values[name] for name in _STEPS if name in values), None),
        values=values,
        provenance=_provenance(path),
        files=(path,),
        notes=_notes(kept, weights),
        container=NpzContainer(archive, records),
    )


def _notes(kept: list[str], weights: Mapping[str, TensorSpec]) -> tuple[str, ...]:
    notes = []
    if kept:
        some = ", ".join(kept[:3]) + (" and more" if len(kept) > 3 else "")
        notes.append(f"kept as in this file, and only in an .npz output: {some}")
    if any(spec.dtype.name == "bfloat16" for spec in weights.values()):
        notes.append("elements of two nameless bytes (V2) are taken for bfloat16, as ml_dtypes writes it")
    return tuple(notes)


def _read_array(archive: Archive, record: str) -> TensorSpec | None:
    """Where the elements of an array are; None for what is not a number."""
    extent = archive.extent(record, checked=True)  # as numpy.load does
    header, start = _read_header(archive, record)
    if header.is_object:
        raise UnsupportedError(
            f"{archive.path}: {record} is an object array, a pickle that could run any code",
            path=archive.path,
            tensor=record.removesuffix(_NPY),
            hint="If you trust the file, load it with allow_pickle=True and save its numeric arrays alone.",
        )
    dtype = header.dtype
    if dtype is None:
        if header.is_number:
            raise UnsupportedError(
                f"{archive.path}: {record} has elements of type {header.numpy_dtype.str!r}, which is not supported",
                path=archive.path,
                tensor=record.removesuffix(_NPY),
            )
        return None
    numel = math.prod(header.shape)
    if header.nbytes + numel * dtype.itemsize != extent.nbytes:
        raise UnreadableError(
            f"{archive.path}: {record} has {extent.nbytes - header.nbytes} bytes for {dtype} {list(header.shape)}",
            path=archive.path,
            tensor=record.removesuffix(_NPY),
        )
    strides = tuple(reversed(c_strides(header.shape[::-1]))) if header.fortran else c_strides(header.shape)
    if extent.deflated is None:
        stated = extent.checksum
        if stated is not None:  # take the header's part out of it
            header_part = combine_crc32([(zlib.crc32(start), len(start)), (0, numel * dtype.itemsize)])
            stated = Checksum("crc32", stated.value ^ header_part)
        storage = Extent(extent.path, extent.offset + len(start), numel * dtype.itemsize, checksum=stated)
        return TensorSpec.view(dtype, storage, 0, header.shape, strides, big_endian=header.big_endian)
    # A deflated stream is inflated from its beginning: the storage is the whole record, the array a view of it.
    if len(start) % dtype.itemsize:
        raise UnsupportedError(
            f"{archive.path}: {record} is compressed, and its elements do not start at a multiple of their size",
            path=archive.path,
            hint="Save it again with numpy.savez.",
        )
    return TensorSpec.view(
        dtype, extent, len(start) // dtype.itemsize, header.shape, strides, big_endian=header.big_endian
    )


def _read_header(archive: Archive, record: str) -> tuple[Header, bytes]:
    """What the header of an array says, and its bytes."""
    try:
        start = archive.read(record, _USUAL_HEADER)
        try:
            header = parse(start)
        except EOFError:
            start = archive.read(record, MAX_BYTES)
            header = parse(start)
    except UnreadableError:
        raise
    except (EOFError, ValueError) as error:
        raise UnreadableError(
            f"{archive.path}: {record} is damaged: {str(error)[:_MAX_QUOTED]}",
            path=archive.path,
            tensor=record.removesuffix(_NPY),
        ) from error
    return header, start[: header.nbytes]


def _scalar(archive: Archive, record: str, spec: TensorSpec) -> int | bool:
    data = archive.read(record)[-spec.nbytes :]
    signed = spec.dtype.name.startswith("int")
    value = int.from_bytes(data, "big" if spec.big_endian else "little", signed=signed)
    return bool(value) if spec.dtype.kind == "bool" else value


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "replace")


def _provenance(path: Path) -> Mapping[str, Any] | None:
    """What an earlier run wrote into the comment; None where there is none of ours."""
    with OpenedFile(path) as file:
        tail = file.read_at(max(0, file.nbytes - MAX_COMMENT - 22), MAX_COMMENT + 22)
    at = tail.rfind(b"PK\x05\x06")
    try:
        comment = json.loads(tail[at + 22 :])
    except (ValueError, RecursionError):
        return None
    found = comment.get("ckpttool") if isinstance(comment, dict) else None
    return found if isinstance(found, dict) else None


def lay_out(artifact: Artifact) -> tuple[OutputFile, ...]:
    """Lay an archive out as `numpy.savez` does, uncompressed. With a template of this format: its order and extras.

    Raises:
        UnsupportedError: .npy has no name for an element type.
        ValueError: An order of dimensions that is neither C nor Fortran.
    """
    layout = NpzLayout()
    container: NpzContainer | None = None
    if artifact.template is not None and artifact.template.format == NAME:
        container = artifact.template.container
    written = set()
    if container is not None:
        with container.archive.opened():
            for record, is_weight in container.records.items():
                tensor = ("", record.removesuffix(_NPY))
                if is_weight and tensor in artifact.tensors:
                    _add_tensor(layout, record, tensor, artifact)
                    written.add(tensor)
                elif not is_weight and (record.removesuffix(_NPY),) not in artifact.drop:
                    layout.add_copy(record, container.archive.extent(record, checked=True))
    for tensor in artifact.tensors:
        if tensor not in written:
            _add_tensor(layout, "/".join(part for part in tensor if part) + _NPY, tensor, artifact)
    return (layout.finish(_comment(artifact.provenance)),)


def _add_tensor(layout: NpzLayout, record: str, tensor: TensorId, artifact: Artifact) -> None:
    output = artifact.tensors[tensor]
    if output.dtype.name not in CODES:
        raise UnsupportedError(
            f"{tensor[1]}: .npz files cannot hold elements of type {output.dtype}",
            tensor=tensor[1],
            hint="Write another format: end the output's name in .safetensors.",
        )
    if tensor in artifact.ties:
        raise UnsupportedError(
            f"{tensor[1]} is tied to {artifact.ties[tensor][1]}, and an .npz file cannot say so",
            tensor=tensor[1],
            hint="Write another format: end the output's name in .safetensors or .pt.",
        )
    header = write(output.dtype, output.shape, fortran=_is_fortran(tensor, output))
    layout.add_slot(record, header, output.nbytes, tensor)


def _is_fortran(tensor: TensorId, output: OutputTensor) -> bool:
    if output.strides is None:
        return False
    fortran = tuple(reversed(c_strides(output.shape[::-1])))
    if any(size > 1 and a != b for size, a, b in zip(output.shape, output.strides, fortran, strict=True)):
        raise ValueError(f"{tensor}: .npy stores C or Fortran order only, not strides {output.strides}")
    return True


def _comment(provenance: Mapping[str, Any]) -> bytes:
    """A comment has 65,535 bytes. Too many members for that are counted instead of named."""
    if not provenance:
        return b""

    def encode(content: Mapping[str, Any]) -> bytes:
        return json.dumps({"ckpttool": content}, ensure_ascii=True, sort_keys=True).encode()

    comment = encode(provenance)
    if len(comment) > MAX_COMMENT:
        comment = encode({key: len(value) if isinstance(value, list) else value for key, value in provenance.items()})
    return comment


IMPLEMENTATION = Implementation(recognise, read, lay_out)
