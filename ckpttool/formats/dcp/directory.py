"""Directories of torch.distributed.checkpoint (DCP), read and written without PyTorch.

torchtitan, OLMo-core, Megatron (``torch_dist``), NeMo 2, Lightning (FSDP and tensor parallelism), Accelerate (FSDP) and
Composer save them. Nothing that a file names is imported or called: torch itself would execute a ``.metadata``.
The output is a directory of the newest member's files and cut, without its optimizer, that ``dcp.load`` restores.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpttool.errors import UnreadableError, UnsupportedError
from ckpttool.formats.container import KeyPath, at, dotted
from ckpttool.formats.dcp.chunks import FileLayout
from ckpttool.formats.dcp.metadata import Metadata, Stored, TensorEntry, parse, rewrite
from ckpttool.formats.dcp.tree import FlatTree, plain_values, tree_of
from ckpttool.formats.description import Implementation
from ckpttool.formats.directories.auxiliary import auxiliary_of
from ckpttool.formats.directories.common import Directory, copied_files, load_json
from ckpttool.formats.sections import Located, locate
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import Artifact, Checkpoint, DType, Extent, OutputFile, Region, TensorId
from ckpttool.text import parameter

__all__ = ["IMPLEMENTATION", "NAME", "lay_out", "read", "recognise"]

NAME = "distributed"

_METADATA = ".metadata"
_CHUNKS = ".distcp"
_PROVENANCE = "ckpttool.json"

_ROOTS = ("", "model_and_optim", "weights", "model_weights", "pytorch_model_fsdp_0")
"""Where in a checkpoint the files are: everywhere but in OLMo-core, NeMo and Accelerate at the top."""

_SIDE_FILES = ("common.pt", "meta.pt")
"""Where Megatron and Lightning store what is not a tensor: steps and settings."""

_UNSHARDED = (".safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class _Container:
    """What a directory holds, for writing one like it.

    Attributes:
        root: Path of the directory of ``.metadata`` in that of the checkpoint; "" if it is the same.
        metadata: What ``.metadata`` says.
        places: Flat key to its place in the tree.
        located: What is where in the tree.
    """

    root: str
    metadata: Metadata
    places: Mapping[str, KeyPath]
    located: Located


def recognise(path: Path, head: bytes, snapshot: Snapshot) -> bool:  # noqa: ARG001  # the names decide
    """Whether a directory is such a checkpoint, or was to become one; or whether a file is a piece of one."""
    if not snapshot.is_dir(path):
        return path.name == _METADATA or path.suffix == _CHUNKS
    return _root(path, snapshot) is not None or _unfinished(path, snapshot) is not None


def _root(path: Path, snapshot: Snapshot) -> str | None:
    """Where ``.metadata`` is."""
    for root in _ROOTS:
        if snapshot.is_file(path / root / _METADATA):
            others = snapshot.names(path) if root == "pytorch_model_fsdp_0" else ()
            # Transformers saves both; the weights in one piece are what is loaded.
            return None if any(name.endswith(_UNSHARDED) for name in others) else root
    return None


def _unfinished(path: Path, snapshot: Snapshot) -> Path | None:
    """Where there are chunks and no ``.metadata``, which is written last."""
    for root in _ROOTS:
        place = path / root
        endings = (_CHUNKS, f"{_METADATA}.tmp")
        if snapshot.is_dir(place) and any(name.endswith(endings) for name in snapshot.names(place)):
            return place
    return None


def read(path: Path, *, section: str | None = None, snapshot: Snapshot | None = None) -> Checkpoint:
    """Open a directory without reading any weight.

    Args:
        path: The directory.
        section: Dotted key path of the weights, where they are not found by themselves.
        snapshot: The operation's view of the storage; None: a new one.

    Raises:
        UnreadableError: It is unfinished or damaged, a file is missing or truncated, or chunks leave holes or overlap.
        UnsupportedError: The weights are of a kind that cannot be averaged, or went through an extension.
        UsageError: The weights may be in several places, or are not where `section` says.
    """
    snapshot = snapshot or Snapshot()
    if not snapshot.is_dir(path):
        raise UnsupportedError(
            f"{path}: a piece of a checkpoint that is a directory",
            path=path,
            hint=f"Name the directory: {path.parent}",
        )
    root = _root(path, snapshot)
    if root is None:
        place = _unfinished(path, snapshot) or path
        raise UnreadableError(
            f"{place}: an unfinished checkpoint: it has no {_METADATA}, which is written last",
            path=path,
            hint="The run was interrupted while it was saving, or is saving now. Leave this one out.",
        )
    was_enabled = gc.isenabled()
    gc.disable()  # all that a pickle holds stays; looking through it again and again costs a third
    try:
        return _read(path, root, section, snapshot)
    finally:
        if was_enabled:
            gc.enable()


def _read(path: Path, root: str, section: str | None, snapshot: Snapshot) -> Checkpoint:
    metadata = parse(path / root / _METADATA)
    flat = tree_of(metadata)
    for name in _SIDE_FILES:
        if snapshot.is_file(path / root / name):
            for key, value in plain_values(path / root / name).items():
                flat.tree.setdefault(key, value)
    located = _located(flat, section, path)
    specs = {place: at(flat.tree, place) for names in _names(located).values() for place in names.values()}
    files = {stored.name: None for entry in metadata.entries.values() for stored in _stored(entry)}
    taken = {f"{root}/{name}" if root else name for name in (*files, _METADATA)} | {_PROVENANCE}
    auxiliary = auxiliary_of(path, snapshot, taken)
    notes = list(located.notes)
    extra = sum("_extra_state" in key and not isinstance(entry, TensorEntry) for key, entry in metadata.entries.items())
    if extra:
        notes.append(f"{extra} _extra_state entries are pickled objects, kept from the newest and not averaged")
    inside = {place[: depth + 1] for place in flat.places.values() for depth in range(len(place))}
    return Checkpoint(
        path=path,
        format=NAME,
        weights={name: specs[place] for name, place in located.weights.items()},
        copies={s: {name: specs[place] for name, place in names.items()} for s, names in located.copies.items()},
        section=located.section,
        step=located.step,
        values=located.values,
        provenance=_provenance(path, snapshot),
        files=(metadata.path, *(path / root / name for name in files)),
        state=(*(dotted(part.path) for part in located.state if part.path in inside), *auxiliary.state),
        left_out=auxiliary.left_out,
        notes=tuple(notes),
        container=Directory((), auxiliary.files, _Container(root, metadata, flat.places, located)),
    )


def _names(located: Located) -> dict[str, Mapping[str, KeyPath]]:
    return {"": located.weights, **located.copies}


def _stored(entry: Any) -> tuple[Stored, ...]:
    """Where an entry is stored."""
    return tuple([stored for _, stored in entry.chunks]) if isinstance(entry, TensorEntry) else (entry.stored,)


def _located(flat: FlatTree, section: str | None, path: Path) -> Located:
    try:
        located = locate(flat.tree, section, path=path)
    except UnsupportedError as error:
        if flat.refused:
            raise _refusal(path, flat) from error
        raise
    parents = {place[:-1] for names in _names(located).values() for place in names.values()}
    if any(place[:-1] in parents for place, _ in flat.refused):
        raise _refusal(path, flat)
    return located


def _refusal(path: Path, flat: FlatTree) -> UnsupportedError:
    place, what = flat.refused[0]
    return UnsupportedError(
        f"{path}: {dotted(place)} is {what.kind}",
        path=path,
        tensor=dotted(place),
        hint=f"Only dense tensors with data can be averaged. {parameter('section')} names others, if there are any.",
    )


def _provenance(path: Path, snapshot: Snapshot) -> Mapping[str, Any] | None:
    """What an earlier run of ckpttool left in the directory."""
    place = path / _PROVENANCE
    if not snapshot.is_file(place):
        return None
    said = load_json(place, snapshot)
    return said if isinstance(said, dict) else None


# --- Laying out ------------------------------------------------------------------------------------------------


def lay_out(artifact: Artifact) -> tuple[OutputFile, ...]:
    """Lay a directory out: the newest member's files, each with the chunks that it has there.

    Chunks of averaged tensors are written anew; what else there is, but for the optimizer, is copied byte for byte.

    Raises:
        UnsupportedError: The newest member is not such a directory, or has no place for a tensor.
    """
    template = artifact.template
    if template is None or template.format != NAME:
        raise UnsupportedError(
            "a directory of torch.distributed.checkpoint is only written like one that is there",
            hint="Write a single file: end the output's name in .safetensors.",
        )
    directory: Directory = template.container
    container: _Container = directory.extra
    metadata, root = container.metadata, container.root
    above = template.path / root
    owners = _owners(artifact, template)
    dropped = _dropped(artifact, container)
    by_file: dict[str, list[tuple[int, str, Region | None, Stored]]] = {}
    for key, entry in metadata.entries.items():
        if not dropped(key, owners):
            regions = [region for region, _ in entry.chunks] if isinstance(entry, TensorEntry) else [None]
            for region, stored in zip(regions, _stored(entry), strict=True):
                by_file.setdefault(stored.name, []).append((stored.offset, key, region, stored))
    places: dict[str, dict[Any, tuple[int, int]]] = {key: {} for key in metadata.entries if not dropped(key, owners)}
    dtypes: dict[str, DType] = {key: artifact.tensors[owner].dtype for key, owner in owners.items()}
    files: list[OutputFile] = []
    for name in sorted(by_file):
        layout = FileLayout(f"{root}/{name}" if root else name)
        known: dict[tuple[int, int, TensorId | None], tuple[int, int]] = {}
        for offset, key, region, stored in sorted(by_file[name], key=lambda each: each[:2]):
            owner = owners.get(key)
            identity = None if owner is None else artifact.ties.get(owner, owner)
            # Tied tensors are in the same chunk, and stay so.
            place = known.get((offset, stored.nbytes, identity))
            if place is None and identity is None:
                place = layout.add_copy(_extent(above / name, stored))
            elif place is None and identity is not None:
                tensor = artifact.tensors[identity]
                whole = region is None or region.sizes == tensor.shape
                place = layout.add_chunk(identity, tensor, None if whole else region)
            assert place is not None
            known[offset, stored.nbytes, identity] = place
            places[key][stored.key] = place
        files.append(layout.finish())
    described = rewrite(metadata, places, dtypes)
    files.append(_literal(f"{root}/{_METADATA}" if root else _METADATA, described))
    files += copied_files(directory, artifact)
    if artifact.provenance:
        said = json.dumps(artifact.provenance, ensure_ascii=False, indent=1, sort_keys=True)
        files.append(_literal(_PROVENANCE, said.encode() + b"\n"))
    return tuple(files)


def _owners(artifact: Artifact, template: Checkpoint) -> dict[str, TensorId]:
    """Flat key to the tensor of the artifact that is there."""
    container: _Container = template.container.extra
    keys = {place: key for key, place in container.places.items()}
    homes = {
        (section, name): keys[place]
        for section, names in _names(container.located).items()
        for name, place in names.items()
    }
    owners = {}
    for identity in artifact.tensors:
        if identity not in homes:
            raise UnsupportedError(
                f"{template.path}: no place for {identity[1]}, which it does not have",
                path=template.path,
                tensor=identity[1],
                hint="Write a single file: end the output's name in .safetensors.",
            )
        owners[homes[identity]] = identity
    return owners


def _dropped(artifact: Artifact, container: _Container) -> Callable[[str, Mapping[str, TensorId]], bool]:
    """Says of a flat key whether its entry is left out."""
    located = container.located
    gone = list(artifact.drop)
    if not artifact.keep_state:
        gone += [part.path for part in located.state]
    weights = {place for names in _names(located).values() for place in names.values()}

    def dropped(key: str, owners: Mapping[str, TensorId]) -> bool:
        place = container.places[key]
        if key in owners:
            return False
        return place in weights or any(place[: len(path)] == tuple(path) for path in gone)

    return dropped


def _extent(path: Path, stored: Stored) -> Extent:
    return Extent(path, stored.offset, stored.nbytes)


def _literal(name: str, data: bytes) -> OutputFile:
    return OutputFile(name, len(data), literals=((0, data),) if data else ())


IMPLEMENTATION = Implementation(recognise, read, lay_out)
