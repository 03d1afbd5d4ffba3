"""The output appears whole or not at all.

It is written next to its target under a temporary name, flushed to the disk, read back, and renamed.
Whatever happens before the rename leaves the target as it was, and no temporary file.

A target that is a symbolic link is followed: what it points to is replaced, the link stays. (To rename over the link
would leave the old content under the other name, where someone else may still look for it.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ckpttool.errors import CkpttoolError, OutputExistsError
from ckpttool.planning.destination import Destination, write_error
from ckpttool.reading.descriptors import FilePool
from ckpttool.tensors import OutputFile
from ckpttool.text import parameter

__all__ = ["StagedOutput"]

_LONGEST_STEM = 160
"""Of a temporary name; file systems end at 255 bytes."""

_FLUSH_BYTES = 32 << 20
"""So much new output is handed to the disk while the rest is still being computed.

The last fsync then finds nearly nothing left to do: 0.02 s in place of 0.6 s for 1.1 GB.
"""

_SHARE = 0.3
"""Of the process's open files; the inputs are the rest."""

_FLAGS = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_NOT_SUPPORTED = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})


class StagedOutput:
    """An output that is being written next to its target.

    Use as a context manager: leaving it without `publish` removes every trace.

    Args:
        destination: Where the output appears. It has been checked; it is checked again before the output is published.
        files: What it consists of, laid out.
    """

    def __init__(self, destination: Destination, files: Sequence[OutputFile]) -> None:
        self.output = destination.output
        self._destination = destination
        self._target = destination.target
        self._files = tuple(files)
        self._temporary: Path | None = None
        self._pool = FilePool[int, int](self._open, os.close, _SHARE, before_eviction=os.fsync)
        self._made: list[Path] = []
        self._flusher = _Flusher(self._pool)

    def __enter__(self) -> StagedOutput:  # noqa: PYI034  # typing.Self came with Python 3.11
        try:
            self._prepare()
        except OSError as error:
            self._discard()
            if isinstance(error, CkpttoolError):
                raise
            raise write_error(self.output, error) from error
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    @property
    def directory(self) -> Path:
        """Where the temporary file is."""
        return self._target.parent

    def _prepare(self) -> None:
        """Make the temporary file or directory, take the space it needs, write what is known already."""
        parent = self._target.parent
        missing = [each for each in (parent, *parent.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir()
            self._made.insert(0, each)
        stem = os.fsdecode(os.fsencode(self._target.name)[:_LONGEST_STEM])
        self._temporary = parent / f".{stem}.ckpttool-{secrets.token_hex(4)}.tmp"
        if not self._destination.is_one_file:
            self._temporary.mkdir()
        flags = _FLAGS | os.O_CREAT | os.O_EXCL
        for file in self._files:
            path = self._path(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, flags, 0o666)  # the umask takes its part
            try:
                _allocate(descriptor, file.nbytes)
            finally:
                os.close(descriptor)
        for index, file in enumerate(self._files):
            for offset, data in file.literals:
                self.write(index, offset, data)

    def _path(self, file: OutputFile) -> Path:
        """Where a file is while it is being written."""
        assert self._temporary is not None
        return self._temporary / file.name if file.name else self._temporary

    def _open(self, file: int) -> int:
        return os.open(self._path(self._files[file]), _FLAGS)

    def write(self, file: int, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at their place in one of the files. Any thread may call this.

        Raises:
            WriteError: The disk is full, or fails.
        """
        try:
            view = memoryview(data)
            with self._pool.use(file) as descriptor:
                while view:
                    done = _pwrite(descriptor, view, offset)
                    view = view[done:]
                    offset += done
            self._flusher.note(file, len(data))
        except OSError as error:
            raise write_error(self.output, error) from error

    def publish(self, verify: Callable[[Path], None]) -> None:
        """Flush, read back, and let the output appear under its name, all of it at once.

        Args:
            verify: Is given the temporary path, and raises if what is there is not what was planned.
        """
        assert self._temporary is not None
        try:
            self._flusher.stop()
            self._flusher.check()
            for file in range(len(self._files)):
                with self._pool.use(file) as descriptor:
                    os.fsync(descriptor)
            self._pool.close()
            verify(self._temporary)
            self._destination.check()  # what held in the beginning may hold no longer
            if self._destination.is_one_file:
                self._publish_file(self._temporary)
            else:
                for directory, _, _ in os.walk(self._temporary):
                    _flush_directory(Path(directory))
                self._publish_directory(self._temporary)
            self._temporary = None
            self._made = []
            _flush_directory(self._target.parent)
        except CkpttoolError:
            raise
        except OSError as error:
            raise write_error(self.output, error) from error

    def _publish_file(self, temporary: Path) -> None:
        if not self._destination.force:
            try:
                os.link(temporary, self._target)  # unlike a rename, fails if someone else was faster
            except FileExistsError as error:
                raise OutputExistsError(
                    f"{self.output}: appeared while the output was being written",
                    path=self.output,
                    hint=f"{parameter('force', value=True)} replaces it.",
                ) from error
            except (OSError, AttributeError, NotImplementedError):
                pass  # a file system without hard links: the check above has to do
            else:
                temporary.unlink()
                return
        os.replace(temporary, self._target)

    def _publish_directory(self, temporary: Path) -> None:
        if not self._target.exists():
            os.rename(temporary, self._target)
            return
        aside = temporary.with_name(f"{temporary.name}.old")
        os.rename(self._target, aside)
        try:
            os.rename(temporary, self._target)
        except BaseException:
            os.rename(aside, self._target)
            raise
        shutil.rmtree(aside)

    def _discard(self) -> None:
        self._flusher.stop()
        self._pool.close()
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                if self._destination.is_one_file:
                    self._temporary.unlink()
                else:
                    shutil.rmtree(self._temporary)
            self._temporary = None
        for directory in self._made:
            with contextlib.suppress(OSError):  # someone else may use it by now
                directory.rmdir()
        self._made = []


class _Flusher:
    """A thread that hands written data to the disk early."""

    def __init__(self, pool: FilePool[int, int]) -> None:
        self._pool = pool
        self._wake = threading.Condition()
        self._unflushed: dict[int, int] = {}
        self._nbytes = 0
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._failure: OSError | None = None

    def note(self, file: int, nbytes: int) -> None:
        """Bytes were written to a file."""
        with self._wake:
            self._unflushed[file] = self._unflushed.get(file, 0) + nbytes
            self._nbytes += nbytes
            if self._nbytes < _FLUSH_BYTES:
                return
            if self._thread is None and not self._stopped and hasattr(os, "fdatasync"):
                self._thread = threading.Thread(target=self._loop, name="ckpttool-flush", daemon=True)
                self._thread.start()
            self._wake.notify()

    def stop(self) -> None:
        """End the thread; it uses no file after this. May be called more than once."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _loop(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopped or self._nbytes >= _FLUSH_BYTES)
                if self._stopped:
                    return
                file = max(self._unflushed, key=self._unflushed.__getitem__)
                self._nbytes -= self._unflushed.pop(file)
            try:
                with self._pool.use(file) as descriptor:
                    os.fdatasync(descriptor)
            except OSError as error:
                self._failure = error
                return

    def check(self) -> None:
        """Raise what went wrong: the kernel reports a failed flush once, and the last fsync would not report it."""
        if self._failure is not None:
            raise self._failure


def _allocate(descriptor: int, nbytes: int) -> None:
    """Take the space for a whole file now, so that a full disk shows before hours of work, and not after them."""
    if nbytes and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
        else:
            return
    os.ftruncate(descriptor, nbytes)


if hasattr(os, "pwrite"):

    def _pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        return os.pwrite(descriptor, data, offset)

else:
    _seek_lock = threading.Lock()

    def _pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        with _seek_lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.write(descriptor, data)


def _flush_directory(path: Path) -> None:
    """Make a rename last. Not every system lets a directory be opened or flushed."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    finally:
        os.close(descriptor)
