"""safetensors: an eight-byte length, a JSON header, and the tensors' bytes one after another.

The header is judged twice: by safetensors' own parser (whose rules therefore hold here too: no holes, no overlaps,
no tail), and by what that parser accepts and a reader must still check (duplicate names, shapes that cannot be
indexed). Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ckpttool.errors import UnreadableError, UnsupportedError
from ckpttool.formats.description import Implementation
from ckpttool.reading.opened import OpenedFile
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import DTYPES, Artifact, Checkpoint, DType, Extent, OutputFile, Slot, TensorId, TensorSpec
from ckpttool.text import parameter

__all__ = ["IMPLEMENTATION", "NAME", "lay_out", "read", "recognise"]

NAME = "safetensors"

MAX_HEADER_BYTES = 100_000_000
"""The bound that safetensors itself sets, for reading and for writing."""

MAX_DIMENSION = 2**63 - 1

_METADATA = "__metadata__"
_METADATA_FIRST = re.compile(rb'\{[ \t\r\n]*"__metadata__"[ \t\r\n]*:[ \t\r\n]*\{')
_PROVENANCE = "ckpttool"
_NOT_TIES = frozenset({"format", _PROVENANCE})
_JSON_SPACE = b" \t\r\n"

_NAMES: Mapping[str, str] = {
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F32": "float32",
    "U32": "uint32",
    "I32": "int32",
    "BF16": "bfloat16",
    "F16": "float16",
    "U16": "uint16",
    "I16": "int16",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Their name of a dtype to ours, in the order in which their writer sorts tensors (widest alignment first)."""

_CODES = {name: code for code, name in _NAMES.items()}
_RANKS = {name: rank for rank, name in enumerate(_NAMES.values())}
_SUB_BYTE = frozenset({"F4", "F6_E2M3", "F6_E3M2"})


def recognise(path: Path, head: bytes, snapshot: Snapshot) -> bool:  # the same question to all formats
    """Whether a file starts like safetensors: a plausible length and, after JSON whitespace, an opening brace.

    The length may be wrong (a truncated file still is a safetensors file); `read` reports that.
    """
    if len(head) < 9 or snapshot.is_dir(path):
        return False
    (length,) = struct.unpack_from("<Q", head)
    return 2 <= length <= MAX_HEADER_BYTES and head[8:].lstrip(_JSON_SPACE)[:1] in {b"{", b""}


def read(path: Path, *, section: str | None = None, snapshot: Snapshot | None = None) -> Checkpoint:
    """Read the header of a safetensors file. No weight is read.

    Tied names that `safetensors.torch.save_model` left out (it notes ``metadata[dropped] = kept``) come back as
    further names of the same tensor.

    Args:
        path: The file.
        section: Must be None or empty: the format has no sections.
        snapshot: The operation's view of the storage; None: a new one.

    Raises:
        UnreadableError: Truncated, corrupt, or not what the format allows.
        UnsupportedError: A tensor of elements smaller than a byte, or a section asked for.
    """
    if section:
        raise UnsupportedError(
            f"{path}: a safetensors file has no sections, so there is no {section!r} in it",
            path=path,
            hint=f"Leave {parameter('section')} out.",
        )
    with OpenedFile(path) as file:
        header, start, size = _read_header(file)
    tensors, metadata = _tensors(path, header, start, size, snapshot or Snapshot())
    weights = {
        name: TensorSpec(dtype, shape, Extent(path, start + begin, nbytes))
        for name, (dtype, shape, begin, nbytes) in tensors.items()
    }
    stored = tuple(weights)
    for dropped, kept in metadata.items():
        if dropped not in _NOT_TIES and dropped not in tensors and kept in tensors:
            weights[dropped] = weights[kept]
    values = {key: value for key, value in metadata.items() if key not in _NOT_TIES and key not in weights}
    return Checkpoint(
        path=path,
        format=NAME,
        weights=weights,
        step=_step(metadata),
        values=values,
        metadata=metadata,
        provenance=_provenance(metadata.get(_PROVENANCE)),
        files=(path,),
        container=stored,
    )


_Tensors: TypeAlias = dict[str, tuple[DType, tuple[int, ...], int, int]]
"""Dtype, shape, first byte in the data, and number of bytes of each tensor."""


def _tensors(path: Path, header: bytes, start: int, size: int, snapshot: Snapshot) -> tuple[_Tensors, dict[str, str]]:
    """What a header says of the tensors, and its metadata. Of headers with the same tensors, only the first is judged.

    Members of one run have the same header but for the metadata, and a hundred thousand tensors take a second.
    """
    shared = _metadata_apart(header)
    if shared is not None:
        metadata, rest = shared
        known: tuple[_Tensors, int] | None = snapshot.remembered.get((NAME, rest))
        if known is not None and start + known[1] == size:
            return known[0], metadata
    entries = _parse(path, header, start, size)
    metadata = dict(entries.pop(_METADATA, None) or {})
    tensors = {name: _tensor(path, name, entry, start, size) for name, entry in entries.items()}
    if shared is not None:
        end = max((begin + nbytes for _, _, begin, nbytes in tensors.values()), default=0)
        snapshot.remembered[NAME, rest] = tensors, end
    return tensors, metadata


