"""The names that a user gives: inputs that cannot be paths, outputs that cannot be files, and the default output."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ckpttool.errors import NotFoundError, UnsupportedError, UsageError
from ckpttool.operations.records import Selection
from ckpttool.reading.snapshot import Snapshot
from ckpttool.text import parameter

__all__ = ["check_output_name", "check_sources", "default_output", "folder_name", "is_model_directory"]

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)")
"""As a `Path` has it: with one slash."""


def is_model_directory(sources: Sequence[Path], snapshot: Snapshot) -> bool:
    """Whether the inputs are one directory, whose checkpoints are selected; others are a list, taken as it is."""
    return len(sources) == 1 and snapshot.is_dir(sources[0])


def check_sources(sources: Sequence[Path], snapshot: Snapshot) -> None:
    """Refuse what is not a path: nothing, a URL, a pattern that no shell has expanded.

    Raises:
        UsageError: There are no inputs.
        UnsupportedError: One is the URL of an object store or a server.
        NotFoundError: One has wildcards in it, and no file of that name.
    """
    if not sources:
        raise UsageError("there is nothing to read", hint="Name a model directory, or checkpoint files.")
    for source in sources:
        if snapshot.exists(source):
            continue
        url = _URL.fullmatch(str(source))
        if url:
            raise UnsupportedError(
                f"{url[1]}://{url[2]}: only files and mounted directories are read",
                path=source,
                hint="Copy it here first, for example with aws s3 cp, gcloud storage cp or hf download.",
            )
        if re.search(r"[*?\[]", str(source)):
            directory = "the model directory" if str(source.parent) in {"", "."} else str(source.parent)
            raise NotFoundError(
                f"{source}: no such file or directory, and patterns are not expanded here",
                path=source,
                hint=f"Leave the quotes out, so that the shell expands it; or name {directory}, with "
                f"{parameter('include', source.name)}.",
            )


def check_output_name(output: str | None) -> None:
    """Refuse an output that cannot be a file.

    Raises:
        UsageError: It is ``-``, or a URL.
    """
    if output == "-":
        raise UsageError(
            f"{parameter('output', '-')}: an output is written at many places at once, and cannot be a stream",
            hint="Write a file and read that; /dev/shm/x.safetensors is one in memory. A file of this name is ./-.",
        )
    url = None if output is None else _URL.fullmatch(output)
    if url and "//" in (output or ""):
        raise UsageError(
            f"{parameter('output', output)}: only files and mounted directories are written",
            hint="Write a file, and copy it there.",
        )


def folder_name(base: str, selection: Selection, *more: str) -> str:
    """The folder of an output if nothing is said: another one for each choice among the checkpoints.

    Args:
        base: What it is for checkpoints that nothing was said about.
        selection: Which were chosen. Patterns are not part of the name.
        more: What else tells this output from others.

    Example:
        >>> folder_name("avg", Selection()), folder_name("avg", Selection(last=5), "anneal-cosine")
        ('avg', 'avg-last-5-anneal-cosine')
    """
    numbers = ("last", "every", "from_step", "to_step", "best")
    chosen = [
        f"{name.replace('_step', '')}-{getattr(selection, name)}"
        for name in numbers
        if getattr(selection, name) is not None
    ]
    return "-".join((base, *chosen, *more))


def default_output(sources: Sequence[Path], output: str | None, folder: str, snapshot: Snapshot) -> str:
    """Where the output goes: as said, or `folder` in the model directory under the newest member's own name.

    Raises:
        UsageError: None is said, and the inputs are a list.
    """
    if output is not None:
        return output
    if is_model_directory(sources, snapshot):
        return f"{sources[0] / folder}/"
    raise UsageError(
        "a list of checkpoints needs an output", hint=f"For example: {parameter('output', 'averaged.safetensors')}."
    )
