"""The tree behind the flat keys of torch.distributed.checkpoint, and the tensors and small values in it.

A nested state dict is flattened when it is saved, ``{"model": {"a.b": ...}}`` into ``model.a.b``; the planner's data
say what stood where. Some trainers save a dict that is flat to begin with, weights and optimizer side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpttool.errors import UnreadableError
from ckpttool.formats.archives.zip_reader import first_name, open_archive
from ckpttool.formats.container import KeyPath
from ckpttool.formats.dcp.chunks import ChunkFiles
from ckpttool.formats.dcp.metadata import Metadata, Stored, TensorEntry
from ckpttool.formats.pickles.inert import load
from ckpttool.formats.pytorch.tensors import Refused, Storages, TensorReader, storage_ref
from ckpttool.formats.pytorch.tree import Opaque, plain_tree
from ckpttool.formats.section_names import OPTIMIZER_KEYS
from ckpttool.reading.opened import OpenedFile
from ckpttool.tensors import DTYPES, DType, Extent, Piece, Region, TensorSpec
from ckpttool.tiling import TilingError, assembled, check_tiling

__all__ = ["FlatTree", "plain_values", "tree_of"]

_FLAT_OPTIMIZER = re.compile(r"(?:chained_\d+\.)?optim(?:izer)?s?(?:_\d+)?\..+")
"""A key of an optimizer in a dict that was saved flat, as Megatron and torchtitan save it."""

_MAX_VALUE = 1 << 16
_MAX_VALUES = 512
"""Bytes entries that are looked into, and how long they may be: counters and settings, not data loaders."""

_OPTIMIZER = Opaque("the state of an optimizer")


@dataclass
class FlatTree:
    """The tree of a directory.

    Attributes:
        tree: Nested dicts; leaves are `TensorSpec`s, plain values and `Opaque`s. An optimizer is a mapping with nothing
            in it but a mark.
        places: Flat key to its place in the tree.
        refused: Tensors that cannot be averaged, with their places.
    """

    tree: dict[Any, Any] = field(default_factory=dict)
    places: dict[str, KeyPath] = field(default_factory=dict)
    refused: list[tuple[KeyPath, Refused]] = field(default_factory=list)


def tree_of(metadata: Metadata) -> FlatTree:
    """Build the tree of a directory. Of the tensors, every chunk but those of optimizers is opened, and no data read.

    Raises:
        UnreadableError: A file is missing or truncated, a tensor has holes or overlaps, or a key contradicts another.
    """
    flat = FlatTree()
    root = metadata.path.parent
    wanted: dict[str, TensorEntry] = {}
    values: dict[str, Stored] = {}
    for key, entry in metadata.entries.items():
        place = _place(key, metadata.paths.get(key))
        flat.places[key] = place
        optimizer = _optimizer(place)
        if optimizer is not None:
            _put(flat.tree, (*optimizer, "param_groups"), _OPTIMIZER, metadata.path)
        elif isinstance(entry, TensorEntry):
            refusal = _refusal(entry)
            if refusal is None:
                wanted[key] = entry
            else:
                flat.refused.append((place, refusal))
            _put(flat.tree, place, Opaque("a tensor"), metadata.path)
        else:
            values[key] = entry.stored
            _put(flat.tree, place, Opaque("a pickled object"), metadata.path)
    with ChunkFiles(root) as files:
        for key, spec in _specs(metadata, wanted, files, flat).items():
            _put(flat.tree, flat.places[key], spec, metadata.path)
        for key, stored in values.items():
            files.check(key, stored.name, stored.offset, stored.nbytes)
        small = [key for key in values if "_extra_state" not in key][:_MAX_VALUES]
        for key in small:
            _put(flat.tree, flat.places[key], _value(values[key], key, files), metadata.path)
    return flat


def _place(key: str, path: KeyPath | None) -> KeyPath:
    if path is None or len(path) == 1:
        return ("optimizer", key) if _FLAT_OPTIMIZER.fullmatch(key) else (key,)
    return path


def _optimizer(place: KeyPath) -> KeyPath | None:
    """Where the optimizer is that a place belongs to."""
    for depth in range(min(len(place) - 1, 2)):
        # Composer nests all it has in "state"; deeper down, it is a module of the model that is called so.
        if depth and place[0] != "state":
            return None
        if OPTIMIZER_KEYS.fullmatch(str(place[depth])):
            return place[: depth + 1]
    return None


def _put(tree: dict[Any, Any], place: KeyPath, value: Any, path: Path) -> None:
    holder = tree
    for step in place[:-1]:
        holder = holder.setdefault(step, {})
        if type(holder) is not dict:
            raise UnreadableError(
                f"{path}: {'.'.join(map(str, place))} is inside of something that is not a mapping", path=path
            )
    if type(holder.get(place[-1])) is dict and type(value) is not dict:
        raise UnreadableError(f"{path}: {'.'.join(map(str, place))} is a value and a mapping at once", path=path)
    holder[place[-1]] = value


def _refusal(entry: TensorEntry) -> Refused | None:
    if entry.layout != "torch.strided":
        return Refused(f"a tensor of the layout {entry.layout}")
    if entry.known_dtype is None:
        return Refused(f"a tensor of the element type {entry.dtype.name}")
    return None


def _specs(
    metadata: Metadata, wanted: Mapping[str, TensorEntry], files: ChunkFiles, flat: FlatTree
) -> dict[str, TensorSpec]:
    """Open the chunks of tensors, in the order in which they are in the files, and put them together."""
    chunks: list[tuple[str, int, str, Region, int]] = []
    for key, entry in wanted.items():
        # Before any file is opened: one who lists a billion overlapping chunks is not worth the time.
        with _told(metadata, key):
            check_tiling(entry.shape, [region for region, _ in entry.chunks])
        chunks += [(stored.name, stored.offset, key, region, stored.nbytes) for region, stored in entry.chunks]
    chunks.sort(key=lambda chunk: chunk[:3])
    pieces: dict[str, list[Piece]] = {}
    refused: dict[str, Refused] = {}
    for name, offset, key, region, nbytes in chunks:
        spec = files.tensor(key, name, offset, nbytes, region.sizes, _dtype(wanted[key]))
        if isinstance(spec, Refused):
            refused[key] = spec
        else:
            pieces.setdefault(key, []).append(Piece(region.offsets, spec))
    flat.refused += [(flat.places[key], what) for key, what in refused.items()]
    specs = {}
    for key, entry in wanted.items():
        if key in refused:
            continue
        if not entry.chunks:  # no rank has anything of a tensor without elements
            specs[key] = TensorSpec(_dtype(entry), entry.shape, Extent(metadata.path, 0, 0))
            continue
        with _told(metadata, key):
            specs[key] = assembled(entry.shape, pieces[key])
    return specs


def _dtype(entry: TensorEntry) -> DType:
    return DTYPES[entry.dtype.name]


@contextmanager
def _told(metadata: Metadata, key: str) -> Iterator[None]:
    """Tell of pieces that do not make the tensor."""
    try:
        yield
    except TilingError as error:
        raise UnreadableError(
            f"{metadata.path}: {key}: {error}",
            path=metadata.path,
            tensor=key,
            hint="The checkpoint is damaged, or a rank did not save its part.",
        ) from error


def _value(stored: Stored, key: str, files: ChunkFiles) -> Any:
    """The value of a bytes entry, where it is a plain one."""
    if not 0 < stored.nbytes <= _MAX_VALUE:
        return Opaque("a pickled object")
    try:
        graph, storages = files.pickled(key, stored.name, stored.offset, stored.nbytes)
        return _without_tensors(plain_tree(graph, TensorReader(storages), []))
    except UnreadableError:
        # Whatever it is, it is nothing to average, and is copied byte for byte.
        return Opaque("bytes that torch.save did not write")


def _without_tensors(node: Any) -> Any:
    if isinstance(node, TensorSpec):
        return Opaque("a tensor in a pickled object")
    if isinstance(node, Mapping):
        return {key: _without_tensors(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_tensors(value) for value in node]
    return node


def plain_values(path: Path) -> dict[Any, Any]:
    """The plain values of a torch file that is next to the weights; empty for one that is not a mapping.

    Raises:
        UnreadableError: It is truncated or damaged.
    """
    with OpenedFile(path) as file:
        head = file.read_at(0, 512)
    if not first_name(head):
        return {}
    archive = open_archive(path)
    name = next((name for name in archive.names if name.endswith("/data.pkl") and name.count("/") == 1), None)
    if name is None:
        return {}
    try:
        graph, _ = load(archive.read(name), path=path, persistent_load=storage_ref)
    except EOFError as error:
        raise UnreadableError(f"{path}: cut short", path=path) from error
    top = name.rpartition("/")[0]
    storages = Storages(path, lambda ref: archive.extent(f"{top}/data/{ref.key}"))
    tree = _without_tensors(plain_tree(graph, TensorReader(storages), []))
    return tree if isinstance(tree, dict) else {}
