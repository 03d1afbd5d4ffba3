"""The ``.metadata`` of torch.distributed.checkpoint: what a directory holds, and in which bytes of which file.

torch reads this pickle with ``pickle.load``, which would execute whatever it says. Here it is read inertly, objects are
told by their attributes (those of ``torch/distributed/checkpoint/metadata.py`` and ``filesystem.py``, PyTorch 2.1 to
2.13), and every number and path in it is checked before it is used. The classes do not matter: OLMo-core's own writer
has a ``_StorageInfo`` in ``olmo_core``. What else the file holds is kept, for writing it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpttool.errors import UnreadableError, UnsupportedError
from ckpttool.formats.container import KeyPath
from ckpttool.formats.pickles.emitter import DROPPED, dump
from ckpttool.formats.pickles.inert import Inert, InertType, inert_type, load
from ckpttool.reading.opened import OpenedFile
from ckpttool.tensors import DTYPES, DType, Region

__all__ = ["BytesEntry", "Entry", "Metadata", "Stored", "TensorEntry", "parse", "rewrite"]

_MAX_DIMENSIONS = 64
_MAX_NUMBER = 1 << 62
_MAX_PATH = 32
_HINT = "The file is damaged, or was not written by torch.distributed.checkpoint. Nothing in it was executed."


@dataclass(frozen=True, slots=True)
class Stored:
    """Where an entry, or a chunk of one, is.

    Attributes:
        name: Path of the file, relative to that of ``.metadata``, with forward slashes.
        offset: Of the first byte.
        nbytes: How many there are. A chunk is a whole torch file; a bytes entry most often is.
        key: The object that is its key in the metadata.
    """

    name: str
    offset: int
    nbytes: int
    key: Inert


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor.

    Attributes:
        shape: Its shape.
        dtype: Its element type.
        layout: Its layout; "torch.strided" for a dense one.
        chunks: Where its parts are.
    """

    shape: tuple[int, ...]
    dtype: InertType
    layout: str
    chunks: tuple[tuple[Region, Stored], ...]

    @property
    def known_dtype(self) -> DType | None:
        """Its element type as ckpttool knows it; None for one that it does not know."""
        return DTYPES.get(self.dtype.name) if self.dtype.module == "torch" else None


@dataclass(frozen=True, slots=True)
class BytesEntry:
    """A Python object, pickled."""

    stored: Stored


Entry = TensorEntry | BytesEntry


@dataclass(frozen=True)
class Metadata:
    """What ``.metadata`` says.

    Attributes:
        path: The file.
        graph: The object.
        entries: What there is, by flat key, in the file's own order.
        paths: For keys that were flattened from a nested state dict: the path that they stand for.
    """

    path: Path
    graph: Inert
    entries: Mapping[str, Entry]
    paths: Mapping[str, KeyPath]


def parse(path: Path) -> Metadata:
    """Read a ``.metadata`` file.

    Raises:
        UnreadableError: It is not such a file, or states what cannot be.
        UnsupportedError: It has a chunk that was compressed or encrypted by an extension.
    """
    with OpenedFile(path) as file:
        data = file.read_at(0, file.nbytes)
    if not data:
        raise UnreadableError(
            f"{path}: the file is empty",
            path=path,
            hint="The run may have been interrupted while it was saving.",
        )
    try:
        graph, _ = load(data, path=path)
    except EOFError as error:
        raise UnreadableError(f"{path}: cut short", path=path, hint=_HINT) from error
    return _Parser(path).metadata(graph)


