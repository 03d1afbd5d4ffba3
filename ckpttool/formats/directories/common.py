"""What all checkpoint directories have in common: files with tensors, and auxiliary files that are copied.

Each file with tensors is a checkpoint of its own, read and laid out by its own format. A directory puts their tensors
together, gives every file its share of the output, and copies what else a loader needs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ckpttool.errors import UnreadableError, UnsupportedError
from ckpttool.formats import HEAD_BYTES, get_format, hint_for_unknown, refuse_pipe
from ckpttool.formats.directories.auxiliary import AuxiliaryFile
from ckpttool.reading.snapshot import Snapshot
from ckpttool.reading.storage import storage_of
from ckpttool.run_layouts import LAYOUTS, Layout
from ckpttool.tensors import Artifact, Checkpoint, Copy, Extent, OutputFile, TensorId, TensorSpec
from ckpttool.text import parameter

__all__ = [
    "INTERRUPTED",
    "MIXED_UP",
    "SINGLE_FILE",
    "Collected",
    "Directory",
    "Part",
    "collect",
    "copied_files",
    "has_any",
    "json_file",
    "lay_out_part",
    "layout_row",
    "load_json",
    "open_part",
    "shares",
    "subfolders",
    "with_copied",
]

_PART_FORMATS = ("safetensors", "torch")
_MAX_JSON_BYTES = 1 << 28

INTERRUPTED = "The run may have been interrupted while it was saving, or a copy was not finished."
MIXED_UP = "Files of several checkpoints may have been mixed up; save it again."
SINGLE_FILE = f"Write a single file: {parameter('output', 'NAME.safetensors')}."


@dataclass(frozen=True)
class Part:
    """One file of a directory that holds tensors.

    Attributes:
        name: Its path in the directory, with forward slashes.
        checkpoint: The file, opened.
        section: Which stored EMA its tensors belong to; empty for the weights themselves.
        prefix: What precedes the names of its tensors in the whole checkpoint.
    """

    name: str
    checkpoint: Checkpoint
    section: str = ""
    prefix: str = ""


@dataclass(frozen=True)
class Directory:
    """The container of a checkpoint that is a directory, or several files next to each other.

    Attributes:
        parts: The files with tensors, in the order of the tensors.
        auxiliary: The files that are copied.
        extra: What the format itself keeps.
    """

    parts: tuple[Part, ...]
    auxiliary: tuple[AuxiliaryFile, ...] = ()
    extra: Any = None


@dataclass(frozen=True)
class Collected:
    """The tensors of all parts together, as a `Checkpoint` has them."""

    weights: Mapping[str, TensorSpec]
    copies: Mapping[str, Mapping[str, TensorSpec]]
    files: tuple[Path, ...]
    provenance: Mapping[str, Any] | None
    steps: tuple[int, ...]
    values: Mapping[str, Any] = field(default_factory=dict)


# --- Reading ---------------------------------------------------------------------------------------------------


def subfolders(path: Path, snapshot: Snapshot) -> dict[str, Collection[str]]:
    """The directories in a directory that may be listed, sorted, with the names in each.

    Links that lead nowhere or in a circle are not among them, and neither are directories that may not be listed
    (``lost+found``): they have no weights to offer.
    """
    found: dict[str, Collection[str]] = {}
    for name, item in snapshot.list(path).items():
        if item.kind == "directory":
            with suppress(OSError):
                found[name] = snapshot.list(path / name)
    return found


def open_part(path: Path, snapshot: Snapshot, section: str | None = None) -> Checkpoint:
    """Open one file of a directory: a safetensors or a torch file.

    Raises:
        UnreadableError: It is missing, empty, broken, or of another kind.
    """
    refuse_pipe(path, snapshot)
    try:
        head = snapshot.read(path, HEAD_BYTES)
    except FileNotFoundError as error:
        raise UnreadableError(f"{path.parent}: {path.name} is missing", path=path, hint=INTERRUPTED) from error
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})", path=path) from error
    for name in _PART_FORMATS:
        candidate = get_format(name)
        if candidate.recognise(path, head, snapshot):
            # A safetensors file has no sections; one that was named is for the other files.
            return candidate.read(path, section=section if name != "safetensors" else None, snapshot=snapshot)
    if not head:
        raise UnreadableError(
            f"{path}: the file is empty", path=path, hint="The run may have been interrupted while it was saving."
        )
    raise UnsupportedError(
        f"{path}: neither a safetensors nor a PyTorch file (it starts with {head[:8]!r})",
        path=path,
        hint=hint_for_unknown(head),
    )


def _whole_id(part: Part, inner: TensorId) -> TensorId:
    section, name = inner
    return (f"{part.section}.{section}" if part.section and section else part.section or section, part.prefix + name)


def collect(path: Path, parts: Sequence[Part]) -> Collected:
    """Put the tensors of all parts together.

    Raises:
        UnreadableError: Two files have a tensor of one name.
    """
    weights: dict[str, TensorSpec] = {}
    copies: dict[str, dict[str, TensorSpec]] = {}
    owner: dict[TensorId, str] = {}
    for part in parts:
        for inner, spec in part.checkpoint.tensors().items():
            section, name = whole = _whole_id(part, inner)
            if whole in owner:
                raise UnreadableError(
                    f"{path}: the tensor {name} is in two files, {owner[whole]} and {part.name}",
                    path=path,
                    tensor=name,
                    hint=MIXED_UP,
                )
            owner[whole] = part.name
            (copies.setdefault(section, {}) if section else weights)[name] = spec
    checkpoints = [part.checkpoint for part in parts]
    return Collected(
        weights=weights,
        copies=copies,
        files=tuple(file for each in checkpoints for file in each.files),
        provenance=next((each.provenance for each in checkpoints if each.provenance is not None), None),
        steps=tuple(each.step for each in checkpoints if each.step is not None),
        values={key: value for each in reversed(checkpoints) for key, value in each.values.items()},
    )


def load_json(path: Path, snapshot: Snapshot) -> Any:
    """A JSON file in which no key occurs twice.

    Raises:
        UnreadableError: It is something else, or cannot be read.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UnreadableError(f"{path}: the key {key!r} occurs twice", path=path, tensor=key)
            found[key] = value
        return found

    try:
        data = snapshot.read(path, _MAX_JSON_BYTES + 1)
        if len(data) > _MAX_JSON_BYTES:
            raise UnreadableError(f"{path}: too large to be what its name says", path=path)
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})", path=path) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"{path}: not JSON ({error})", path=path) from error


