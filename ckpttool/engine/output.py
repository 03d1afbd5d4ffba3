"""The output appears whole or not at all.

It is written beside its target under a name that no one looks for, flushed to the disk, read back, and renamed.
Whatever happens before the rename leaves the target as it was and nothing else behind.

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
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from ckpttool.errors import CkpttoolError, OutputExistsError, WriteError
from ckpttool.formats import open_checkpoint
from ckpttool.tensors import OutputFile

__all__ = ["StagedOutput", "check_output"]

_LONGEST_STEM = 160
"""Of a temporary name; file systems end at 255 bytes."""

_FLUSH_BYTES = 32 << 20
"""So much new output is handed to the disk while the rest is still being computed.

The last fsync then finds nearly nothing left to do: 0.02 s in place of 0.6 s for 1.1 GB.
"""

_NOT_SUPPORTED = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})

_HINTS = {
    errno.ENOSPC: "Free some space, or write to another disk with -o.",
    errno.EDQUOT: "Free some of your quota, or write to another disk with -o.",
    errno.EFBIG: "The limit of file sizes is too low (ulimit -f), or the file system cannot hold such a file.",
    errno.EACCES: "Choose a directory that you may write to with -o.",
    errno.EPERM: "Choose a directory that you may write to with -o.",
    errno.EROFS: "Choose a directory on a disk that can be written to with -o.",
    errno.ENOENT: "Make the directory first, or choose another one with -o.",
    errno.ENOTDIR: "Choose a path whose parent is a directory with -o.",
    errno.ENAMETOOLONG: "Choose a shorter name with -o.",
}


def _write_error(path: Path, error: OSError) -> WriteError:
    reason = error.strerror or str(error)
    return WriteError(f"{path}: cannot be written ({reason})", path=path, hint=_HINTS.get(error.errno or 0))


def _resolve(output: Path) -> Path:
    """The path that will really be replaced."""
    return Path(os.path.realpath(output))


def check_output(output: Path, files: Sequence[OutputFile], *, force: bool, inputs: Iterable[Path]) -> None:
    """Make sure that an output may be written where it shall be. Nothing is touched.

    Raises:
        OutputExistsError: It exists (and may not be replaced), or it is or holds an input.
    """
    target = _resolve(output)
    is_one_file = _is_one_file(files)
    existing = target.stat() if target.exists() else None
    for path in inputs:
        real = _resolve(path)
        same = real == target or (existing is not None and real.exists() and os.path.samestat(existing, real.stat()))
        if same or target in real.parents:
            raise OutputExistsError(
                f"{output}: the output is one of the inputs"
                if same
                else f"{output}: the input {path} lies in the output's directory",
                path=output,
                hint="Choose another path with -o; an input is never overwritten.",
            )
    if existing is None or (not is_one_file and target.is_dir() and not os.listdir(target)):
        return
    if target.is_dir() == is_one_file:
        kind = "a directory" if is_one_file else "a file"
        raise OutputExistsError(f"{output}: exists and is {kind}", path=output, hint="Choose another path with -o.")
    if not force:
        raise OutputExistsError(
            f"{output}: exists already", path=output, hint="Use --force to replace it, or choose another path with -o."
        )
    if not is_one_file:
        foreign = _foreign_files(target, {file.name for file in files})
        if foreign is None:
            raise OutputExistsError(
                f"{output}: is not an earlier output of ckpttool, and a directory of other origin is never replaced",
                path=output,
                hint="Choose another path with -o, or move the directory away.",
            )
        if foreign:
            raise OutputExistsError(
                f"{output}: holds other files too ({', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}),"
                " which would be lost",
                path=output,
                hint="Choose another path with -o, or move these files away.",
            )


def _foreign_files(directory: Path, ours: Collection[str]) -> list[str] | None:
    """What lies in an earlier output of ckpttool, and neither it nor this one has written; None for other places."""
    try:
        earlier = open_checkpoint(directory)
    except CkpttoolError:
        return None
    if earlier.provenance is None:
        return None
    copied = earlier.provenance.get("copied", ())
    own = {os.path.abspath(file) for file in (*earlier.files, *(directory / str(name) for name in copied))}
    found = (os.path.join(folder, name) for folder, _, names in os.walk(directory) for name in names)
    names = (Path(os.path.relpath(file, directory)).as_posix() for file in found if os.path.abspath(file) not in own)
    return sorted(name for name in names if name not in ours)


def _is_one_file(files: Sequence[OutputFile]) -> bool:
    return len(files) == 1 and not files[0].name


class StagedOutput:
    """An output that is being written beside its target.

    Use as a context manager: leaving it without `publish` removes every trace.

    Args:
        output: Where the output shall appear.
        files: What it consists of, laid out.
        force: Whether an existing output may be replaced.
        inputs: Files that may not be replaced whatever `force` says.
    """

    def __init__(self, output: Path, files: Sequence[OutputFile], *, force: bool, inputs: Sequence[Path]) -> None:
        self.output = output
        self._target = _resolve(output)
        self._files = tuple(files)
        self._force = force
        self._inputs = tuple(inputs)
        self._temporary: Path | None = None
        self._descriptors: list[int] = []
        self._made: list[Path] = []
        self._flusher = _Flusher()

    def __enter__(self) -> StagedOutput:  # noqa: PYI034  # typing.Self came with Python 3.11
        try:
            self._prepare()
        except OSError as error:
            self._discard()
            if isinstance(error, CkpttoolError):
                raise
            raise _write_error(self.output, error) from error
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    @property
    def directory(self) -> Path:
        """Where the temporary file lies."""
        return self._target.parent

    def _prepare(self) -> None:
        """Make the temporary file or directory, take the space it needs, write what is known already."""
        check_output(self.output, self._files, force=self._force, inputs=self._inputs)
        parent = self._target.parent
        missing = [each for each in (parent, *parent.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir()
            self._made.insert(0, each)
        stem = os.fsdecode(os.fsencode(self._target.name)[:_LONGEST_STEM])
        self._temporary = parent / f".{stem}.ckpttool-{secrets.token_hex(4)}.tmp"
        if not _is_one_file(self._files):
            self._temporary.mkdir()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        for file in self._files:
            path = self._temporary / file.name if file.name else self._temporary
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, flags, 0o666)  # the umask takes its part
            self._descriptors.append(descriptor)
            _allocate(descriptor, file.nbytes)
        for index, file in enumerate(self._files):
            for offset, data in file.literals:
                self.write(index, offset, data)

    def write(self, file: int, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at their place in one of the files. Any thread may call this.

        Raises:
            WriteError: The disk is full, or fails.
        """
        try:
            view = memoryview(data)
            while view:
                done = _pwrite(self._descriptors[file], view, offset)
                view = view[done:]
                offset += done
                self._flusher.note(self._descriptors[file], done)
        except OSError as error:
            raise _write_error(self.output, error) from error

    def publish(self, verify: Callable[[Path], None]) -> None:
        """Flush, read back, and let the output appear under its name, all of it at once.

        Args:
            verify: Is given the temporary path, and raises if what lies there is not what was planned.
        """
        assert self._temporary is not None
        try:
            self._flusher.stop()
            self._flusher.check()
            for descriptor in self._descriptors:
                os.fsync(descriptor)
            while self._descriptors:
                os.close(self._descriptors.pop())
            verify(self._temporary)
            if _is_one_file(self._files):
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
            raise _write_error(self.output, error) from error

    def _publish_file(self, temporary: Path) -> None:
        # What held in the beginning may hold no longer.
        check_output(self.output, self._files, force=self._force, inputs=self._inputs)
        if not self._force:
            try:
                os.link(temporary, self._target)  # unlike a rename, fails if someone else was faster
            except FileExistsError as error:
                raise OutputExistsError(
                    f"{self.output}: appeared while the output was being written",
                    path=self.output,
                    hint="Use --force to replace it, or choose another path with -o.",
                ) from error
            except (OSError, AttributeError, NotImplementedError):
                pass  # a file system without hard links: the check above has to do
            else:
                temporary.unlink()
                return
        os.replace(temporary, self._target)

    def _publish_directory(self, temporary: Path) -> None:
        check_output(self.output, self._files, force=self._force, inputs=self._inputs)
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
        while self._descriptors:
            os.close(self._descriptors.pop())
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                if _is_one_file(self._files):
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

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._descriptor = -1
        self._unflushed = 0
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._failure: OSError | None = None

    def note(self, descriptor: int, nbytes: int) -> None:
        """Bytes were written."""
        with self._wake:
            self._unflushed += nbytes
            self._descriptor = descriptor
            if self._unflushed < _FLUSH_BYTES:
                return
            if self._thread is None and not self._stopped and hasattr(os, "fdatasync"):
                self._thread = threading.Thread(target=self._loop, name="ckpttool-flush", daemon=True)
                self._thread.start()
            self._wake.notify()

    def stop(self) -> None:
        """End the thread; it uses no descriptor after this. May be called more than once."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _loop(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopped or self._unflushed >= _FLUSH_BYTES)
                if self._stopped:
                    return
                descriptor, self._unflushed = self._descriptor, 0
            try:
                os.fdatasync(descriptor)
            except OSError as error:
                self._failure = error
                return

    def check(self) -> None:
        """Raise what went wrong: the kernel reports a failed flush once, and the last fsync would not hear of it."""
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
