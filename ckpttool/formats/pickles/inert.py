"""Read any pickle without running it: nothing that a pickle names is ever imported or called.

The unpickler is the standard library's own, in C, so it is fast and understands every protocol. Only two of its
hooks are filled: a global becomes an inert class that remembers its name, and a persistent id goes to the caller.
Calling an inert class makes an inert object that remembers its arguments; building, appending to and filling one is
remembered too. `pickle_emitter` writes such a graph back as the pickle it came from, also where its classes are not
installed here.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable
from typing import Any, Literal

from ckpttool.errors import CkpttoolError, UnreadableError
from ckpttool.formats.pickles.bounds import BadPickleError, check

__all__ = ["Inert", "InertType", "inert_type", "load"]

How = Literal["call", "new", "new_ex"]


class InertType(type):
    """A global that a pickle names: a class or a function; which is not known.

    Attributes:
        module: Its module, as the pickle writes it (``__builtin__`` in protocol 2 for ``builtins``).
        name: Its name; dotted for a nested one.
    """

    module: str
    name: str

    def __call__(cls, /, *args: Any) -> Inert:
        """What the pickle's REDUCE does."""
        made: Inert = _new(cls)
        made.args = args
        return made

    def __repr__(cls) -> str:
        return f"<global {cls.qualified}>"

    @property
    def qualified(cls) -> str:
        """``module.name``."""
        return f"{cls.module}.{cls.name}"


class _Getattr(InertType):
    """``builtins.getattr``. Protocol 2 finds a nested class by it, and the object that follows needs a class."""

    def __call__(cls, /, *args: Any) -> Any:
        if len(args) == 2 and isinstance(args[0], InertType) and isinstance(args[1], str):
            return inert_type(args[0].module, f"{args[0].name}.{args[1]}")
        return super().__call__(*args)


class Inert(dict, metaclass=InertType):  # type: ignore[type-arg]
    """An object of a pickle, and how it was made. As a mapping, it holds the items that SETITEMS gave it.

    Two inert objects are equal only if they are the same one, so that they can be keys and elements.

    Attributes:
        how: "call" (REDUCE: a callable was called), "new" (NEWOBJ: ``cls.__new__`` was) or "new_ex" (with keywords).
        args: The positional arguments.
        kwargs: The keywords of "new_ex".
        maker: What was called, where that was itself an object; None for the class of this object.
        states: What BUILD gave it, in order.
        appended: What APPENDS gave it.
        added: What ADDITEMS gave it.
    """

    # Most objects have arguments and nothing else: no other attribute costs them anything.
    __slots__ = ("__dict__", "args")

    module = "builtins"
    name = "object"
    args: tuple[Any, ...]
    how: How = "call"
    kwargs: dict[str, Any] | None = None
    maker: Inert | None = None
    states: tuple[Any, ...] = ()
    appended: tuple[Any, ...] = ()
    added: tuple[Any, ...] = ()

    def __new__(cls, /, *args: Any, **kwargs: Any) -> Inert:  # noqa: PYI034 (typing.Self is of Python 3.11)
        """What the pickle's NEWOBJ does."""
        made: Inert = _new(cls)
        made.args = args
        made.how = "new"
        if kwargs:
            made.how = "new_ex"
            made.kwargs = kwargs
        return made

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __call__(self, /, *args: Any) -> Inert:
        """REDUCE of something that was itself made (a partial, an attribute)."""
        made: Inert = _new(Inert)
        made.args = args
        made.maker = self
        return made

    def __setstate__(self, state: Any) -> None:
        self.states = (*self.states, state)

    def append(self, item: Any) -> None:
        """What the unpickler's APPEND calls."""
        self.appended = (*self.appended, item)

    def extend(self, items: Iterable[Any]) -> None:
        """What the unpickler's APPENDS calls, a thousand at a time."""
        self.appended = (*self.appended, *items)

    def add(self, item: Any) -> None:
        """What the unpickler's ADDITEMS calls."""
        self.added = (*self.added, item)

    def __repr__(self) -> str:
        return f"<inert {self.qualified}>"

    @property
    def qualified(self) -> str:
        """``module.name`` of what made it."""
        return f"{self.module}.{self.name}" if self.maker is None else f"{self.maker.qualified}(...)"


