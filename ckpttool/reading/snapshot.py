"""What one operation sees of the storage: every directory listed once, every name examined once.

Recognising a format, finding the checkpoints of a run and opening them all ask what is in the same directories. They
share one snapshot, so that they agree, and so that a directory on a slow disk is asked once. A snapshot lives as long
as one operation: it does not see what changes meanwhile, and files that are read are checked by their identity.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ckpttool.errors import UnreadableError
from ckpttool.reading.opened import REMOVED
from ckpttool.reading.storage import Item, storage_of

__all__ = ["Snapshot", "StorageError"]

T = TypeVar("T")

_HINTS = {errno.ENOENT: REMOVED, errno.ENOTDIR: None, errno.ELOOP: None, errno.ENAMETOOLONG: None}
"""Hints of errors that need another than most, or none."""


class StorageError(UnreadableError, OSError):
    """What the storage refuses: no permission, a disk that is away, a name that is too long."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(
            f"{path}: cannot be read ({error.strerror})",
            path=path,
            hint=_HINTS.get(error.errno or 0, "Does it belong to another user, or is its disk away?"),
        )
        self.errno, self.strerror, self.filename = error.errno, error.strerror, str(path)


class _MissingError(StorageError, FileNotFoundError):
    """There is no such path."""


class _NotADirectoryError(StorageError, NotADirectoryError):
    """It is a file."""


def _asked(ask: Callable[[Path], T], path: Path) -> T:
    """The storage's answer; its errors as ours, which are of the same kinds of OSError."""
    try:
        return ask(path)
    except FileNotFoundError as error:
        raise _MissingError(path, error) from error
    except NotADirectoryError as error:
        raise _NotADirectoryError(path, error) from error
    except OSError as error:
        raise StorageError(path, error) from error


class Snapshot:
    """A view of the storage, filled as it is asked."""

    def __init__(self) -> None:
        self._directories: dict[Path, Mapping[str, Item]] = {}
        self._items: dict[Path, Item | None] = {}
        self.remembered: dict[Hashable, Any] = {}
        """What formats keep to share between the checkpoints of one operation: parsed headers that are all the same."""
        self._resolved: dict[Path, Path] = {}

    def list(self, directory: Path) -> Mapping[str, Item]:
        """What is in a directory, by name, sorted by name.

        Raises:
            StorageError: It is missing (also a FileNotFoundError), not a directory (also a NotADirectoryError), or may
                not be listed.
        """
        listed = self._directories.get(directory)
        if listed is None:
            items = sorted(_asked(storage_of(directory).list, directory), key=lambda item: item.name)
            listed = self._directories[directory] = {item.name: item for item in items}
        return listed

    def names(self, directory: Path) -> tuple[str, ...]:
        """The names in a directory, sorted; see `list`."""
        return tuple(self.list(directory))

    def item(self, path: Path) -> Item | None:
        """What a path leads to; None where there is no such name.

        Raises:
            StorageError: It cannot be told: a directory on the way may not be searched.
        """
        if path not in self._items:
            above = self._directories.get(path.parent)
            if above is not None and path.name and path.name != "..":
                self._items[path] = above.get(path.name)
            else:
                try:
                    self._items[path] = _asked(storage_of(path).stat, path)
                except (FileNotFoundError, NotADirectoryError):
                    self._items[path] = None
        return self._items[path]

    def is_dir(self, path: Path) -> bool:
        """Whether a path leads to a directory."""
        item = self.item(path)
        return item is not None and item.kind == "directory"

    def is_file(self, path: Path) -> bool:
        """Whether a path leads to a regular file."""
        item = self.item(path)
        return item is not None and item.kind == "file"

    def exists(self, path: Path) -> bool:
        """Whether a path leads anywhere."""
        item = self.item(path)
        return item is not None and item.kind != "missing"

    def resolve(self, path: Path) -> Path:
        """The path without links: where a name really is, or would be."""
        if path not in self._resolved:
            self._resolved[path] = storage_of(path).resolve(path)
        return self._resolved[path]

    def read(self, path: Path, limit: int) -> bytes:
        """The first bytes of a file, at most `limit`: a head to recognise it by, or a small file as a whole.

        Raises:
            StorageError: It cannot be opened or read; also a FileNotFoundError where there is none.
        """
        return _asked(lambda asked: _head(asked, limit), path)


def _head(path: Path, limit: int) -> bytes:
    file = storage_of(path).open(path)
    try:
        buffer = memoryview(bytearray(min(limit, file.nbytes)))
        done = 0
        while done < len(buffer):
            count = file.read_into(buffer[done:], done)
            if not count:
                break
            done += count
        return bytes(buffer[:done])
    finally:
        file.close()
