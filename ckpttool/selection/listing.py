"""What is in a model directory, and what to say where a path leads nowhere."""

from __future__ import annotations

import re
from contextlib import suppress
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from ckpttool.errors import CkpttoolError, NotFoundError, UnreadableError, UnsupportedError, UsageError
from ckpttool.reading.snapshot import Snapshot
from ckpttool.run_layouts import MARKED_FOLDERS
from ckpttool.text import parameter

__all__ = ["is_url", "list_directory", "missing"]

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}([^/].*)")
"""As a user types it, or as a `Path` has it: with one slash."""
_WILDCARD = re.compile(r"[*?]|\[[^\]]+\]")


def list_directory(directory: Path, snapshot: Snapshot) -> dict[str, tuple[str, ...] | None]:
    """The names in a directory, with the names in its directories, and None for files; broken links are left out.

    Raises:
        NotFoundError: There is no such path; the hint says what there is.
        UsageError: It is a file.
        UnreadableError: It may not be listed.
    """
    try:
        items = snapshot.list(directory)
    except FileNotFoundError as error:
        raise missing(directory, snapshot) from error
    except NotADirectoryError as error:
        if not snapshot.exists(directory):
            raise missing(directory, snapshot) from error
        raise UsageError(
            f"{directory}: a file, not a model directory",
            hint="Give one model directory, or two or more checkpoint files.",
            path=directory,
        ) from error
    except OSError as error:
        raise UnreadableError(
            f"{directory}: cannot be listed ({error.strerror})",
            path=directory,
            hint="Does it belong to another user, or is its disk away?",
        ) from error
    return {
        name: _inside(directory / name, snapshot) if item.kind == "directory" else None
        for name, item in items.items()
        if item.kind in {"directory", "file"}
    }


def _inside(directory: Path, snapshot: Snapshot) -> tuple[str, ...]:
    """The names in a directory, and one level further down those that mark a checkpoint as finished."""
    names: list[str] = []
    with suppress(OSError):  # a directory that may not be listed
        names += snapshot.names(directory)
    for folder in sorted(MARKED_FOLDERS.intersection(names)):
        with suppress(OSError):
            names += [f"{folder}/{name}" for name in snapshot.names(directory / folder)]
    return tuple(names)


def is_url(text: str) -> bool:
    """Whether a text is the URL of an object store or a server, and not a path."""
    return _URL.fullmatch(text) is not None


def missing(path: Path, snapshot: Snapshot) -> CkpttoolError:
    """That there is no such path, and what was probably meant."""
    url = _URL.fullmatch(str(path))
    if url:
        return UnsupportedError(
            f"{url[1]}://{url[2]}: only files and mounted directories are read",
            path=path,
            hint="Copy it here first, for example with aws s3 cp, gcloud storage cp or hf download.",
        )
    names: tuple[str, ...] = ()
    with suppress(OSError):
        names = snapshot.names(path.parent)
    if path.name in names:
        return NotFoundError(f"{path}: a symbolic link that leads nowhere", path=path)
    hint: str | None = None
    like = get_close_matches(path.name, names, n=1)
    matching = [name for name in names if fnmatchcase(name, path.name)] if _WILDCARD.search(path.name) else []
    if matching:
        where = "the model directory" if str(path.parent) == "." else path.parent
        hint = (
            f"{len(matching)} name{'s match' if len(matching) > 1 else ' matches'} this pattern, which is not expanded "
            f"in quotes: leave the quotes out, or name {where} with {parameter('include', path.name)}."
        )
    elif _WILDCARD.search(path.name):
        hint = f"As a pattern, it matches none of the {len(names)} names in {path.parent}."
    elif like:
        hint = f"Did you mean {path.parent / like[0]}?"
    return NotFoundError(f"{path}: no such file or directory", path=path, hint=hint)