_new: Callable[..., Any] = dict.__new__


def inert_type(module: str, name: str) -> InertType:
    """A global of this name."""
    is_getattr = name == "getattr" and module in {"builtins", "__builtin__"}
    return (_Getattr if is_getattr else InertType)("Inert", (Inert,), {"__slots__": (), "module": module, "name": name})


class _Source:
    """A file of bytes in memory that lets the unpickler look at all of them at once (a BytesIO costs a call each)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def peek(self, _size: int) -> bytes:
        return self._data[self._at :]

    def read(self, size: int = -1) -> bytes:
        stop = len(self._data) if size < 0 else self._at + size
        piece = self._data[self._at : stop]
        self._at += len(piece)
        return piece

    def readinto(self, buffer: Any) -> int:
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def readline(self) -> bytes:
        found = self._data.find(b"\n", self._at)
        return self.read(-1 if found < 0 else found + 1 - self._at)


def _refuse_persistent_id(_pid: Any) -> Any:
    raise pickle.UnpicklingError("a persistent id where none belongs")


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, persistent_load: Callable[[Any], Any], encoding: str) -> None:
        super().__init__(_Source(data), fix_imports=False, encoding=encoding, errors="strict")
        self._persistent_load = persistent_load
        self._types: dict[tuple[str, str], InertType] = {}

    def persistent_load(self, pid: Any) -> Any:
        return self._persistent_load(pid)

    def find_class(self, module: str, name: str) -> InertType:
        found = self._types.get((module, name))
        if found is None:
            found = inert_type(module, name)
            self._types[module, name] = found
        return found


def load(
    data: bytes,
    *,
    path: str | os.PathLike[str],
    start: int = 0,
    persistent_load: Callable[[Any], Any] = _refuse_persistent_id,
) -> tuple[Any, int]:
    """Read one pickle of any protocol. Nothing is imported, nothing is called.

    The byte strings of Python 2 are read as UTF-8, and all of them as Latin-1 where one is not UTF-8 (then they are
    binary data, and NumPy takes them so).

    Args:
        data: The pickle, and perhaps more after it.
        path: The file it comes from, for messages.
        start: Where it begins in `data`.
        persistent_load: Given a persistent id, the object that replaces it. It must not return anything that can be
            called or changed. May raise `UnreadableError`.

    Returns:
        The graph (of None, bool, int, float, str, bytes, bytearray, list, tuple, dict, set, frozenset, `Inert`,
        `InertType` and what `persistent_load` gave) and the index after the pickle's last byte.

    Raises:
        UnreadableError: It is not a pickle, or a corrupt or malicious one.
        EOFError: The data end before the pickle does.
    """
    try:
        stop = check(data, start)
    except (BadPickleError, ValueError) as error:
        raise _unreadable(path, error) from error
    pickled = data[start:stop]
    try:
        try:
            graph = _Unpickler(pickled, persistent_load, "utf-8").load()
        except UnicodeDecodeError:
            graph = _Unpickler(pickled, persistent_load, "latin-1").load()
    except CkpttoolError:
        raise
    except _PICKLE_ERRORS as error:
        raise _unreadable(path, error) from error
    return graph, stop


_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    SystemError,
    TypeError,
    ValueError,
)
"""What CPython's unpickler has been seen to raise on bytes that are not a valid pickle."""


def _unreadable(path: str | os.PathLike[str], error: BaseException) -> UnreadableError:
    said = str(error) or type(error).__name__
    return UnreadableError(
        f"{os.fspath(path)}: not a readable pickle ({said[:200]})",
        path=path,
        hint="The file is damaged, or was not written by torch.save. Nothing in it was executed.",
    )
