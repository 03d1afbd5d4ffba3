"""The plain tree in a torch pickle: nested dicts and lists with tensors and small values, everything else opaque.

`ckpttool.formats.sections.locate` finds weights, training state and step in it; `find` leads from a key path in the
tree back to the objects of the graph, where they are replaced.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ckpttool.formats.container import MAX_DEPTH, KeyPath, PickledModule
from ckpttool.formats.pickles.inert import Inert
from ckpttool.formats.pytorch.modules import Entry, is_module, module_entries
from ckpttool.formats.pytorch.tensors import Refused, TensorReader
from ckpttool.tensors import TensorSpec

__all__ = ["Opaque", "Place", "find", "in_words", "items_of", "plain_tree"]

_MAX_PLAIN = 4096
"""Numbers and texts that a list may hold to be looked at; a longer one is a vocabulary or a history."""

_PLAIN_TYPES = frozenset({str, int, float, bool, type(None)})
_MAPPINGS = frozenset({"OrderedDict", "defaultdict", "Counter"})


@dataclass(frozen=True, slots=True)
class Opaque:
    """Something that is neither a container nor a tensor nor a small value: what it is, in words.

    `node` is the object of the graph, where there is one to compare with another.
    """

    kind: str
    node: Any = field(default=None, compare=False, repr=False)


_KINDS = {
    "numpy.core.multiarray._reconstruct": "a NumPy array",
    "numpy._core.multiarray._reconstruct": "a NumPy array",
    "_io.BytesIO": "bytes",
    "io.BytesIO": "bytes",
    "_codecs.encode": "bytes",
}
"""What pickled objects are, where that is more telling than their type."""


def in_words(value: Any) -> str:
    """What a value of a tree is: ``a NumPy array``, ``float``, ``an object of torch.distributions.Normal``."""
    if isinstance(value, Opaque):
        return _KINDS.get(value.kind, value.kind)
    return "None" if value is None else type(value).__name__


class Place(NamedTuple):
    """Where a value is in the graph.

    Attributes:
        value: The value.
        holder: What holds it.
        key: Its key or index there.
        entry_holder: What holds the whole entry.
        entry_key: The entry's key or index there. They differ only where a mapping is pickled as a list of pairs.
    """

    value: Any
    holder: Any
    key: Any
    entry_holder: Any
    entry_key: Any


def plain_tree(graph: Any, reader: TensorReader, refused: list[tuple[KeyPath, Refused]]) -> Any:
    """The tree of a graph. Containers that occur twice occur twice; one inside itself is opaque there.

    Args:
        graph: What `inert_pickle.load` gave.
        reader: Tells the tensors.
        refused: Gets the tensors that cannot be averaged, with their places.
    """
    return _Builder(reader, refused).build(graph, (), 0)


class _Builder:
    def __init__(self, reader: TensorReader, refused: list[tuple[KeyPath, Refused]]) -> None:
        self._reader = reader
        self._refused = refused
        self._done: dict[int, Any] = {}

    def build(self, node: Any, path: KeyPath, depth: int) -> Any:
        kind = type(node)
        if kind in _PLAIN_TYPES:
            return node
        known = self._done.get(id(node))
        if known is not None:
            return known
        if depth > MAX_DEPTH:
            return Opaque("a container nested very deeply")
        self._done[id(node)] = Opaque("a container inside itself")
        plain = self._container(node, kind, path, depth)
        self._done[id(node)] = plain
        return plain

    def _container(self, node: Any, kind: type, path: KeyPath, depth: int) -> Any:
        if kind is list or kind is tuple:
            if len(node) > _MAX_PLAIN and _PLAIN_TYPES.issuperset(map(type, node)):
                return Opaque(f"a list of {len(node)} values")
            return [self.build(value, (*path, index), depth + 1) for index, value in enumerate(node)]
        if kind is dict:
            return self._mapping(node, path, depth)
        if isinstance(node, Inert):
            tensor = self._reader.read(node)
            if tensor is None:
                items = items_of(node)
                if items is not None:
                    return self._mapping(items, path, depth)
                return self._module(node, path, depth) if path and is_module(node) else _number(node)
            if isinstance(tensor, Refused):
                self._refused.append((path, tensor))
                return Opaque(tensor.kind)
            return tensor
        return Opaque(kind.__name__)

    def _module(self, node: Inert, path: KeyPath, depth: int) -> PickledModule:
        entries = module_entries(node, str(self._reader.storages.path))
        values = {name: self.build(entry.value, (*path, name), depth + 1) for name, entry in entries.items()}
        return PickledModule({name: value for name, value in values.items() if isinstance(value, TensorSpec)})

    def _mapping(self, items: dict[Any, Any], path: KeyPath, depth: int) -> Any:
        # The tensors of an optimizer are never weights, and there are twice as many: they are not even looked up.
        apart = "state" if "param_groups" in items else None
        return {
            key: Opaque("the state of an optimizer") if key == apart else self.build(value, (*path, key), depth + 1)
            for key, value in items.items()
            if type(key) is str or type(key) is int
        }


def items_of(node: Any) -> dict[Any, Any] | None:
    """The items of an object that is a mapping; None for any other."""
    if type(node) is dict:
        return node
    if not isinstance(node, Inert):
        return None
    if len(node):
        return node
    pairs = _pairs(node)
    if pairs is not None:
        return {pair[0]: pair[1] for pair in pairs}
    return {} if node.name in _MAPPINGS else None


def _pairs(node: Inert) -> list[Any] | None:
    """The pairs of an OrderedDict that Python 2 pickled."""
    if node.name == "OrderedDict" and len(node.args) == 1 and type(node.args[0]) is list:
        pairs: list[Any] = node.args[0]
        if all(type(pair) in {list, tuple} and len(pair) == 2 and type(pair[0]) is str for pair in pairs):
            return pairs
    return None


_FORMATS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I"}


def _number(node: Inert) -> Any:
    """The value of a NumPy scalar, which is what metrics often are; anything else is opaque."""
    if node.name == "scalar" and node.module in {"numpy.core.multiarray", "numpy._core.multiarray"}:
        dtype, data = node.args if len(node.args) == 2 else (None, None)
        if isinstance(data, Inert) and data.qualified == "_codecs.encode" and data.args:
            data = data.args[0]
        if isinstance(data, str) and len(data) <= 8:
            data = data.encode("latin-1", "replace")
        if isinstance(dtype, Inert) and dtype.args and isinstance(data, bytes):
            name, state = dtype.args[0], dtype.states[:1]
            order = state[0][1] if state and type(state[0]) is tuple and len(state[0]) > 1 else "<"
            code = _FORMATS.get(name) if isinstance(name, str) else None
            if code is not None and len(data) == struct.calcsize(code):
                return struct.unpack(f"{'>' if order == '>' else '<'}{code}", data)[0]
    return Opaque(node.qualified, node)


class _Entries(dict[str, Entry]):
    """What a module has, instead of the module among the known objects."""


def find(graph: Any, path: KeyPath, known: dict[KeyPath, Any] | None = None) -> Place:
    """Where the value at a key path of the plain tree is in the graph.

    Args:
        graph: The graph.
        path: The key path, not empty.
        known: Objects that were found before, to be kept between calls.

    Raises:
        KeyError: There is nothing at this path.
    """
    known = {} if known is None else known
    holder = graph
    if len(path) > 1:
        holder = known.get(path[:-1])
        if holder is None:
            holder = known[path[:-1]] = find(graph, path[:-1], known).value
            if is_module(holder):
                holder = known[path[:-1]] = _Entries(module_entries(holder, "the file"))
    key: Any = path[-1]
    if isinstance(holder, _Entries):
        return Place(*holder[key], *holder[key][1:])
    if isinstance(holder, Inert) and not len(holder):
        pairs = _pairs(holder)
        if pairs is None:
            raise KeyError(path)
        for index, pair in enumerate(reversed(pairs)):
            if pair[0] == key:
                return Place(pair[1], pair, 1, pairs, len(pairs) - 1 - index)
        raise KeyError(path)
    try:
        return Place(holder[key], holder, key, holder, key)
    except (IndexError, TypeError) as error:
        raise KeyError(path) from error