def layout_row(name: str) -> Layout:
    """The row of the table of layouts."""
    return next(row for row in LAYOUTS if row.name == name)


def has_any(names: Iterable[str], globs: Sequence[str]) -> bool:
    """Whether any of the names fits one of the globs."""
    return any(fnmatchcase(name, glob) for name in names for glob in globs)


# --- Laying out ------------------------------------------------------------------------------------------------


def shares(artifact: Artifact, parts: Sequence[Part]) -> list[tuple[Part, dict[TensorId, TensorId]]]:
    """What each part gets of an artifact: tensor of the whole to tensor of the part, in output order.

    Parts that get nothing are left out.
    """
    places = {_whole_id(part, inner): (part, inner) for part in parts for inner in part.checkpoint.tensors()}
    found: dict[str, dict[TensorId, TensorId]] = {part.name: {} for part in parts}
    for identity in artifact.tensors:
        if identity not in places:
            raise UnsupportedError(
                f"no file of the checkpoint has a place for {identity[1]}", tensor=identity[1], hint=SINGLE_FILE
            )
        part, inner = places[identity]
        found[part.name][identity] = inner
    return [(part, found[part.name]) for part in parts if found[part.name]]


def lay_out_part(
    artifact: Artifact, name: str, format_name: str, template: Checkpoint | None, share: Mapping[TensorId, TensorId]
) -> OutputFile:
    """Lay out one file of a directory, by its own format.

    Args:
        artifact: The whole.
        name: Path of the file in the directory.
        format_name: The file's format.
        template: Its file in the newest checkpoint.
        share: The tensors that it gets, and their names in it.
    """
    inner = replace(
        artifact,
        tensors={mine: artifact.tensors[whole] for whole, mine in share.items()},
        ties={mine: share[artifact.ties[whole]] for whole, mine in share.items() if whole in artifact.ties},
        template=template,
        max_shard_bytes=None,
        stem=name.rpartition("/")[2].rpartition(".")[0] or "archive",
    )
    (file,) = get_format(format_name).lay_out(inner)
    back = {mine: whole for whole, mine in share.items()}
    return replace(file, name=name, slots=tuple(replace(slot, tensor=back[slot.tensor]) for slot in file.slots))


def copied_files(directory: Directory, artifact: Artifact, without: Collection[str] = ()) -> list[OutputFile]:
    """The auxiliary files of an output: with the training state if it is kept, and none from the folders of `without`.

    Raises:
        UnreadableError: One of them cannot be opened.
    """
    return [
        _copied(each)
        for each in directory.auxiliary
        if (artifact.keep_state or not each.is_state)
        and not any(each.name.startswith(f"{folder}/") for folder in without)
    ]


def _copied(file: AuxiliaryFile) -> OutputFile:
    """A file of the output that is a file of the newest checkpoint, byte for byte."""
    try:
        storage_of(file.path).open(file.path).close()
    except OSError as error:
        raise UnreadableError(
            f"{file.path}: cannot be read ({error.strerror}), and is to be copied next to the weights",
            path=file.path,
            hint="Remove it, or make it readable.",
        ) from error
    copies = (Copy(0, Extent(file.path, 0, file.nbytes)),) if file.nbytes else ()
    return OutputFile(file.name, file.nbytes, copies=copies)


def with_copied(artifact: Artifact, copied: Sequence[OutputFile]) -> Artifact:
    """The artifact, whose provenance says which files were copied: a later run may replace what this one wrote."""
    if not artifact.provenance or not copied:
        return artifact
    return replace(artifact, provenance={**artifact.provenance, "copied": [file.name for file in copied]})


def json_file(name: str, content: Any) -> OutputFile:
    """A JSON file, as Hugging Face's libraries write it."""
    data = (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
    return OutputFile(name, len(data), literals=((0, data),))
