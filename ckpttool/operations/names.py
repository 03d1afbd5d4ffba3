"""The names that a user gives: inputs that cannot be paths, outputs that cannot be files, and the default output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckpttool.errors import UsageError
from ckpttool.formats import first_file
from ckpttool.operations.records import Selection
from ckpttool.reading.snapshot import Snapshot
from ckpttool.selection.listing import is_url, missing
from ckpttool.text import parameter

__all__ = ["check_output_name", "check_sources", "default_output", "folder_name", "is_model_directory"]


def is_model_directory(sources: Sequence[Path], snapshot: Snapshot) -> bool:
    """Whether the inputs are one directory, whose checkpoints are selected; others are a list, taken as it is."""
    return len(sources) == 1 and snapshot.is_dir(sources[0])


def check_sources(sources: Sequence[Path], snapshot: Snapshot) -> list[Path]:
    """The inputs, each of which exists. The prefix of the names of a checkpoint's files is replaced by the first file.

    Raises:
        UsageError: There are no inputs.
        NotFoundError: One is not there; the hint says what was probably meant.
        UnsupportedError: One is the URL of an object store or a server.
        UnreadableError: It cannot be told whether one is there.
    """
    if not sources:
        raise UsageError("there is nothing to read", hint="Name a model directory, or checkpoint files.")
    found = []
    for source in sources:
        first = first_file(source, snapshot)
        if not snapshot.exists(first):
            raise missing(source, snapshot)
        found.append(first)
    return found


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
    if output is not None and "//" in output and is_url(output):
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
