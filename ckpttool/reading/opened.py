"""Files that a format looks into (headers, directories of archives, pickles), and what keeps one from being read.

What reads whole tensors is in `ckpttool.reading.sources`.
"""

from __future__ import annotations

import errno
from pathlib import Path
from types import TracebackType

from ckpttool.errors import CkpttoolError, NotFoundError, UnreadableError, UnsupportedError
from ckpttool.reading.storage import storage_of

__all__ = ["REMOVED", "OpenedFile", "not_a_file", "unreadable"]


class OpenedFile:
    """A file, open for reading at any place. A context manager.

    Args:
        path: Its path.

    Attributes:
        path: Its path.
        nbytes: Its size in bytes when it was opened.

    Raises:
        NotFoundError: There is none.
        UnsupportedError: It is a pipe, a socket or a device.
        UnreadableError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = storage_of(path).open(path)
        except OSError as error:
            raise _error_for(path, error) from error
        self.nbytes = self._file.nbytes

    def __enter__(self) -> OpenedFile:  # noqa: PYI034  # typing.Self came with Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """The bytes from `offset` on, at most `nbytes`: fewer at the end of the file, none behind it.

        Raises:
            UnreadableError: The disk fails.
        """
        buffer = bytearray(max(0, min(nbytes, self.nbytes - offset)))
        view, done = memoryview(buffer), 0
        try:  # no context manager: this is asked once for each tensor of an archive
            while done < len(buffer):
                count = self._file.read_into(view[done:], offset + done)
                if not count:
                    break
                done += count
        except OSError as error:
            raise _error_for(self.path, error) from error
        return bytes(view[:done])

    def close(self) -> None:
        """Close it. A second call does nothing."""
        self._file.close()


def not_a_file(path: Path) -> UnsupportedError:
    """The error for a path that leads to a pipe, a socket or a device."""
    return UnsupportedError(
        f"{path}: a pipe, and no file: a checkpoint is read from many places at once",
        path=path,
        hint="Save it to a file, and name that.",
    )


REMOVED = "Was it removed meanwhile, by a run that goes on? Then try again."
"""The hint for a file that was there when its directory was listed."""


def unreadable(path: Path, error: OSError) -> UnreadableError:
    """The error for what the storage refuses."""
    return UnreadableError(
        f"{path}: cannot be read ({error.strerror})",
        path=path,
        hint=REMOVED if isinstance(error, FileNotFoundError) else None,
    )


def _error_for(path: Path, error: OSError) -> CkpttoolError:
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{path}: no such file", path=path)
    return not_a_file(path) if error.errno == errno.EINVAL else unreadable(path, error)
