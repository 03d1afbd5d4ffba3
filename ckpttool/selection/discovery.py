"""Find the checkpoints of a model directory, or take a list of them.

Order is numeric, by step: by the one that the content states, or by the one in the name; never by time stamps, never
by string. Discovering opens as few files as it can: the oldest and the newest entry (do the steps inside agree with
the names?), and unnumbered names (which checkpoint is it?); all of them only where names and contents count
differently. Every name that is left out has its reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Literal

from ckpttool.errors import CkpttoolError, NotFoundError, UnreadableError, UsageError
from ckpttool.formats import format_of_directory
from ckpttool.run_layouts import MARKED_FOLDERS, Reason
from ckpttool.selection.choice import Discovery, Entry, Unit, stated_step, weights_file
from ckpttool.selection.detection import Classified, Named, classify, detect, name_numbers
from ckpttool.selection.families import parting, question, told
from ckpttool.tensors import Checkpoint, Skipped
from ckpttool.text import first_names

__all__ = ["discover", "from_paths"]


def _list(directory: Path) -> dict[str, tuple[str, ...] | None]:
    """The names of a directory, with the names inside its directories; broken links are left out."""
    listing: dict[str, tuple[str, ...] | None] = {}
    try:
        with os.scandir(directory) as items:
            for item in items:
                with suppress(OSError):  # a directory that may not be listed; a link in a circle
                    if item.is_dir():
                        listing[item.name] = ()
                        listing[item.name] = _inside(item.path)
                    elif item.is_file():
                        listing[item.name] = None
    except FileNotFoundError as error:
        raise _missing(directory) from error
    except NotADirectoryError as error:
        raise UsageError(
            f"{directory}: a file, not a model directory",
            hint="Give one model directory, or two or more checkpoint files.",
            path=directory,
        ) from error
    except OSError as error:
        raise UnreadableError(f"{directory}: cannot be listed ({error.strerror})", path=directory) from error
    return listing


def _missing(path: Path) -> NotFoundError:
    """That there is no such path, and what is there under a name like it."""
    try:
        like = get_close_matches(path.name, os.listdir(path.parent), n=1)
    except OSError:
        like = []
    return NotFoundError(
        f"{path}: no such file or directory",
        path=path,
        hint=f"Did you mean {path.parent / like[0]}?" if like else None,
    )


def _inside(directory: str) -> tuple[str, ...]:
    """The names in a directory, and one level further down those that mark a checkpoint as finished."""
    names = os.listdir(directory)
    for folder in MARKED_FOLDERS.intersection(names):
        with suppress(OSError):
            names += [f"{folder}/{name}" for name in os.listdir(f"{directory}/{folder}")]
    return tuple(names)


def discover(
    directory: str | os.PathLike[str],
    *,
    layout: str | None = None,
    section: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Discovery:
    """Find the checkpoints of a model directory.

    Args:
        directory: The model directory.
        layout: Name of the layout, where it shall not be found out.
        section: Where the weights are inside the files, where the user says it.
        include: Globs; other names are not even considered.
        exclude: Globs of names that are not considered.

    Raises:
        NotFoundError: There is no such directory, or no numbered checkpoint in it; the message says what is there.
        UsageError: Several layouts fit equally well, two checkpoints have the same step, or the checkpoints are one
            level further down.
        UnreadableError: The directory or a checkpoint that is needed to tell the order cannot be read.
    """
    directory = Path(directory)
    everything = _list(directory)
    hidden = {name: f"--exclude {glob}" for name in everything for glob in exclude if fnmatchcase(name, glob)}
    if include:
        for name in everything:
            if not any(fnmatchcase(name, glob) for glob in include):
                hidden.setdefault(name, f"not in --include {' '.join(include)}")
    listing = {name: inner for name, inner in everything.items() if name not in hidden}
    try:
        found = detect(listing, layout=layout, where=str(directory))
    except NotFoundError as error:
        kind = format_of_directory(directory) if layout is None and not include else None
        from ckpttool.formats.directories.parts import rank_folders  # runs on other files do without it

        ranks = rank_folders(directory) if kind is None else []
        if ranks:  # NeMo with model parallelism: a folder for each rank, and every checkpoint is in all of them
            inner = discover(directory / ranks[0], layout=layout, section=section, include=include, exclude=exclude)
            return replace(inner, why=f"{inner.why}, in each of {len(ranks)} folders like {ranks[0]}")
        if kind is None or not kind.is_partitioned:  # its folders and files are pieces
            _ask_for_subdirectory(directory, everything)
        if layout is None and not include and (kind is not None or weights_file(directory) != directory):
            alone = Entry(directory, section=section)
            return Discovery(directory.parent, "single", "the directory is one checkpoint itself", (alone,))
        error.path = directory
        if hidden and not listing:
            options = " and ".join(name for name, globs in (("--include", include), ("--exclude", exclude)) if globs)
            error.message = f"{directory}: of its {len(hidden)} names, {options} left none"
            error.hint = f"There are {first_names(sorted(hidden))}."
        elif hidden:
            error.hint = f"{error.hint or ''} --include and --exclude left out {first_names(sorted(hidden))}.".strip()
        raise
    if found.layout.name == "generic" and found.layout.kind == "directory":
        # Runs beside each other, with the model that each has ended in, are numbered as well.
        _ask_for_subdirectory(directory, {name: everything[name] for name in found.entries}, known=True)
    skipped = [
        Skipped(directory / name, hidden[name])
        for name in classify(found.layout, {name: everything[name] for name in hidden}).entries
    ]
    entries, notes, warnings = _with_steps(directory, found, section, mixed=bool(include))
    entries, twins = _without_twins(entries)
    _refuse_equal_steps(directory, entries, mixed=bool(include))
    if include:
        notes += told(entries)
        entries = [replace(entry, kind=()) for entry in entries]
    skipped += twins
    skipped += [Skipped(directory / each.name, each.reason) for each in found.ignored]
    unfinished = [each.name for each in found.ignored if each.code is Reason.UNFINISHED]
    if unfinished:
        notes.append(f"left out, unfinished or not a checkpoint: {first_names(sorted(unfinished))}")
    skipped += _explain_aliases(directory, found, entries)
    return Discovery(
        directory,
        found.layout.name,
        found.why,
        tuple(entries),
        tuple(sorted(skipped, key=lambda each: each.path.name)),
        tuple(notes),
        tuple(warnings),
    )


def _ask_for_subdirectory(directory: Path, listing: dict[str, tuple[str, ...] | None], *, known: bool = False) -> None:
    """Raise a question where the checkpoints are further down.

    Args:
        directory: The model directory.
        listing: Its names, and those inside.
        known: Whether only those count that a framework's row knows, one level down; else any, up to three levels.
    """
    inside: list[str] = []
    level = sorted(name for name, inner in listing.items() if inner and not name.startswith("."))[:100]
    for _ in range(1 if known else 3):
        deeper: list[str] = []
        for name in level:
            below = _list(directory / name)
            try:
                found = detect(below, where=name)
                count = len(found.entries)
                if not known or found.layout.name != "generic":
                    inside.append(f"{name} ({count} checkpoint{'s' * (count != 1)})")
            except CkpttoolError:
                deeper += [f"{name}/{child}" for child, inner in sorted(below.items()) if inner and child[:1] != "."]
        level = deeper[:200]
        if inside:
            break
    if inside:
        first = inside[0].rpartition(" (")[0]
        raise UsageError(
            f"{directory}: the checkpoints are further down: {first_names(inside, 6)}",
            hint=f"Name the one that is meant, for instance {directory / first}.",
            path=directory,
        )


def _name_key(named: Named) -> tuple[Unit, int] | None:
    if named.step is not None:
        return "step", named.step
    if named.epoch is not None:
        return "epoch", named.epoch
    return ("date", named.date) if named.date is not None else None


def _readable(entries: Iterable[Entry]) -> tuple[Entry, Checkpoint] | None:
    """The first of a few that can be opened. What cannot is an error when it is selected, not before."""
    for entry in entries:
        with suppress(CkpttoolError):
            return entry, entry.peek()
    return None


def _with_steps(
    directory: Path, found: Classified, section: str | None, *, mixed: bool
) -> tuple[list[Entry], list[str], list[str]]:
    """The entries in their order, on one scale: all by their contents, or all by their names.

    Args:
        directory: The model directory.
        found: Its names.
        section: Where the weights are inside the files.
        mixed: Whether the user has chosen among the names, so that their kinds are no question any more.
    """
    keys = {name: _name_key(named) for name, named in found.entries.items()}
    units = {key[0] for key in keys.values() if key is not None}
    unit: Unit | None = units.pop() if len(units) == 1 and all(keys.values()) else None
    plain = [
        Entry(
            directory / name,
            epoch=named.epoch,
            section=section,
            weights=found.layout.weights,
            kind=named.kind,
            alike=named.alike,
        )
        for name, named in found.entries.items()
    ]
    numbers = {entry.path: (keys[entry.name] or ("step", 0))[1] for entry in plain}
    plain.sort(key=lambda entry: (numbers[entry.path], entry.name))

    def by_name() -> list[Entry]:
        assert unit is not None
        return [
            replace(
                entry,
                step=None if unit == "date" else numbers[entry.path],
                unit=unit,
                where_step="name",
                order=numbers[entry.path],
            )
            for entry in plain
        ]

    if unit is not None:
        ends = [end for end in (_readable(plain[:2]), _readable(plain[:-3:-1])) if end is not None]
        agree = unit == "step" and all(checkpoint.step == numbers[entry.path] for entry, checkpoint in ends)
        if agree or all(checkpoint.step is None for _, checkpoint in ends):
            return by_name(), [], []
    steps = [entry.peek().step for entry in plain]
    if all(step is not None for step in steps):
        by_content = [
            replace(entry, step=step, unit="step", where_step="content", order=step or 0)
            for entry, step in zip(plain, steps, strict=True)
        ]
        odd = next(((a, b) for a, b in pairwise(by_content) if a.order >= b.order), None)
        if unit is None or odd is None:
            return sorted(by_content, key=lambda entry: (entry.order, entry.name)), [], []
        said = " and ".join(f"{entry.name} says {entry.order}" for entry in odd)
        warning = f"the steps inside do not rise with the names ({said}); the {unit} in the name counts"
        return by_name(), [], [warning]
    without = next(entry.name for entry, step in zip(plain, steps, strict=True) if step is None)
    if unit is None:
        raise (None if mixed else question(str(directory), plain, both=False)) or UsageError(
            f"{directory}: some names count epochs and others steps, and {without} does not say its step",
            hint="Choose one kind with --include or --exclude.",
            path=directory,
        )
    return by_name(), [f"the {unit} in the name counts: {without} does not state its step"], []


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _without_twins(entries: list[Entry]) -> tuple[list[Entry], list[Skipped]]:
    """Leave out numbered names that are links to other numbered names."""
    kept: dict[tuple[int, int], Entry] = {}
    skipped = []
    for entry in sorted(entries, key=lambda entry: entry.path.is_symlink()):
        first = kept.setdefault(_inode(entry.path), entry)
        if first is not entry:
            skipped.append(Skipped(entry.path, _same_file(entry.path, first.path)))
    chosen = set(map(id, kept.values()))
    return [entry for entry in entries if id(entry) in chosen], skipped


def _same_file(path: Path, other: Path) -> str:
    return f"the same file as {other.name} ({'symbolic link' if path.is_symlink() else 'hard link'})"


def _refuse_equal_steps(directory: Path, entries: list[Entry], *, mixed: bool) -> None:
    for first, second in pairwise(entries):
        if first.order == second.order:
            asked = None if mixed else question(str(directory), entries, both=False)
            raise asked or UsageError(
                f"{directory}: {first.name} and {second.name} have the same {first.unit} {first.order}",
                hint=f"Leave one out: {parting(first, second, entries)}.",
                path=directory,
            )


def _explain_aliases(directory: Path, found: Classified, entries: list[Entry]) -> list[Skipped]:
    """Why each unnumbered name is left out: which checkpoint it is, where that can be told."""
    if not found.aliases and not found.unexplained:
        return []
    inodes = {_inode(entry.path): entry for entry in entries}
    sizes: dict[int, list[Entry]] = {}
    for entry in entries:
        if not entry.path.is_dir():
            sizes.setdefault(entry.path.stat().st_size, []).append(entry)
    skipped = []
    unnamed = f"not named as {found.layout.name} names its checkpoints"
    for name, reason in (
        *((each.name, each.reason) for each in found.aliases),
        *((name, unnamed) for name in found.unexplained),
    ):
        path = directory / name
        twin = inodes.get(_inode(path))
        if twin is not None:
            skipped.append(Skipped(path, _same_file(path, twin.path)))
            continue
        step = stated_step(path)
        copies = [] if path.is_dir() else sizes.get(path.stat().st_size, [])
        stepped = [entry for entry in copies if step is not None and entry.unit == "step" and entry.step == step]
        # The newest first: that is what most aliases are.
        twin = next((entry for entry in stepped or reversed(copies) if _same_samples(path, entry.path)), None)
        if twin is not None:
            skipped.append(Skipped(path, f"a copy of {twin.name} (same size, same samples)"))
            continue
        skipped.append(Skipped(path, reason if step is None else f"{reason} (step {step})"))
    return skipped


def _same_samples(first: Path, second: Path, samples: int = 32, size: int = 65536) -> bool:
    """Whether two files of equal size agree in evenly spread samples, from the first to the last byte.

    Enough to say what a name that is left out anyway is a copy of, without reading gigabytes for it.
    """
    last = max(first.stat().st_size - size, 0)
    with first.open("rb") as a, second.open("rb") as b:
        for offset in sorted({last * index // (samples - 1) for index in range(samples)}):
            a.seek(offset)
            b.seek(offset)
            if a.read(size) != b.read(size):
                return False
    return True


def _same_bytes(first: Path, second: Path) -> bool:
    """Whether two files of equal size hold the same bytes; the first difference ends it."""
    with first.open("rb") as a, second.open("rb") as b:
        while True:
            left, right = a.read(1 << 20), b.read(1 << 20)
            if left != right:
                return False
            if not left:
                return True


# --- Lists -----------------------------------------------------------------------------------------------------


def from_paths(paths: Sequence[str | os.PathLike[str]], *, section: str | None = None) -> Discovery:
    """Checkpoints that the user lists: files, or directories that are one checkpoint each. The order is kept.

    Steps are known for all of them or for none: from the contents, or from the names.

    Raises:
        UsageError: The same file is given twice, or a directory is a model directory with checkpoints in it.
        NotFoundError: One of them does not exist.
        UnreadableError: One of them cannot be read.
    """
    entries = [Entry(Path(path), order=index, section=section, listed=True) for index, path in enumerate(paths)]
    seen: dict[tuple[int, int], Path] = {}
    for entry in entries:
        if not entry.path.exists():
            raise _missing(entry.path)
        if entry.path.is_dir() and entry.file == entry.path and format_of_directory(entry.path) is None:
            _refuse_model_directory(entry.path)
        first = seen.setdefault(_inode(entry.file), entry.path)
        if first is not entry.path:
            raise UsageError(
                f"the same checkpoint is given twice: {first} and {entry.path}",
                hint="Name each checkpoint once; shares are what --weights is for.",
                path=entry.path,
            )
    steps = [entry.checkpoint.step for entry in entries]
    where: Literal["content", "name"] = "content"
    unit: Unit = "step"
    if any(step is None for step in steps):
        where = "name"
        names = [name_numbers(entry.name) for entry in entries]
        steps = [named.step for named in names]
        if any(step is None for step in steps):
            unit = "epoch"
            steps = [named.epoch for named in names]
    if all(step is not None for step in steps):
        numbered = [
            _with_opened(entry, step=step, unit=unit, where_step=where)
            for entry, step in zip(entries, steps, strict=True)
        ]
        entries = numbered
    return Discovery(
        None,
        "list",
        "",
        tuple(entries),
        warnings=_equal_files(entries),
        checked=True,
    )


def _with_opened(entry: Entry, *, step: int | None, unit: Unit, where_step: Literal["content", "name"]) -> Entry:
    """The entry with its step, without opening it again."""
    new = replace(entry, step=step, unit=unit, where_step=where_step)
    new.__dict__["checkpoint"] = entry.checkpoint
    return new


def _refuse_model_directory(path: Path) -> None:
    try:
        found = detect(_list(path), where=str(path))
    except CkpttoolError:
        return
    raise UsageError(
        f"{path}: a model directory with {len(found.entries)} checkpoints in it, in a list of checkpoints",
        hint="Give one model directory alone, or the checkpoints themselves.",
        path=path,
    )


def _equal_files(entries: Sequence[Entry]) -> tuple[str, ...]:
    sizes: dict[int, list[Entry]] = {}
    warnings = []
    for entry in entries:
        if entry.file.is_dir():
            continue
        others = sizes.setdefault(entry.file.stat().st_size, [])
        twin = next((other for other in others if _same_bytes(other.file, entry.file)), None)
        if twin is not None:
            warnings.append(f"{entry.path} holds the same bytes as {twin.path}")
        others.append(entry)
    return tuple(warnings)
