"""What all checkpoint directories have in common: files with tensors in them, and files that go along.

Each file with tensors is a checkpoint of its own, read and laid out by its own format. A directory puts their tensors
under one roof, hands every file its share of the output, and copies what else a loader needs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ckpttool.errors import UnreadableError, UnsupportedError
from ckpttool.formats import HEAD_BYTES, get_format, hint_for_unknown, refuse_pipe
from ckpttool.reading.snapshot import Snapshot
from ckpttool.run_layouts import LAYOUTS, Layout
from ckpttool.tensors import Artifact, Checkpoint, Copy, Extent, OutputFile, TensorId, TensorSpec

__all__ = [
    "Companion",
    "Directory",
    "Part",
    "collect",
    "companion_files",
    "companions_of",
    "copy_file",
    "has_any",
    "homes",
    "json_file",
    "lay_out_part",
    "layout_row",
    "load_json",
    "matches",
    "open_part",
    "shares",
    "subfolders",
    "with_copied",
]

_PART_FORMATS = ("safetensors", "torch")
_MAX_JSON = 1 << 28


@dataclass(frozen=True)
class Part:
    """One file of a directory that holds tensors.

    Attributes:
        name: Its path in the directory, with forward slashes.
        checkpoint: The file, opened.
        section: Which copy of the weights its tensors are; empty for the weights themselves.
        prefix: What stands before the names of its tensors in the whole checkpoint.
    """

    name: str
    checkpoint: Checkpoint
    section: str = ""
    prefix: str = ""


@dataclass(frozen=True)
class Companion:
    """A file that is copied as it is.

    Attributes:
        name: Its path in the directory, with forward slashes.
        path: Where it is.
        nbytes: Its size.
        is_state: Whether it is training state, which is copied only where that is asked for.
    """

    name: str
    path: Path
    nbytes: int
    is_state: bool = False


@dataclass(frozen=True)
class Directory:
    """The container of a checkpoint that is a directory, or several files beside each other.

    Attributes:
        parts: The files with tensors, in the order of the tensors.
        companions: The files that go along.
        extra: What the format itself keeps.
    """

    parts: tuple[Part, ...]
    companions: tuple[Companion, ...] = ()
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


def subfolders(path: Path) -> dict[str, list[str]]:
    """The directories in a directory that may be listed, in order, with the names in each.

    Links that lead nowhere or in a circle are none, and others' directories (``lost+found``) have no weights to offer.
    """
    found = {}
    with os.scandir(path) as items:
        for item in items:
            with suppress(OSError):
                if item.is_dir():
                    found[item.name] = os.listdir(item.path)
    return dict(sorted(found.items()))


def open_part(path: Path, section: str | None = None) -> Checkpoint:
    """Open one file of a directory: a safetensors or a torch file.

    Raises:
        UnreadableError: It is missing, empty, broken, or of another kind.
    """
    snapshot = Snapshot()
    refuse_pipe(path, snapshot)
    try:
        head = snapshot.read(path, HEAD_BYTES)
    except FileNotFoundError as error:
        raise UnreadableError(
            f"{path.parent}: {path.name} is missing",
            path=path,
            hint="The run may have been interrupted while it was saving, or a copy was not finished.",
        ) from error
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
    """Put the tensors of all parts under one roof.

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
                    hint="Files of several checkpoints may have been mixed up; save it again.",
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


def homes(parts: Iterable[Part]) -> dict[TensorId, tuple[Part, TensorId]]:
    """Which part holds a tensor of the whole, and what it is called in there."""
    return {_whole_id(part, inner): (part, inner) for part in parts for inner in part.checkpoint.tensors()}


def load_json(path: Path) -> Any:
    """A JSON file in which no key stands twice.

    Raises:
        UnreadableError: It is something else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UnreadableError(f"{path}: {key!r} stands in it twice", path=path, tensor=key)
            found[key] = value
        return found

    try:
        if path.stat().st_size > _MAX_JSON:
            raise UnreadableError(f"{path}: too large to be what its name says", path=path)
        return json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})", path=path) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"{path}: not JSON ({error})", path=path) from error


def layout_row(name: str) -> Layout:
    """The row of the table of layouts."""
    return next(row for row in LAYOUTS if row.name == name)


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether a name or path fits one of the globs; globs without a slash look at the last component only."""
    last = name.rpartition("/")[2]
    return any(fnmatchcase(name if "/" in glob else last, glob) for glob in globs)