class _Parser:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._used: set[tuple[str, tuple[int, ...] | None]] = set()

    def metadata(self, graph: Any) -> Metadata:
        fields = self._fields(graph, "what there is and where")
        described, stored = fields.get("state_dict_metadata"), fields.get("storage_data")
        if type(described) is not dict or type(stored) is not dict:
            raise self._bad("it says neither what there is nor where")
        places = self._places(stored)
        entries: dict[str, Entry] = {}
        for key, node in described.items():
            if type(key) is not str:
                raise self._bad("a key that is not text")
            entries[key] = self._entry(key, node, places)
        planned = fields.get("planner_data")
        paths: dict[str, KeyPath] = {}
        if type(planned) is dict:
            for key, steps in planned.items():
                if key in entries:
                    paths[key] = self._key_path(key, steps)
        return Metadata(self._path, graph, entries, paths)

    def _places(self, stored: dict[Any, Any]) -> dict[tuple[str, tuple[int, ...] | None], Stored]:
        places: dict[tuple[str, tuple[int, ...] | None], Stored] = {}
        for index, info in stored.items():
            of = self._fields(index, "the index of a chunk")
            key, begin = of.get("fqn"), of.get("offset")
            if type(key) is not str:
                raise self._bad("a place of nothing")
            offsets = None if begin is None else self._size(begin, key)
            if (key, offsets) in places:
                raise self._bad("two places for one chunk", key)
            said = self._fields(info, "the place of a chunk", key)
            if said.get("transform_descriptors"):
                raise UnsupportedError(
                    f"{self._path}: {key} went through an extension when it was stored"
                    f" ({said['transform_descriptors']!r})",
                    path=self._path,
                    tensor=key,
                    hint="Load it with torch.distributed.checkpoint and save it again without extensions.",
                )
            name, offset, nbytes = said.get("relative_path"), said.get("offset"), said.get("length")
            if type(offset) is not int or type(nbytes) is not int or not 0 <= offset <= offset + nbytes <= _MAX_NUMBER:
                raise self._bad("a place with impossible numbers", key)
            places[key, offsets] = Stored(self._name(name, key), offset, nbytes, index)
        return places

    def _name(self, name: Any, key: str) -> str:
        if (
            type(name) is not str
            or not name
            or any(part in {"", ".", "..", ".metadata"} for part in name.split("/"))
            or any(character in name for character in ("\\", ":", "\0"))
        ):
            raise self._bad(f"it is said to be in {name!r}, which is not a file of this directory", key)
        return name

    def _entry(self, key: str, node: Any, places: Mapping[tuple[str, tuple[int, ...] | None], Stored]) -> Entry:
        fields = self._fields(node, "the description of an entry", key)
        if not {"properties", "size", "chunks"} & set(fields):
            return BytesEntry(self._place(places, key, None))
        shape = self._size(fields.get("size"), key)
        dtype, layout = self._properties(fields.get("properties"), key)
        chunks = fields.get("chunks")
        if type(chunks) is not list:
            raise self._bad("a tensor without chunks", key)
        found = []
        for chunk in chunks:
            parts = self._fields(chunk, "the extent of a chunk", key)
            region = Region(self._size(parts.get("offsets"), key), self._size(parts.get("sizes"), key))
            found.append((region, self._place(places, key, region.offsets)))
        return TensorEntry(shape, dtype, layout, tuple(found))

    def _place(
        self, places: Mapping[tuple[str, tuple[int, ...] | None], Stored], key: str, offsets: tuple[int, ...] | None
    ) -> Stored:
        place = places.get((key, offsets))
        if place is None and offsets is not None and not any(offsets):
            place = places.get((key, None))  # how tensors that are not sharded were recorded by the first versions
        if place is None:
            raise self._bad("it does not say where it is" + (f" (at {list(offsets)})" if offsets else ""), key)
        return place

    def _properties(self, node: Any, key: str) -> tuple[InertType, str]:
        """Element type and layout."""
        state = node.states[-1] if isinstance(node, Inert) and node.states else None
        if type(state) is tuple and len(state) >= 2:
            dtype, layout = state[:2]
        elif type(state) is dict:
            dtype, layout = state.get("dtype"), state.get("layout")
        else:
            raise self._bad("a tensor without properties", key)
        if not isinstance(dtype, InertType):
            raise self._bad("a tensor without an element type", key)
        named = isinstance(layout, Inert) and len(layout.args) == 1 and type(layout.args[0]) is str
        return dtype, str(layout.args[0]) if named else "torch.strided"

    def _size(self, node: Any, key: str) -> tuple[int, ...]:
        """The numbers of a torch.Size."""
        if isinstance(node, Inert) and node.qualified == "torch.Size" and len(node.args) <= 1:
            node = node.args[0] if node.args else ()
        if (
            type(node) not in {tuple, list}
            or len(node) > _MAX_DIMENSIONS
            or not all(type(number) is int and 0 <= number <= _MAX_NUMBER for number in node)
        ):
            raise self._bad("impossible sizes or offsets", key)
        return tuple(node)

    def _key_path(self, key: str, steps: Any) -> KeyPath:
        if (
            type(steps) is not tuple
            or not 0 < len(steps) <= _MAX_PATH
            or not all(type(step) is str or (type(step) is int and step >= 0) for step in steps)
        ):
            raise self._bad("a path that is none", key)
        return steps

    def _fields(self, node: Any, what: str, key: str | None = None) -> dict[str, Any]:
        """The attributes of an object, whatever its class."""
        if (
            not isinstance(node, Inert)
            or node.maker is not None
            or not all(type(state) is dict for state in node.states)
        ):
            raise self._bad(f"{node!r} instead of {what}", key)
        return {attribute: value for state in node.states for attribute, value in state.items()}

    def _bad(self, what: str, key: str | None = None) -> UnreadableError:
        return UnreadableError(
            f"{self._path}: {key + ': ' if key else ''}{what}", path=self._path, tensor=key, hint=_HINT
        )


