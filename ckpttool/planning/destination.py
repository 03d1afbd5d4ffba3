"""Where an output is written: its path and format, whose container it keeps, and every reason not to write it.

`find_place` answers the first part while a plan is made. `Destination.check` is the one check of what is there already:
a dry run calls it, and the engine calls it before it begins and again just before it publishes.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ckpttool.errors import CkpttoolError, OutputExistsError, UsageError, WriteError
from ckpttool.formats import Format, format_for_output, get_format, open_checkpoint
from ckpttool.planning.plan import Plan
from ckpttool.reading.tiled import pieces_of
from ckpttool.tensors import Checkpoint
from ckpttool.text import first_names, parameter

__all__ = ["Destination", "Place", "check_destinations", "destinations_of", "find_place", "write_error"]


@dataclass(frozen=True)
class Place:
    """Where an output is written, by which format, and whose container it keeps."""

    path: Path
    writer: Format
    template: Checkpoint | None


def find_place(
    output: str | Path, checkpoints: Sequence[Checkpoint], *, keep_state: bool, keep_container: bool = True
) -> Place:
    """Where the output goes: its suffix chooses the format, and the last member's container is kept where it can be.

    Args:
        output: As the user named it.
        checkpoints: What the output is made of; the last one's container is kept.
        keep_state: Whether the training state is kept as well.
        keep_container: False for names that the container does not have: the output is a plain file of the weights.

    Raises:
        UsageError: Nothing can write such a file, or not with the training state.
    """
    newest = checkpoints[-1]
    if not str(output):
        raise UsageError(
            f"{parameter('output')} is empty", hint="Name a file or a directory. Is a variable of the shell unset?"
        )
    path, writer = _path_and_writer(output, newest)
    template = newest if newest.format == writer.name and keep_container else None
    if keep_state and template is None:
        raise UsageError(
            f"{parameter('keep_state')} needs an output of the newest checkpoint's own format, and {path.name} is not",
            hint=f"Name an output of the format {newest.format}, or leave {parameter('keep_state')} out.",
        )
    return Place(path, writer, template)


def _path_and_writer(output: str | Path, newest: Checkpoint) -> tuple[Path, Format]:
    """Where the output goes, and the format that writes it."""
    path = Path(output)
    own = get_format(newest.format)
    into = str(output).endswith(("/", os.sep))  # a Path does not keep the separator at its end
    if into and own.writes_model_directory:
        return path, own
    if into or (_is_directory(path) and not own.writes_directory):
        return path / newest.path.name, own
    writer = format_for_output(path, newest)
    if writer is not own and own.is_partitioned and len(newest.files) > 1:
        raise UsageError(
            f"{newest.path.name} is in {len(newest.files)} files that hold pieces of tensors or of a model;"
            f" they cannot be joined in {path.name}",
            hint="With a directory as the output the same files are written again; the framework's own converter joins"
            " them.",
        )
    return path, writer


# --- The check ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Destination:
    """Where one output is to be written.

    A symbolic link is followed: what it points to is replaced, the link stays.

    Attributes:
        output: The path, as the user named it.
        names: Names of the files of which it consists, relative to it; ``{""}`` where it is one file itself.
        nbytes: Its size.
        inputs: Paths that may not be replaced, whatever `force` says.
        force: Whether an existing output may be replaced.
        is_exact: Whether the same path with a separator at its end would be the same output, and not one inside it.
    """

    output: Path
    names: frozenset[str]
    nbytes: int
    inputs: tuple[Path, ...]
    force: bool
    is_exact: bool = False

    @property
    def target(self) -> Path:
        """The path that is really written, links followed."""
        return Path(os.path.realpath(self.output))

    @property
    def is_one_file(self) -> bool:
        """Whether the output is one file; else it is a directory."""
        return self.names == {""}

    def check(self) -> None:
        """Make sure that the output may be written. Nothing is touched.

        Raises:
            OutputExistsError: It is, holds, or is inside an input; or it exists and may not be replaced.
            WriteError: Its directory cannot be written.
        """
        try:
            target = self.target
            existing = _status(target)
            self._check_inputs(target, existing)
            if existing is not None:
                self._check_existing(target, existing)
            elif target.is_symlink():
                raise self._exists("is a link in a circle")
            elif self.output.is_symlink() and not self.force:
                raise self._exists(
                    f"exists already: it is a link to {target}, which is missing",
                    f"With {parameter('force', value=True)} the missing file is written.",
                )
            above = nearest_existing(target.parent)
            if not above.is_dir():
                raise WriteError(f"{self.output}: {above} is not a directory", path=self.output, hint=_ELSEWHERE)
            if not os.access(above, os.W_OK | os.X_OK):
                raise WriteError(f"{self.output}: no permission to write in {above}", path=self.output, hint=_ELSEWHERE)
        except CkpttoolError:
            raise
        except OSError as error:
            raise write_error(self.output, error) from error

    def _check_inputs(self, target: Path, existing: os.stat_result | None) -> None:
        above = set(target.parents)
        for path in self.inputs:
            real = Path(os.path.realpath(path))
            status = _status(real)
            if real == target or (existing is not None and status is not None and os.path.samestat(existing, status)):
                said = "the output is one of the inputs"
            elif target in real.parents:
                said = f"the input {path} is in the output's directory"
            elif real in above and status is not None and stat.S_ISDIR(status.st_mode):
                said = f"the output is in the directory of the input {path}"
            else:
                continue
            raise OutputExistsError(f"{self.output}: {said}", path=self.output, hint=f"{_KEPT} {_ELSEWHERE}")

    def _check_existing(self, target: Path, existing: os.stat_result) -> None:
        is_directory = stat.S_ISDIR(existing.st_mode)
        if is_directory == self.is_one_file:
            kinds = "a directory, and the output is a file" if is_directory else "a file, and the output is a directory"
            raise self._exists(f"is {kinds}")
        if is_directory:
            if os.listdir(target):
                self._check_directory(target)
        elif not stat.S_ISREG(existing.st_mode):
            raise self._exists("is a device or a pipe")
        elif not self.force:
            raise self._exists("exists already", f"{parameter('force', value=True)} replaces it.")

    def _check_directory(self, target: Path) -> None:
        """Replace a directory only if ckpttool wrote it, and only if nothing was put into it since."""
        foreign = _foreign_files(target, self.names)
        into = "" if self.is_exact else f" With {self.output}{os.sep} the output is written into the directory."
        if foreign is None:
            raise self._exists(
                "exists already, and a directory that is not an earlier output of ckpttool is never replaced",
                into.strip(),
            )
        if foreign:
            raise self._exists(
                f"holds files that are not of an earlier output ({first_names(foreign, 3)}), which would be lost",
                "Move these files away.",
            )
        if not self.force:
            raise self._exists("exists already", f"{parameter('force', value=True)} replaces the earlier output.{into}")

    def _exists(self, what: str, hint: str = "") -> OutputExistsError:
        return OutputExistsError(
            f"{self.output}: {what}", path=self.output, hint=f"{hint} {_ELSEWHERE}" if hint else _ELSEWHERE
        )


_ELSEWHERE = f"Choose another {parameter('output')}."
_KEPT = "Inputs are never written to."


def destinations_of(plans: Sequence[Plan]) -> list[Destination]:
    """Where plans that are executed together write. No output of one may be an input of another."""
    inputs = _input_paths(plans)
    return [
        Destination(
            plan.output,
            frozenset(file.name for file in plan.files),
            plan.bytes_to_write,
            inputs,
            plan.force,
            is_exact=get_format(plan.format).writes_model_directory
            or plan.output.name == plan.members[-1].checkpoint.path.name,
        )
        for plan in plans
    ]


def check_destinations(destinations: Sequence[Destination]) -> None:
    """Make sure that outputs may be written, all of them, and that there is space for them. Nothing is changed.

    Raises:
        UsageError: Two are the same.
        OutputExistsError: See `Destination.check`.
        WriteError: See there; or a disk has not enough space.
    """
    if len({each.target for each in destinations}) < len(destinations):
        raise UsageError("two plans have the same output", hint="Give every output a path of its own.")
    for each in destinations:
        each.check()
    needed: dict[int, int] = {}
    for each in destinations:
        above = nearest_existing(each.target.parent)
        disk = above.stat().st_dev
        needed[disk] = needed.get(disk, 0) + each.nbytes
        free = shutil.disk_usage(above).free
        if free < needed[disk]:
            raise WriteError(
                f"{each.output}: the output needs {needed[disk]:,} bytes and the disk has {free:,} free",
                path=each.output,
                hint=f"Choose another {parameter('output')}, on another disk; {parameter('dtype', 'bfloat16')} halves a"
                " float32 output.",
            )


def nearest_existing(path: Path) -> Path:
    """The deepest part of a path that exists; the rest is made when the output is written."""
    while _status(path) is None and path != path.parent:
        path = path.parent
    return path


def _is_directory(path: Path) -> bool:
    """Whether a path leads to a directory; what cannot be told is said by the check."""
    with suppress(OSError):
        return path.is_dir()
    return False


def _status(path: Path) -> os.stat_result | None:
    """What a path leads to; None where that is missing.

    Raises:
        OSError: It cannot be told, for instance for a name that is too long.
    """
    try:
        return path.stat()
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            return None
        raise


def _foreign_files(directory: Path, ours: Collection[str]) -> list[str] | None:
    """What is in an earlier output of ckpttool, and neither it nor this one has written; None for other directories."""
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


def _input_paths(plans: Sequence[Plan]) -> tuple[Path, ...]:
    """Every path that belongs to a member of one of the plans, each once."""
    paths = {
        path: None
        for plan in plans
        for member in plan.members
        for path in (member.checkpoint.path, *member.checkpoint.files)
    }
    stored = (
        part.storage.path
        for plan in plans
        for tensor in plan.tensors
        for term in tensor.terms
        for part in pieces_of(term.tensor)
    )
    # By identity first: to hash a Path takes longer than all the rest, and a file's tensors share one.
    paths.update(dict.fromkeys({id(path): path for path in stored}.values()))
    return tuple(paths)


# --- What the system says -----------------------------------------------------------------------------------------

_HINTS = {
    errno.ENOSPC: f"Free some space, or choose another {parameter('output')}, on another disk.",
    errno.EDQUOT: f"Free some of your quota, or choose another {parameter('output')}, on another disk.",
    errno.EFBIG: "The limit of file sizes is too low (ulimit -f), or the file system cannot hold such a file.",
    errno.EACCES: f"Choose another {parameter('output')}, in a directory that you may write to.",
    errno.EPERM: f"Choose another {parameter('output')}, in a directory that you may write to.",
    errno.EROFS: f"Choose another {parameter('output')}, on a disk that can be written to.",
    errno.ENOENT: f"Make the directory first, or choose another {parameter('output')}.",
    errno.ENOTDIR: f"Choose another {parameter('output')}, whose parent is a directory.",
    errno.ENAMETOOLONG: f"Choose another {parameter('output')}, with a shorter name.",
}


def write_error(path: Path, error: OSError) -> WriteError:
    """The error for an output that the system refuses to write."""
    reason = error.strerror or str(error)
    return WriteError(f"{path}: cannot be written ({reason})", path=path, hint=_HINTS.get(error.errno or 0))
