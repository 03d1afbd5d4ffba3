"""Lay a torch file out: the object of a checkpoint with other tensors in it, as a pickle and a row of records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckpttool.errors import UnreadableError, UnsupportedError
from ckpttool.formats.archives.zip_writer import ALIGNMENT, ZipLayout
from ckpttool.formats.container import KeyPath
from ckpttool.formats.pickles.emitter import DROPPED, dump
from ckpttool.formats.pickles.inert import Inert
from ckpttool.formats.pytorch.tensors import (
    STORAGE_ITEMSIZES,
    NewStorage,
    StorageRef,
    Storages,
    TensorReader,
    new_tensor,
    replaced,
)
from ckpttool.formats.pytorch.tree import find
from ckpttool.formats.sections import Located, Replacement
from ckpttool.tensors import Artifact, Extent, OutputFile, TensorId, TensorSpec

__all__ = ["lay_out_graph", "plain_graph"]

# One object each, so that the pickle writes them once.
_STORAGE, _CPU = "storage", "cpu"

_REPLACEMENTS: Mapping[Replacement, Callable[[], Any]] = {
    "delete": lambda: DROPPED,
    "none": lambda: None,
    "empty_list": list,
    "empty_dict": dict,
}


def plain_graph(artifact: Artifact) -> dict[str, Any]:
    """The object of a file that holds nothing but tensors.

    A state dict; if there are stored EMAs as well, a dict of the state dict ("model") and of these.
    """
    made: dict[TensorId, Inert] = {}
    sections: dict[str, dict[str, Inert]] = {}
    for identity, tensor in artifact.tensors.items():
        first = artifact.ties.get(identity, identity)
        if first not in made:
            made[first] = new_tensor(first, tensor)
        sections.setdefault(identity[0], {})[identity[1]] = made[first]
    if set(sections) <= {""}:
        return dict(sections.get("", {}))
    weights = sections.pop("", {})
    return {"model": weights, **sections}


def lay_out_graph(
    graph: Any,
    artifact: Artifact,
    located: Located | None,
    reader: TensorReader | None,
    records: Mapping[str, bytes],
    homes: Mapping[TensorId, KeyPath] | None = None,
    *,
    unwrap: bool = False,
) -> OutputFile:
    """Lay out a file of an object.

    Storages are numbered in the order in which the pickle names them, as torch.save does. What a template's tensor was
    on (``cuda:7``) is not kept: in the output all are on the CPU, so that it loads on any machine.

    Args:
        graph: The object.
        artifact: What shall be written.
        located: What is where in the object; None where all its tensors are new.
        reader: Tells the object's own tensors.
        records: Further records of the archive, by name.
        homes: Where the object has its tensors.
        unwrap: Whether the object is a list of the one value that is written.
    """
    writer = _Writer(artifact)
    edits: dict[int, dict[Any, Any]] = {}
    if located is not None and homes is not None and reader is not None:
        writer.keep(reader)
        edits = _edits(graph, artifact, located, homes, writer)
    if unwrap:
        graph = edits.get(id(graph), {}).get(0, graph[0])
    pickled = dump(graph, persistent_id=writer.persistent_id, substitute=writer.substitute, edits=edits)
    layout = ZipLayout(artifact.stem)
    layout.add("data.pkl", pickled)
    layout.add(".format_version", b"1")
    layout.add(".storage_alignment", str(ALIGNMENT).encode())
    layout.add("byteorder", b"little")
    for number, (slot, extent) in enumerate(writer.contents):
        if slot is not None:
            layout.add_slot(f"data/{number}", artifact.tensors[slot].nbytes, slot)
        elif extent is not None:
            layout.add_copy(f"data/{number}", extent)
    layout.add("version", b"3\n")
    for name, content in records.items():
        layout.add(name, content)
    return layout.finish()


def _edits(
    graph: Any, artifact: Artifact, located: Located, homes: Mapping[TensorId, KeyPath], writer: _Writer
) -> dict[int, dict[Any, Any]]:
    """What changes in the template's containers."""
    edits: dict[int, dict[Any, Any]] = {}
    known: dict[KeyPath, Any] = {}

    def drop(path: KeyPath, instead: Any = DROPPED) -> None:
        if not path:
            return
        try:
            place = find(graph, path, known)
        except KeyError:
            return
        if instead is DROPPED:
            edits.setdefault(id(place.entry_holder), {}).setdefault(place.entry_key, DROPPED)
        else:
            edits.setdefault(id(place.holder), {}).setdefault(place.key, instead)

    made: dict[tuple[int, TensorId], Inert] = {}
    for identity, path in homes.items():
        if identity not in artifact.tensors:
            continue
        place = find(graph, path, known)
        first = artifact.ties.get(identity, identity)
        node = made.get((id(place.value), first))
        if node is None:
            node = replaced(place.value, first, artifact.tensors[identity])
            made[id(place.value), first] = node
            writer.renew(place.value, node, first)
        edits.setdefault(id(place.holder), {})[place.key] = node
    for section, names in {"": located.weights, **located.copies}.items():
        gone = [name for name in names if (section, name) not in artifact.tensors]
        above = _common([place[:-1] for place in names.values()])
        if section and above and len(gone) == len(names):
            drop(above)
            continue
        for name in gone:
            drop(names[name])
    if not artifact.keep_state:
        for part in located.state:
            drop(part.path, _REPLACEMENTS[part.replacement]())
    for path in artifact.drop:
        drop(path)
    return edits


