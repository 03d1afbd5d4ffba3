"""Text of messages: parameters of the library, lists of names cut short, labels of tensors.

The library names its parameters, and the command line its options. A message is therefore written with
`parameter` where it names one:

>>> message = Message(f"{parameter('force', True)} replaces it")
>>> str(message)
'force=True replaces it'
>>> render(message, lambda name, value: f"--{name}")
'--force replaces it'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import PurePath

__all__ = [
    "Message",
    "as_keyword",
    "distinct_labels",
    "ending",
    "first_names",
    "parameter",
    "printable",
    "render",
    "tensor_label",
    "unicode_only",
]

_SHOWN = 5

# Noncharacters of Unicode: no file name or tensor name that can be decoded means anything by them.
_OPEN, _BETWEEN, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKED = re.compile(f"{_OPEN}([^{_BETWEEN}{_CLOSE}]*)(?:{_BETWEEN}([^{_CLOSE}]*))?{_CLOSE}")


def parameter(name: str, value: object = None) -> str:
    """Mark a parameter of the library in the text of a `Message`.

    Args:
        name: Its name in Python: ``max_shard_size``.
        value: What to set it to, where the message says that; None: the parameter as such. True for a flag to set.
    """
    return f"{_OPEN}{name}{_CLOSE}" if value is None else f"{_OPEN}{name}{_BETWEEN}{value!s}{_CLOSE}"


def as_keyword(name: str, value: str | None) -> str:
    """A parameter as Python calls it: ``force=True``, ``last=5``, ``include='epoch-*'``; ``last`` without a value."""
    if value is None:
        return name
    return f"{name}={value if re.fullmatch(r'True|False|None|-?[0-9.]+', value) else repr(value)}"


class Message(str):
    """A message. As a string it names parameters; `render` names them in another way.

    Formatting a message into another string keeps the words of Python: build the whole text first.
    """

    __slots__ = ("_marked",)

    _marked: str

    def __new__(cls, marked: str) -> Message:  # noqa: PYI034  # typing.Self came with Python 3.11
        """Make a message of text in which `parameter` marks the parameters."""
        if isinstance(marked, Message):
            return marked
        message = super().__new__(cls, _render(marked, as_keyword))
        message._marked = marked
        return message

    @property
    def marked(self) -> str:
        """The text with its marks."""
        return self._marked


def render(text: str, name_of: Callable[[str, str | None], str]) -> str:
    """A text with each parameter, and the value to set it to, as `name_of` calls it; plain text as it is."""
    return _render(text.marked, name_of) if isinstance(text, Message) else text


def _render(marked: str, name_of: Callable[[str, str | None], str]) -> str:
    return _MARKED.sub(lambda found: name_of(found[1], found[2]), marked)


def first_names(names: Iterable[str], most: int = _SHOWN) -> str:
    """The first few names, and how many more there are: ``a, b, c, d, e and 12 more``."""
    names = list(names)
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


# Control characters, line separators, marks that reverse the direction of text, and halves of surrogate pairs, as which
# Python decodes the bytes of a file name that are not UTF-8.
_UNDECODED = "\ud800-\udfff"
_CONTROL = "\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069"
_NOT_UNICODE = re.compile(f"[{_UNDECODED}]")
_NOT_PRINTABLE = re.compile(f"[{_CONTROL}{_UNDECODED}]")


def printable(text: str) -> str:
    r"""A text on one line that a terminal shows and does not obey: names come from files, and may hold anything.

    >>> printable("a\x1b[31m\nb")
    'a\\x1b[31m\\nb'
    """
    return _NOT_PRINTABLE.sub(_escaped, text)


def unicode_only(text: str) -> str:
    r"""A text that every Unicode encoding can hold: bytes of file names that are not UTF-8 as ``\xe9``."""
    return _NOT_UNICODE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else found[0].encode("unicode_escape").decode()


def ending(text: object, most: int = 80) -> str:
    """The end of a long text, as a path is told by: ``...runs/a/checkpoint_5000.pt``."""
    whole = str(text)
    return whole if len(whole) <= most else f"...{whole[3 - most :]}"


def distinct_labels(paths: Sequence[PurePath]) -> list[str]:
    """The last parts of paths, as few as tell all of them apart: names, or ``checkpoint-500/model.safetensors``.

    >>> from pathlib import PurePath
    >>> distinct_labels([PurePath("run/a/model.pt"), PurePath("run/b/model.pt")])
    ['a/model.pt', 'b/model.pt']
    """
    most = max((len(path.parts) for path in paths), default=1)
    for count in range(1, most + 1):
        labels = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(labels)) == len(set(paths)):
            return labels
    return [path.as_posix() for path in paths]


def tensor_label(name: tuple[str, str]) -> str:
    """A tensor's name as people read it: ``weight``, or ``weight (ema)`` for a stored copy."""
    return name[1] if not name[0] else f"{name[1]} ({name[0]})"