def _metadata_apart(header: bytes) -> tuple[dict[str, str], bytes] | None:
    """The metadata of a header, and the header without them, which tells tensors of the same names, shapes and places.

    None where the metadata do not come first, or could be such that safetensors' own parser refuses them.
    """
    first = _METADATA_FIRST.match(header)
    if first is None:
        return None
    end = header.find(b"}", first.end())
    text = header[first.end() - 1 : end + 1]
    # Plain strings, without a brace in them (or the text ends too early and is refused), an escape or a duplicate.
    if b"\\" in text or not text.isascii():
        return None
    try:
        metadata = json.loads(text, object_pairs_hook=_object)
    except ValueError:
        return None
    if isinstance(metadata, _WithDuplicates) or not all(isinstance(value, str) for value in metadata.values()):
        return None
    return metadata, header[end + 1 :].rstrip(b" ")


def _read_header(file: OpenedFile) -> tuple[bytes, int, int]:
    """The header's bytes, where the data starts, and the file's size."""
    path, size = file.path, file.nbytes
    prefix = file.read_at(0, 8)
    if len(prefix) < 8:
        raise _truncated(path, f"it has {size} bytes, and the header's length alone takes 8")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES:
        raise UnreadableError(
            f"{path}: not a safetensors file: it claims a header of {length:,} bytes"
            f" (the format allows {MAX_HEADER_BYTES:,})",
            path=path,
        )
    if 8 + length > size:
        raise _truncated(path, f"its header needs {8 + length:,} bytes, and the file has {size:,}")
    header = file.read_at(8, length)
    if len(header) < length:
        raise _truncated(path, "it became shorter while it was read")
    return header, 8 + length, size


def _truncated(path: Path, what: str) -> UnreadableError:
    return UnreadableError(
        f"{path}: the file is truncated: {what}",
        path=path,
        hint="The run may have been interrupted while it was saving, or a copy was not finished.",
    )


class _WithDuplicates(dict[str, Any]):
    """A JSON object in which a key stood twice."""

    duplicate: str = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    marked = _WithDuplicates(plain)
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            marked.duplicate = key
            break
        seen.add(key)
    return marked


def _parse(path: Path, header: bytes, start: int, size: int) -> dict[str, Any]:
    """The header as a dict, after safetensors' own parser has accepted the file."""
    from safetensors import SafetensorError, safe_open

    refusal = ""
    try:
        try:
            # Reads the header with pread: a mapping would die of SIGBUS if the file were cut short meanwhile.
            with safe_open(path, framework="numpy", backend="pread"):
                pass
        except TypeError:  # safetensors before 0.8 can only map
            with safe_open(path, framework="numpy"):
                pass
    except (SafetensorError, OSError) as error:
        refusal = str(error).removeprefix("Error while deserializing header: ")
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(
            f"{path}: not a valid safetensors file: {refusal or error}",
            path=path,
        ) from error
    if refusal:
        end = _claimed_end(entries)
        if end is not None and start + end > size:
            raise _truncated(path, f"its tensors need {start + end:,} bytes, and the file has {size:,}")
        raise UnreadableError(f"{path}: not a valid safetensors file: {refusal}", path=path)
    if not isinstance(entries, dict):
        raise UnreadableError(f"{path}: not a valid safetensors file: its header is not an object", path=path)
    if isinstance(entries, _WithDuplicates):
        raise UnreadableError(
            f"{path}: the tensor name {entries.duplicate!r} is in the header twice",
            path=path,
            tensor=entries.duplicate,
            hint="It is not known which of the two is meant; write the file again.",
        )
    return entries


def _claimed_end(entries: Any) -> int | None:
    """The last byte that any entry of a header claims, in a header that need not be sound."""
    if not isinstance(entries, dict):
        return None
    ends = [
        entry["data_offsets"][1]
        for name, entry in entries.items()
        if name != _METADATA
        and isinstance(entry, dict)
        and isinstance(entry.get("data_offsets"), list)
        and len(entry["data_offsets"]) == 2
        and isinstance(entry["data_offsets"][1], int)
        and entry["data_offsets"][1] <= MAX_DIMENSION
    ]
    return max(ends, default=None)


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> tuple[DType, tuple[int, ...], int, int]:
    """One entry of an accepted header. What their parser has checked already is checked again where it is cheap."""
    if isinstance(entry, list) and len(entry) == 3:  # their parser takes an entry as an array, too
        entry = dict(zip(("dtype", "shape", "data_offsets"), entry, strict=True))
    try:
        code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise _bad_entry(path, name, "its entry in the header is incomplete") from error
    if code in _SUB_BYTE:
        raise UnsupportedError(
            f"{path}: {name} holds elements of less than a byte ({code}), which cannot be averaged",
            path=path,
            tensor=name,
            hint="Average the checkpoints from before the quantisation.",
        )
    if code not in _NAMES:
        raise UnsupportedError(f"{path}: {name} has an element type that is not known: {code}", path=path, tensor=name)
    numbers = (*shape, begin, end)
    if not all(type(number) is int and 0 <= number <= MAX_DIMENSION for number in numbers):
        raise _bad_entry(path, name, f"its shape {list(shape)} or place {[begin, end]} is impossible")
    dtype = DTYPES[_NAMES[code]]
    nbytes = math.prod(shape) * dtype.itemsize
    if end - begin != nbytes or start + end > size:
        raise _bad_entry(path, name, f"its shape {list(shape)} of {dtype} does not fit its place {[begin, end]}")
    return dtype, shape, begin, nbytes


