"""Where an output goes: its path, its format, whose container it keeps, and every reason why not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpttool.errors import OutputExistsError, UsageError, WriteError
from ckpttool.formats import Format, format_for_output, get_format, writes_directory, writes_model_directory
from ckpttool.tensors import Checkpoint

__all__ = ["Place", "check_room", "find_place"]


@dataclass(frozen=True)
class Place:
    """Where an output goes, who writes it, and whose container it keeps."""

    path: Path
    writer: Format
    template: Checkpoint | None


def find_place(
    output: str | Path, checkpoints: Sequence[Checkpoint], *, keep_state: bool, force: bool, keep_container: bool = True
) -> Place:
    """Where the output goes: its suffix chooses the format, and the last member's container is kept where it can be.

    Args:
        output: As the user named it.
        checkpoints: What the output is made of, none of which it may be; the last one's container is kept.
        keep_state: Whether the training state shall be kept as well.
        force: Whether an existing output may be replaced.
        keep_container: False for names that the container does not have: the output is a plain file of the weights.

    Raises:
        UsageError: Nothing can write such a file, or not with the training state.
        OutputExistsError: It exists (without `force`) or is an input.
        WriteError: Its directory cannot be written.
    """
    newest = checkpoints[-1]
    if not str(output):
        raise UsageError("the output has an empty name", hint="Is a variable after -o unset?")
    path, writer = _path_and_writer(output, newest)
    template = newest if newest.format == writer.NAME and keep_container else None
    if keep_state and template is None:
        raise UsageError(
            f"--keep-state needs an output of the newest checkpoint's own format, and {path.name} is not",
            hint=f"Name an output of the format {newest.format}, or leave --keep-state out.",
        )
    _check_output(path, writer, checkpoints, force=force)
    return Place(path, writer, template)


def _path_and_writer(output: str | Path, newest: Checkpoint) -> tuple[Path, Format]:
    """Where the output goes, and who writes it."""
    path = Path(output)
    own = get_format(newest.format)
    into = str(output).endswith(("/", os.sep))  # a Path does not keep the separator at its end
    if into and writes_model_directory(own):
        return path, own
    if into or (path.is_dir() and not writes_directory(own)):
        return path / newest.path.name, own
    writer = format_for_output(path, newest)
    if writer is not own and newest.format == "parts" and len(newest.container.parts) > 1:
        raise UsageError(
            f"{newest.path.name} is in {len(newest.container.parts)} files that hold pieces of tensors or of a model;"
            f" they cannot be joined in {path.name}",
            hint="-o DIRECTORY writes the same files again; the framework's own converter joins them.",
        )
    return path, writer


def _check_output(path: Path, writer: Format, checkpoints: Sequence[Checkpoint], *, force: bool) -> None:
    is_directory = writes_directory(writer)
    for checkpoint in checkpoints:
        inside = checkpoint.path
        if inside.is_dir() and inside.resolve() in path.resolve().parents:
            raise OutputExistsError(
                f"{path}: the output lies in one of the inputs, {inside}",
                path=path,
                hint="Inputs are never written to. Choose -o.",
            )
        for file in (checkpoint.path, *checkpoint.files):
            if _is_same_file(path, file):
                raise OutputExistsError(
                    f"{path}: the output is one of the inputs",
                    path=path,
                    hint="Inputs are never written to. Choose -o.",
                )
    if path.is_symlink() or path.exists():
        if path.is_dir() and not is_directory:
            raise OutputExistsError(f"{path}: a directory is in the way", path=path)
        if path.exists() and is_directory and not path.is_dir():
            raise OutputExistsError(
                f"{path}: a file is in the way of the output, which is a directory",
                path=path,
                hint="-o writes somewhere else.",
            )
        if is_directory and not force and any(path.iterdir()):
            # A model directory, and one with the newest's own name, is an earlier output where the output belongs.
            is_output = writes_model_directory(writer) or path.name == checkpoints[-1].path.name
            elsewhere = "-o writes somewhere else" if is_output else f"-o {path}{os.sep} writes into the directory"
            raise OutputExistsError(
                f"{path}: exists already", path=path, hint=f"--force replaces an earlier output; {elsewhere}."
            )
        if not is_directory and not force:
            raise OutputExistsError(
                f"{path}: exists already", path=path, hint="--force replaces it; -o writes somewhere else."
            )
    parent = _nearest_directory(path.parent)
    if not parent.is_dir():
        raise WriteError(f"{path}: {parent} is not a directory", path=path)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise WriteError(f"{path}: no permission to write in {parent}", path=path, hint="-o writes somewhere else.")


def _nearest_directory(path: Path) -> Path:
    """The deepest part of a path that exists; the rest is made when the output is written."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one == other


def check_room(path: Path, nbytes: int) -> None:
    """Raise WriteError where the output's disk has fewer bytes free than it needs."""
    free = shutil.disk_usage(_nearest_directory(path.parent)).free
    if free < nbytes:
        raise WriteError(
            f"{path}: the output needs {nbytes:,} bytes and the disk has {free:,} free",
            path=path,
            hint="-o writes to another disk; --dtype bfloat16 halves a float32 output.",
        )
