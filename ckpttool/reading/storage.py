"""Where files are: the one small interface through which ckpttool looks at directories and opens inputs.

Everything above asks a `Storage` to list, to stat and to open; nothing else in reading, formats, ema and selection
calls the file system for inputs. `storage_of` chooses it by the path, so that another kind of storage is one more
class here. The output has an interface of its own (`ckpttool.engine.output`).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

__all__ = ["Identity", "Item", "Kind", "LocalStorage", "RangedFile", "Storage", "storage_of"]

Kind = Literal["file", "directory", "other", "missing"]
"""What a name leads to, links followed. other: a pipe, a socket, a device. missing: a broken or circular link."""

Identity = tuple[int | str, ...]
"""Changes when the content is replaced or written to: device, inode, size and mtime in ns of a local file."""


@dataclass(frozen=True, slots=True)
class Item:
    """What a storage says of one name.

    Attributes:
        name: The last part of its path.
        kind: What it leads to.
        nbytes: Size in bytes of a file; 0 of all others.
        identity: See `Identity`.
        is_link: Whether it is a symbolic link.
    """

    name: str
    kind: Kind
    nbytes: int
    identity: Identity
    is_link: bool = False


class RangedFile(Protocol):
    """An open file that is read at any place, from any thread."""

    @property
    def nbytes(self) -> int:
        """Its size when it was opened."""

    @property
    def identity(self) -> Identity:
        """Its identity when it was opened."""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Read bytes from `offset` on into the beginning of a buffer.

        Returns:
            How many were read: fewer than the buffer takes at the end of the file, 0 behind it.

        Raises:
            OSError: The disk fails.
        """

    def current_identity(self) -> Identity:
        """Its identity now."""

    def close(self) -> None:
        """Give it back. A second call does nothing."""


class Storage(Protocol):
    """Where files are. Errors are `OSError`s: FileNotFoundError, NotADirectoryError, PermissionError, ..."""

    def list(self, directory: Path) -> list[Item]:
        """What is in a directory, in no particular order."""

    def stat(self, path: Path) -> Item:
        """What a path leads to.

        Raises:
            FileNotFoundError: There is no such name. (A broken link is an item of kind missing.)
        """

    def open(self, path: Path) -> RangedFile:
        """Open a file for reading. Never waits, as opening a pipe would."""

    def resolve(self, path: Path) -> Path:
        """The path without links: where a name really is, or would be. Never fails."""


class LocalStorage:
    """The file system of this machine."""

    def list(self, directory: Path) -> list[Item]:
        """What is in a directory; see `Storage`."""
        found = []
        with os.scandir(directory) as entries:
            for entry in entries:
                # A trainer that removes its oldest checkpoint may do so while they are listed.
                with suppress(FileNotFoundError):
                    found.append(_item(entry.name, entry.path, is_link=entry.is_symlink()))
        return found

    def stat(self, path: Path) -> Item:
        """What a path leads to; see `Storage`."""
        return _item(path.name, os.fspath(path), is_link=stat.S_ISLNK(os.lstat(path).st_mode))

    def open(self, path: Path) -> RangedFile:
        """Open a file for reading; see `Storage`."""
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags)
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            return _LocalFile(descriptor, status)
        os.close(descriptor)
        raise OSError(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL, "not a regular file", str(path))

    def adopt(self, descriptor: int) -> RangedFile:
        """A file that is open already; it is closed with the descriptor."""
        return _LocalFile(descriptor, os.fstat(descriptor))

    def resolve(self, path: Path) -> Path:
        """The path without links; see `Storage`."""
        return Path(os.path.realpath(path))


class _LocalFile:
    def __init__(self, descriptor: int, status: os.stat_result) -> None:
        self._descriptor = descriptor
        self.nbytes = status.st_size
        self.identity = _identity(status)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        return _pread_into(self._descriptor, buffer, offset)

    def current_identity(self) -> Identity:
        return _identity(os.fstat(self._descriptor))

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


if hasattr(os, "preadv"):

    def _pread_into(descriptor: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(descriptor, [buffer], offset)

else:
    import threading

    # Windows: one position for a descriptor, so that only one thread at a time may use it.
    _seek_lock = threading.Lock()

    def _pread_into(descriptor: int, buffer: memoryview, offset: int) -> int:
        with _seek_lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _item(name: str, path: str, *, is_link: bool) -> Item:
    try:
        status = os.stat(path)
    except OSError as error:
        if is_link and error.errno in {errno.ENOENT, errno.ELOOP, errno.ENOTDIR}:
            return Item(name, "missing", 0, (), is_link)
        raise
    if stat.S_ISREG(status.st_mode):
        return Item(name, "file", status.st_size, _identity(status), is_link)
    kind: Kind = "directory" if stat.S_ISDIR(status.st_mode) else "other"
    return Item(name, kind, 0, _identity(status), is_link)


_LOCAL = LocalStorage()


def storage_of(path: Path) -> Storage:  # noqa: ARG001  # there is one storage so far
    """The storage that a path belongs to."""
    return _LOCAL
