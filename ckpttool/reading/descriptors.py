"""Files that are open at the same time, as many as the system lets a process have.

Twenty members of three hundred shards are more files than many systems let a process open. Beyond a limit, the file
that was used longest ago is closed, and opened again when it is wanted.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

if sys.platform != "win32":
    import resource  # now: when no descriptor is left, there is none for this import either

__all__ = ["FilePool", "allow_more_files"]

Key = TypeVar("Key", bound=Hashable)
File = TypeVar("File")

_RESERVED = 64
"""Descriptors that are left to everything else in the process."""

_FEWEST = 4
_UNKNOWN = 512
"""The limit where the system does not tell one."""

_PLENTY = 1 << 16


def allow_more_files() -> int:
    """Raise this process's limit of open files to the most that it may have.

    Returns:
        The limit that holds now.
    """
    if sys.platform == "win32":
        return _UNKNOWN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _PLENTY
    for wanted in (hard, _PLENTY, 10240):  # macOS refuses more than the last, whatever it states
        if soft < wanted <= hard or (hard == resource.RLIM_INFINITY and soft < wanted):
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            except (OSError, ValueError):
                continue
            return wanted
    return soft


class FilePool(Generic[Key, File]):
    """Opens files as they are asked for, and keeps a limited number of them open.

    Args:
        open_file: Opens the file of a key.
        close_file: Closes one.
        share: What part of the process's descriptors the pool may have.
        before_eviction: Called with a file that is closed because another one is opened (not by `close`).
    """

    def __init__(
        self,
        open_file: Callable[[Key], File],
        close_file: Callable[[File], None],
        share: float,
        before_eviction: Callable[[File], None] | None = None,
    ) -> None:
        self._open_file = open_file
        self._close_file = close_file
        self._before_eviction = before_eviction
        self._share = share
        self._limit = 0
        self._lock = threading.Lock()
        self._files: OrderedDict[Key, File] = OrderedDict()
        self._users: dict[Key, int] = {}

    @contextmanager
    def use(self, key: Key) -> Iterator[File]:
        """The open file of a key; it stays open while it is used. Any thread may use it.

        Raises:
            OSError: It cannot be opened.
        """
        with self._lock:
            file = self._files.get(key)
            if file is None:
                self._evict()
                file = self._files[key] = self._open_file(key)
            else:
                self._files.move_to_end(key)
            self._users[key] = self._users.get(key, 0) + 1
        try:
            yield file
        finally:
            with self._lock:
                self._users[key] -= 1

    def _evict(self) -> None:
        if not self._limit:
            self._limit = max(_FEWEST, int((allow_more_files() - _RESERVED) * self._share))
        while len(self._files) >= self._limit:
            idle = next((key for key in self._files if not self._users.get(key)), None)
            if idle is None:
                return  # as many threads as files; the system decides
            if self._before_eviction is not None:
                self._before_eviction(self._files[idle])
            self._close_file(self._files.pop(idle))

    def close(self) -> None:
        """Close every file."""
        with self._lock:
            while self._files:
                self._close_file(self._files.popitem()[1])
