"""Write a graph that `inert_pickle` read as a pickle again, unchanged but for the edits asked for.

The opcodes are those that Python's own pickler writes in protocol 2, which is what torch.save writes: the restricted
unpickler of ``torch.load(weights_only=True)`` then accepts the output whenever it accepted the input. What newer
protocols have opcodes for (bytes, sets) is written as that pickler writes it in protocol 2. Every object is written
once and referred to by its number afterwards, so sharing and cycles survive. The walk is iterative: depth costs
nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from ckpttool.errors import UnsupportedError
from ckpttool.formats.pickles.inert import Inert, InertType, inert_type

__all__ = ["DROPPED", "Edits", "dump"]

_BATCH = 1000
"""Items between a MARK and the opcode that takes them, as the standard pickler counts."""


class _Dropped:
    def __repr__(self) -> str:
        return "DROPPED"


DROPPED = _Dropped()
"""In `Edits`: the entry is left out."""

Edits = Mapping[int, Mapping[Any, Any]]
"""By the id() of a dict, list, tuple or inert object: key or index to what replaces the value there."""


class _Op(bytes):
    """Bytes to be written as they are, between values on the work list."""

    __slots__ = ()


class _Close:
    """The parts of `node` are on the stack: put it together and do the rest, unless it was written on the way.

    That happens in a cycle: a part of it holds the node itself. The parts are then taken off the stack again.
    """

    __slots__ = ("discard", "finish", "node", "rest")

    def __init__(self, node: Any, finish: bytes, discard: bytes, rest: list[Any] | None = None) -> None:
        self.node = node
        self.finish = finish
        self.discard = discard
        self.rest = rest


_APPEND, _APPENDS, _SETITEM, _SETITEMS, _MARK = _Op(b"a"), _Op(b"e"), _Op(b"s"), _Op(b"u"), _Op(b"(")
_ADDITEMS, _BUILD, _BINPERSID = _Op(b"\x90"), _Op(b"b"), _Op(b"Q")


def dump(
    graph: Any,
    *,
    persistent_id: Callable[[Any], Any] | None = None,
    substitute: Callable[[Inert], Any] | None = None,
    edits: Edits | None = None,
) -> bytes:
    """Write a graph as a pickle of protocol 2.

    Args:
        graph: What `inert_pickle.load` gave.
        persistent_id: Called with objects of types that pickles do not have: the id that represents the object.
        substitute: Asked about each inert object: what to write in its place, or the object itself (also when it is
            asked about what it gave before).
        edits: What to write in place of the entries of single containers.

    Raises:
        UnsupportedError: The graph holds something that protocol 2 has no form for.
    """
    return _Emitter(persistent_id, substitute, edits or {}).run(graph)


class _Emitter:
    def __init__(
        self,
        persistent_id: Callable[[Any], Any] | None,
        substitute: Callable[[Inert], Any] | None,
        edits: Edits,
    ) -> None:
        self._persistent_id = persistent_id
        self._substitute = substitute
        self._edits = edits
        self._out: list[bytes] = [b"\x80\x02"]
        self._numbers: dict[int, int] = {}
        # An id() is a name only as long as its object lives.
        self._alive: list[Any] = []
        self._work: list[Any] = []
        self._globals: dict[tuple[str, str], InertType] = {}

    def run(self, graph: Any) -> bytes:
        out, work, numbers = self._out, self._work, self._numbers
        work.append(graph)
        while work:
            node = work.pop()
            kind = type(node)
            if kind is _Op:
                out.append(node)
            elif kind is _Close:
                number = numbers.get(id(node.node))
                if number is None:
                    out.append(node.finish)
                    self._memoise(node.node)
                    if node.rest:
                        self._queue(node.rest)
                else:
                    out.append(node.discard + _get(number))
            elif node is None:
                out.append(b"N")
            elif node is True:
                out.append(b"\x88")
            elif node is False:
                out.append(b"\x89")
            elif kind is int:
                out.append(_integer(node))
            elif kind is float:
                out.append(b"G" + struct.pack(">d", node))
            else:
                number = numbers.get(id(node))
                if number is not None:
                    out.append(_get(number))
                else:
                    self._save(node, kind)
        out.append(b".")
        return b"".join(out)

    def _memoise(self, node: Any) -> None:
        number = len(self._numbers)
        self._numbers[id(node)] = number
        self._alive.append(node)
        self._out.append(b"q" + bytes((number,)) if number < 256 else b"r" + number.to_bytes(4, "little"))

    def _save(self, node: Any, kind: type) -> None:
        if kind is str:
            encoded = node.encode("utf-8", "surrogatepass")
            if len(encoded) > 0xFFFFFFFF:
                raise UnsupportedError(f"a string of {len(encoded)} bytes does not fit into a torch file")
            self._out.append(b"X" + len(encoded).to_bytes(4, "little") + encoded)
            self._memoise(node)
        elif kind is tuple:
            self._save_tuple(node)
        elif kind is dict:
            self._out.append(b"}")
            self._memoise(node)
            self._queue(self._set_items(node))
        elif kind is list:
            self._out.append(b"]")
            self._memoise(node)
            self._queue(self._append_items(node, node))
        elif isinstance(node, InertType):
            self._save_global(node)
        elif isinstance(node, Inert):
            self._save_inert(node)
        elif kind is bytes:
            # Without an opcode for bytes, protocol 2 says: this text, encoded.
            if node:
                self._call(node, "_codecs", "encode", (node.decode("latin-1"), "latin1"))
            else:
                self._call(node, "__builtin__", "bytes", ())
        elif kind is bytearray:
            self._call(node, "__builtin__", "bytearray", (bytes(node),) if node else ())
        elif kind is set or kind is frozenset:
            # The order of a set depends on the process; that of its elements' pickles does not.
            elements = sorted(node, key=_set_order)
            self._call(node, "__builtin__", kind.__name__, (elements,))
        else:
            pid = self._persistent_id(node) if self._persistent_id is not None else None
            if pid is None:
                raise UnsupportedError(f"cannot write an object of type {kind.__name__} into a pickle")
            self._alive.append(pid)
            self._queue([pid, _BINPERSID])

    def _queue(self, tasks: list[Any]) -> None:
        tasks.reverse()
        self._work.extend(tasks)

    def _save_tuple(self, node: tuple[Any, ...]) -> None:
        changes = self._edits.get(id(node))
        parts = node if changes is None else _edited_sequence(node, changes)
        count = len(parts)
        if not count:
            self._out.append(b")")
        elif count <= 3:
            self._queue([*parts, _Close(node, (b"\x85", b"\x86", b"\x87")[count - 1], b"0" * count)])
        else:
            self._out.append(b"(")
            self._queue([*parts, _Close(node, b"t", b"1")])

    def _set_items(self, node: Mapping[Any, Any]) -> list[Any]:
        changes = self._edits.get(id(node))
        items = list(node.items())
        if changes is not None:
            items = [(key, changes.get(key, value)) for key, value in items]
            items = [(key, value) for key, value in items if value is not DROPPED]
        if len(items) == 1:
            return [*items[0], _SETITEM]
        tasks: list[Any] = []
        for first in range(0, len(items), _BATCH):
            tasks.append(_MARK)
            for item in items[first : first + _BATCH]:
                tasks += item
            tasks.append(_SETITEMS)
        return tasks

    def _append_items(self, holder: Any, items: Any) -> list[Any]:
        changes = self._edits.get(id(holder)) if type(holder) is list else None
        items = list(items) if changes is None else _edited_sequence(items, changes)
        if len(items) == 1:
            return [items[0], _APPEND]
        tasks: list[Any] = []
        for first in range(0, len(items), _BATCH):
            tasks += (_MARK, *items[first : first + _BATCH], _APPENDS)
        return tasks

    def _save_global(self, node: InertType) -> None:
        module, name = node.module, node.name
        same = self._globals.setdefault((module, name), node)
        if same is not node:
            self._work.append(same)
            return
        if "." in name:
            # A nested class: protocol 2 has no dotted names, and asks for an attribute instead.
            parent, _, last = name.rpartition(".")
            self._call(node, "__builtin__", "getattr", (inert_type(module, parent), last))
            return
        try:
            line = f"c{module}\n{name}\n".encode()
        except UnicodeEncodeError:
            line = b""
        if line.count(b"\n") != 2:
            raise UnsupportedError(f"the name {node.qualified!r} has no form in a torch file")
        self._out.append(line)
        self._memoise(node)

    def _call(self, node: Any, module: str, name: str, args: tuple[Any, ...]) -> None:
        """Write `node` as the result of a call."""
        self._alive.append(args)
        self._queue([inert_type(module, name), args, _Close(node, b"R", b"00")])

    def _save_inert(self, node: Inert) -> None:
        if self._substitute is not None:
            instead = self._substitute(node)
            if instead is not node:
                self._alive.append(instead)
                self._work.append(instead)
                return
        rest: list[Any] = []
        if node.appended:
            rest += self._append_items(node, node.appended)
        if node.added:
            rest += (_MARK, *node.added, _ADDITEMS)
        if node:
            rest += self._set_items(node)
        for state in node.states:
            rest += (state, _BUILD)
        maker: Any = type(node) if node.maker is None else node.maker
        if node.how == "call":
            self._queue([maker, node.args, _Close(node, b"R", b"00", rest)])
        elif node.how == "new":
            self._queue([maker, node.args, _Close(node, b"\x81", b"00", rest)])
        else:
            self._queue([maker, node.args, node.kwargs, _Close(node, b"\x92", b"000", rest)])


def _set_order(element: Any) -> tuple[str, str]:
    """A key that sorts the elements of a set in the same order in every process."""
    if type(element) in {tuple, frozenset}:
        parts = map(_set_order, element)
        return (type(element).__name__, repr(list(parts) if type(element) is tuple else sorted(parts)))
    if isinstance(element, Inert):
        plain = [argument for argument in element.args if isinstance(argument, (str, int, float, bytes))]
        return (element.qualified, repr(plain))
    return (type(element).__name__, repr(element))


def _edited_sequence(items: Any, changes: Mapping[Any, Any]) -> list[Any]:
    edited = [changes.get(index, item) for index, item in enumerate(items)]
    return [item for item in edited if item is not DROPPED]


def _get(number: int) -> bytes:
    return b"h" + bytes((number,)) if number < 256 else b"j" + number.to_bytes(4, "little")


def _integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes((value,))
    if 256 <= value < 65536:
        return b"M" + value.to_bytes(2, "little")
    if -0x80000000 <= value < 0x80000000:
        return b"J" + value.to_bytes(4, "little", signed=True)
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(encoded) < 256:
        return b"\x8a" + bytes((len(encoded),)) + encoded
    return b"\x8b" + len(encoded).to_bytes(4, "little") + encoded
