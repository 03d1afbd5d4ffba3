"""Everything that can go wrong for a user, as a tree of exceptions.

    CkpttoolError                 exit code 1 (unexpected)
    ├── UsageError                2   the request makes no sense            (also a ValueError)
    ├── NotFoundError             3   nothing found, or too few checkpoints (also a FileNotFoundError)
    ├── MismatchError             4   checkpoints do not fit together       (also a ValueError)
    │   └── NonFiniteError        4   NaN or infinity in a checkpoint
    ├── OutputExistsError         5   output exists, or is an input         (also a FileExistsError)
    ├── UnreadableError           6   unreadable, truncated or corrupt file (also a ValueError)
    │   └── UnsupportedError      6   a sound file of a kind that is not supported
    └── WriteError                7   could not write                       (also an OSError)

An interrupt (Ctrl-C) exits with 130. Each error says what happened in its message, with the file and the
tensor where there is one, and what to type next in its hint. The exit codes are public interface.
"""

from __future__ import annotations

import os
from typing import ClassVar

from ckpttool.text import Message

__all__ = [
    "CkpttoolError",
    "MismatchError",
    "NonFiniteError",
    "NotFoundError",
    "OutputExistsError",
    "UnreadableError",
    "UnsupportedError",
    "UsageError",
    "WriteError",
]


class CkpttoolError(Exception):
    """The base of every error that ckpttool raises on purpose.

    Args:
        message: What happened, in one sentence, with the user's own words and numbers. Parameters are marked by
            `ckpttool.text.parameter`, in the hint as well, so that the command line can call them options.
        hint: What to do next, if there is something to do: a sentence with a capital and a full stop.
        path: The file or directory it happened in.
        tensor: The tensor it happened to.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        path: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
    ) -> None:
        self.message: str = Message(message)
        self.hint: str | None = None if hint is None else Message(hint)
        super().__init__(str(self.message))
        self.path = path
        self.tensor = tensor

    def __str__(self) -> str:
        return self.message


class UsageError(CkpttoolError, ValueError):
    """The request is not valid: an argument, or a combination of arguments."""

    exit_code = 2


class NotFoundError(CkpttoolError, FileNotFoundError):
    """Nothing was found, or fewer checkpoints than were asked for."""

    exit_code = 3


class MismatchError(CkpttoolError, ValueError):
    """The checkpoints do not fit together: keys, shapes or dtypes differ."""

    exit_code = 4


class NonFiniteError(MismatchError):
    """A checkpoint holds NaN or infinity."""


class OutputExistsError(CkpttoolError, FileExistsError):
    """The output exists already, or is one of the inputs."""

    exit_code = 5


class UnreadableError(CkpttoolError, ValueError):
    """A file cannot be read, is truncated, or is corrupt."""

    exit_code = 6


class UnsupportedError(UnreadableError):
    """A file is sound, but of a kind that is not supported."""


class WriteError(CkpttoolError, OSError):
    """The output could not be written: disk full, no permission."""

    exit_code = 7