# --- Writing ---------------------------------------------------------------------------------------------------

_DTYPES = {name: inert_type("torch", name) for name in DTYPES}


def rewrite(
    metadata: Metadata, places: Mapping[str, Mapping[Inert, tuple[int, int]]], dtypes: Mapping[str, DType]
) -> bytes:
    """The metadata of a directory with other contents, cut in the same way into the same files.

    Where it was saved, and as what, is not kept: that is not this directory.

    Args:
        metadata: That of the directory whose likeness it is.
        places: For each entry that is kept: the (offset, length) of its chunks, by their keys.
        dtypes: The element type of tensors that have a new one.
    """
    top: dict[str, Any] = {name: value for state in metadata.graph.states for name, value in state.items()}
    described, stored = top["state_dict_metadata"], top["storage_data"]
    gone = {key: DROPPED for key in metadata.entries if key not in places}
    edits: dict[int, dict[Any, Any]] = {id(described): dict(gone), id(stored): {}}
    for key, dtype in dtypes.items():
        entry = metadata.entries[key]
        if key in places and isinstance(entry, TensorEntry) and entry.known_dtype != dtype:
            edits[id(described)][key] = _with_dtype(described[key], dtype)
    for by_key in places.values():
        for index, (offset, nbytes) in by_key.items():
            edits[id(stored)][index] = _changed(stored[index], offset=offset, length=nbytes)
    for index in stored:
        edits[id(stored)].setdefault(index, DROPPED)
    for name, value in top.items():
        # The paths of the planner, and what other planners keep by key.
        if name not in {"state_dict_metadata", "storage_data"} and type(value) is dict:
            edits.setdefault(id(value), {}).update(gone)
    saved = top.get("storage_meta")
    if isinstance(saved, Inert):
        for state in metadata.graph.states:
            if "storage_meta" in state:
                edits.setdefault(id(state), {})["storage_meta"] = _changed(saved, checkpoint_id=None, save_id=None)
    return dump(metadata.graph, edits=edits)


def _changed(node: Inert, **fields: Any) -> Inert:
    """An object with other attributes."""
    made = Inert.__new__(type(node), *node.args)
    state = {name: value for state in node.states for name, value in state.items()}
    made.states = ({**state, **fields},)
    return made


def _with_dtype(node: Inert, dtype: DType) -> Inert:
    """What describes a tensor, for another element type."""
    old = next(state["properties"] for state in node.states if "properties" in state)
    properties = Inert.__new__(type(old), *old.args)
    state = old.states[-1]
    new = _DTYPES[dtype.name]
    properties.states = ((new, *state[1:]) if type(state) is tuple else {**state, "dtype": new},)
    return _changed(node, properties=properties)
