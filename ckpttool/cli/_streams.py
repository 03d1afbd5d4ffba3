"""Standard streams that are closed or full: no traceback, and nothing of the work is lost.

* A stream that is closed (``>&-``, as under some schedulers) is opened on the null device, so that no file of the
  work gets its descriptor.
* Diagnostics that cannot be written are dropped: the work and its exit code do not depend on them.
* An answer that cannot be written is a `WriteError`. A reader that has left (``| head``) stays a BrokenPipeError.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from ckpttool.errors import WriteError

__all__ = ["sound_streams"]

_STDOUT, _STDERR = 1, 2


class _Answers(io.FileIO):
    """Standard output: what cannot be written is an error, once."""

    _failed = False

    def write(self, data: Any, /) -> int:
        nbytes = memoryview(data).nbytes
        if not nbytes or self._failed:  # what tries the stream, and what is flushed once more at the end
            return nbytes
        try:
            return super().write(data)
        except BrokenPipeError:
            self._failed = True
            raise
        except OSError as error:
            self._failed = True
            raise WriteError(
                f"standard output: cannot be written ({error.strerror})",
                hint="Redirect it elsewhere. Output files that were written before this are complete.",
            ) from error


class _Diagnostics(io.FileIO):
    """Standard error: what cannot be written is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


@contextlib.contextmanager
def sound_streams() -> Iterator[None]:
    """While it lasts, the standard streams can be written to, whatever they lead to.

    Streams that are not those of the process, as in tests, stay as they are.
    """
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout = _on(_Answers, sys.stdout, _STDOUT)
    sys.stderr = _on(_Diagnostics, sys.stderr, _STDERR)
    try:
        yield
    finally:
        after = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = before
        for new, old in zip(after, before, strict=True):
            if new is not old:
                with contextlib.suppress(OSError):
                    new.flush()


def _open_closed_descriptors() -> None:
    for descriptor in range(_STDERR + 1):
        if not _is_open(descriptor):
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _on(kind: type[io.FileIO], stream: TextIO | None, descriptor: int) -> TextIO:
    """A text stream like `stream`, on a raw file of the given kind."""
    if stream is None:  # it was closed when Python started
        return io.TextIOWrapper(io.BufferedWriter(kind(descriptor, "w", closefd=False)), encoding="utf-8")
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # unbuffered, it is the buffer itself
    if type(raw) is not io.FileIO or raw.fileno() != descriptor:  # a test's, or a console of Windows
        return stream
    stream.flush()
    own: Any = kind(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        own if raw is buffer else io.BufferedWriter(own),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=raw is buffer,
    )
