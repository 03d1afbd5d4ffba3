"""Safetensors files that hold slices of tensors, as torch.distributed.checkpoint's HuggingFaceStorageWriter saves them.

With ``save_distributed`` every rank writes what it has of each tensor, into ``shard-RANK-model-FILE-of-COUNT
.safetensors``; in the metadata of each file, under ``DCP_SHARDING_INFO``, is where its slices begin. There is no index,
and neither the whole shapes nor the number of ranks are stored. Here the slices become whole tensors in the files that
consolidating them would write. Layout: torch/distributed/checkpoint/hf_storage.py and _hf_utils.py, PyTorch 2.13.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ckpttool.errors import UnreadableError
from ckpttool.formats.directories.common import Part
from ckpttool.tensors import Piece, TensorSpec
from ckpttool.text import first_names
from ckpttool.tiling import TilingError, assembled

__all__ = ["FOLDER", "are_sliced", "is_slice_file", "put_together", "slice_files"]

FOLDER = "sharded"
"""Where the slices are when the files that they are consolidated into are in the folder above."""

_INFO = "DCP_SHARDING_INFO"
_OWN_METADATA = frozenset({_INFO, "DCP_VERSION"})
_NAME = re.compile(r"shard-(?P<rank>\d{5,})-model-(?P<index>\d{5,})-of-(?P<count>\d{5,})\.safetensors")
_MAX_OFFSET = 2**63 - 1
_MAX_RANK = 1 << 17
_SHOWN = 3
_DAMAGED = "The file is damaged, or was not saved by PyTorch. Copy it again, or leave this checkpoint out."


def slice_files(names: Iterable[str]) -> list[str]:
    """Of names, those of files with slices, in order."""
    return sorted(name for name in names if is_slice_file(name))


def is_slice_file(name: str) -> bool:
    """Whether this is the name of a file with slices."""
    return _NAME.fullmatch(name) is not None


def are_sliced(parts: Sequence[Part]) -> bool:
    """Whether files say of their tensors that they are slices; each may be all there is of its tensor."""
    return any(_INFO in part.checkpoint.metadata or _match(part.name) for part in parts)


def put_together(path: Path, parts: Sequence[Part]) -> list[Part]:
    """Make whole tensors of the slices in all the files of a model.

    Args:
        path: The directory, for messages.
        parts: Its files, opened.

    Returns:
        The files that consolidating them would write, with the tensors that go there, each in pieces:
        ``model-FILE-of-COUNT.safetensors``, or ``model.safetensors`` where there is only one. Files with other names
        keep them.

    Raises:
        UnreadableError: The slices are not exactly the tensors, or files are of two checkpoints.
    """
    homes = {part.name: _home(part.name) for part in parts}
    counts = {match["count"] for part in parts if (match := _match(part.name))}
    if len(counts) > 1:
        raise UnreadableError(
            f"{path}: files of two checkpoints: {first_names(_one_of_each(parts), _SHOWN)}",
            path=path,
            hint="Remove those of the older one, or save it again into an empty directory.",
        )
    single = len(set(homes.values())) == 1
    slices: dict[str, list[tuple[Part, Piece]]] = {}
    for part in parts:
        for name, piece in _pieces(part).items():
            slices.setdefault(name, []).append((part, piece))
    wholes: dict[str, dict[str, TensorSpec]] = {home: {} for home in homes.values()}
    for name, found in slices.items():
        places = list(dict.fromkeys(homes[part.name] for part, _ in found))
        if len(places) > 1:
            raise UnreadableError(
                f"{path}: the tensor {name} is to go into two files, {' and '.join(places[:2])}",
                path=path,
                tensor=name,
                hint="Files of several checkpoints may have been mixed up; save it again.",
            )
        wholes[places[0]][name] = _whole(path, name, found, parts)
    return [
        _file(path, "model.safetensors" if single and _match(own[0].name) else home, wholes[home], own)
        for home in sorted(wholes)
        for own in [[part for part in parts if homes[part.name] == home]]
    ]


def _match(name: str) -> re.Match[str] | None:
    return _NAME.fullmatch(name.rpartition("/")[2])


def _home(name: str) -> str:
    """The file that a file's tensors are consolidated into."""
    match = _match(name)
    return f"model-{match['index']}-of-{match['count']}.safetensors" if match else name


def _one_of_each(parts: Sequence[Part]) -> list[str]:
    return list({match["count"]: part.name for part in parts if (match := _match(part.name))}.values())


