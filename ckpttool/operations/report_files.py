"""Writing a report into a file: whole or not at all, and never over something that is there without being told to."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
from typing import BinaryIO

from ckpttool.errors import OutputExistsError, UsageError, WriteError
from ckpttool.text import parameter

__all__ = ["check_report", "save_report", "text_writer"]


def check_report(path: str, *, force: bool, inputs: Iterable[str] = ()) -> None:
    """Refuse before any work is done.

    Raises:
        OutputExistsError: If the path exists and `force` is false, or if it is one of the inputs.
        UsageError: If it is a directory.
    """
    if os.path.isdir(path):
        raise UsageError(f"{parameter('output')} {path} is a directory", hint="Name a file in it.")
    for each in inputs:
        if os.path.exists(path) and os.path.exists(each) and os.path.samefile(path, each):
            raise OutputExistsError(f"{path} is an input of this command and is not overwritten", path=path)
    if os.path.lexists(path) and not force:
        raise OutputExistsError(
            f"{path} exists already", hint=f"Add {parameter('force', True)} to overwrite it.", path=path
        )


def text_writer(pieces: Iterable[str]) -> Callable[[BinaryIO], None]:
    """What writes pieces of text as UTF-8 with plain newlines; for `save_report`."""

    def write(file: BinaryIO) -> None:
        file.writelines(piece.encode("utf-8") for piece in pieces)

    return write


def save_report(path: str, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a file next to the path, and rename it there when it is whole.

    The directory is made if it is missing.

    Raises:
        WriteError: If the disk does not take it. No file is left behind.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        os.makedirs(directory or ".", exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with open(descriptor, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise WriteError(f"{path} could not be written: {error.strerror}", path=path) from error