def _common(paths: list[KeyPath]) -> KeyPath:
    """The longest beginning that paths share."""
    first, last = min(paths, key=repr), max(paths, key=repr)
    length = 0
    while length < min(len(first), len(last)) and first[length] == last[length]:
        length += 1
    return first[:length]


class _Writer:
    """Names the storages of an object as the pickler meets them, and remembers what fills each.

    What is elsewhere in the object and is the same tensor as a weight (the same view of the same storage) is
    renewed with it. Where two names that were tied get contents of their own, what else is tied to them keeps the old.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._reader: TensorReader | None = None
        self._renewed: dict[TensorSpec, TensorId | None] = {}
        # By id(), with the object itself, so that no other can take its place there.
        self._instead: dict[int, tuple[Any, Any]] = {}
        self._ids: dict[Any, tuple[Any, ...]] = {}
        self.contents: list[tuple[TensorId | None, Extent | None]] = []

    def keep(self, reader: TensorReader) -> None:
        """The tensors that stay as they are come from this file."""
        self._reader = reader

    def renew(self, old: Inert, new: Inert, slot: TensorId) -> None:
        """A tensor of the template gets new contents."""
        self._instead[id(new)] = (new, new)
        spec = self._reader.read(old) if self._reader is not None else None
        if isinstance(spec, TensorSpec) and spec.numel:
            same = self._renewed.setdefault(spec, slot) == slot
            self._renewed[spec] = slot if same else None

    def substitute(self, node: Inert) -> Any:
        """What to write for an object: itself, or the tensor that it is tied to."""
        known = self._instead.get(id(node))
        if known is not None:
            return known[1]
        if self._reader is None or not node.name.startswith("_rebuild_") or node.name.startswith("_rebuild_parameter"):
            return node
        if node.args and type(node.args[0]) is NewStorage:
            return node
        instead = node
        spec = self._reader.read(node)
        slot = self._renewed.get(spec) if isinstance(spec, TensorSpec) else None
        if slot is not None:
            instead = replaced(node, slot, self._artifact.tensors[slot])
            self._instead[id(instead)] = (instead, instead)
        self._instead[id(node)] = (node, instead)
        return instead

    def persistent_id(self, storage: Any) -> Any:
        """The id of a storage: torch's tuple."""
        if type(storage) is NewStorage:
            key: Any = storage.slot
            numel = storage.numel
        elif type(storage) is StorageRef:
            key = (storage.cls, storage.key, storage.view)
            numel = storage.numel if storage.view is None else storage.view[2]
        else:
            return None
        known = self._ids.get(key)
        if known is None:
            if type(storage) is NewStorage:
                self.contents.append((storage.slot, None))
            elif self._reader is not None:
                self.contents.append((None, _kept(self._reader.storages, storage)))
            known = (_STORAGE, storage.cls, str(len(self.contents) - 1), _CPU, numel)
            self._ids[key] = known
        return known


def _kept(storages: Storages, ref: StorageRef) -> Extent:
    """The bytes of a storage that stays as it is."""
    path = storages.path
    extent = storages.extent(ref)
    itemsize = STORAGE_ITEMSIZES.get(ref.cls.name, 0)
    if storages.big_endian and itemsize != 1:
        raise UnsupportedError(
            f"{path}: big-endian tensors next to the weights cannot be written back",
            path=path,
            hint="Write the average to a .safetensors file.",
        )
    if ref.view is None:
        return extent
    _, first, count = ref.view
    if (first + count) * itemsize > extent.nbytes:
        raise UnreadableError(f"{path}: a view reaches beyond its storage", path=path)
    return Extent(path, extent.offset + first * itemsize, count * itemsize)