def _pieces(part: Part) -> dict[str, Piece]:
    """What a file holds, and where it belongs."""
    path = part.checkpoint.path
    if _INFO not in part.checkpoint.metadata and not _match(part.name):  # whole tensors, saved by somebody else
        return {name: Piece((0,) * len(spec.shape), spec) for name, spec in part.checkpoint.weights.items()}
    try:
        info = json.loads(part.checkpoint.metadata[_INFO])
    except KeyError as error:
        raise UnreadableError(
            f"{path}: its name is that of a file with slices of tensors, and it does not say where they begin"
            f" (no {_INFO})",
            path=path,
            hint=_DAMAGED,
        ) from error
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{path}: its {_INFO} is not JSON ({error})", path=path, hint=_DAMAGED) from error
    if not isinstance(info, dict):
        raise UnreadableError(f"{path}: its {_INFO} is not an object", path=path, hint=_DAMAGED)
    return {name: _piece(path, name, info.get(name), spec) for name, spec in part.checkpoint.weights.items()}


def _piece(path: Path, name: str, entry: object, spec: TensorSpec) -> Piece:
    offsets = entry.get("saved_offsets") if isinstance(entry, Mapping) else None
    if not isinstance(offsets, list) or not all(type(each) is int and 0 <= each <= _MAX_OFFSET for each in offsets):
        raise UnreadableError(
            f"{path}: {name}: it does not say where this slice begins", path=path, tensor=name, hint=_DAMAGED
        )
    if len(offsets) != len(spec.shape):
        raise UnreadableError(
            f"{path}: {name}: a slice of shape {list(spec.shape)} cannot begin at {offsets}",
            path=path,
            tensor=name,
            hint=_DAMAGED,
        )
    return Piece(tuple(offsets), spec)


def _whole(path: Path, name: str, found: Sequence[tuple[Part, Piece]], parts: Sequence[Part]) -> TensorSpec:
    """The tensor that slices make up. Its shape is how far they reach, as PyTorch's own reader has it."""
    first, piece = found[0]
    for part, other in found[1:]:
        if (len(other.offsets), other.spec.dtype) != (len(piece.offsets), piece.spec.dtype):
            raise UnreadableError(
                f"{path}: {name} is {piece.spec.dtype} {list(piece.spec.shape)} in {first.name} and"
                f" {other.spec.dtype} {list(other.spec.shape)} in {part.name}, which are slices of one tensor",
                path=path,
                tensor=name,
                hint="Files of several checkpoints may have been mixed up; save it again.",
            )
    reach = [[offset + size for offset, size in zip(p.offsets, p.spec.shape, strict=True)] for _, p in found]
    shape = tuple(max(ends) for ends in zip(*reach, strict=True))
    try:
        return assembled(shape, [piece for _, piece in found])
    except TilingError as error:
        where = f"in {first_names([part.name for part, _ in found], _SHOWN)}"
        missing = _missing(parts)
        if "overlap" in str(error):
            said, hint = "", "Files of an earlier save with another number of processes may be among them."
        else:
            gone = f"; there is no {first_names(missing, _SHOWN)}" if missing else ""
            said = f": an unfinished checkpoint{gone}"
            hint = "The run may have been interrupted while it was saving, or a copy was not finished."
        raise UnreadableError(f"{path}: {name}, {where}: {error}{said}", path=path, tensor=name, hint=hint) from error


def _missing(parts: Sequence[Part]) -> list[str]:
    """Names of files that ranks between the first and the last could have written, and that are not there."""
    matches = [match for part in parts if (match := _match(part.name))]
    there = {(int(match["rank"]), match["index"]) for match in matches}
    last = max((rank for rank, _ in there), default=0)
    if last > _MAX_RANK:  # no run has had so many: the name says nothing about others
        return []
    return [
        f"shard-{rank:05d}-model-{index}-of-{matches[0]['count']}.safetensors"
        for rank in range(1, last + 1)
        for index in sorted({index for _, index in there})
        if (rank, index) not in there
    ]


def _file(path: Path, name: str, tensors: Mapping[str, TensorSpec], parts: Sequence[Part]) -> Part:
    """A file that is not there yet, as if it were."""
    first = parts[0].checkpoint
    kept = {key: value for key, value in first.metadata.items() if key not in _OWN_METADATA}
    values = {key: value for key, value in first.values.items() if key not in _OWN_METADATA}
    whole = replace(
        first,
        path=path / name,
        weights=dict(tensors),
        metadata=kept,
        values=values,
        files=tuple(file for part in parts for file in part.checkpoint.files),
        container=tuple(tensors),
    )
    return replace(parts[0], name=name, checkpoint=whole)