def _bad_entry(path: Path, name: str, what: str) -> UnreadableError:
    return UnreadableError(f"{path}: {name}: {what}", path=path, tensor=name)


def _step(metadata: Mapping[str, str]) -> int | None:
    for key in ("step", "global_step"):
        if re.fullmatch(r"[0-9]{1,18}", metadata.get(key, ""), re.ASCII):
            return int(metadata[key])
    return None


def _provenance(text: str | None) -> Mapping[str, Any] | None:
    """What an earlier run wrote; None where it is absent or somebody else's."""
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def lay_out(artifact: Artifact) -> tuple[OutputFile, ...]:
    """Give every byte of a safetensors file its place: header, then tensors in their writer's own order.

    Only the weights are written: the format has one flat set of names. A tied name gets no bytes but a note
    ``metadata[name] = kept``, as `safetensors.torch.save_model` writes it.

    Raises:
        UnsupportedError: A dtype or a name that the format does not have.
    """
    for (section, name), tensor in artifact.tensors.items():
        if section:
            continue
        if name == _METADATA:
            raise UnsupportedError(
                f"a tensor named {name!r} cannot be written to safetensors: the format keeps that name for itself",
                tensor=name,
                hint="End the output's name in .pt.",
            )
        if tensor.dtype.name not in _CODES:
            raise UnsupportedError(
                f"{name}: safetensors has no element type {tensor.dtype}",
                tensor=name,
                hint=f"End the output's name in .pt, or choose another {parameter('dtype')}.",
            )
        if tensor.strides is not None:
            raise ValueError(f"{name}: safetensors stores C order only, not strides {tensor.strides}")

    kept, notes = _choose_names(artifact)
    order = sorted(kept, key=lambda name: (_RANKS[artifact.tensors["", name].dtype.name], name))
    header: dict[str, Any] = {_METADATA: _metadata(artifact, notes)}
    places: list[tuple[int, int, TensorId]] = []
    position = 0
    for name in order:
        tensor = artifact.tensors["", name]
        end = position + tensor.nbytes
        header[name] = {
            "dtype": _CODES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        places.append((position, tensor.nbytes, kept[name]))
        position = end
    start_and_header = _encode(header)
    start = len(start_and_header)
    slots = tuple(Slot(start + begin, nbytes, tensor_id) for begin, nbytes, tensor_id in places)
    return (OutputFile("", start + position, ((0, start_and_header),), slots),)


def _choose_names(artifact: Artifact) -> tuple[dict[str, TensorId], dict[str, str]]:
    """Of each set of tied names, the one that is written.

    Returns:
        The written names, each with the id under which its values are computed; and the notes, dropped name to
        written name. The template's own choice is kept, since its loader knows it; else the alphabetically first
        name is written, as `save_model` does.
    """
    template = artifact.template
    stored = frozenset(template.container) if template is not None and template.format == NAME else frozenset()
    groups: dict[TensorId, list[str]] = {}
    for section, name in artifact.tensors:
        if not section:
            groups.setdefault(artifact.ties.get((section, name), (section, name)), []).append(name)
    kept: dict[str, TensorId] = {}
    notes: dict[str, str] = {}
    for root, names in groups.items():
        written = min(names, key=lambda name: (name not in stored, name))
        kept[written] = root
        notes.update({name: written for name in names if name != written})
    return kept, notes


def _metadata(artifact: Artifact, ties: Mapping[str, str]) -> dict[str, str]:
    """The string-to-string block, in an order that depends on its content alone."""
    metadata: dict[str, str] = {"format": "pt"}
    template = artifact.template
    if template is not None and template.format == NAME:
        metadata.update(
            (key, value)
            for key, value in template.metadata.items()
            # A note about a tie is written anew, or not at all.
            if not (key not in _NOT_TIES and key in template.weights)
        )
    metadata.pop(_PROVENANCE, None)
    if artifact.provenance:
        metadata[_PROVENANCE] = json.dumps(artifact.provenance, ensure_ascii=False, sort_keys=True)
    metadata.update(ties)
    return dict(sorted(metadata.items()))


def _encode(header: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnsupportedError(
            f"a tensor name cannot be written to safetensors: it is not valid Unicode ({error.object[:60]!a}...)",
            hint="End the output's name in .pt.",
        ) from error
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise UnsupportedError(
            f"the header would take {len(text):,} bytes, and safetensors allows {MAX_HEADER_BYTES:,}",
            hint="End the output's name in .pt.",
        )
    return struct.pack("<Q", len(text)) + text


IMPLEMENTATION = Implementation(recognise, read, lay_out)