def has_any(names: Iterable[str], globs: Sequence[str]) -> bool:
    """Whether any of the names fits one of the globs."""
    return any(fnmatchcase(name, glob) for name in names for glob in globs)


def companions_of(
    path: Path, carry: Sequence[str], never: Sequence[str], taken: Iterable[str], folders: Iterable[str] = ("",)
) -> tuple[list[Companion], list[str]]:
    """The files that go along with the weights, and the names of those that are left out.

    Args:
        path: The directory.
        carry: Globs of what is copied.
        never: Globs of training state; what is in such a directory is training state as well.
        taken: Paths in the directory that are spoken for.
        folders: Paths of the directories to look into; "" is the directory itself.
    """
    taken = set(taken)
    found: list[Companion] = []
    left_out: list[str] = []
    for folder in folders:
        for name in sorted(os.listdir(path / folder)):
            relative = f"{folder}/{name}" if folder else name
            place = path / folder / name
            if relative in taken:
                continue
            is_state = matches(relative, never)
            if place.is_dir():
                if is_state:
                    found += _below(path, relative)
            elif is_state or matches(relative, carry):
                found += _companion(relative, place, is_state=is_state)
            elif not name.startswith("."):
                left_out.append(relative)
    return found, left_out


def _companion(name: str, place: Path, *, is_state: bool) -> list[Companion]:
    """A file that goes along; none for training state that a link leads to and that is not there."""
    try:
        return [Companion(name, place, place.stat().st_size, is_state)]
    except OSError as error:
        if is_state:
            return []
        raise UnreadableError(
            f"{place}: cannot be read ({error.strerror}), and goes along with the weights",
            path=place,
            hint="A link that leads nowhere? Copy what it pointed to, or remove it.",
        ) from error


def _below(path: Path, folder: str) -> list[Companion]:
    """Every file of a directory of training state."""
    found: list[Companion] = []
    for directory, _, names in os.walk(path / folder):
        for name in names:
            place = Path(directory) / name
            found += _companion(place.relative_to(path).as_posix(), place, is_state=True)
    return sorted(found, key=lambda each: each.name)


# --- Laying out ------------------------------------------------------------------------------------------------


def shares(artifact: Artifact, parts: Sequence[Part]) -> list[tuple[Part, dict[TensorId, TensorId]]]:
    """What each part gets of an artifact: tensor of the whole to tensor of the part, in output order.

    Parts that get nothing are left out.
    """
    where = homes(parts)
    found: dict[str, dict[TensorId, TensorId]] = {part.name: {} for part in parts}
    for identity in artifact.tensors:
        if identity not in where:
            raise UnsupportedError(
                f"no file of the checkpoint has a place for {identity[1]}",
                tensor=identity[1],
                hint="Write a single file, with -o NAME.safetensors.",
            )
        part, inner = where[identity]
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


def copy_file(companion: Companion) -> OutputFile:
    """A file of the output that is a file of the newest checkpoint, byte for byte."""
    extent = Extent(companion.path, 0, companion.nbytes)
    return OutputFile(companion.name, companion.nbytes, copies=(Copy(0, extent),) if companion.nbytes else ())


def with_copied(artifact: Artifact, copied: Sequence[OutputFile]) -> Artifact:
    """The artifact, whose provenance says which files were copied: a later run may replace what this one wrote."""
    if not artifact.provenance or not copied:
        return artifact
    return replace(artifact, provenance={**artifact.provenance, "copied": [file.name for file in copied]})


def json_file(name: str, content: Any) -> OutputFile:
    """A JSON file, as Hugging Face's libraries write it."""
    data = (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
    return OutputFile(name, len(data), literals=((0, data),))


def companion_files(directory: Directory, artifact: Artifact, without: Collection[str] = ()) -> list[OutputFile]:
    """The companions of an output, with the training state if it is kept, and none from the folders of `without`."""
    return [
        copy_file(each)
        for each in directory.companions
        if (artifact.keep_state or not each.is_state) and each.name.rpartition("/")[0] not in without
    ]
