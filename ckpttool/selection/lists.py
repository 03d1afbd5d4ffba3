"""Take a list of checkpoints as it is given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ckpttool.errors import CkpttoolError, UsageError
from ckpttool.formats import first_file, format_of_directory, weights_file
from ckpttool.reading.snapshot import Snapshot
from ckpttool.reading.storage import Identity
from ckpttool.selection.choice import Discovery
from ckpttool.selection.detection import detect
from ckpttool.selection.listing import list_directory, missing
from ckpttool.selection.names import Named, is_run, name_numbers, read_series, series_of
from ckpttool.selection.opening import Entry, Opener
from ckpttool.selection.scale import Scaled, on_one_scale
from ckpttool.selection.twins import equal_files, identity_of
from ckpttool.text import distinct_labels, parameter

__all__ = ["from_paths"]


def from_paths(
    paths: Sequence[str | os.PathLike[str]], *, section: str | None = None, snapshot: Snapshot | None = None
) -> Discovery:
    """Checkpoints that the user lists, in the order of the list.

    Each is a file, a directory that is one checkpoint, or the prefix of the names of one's files (``run/ckpt-100``).
    Steps are known for all of them or for none: from the contents, or from the names, which are read as those of a
    directory are. Where all files have the same name (``checkpoint-500/model.safetensors``), the directories that
    they are in name them.

    Args:
        paths: The checkpoints.
        section: Where the weights are inside the files, where the user says it.
        snapshot: The operation's view of the storage; None: a new one.

    Raises:
        UsageError: The same file is given twice, or a directory is a model directory with checkpoints in it.
        NotFoundError: One of them does not exist.
        UnreadableError: One of them cannot be read.
    """
    snapshot = snapshot or Snapshot()
    opener = Opener(snapshot, section, keeps_all=True)
    given = [first_file(Path(path), snapshot) for path in paths]
    entries = [
        Entry(path, opener, order=index, listed=True, label=label)
        for index, (path, label) in enumerate(zip(given, distinct_labels(given), strict=True))
    ]
    _check_each(entries, opener.snapshot)
    for entry in entries:
        _ = entry.checkpoint
    scaled = _scaled(entries)
    placed = {entry.path: entry for entry in scaled.entries}
    files = [weights_file(entry.path, opener.snapshot) for entry in entries]
    warnings = [*scaled.warnings]
    warnings += [f"{path} holds the same bytes as {twin}" for twin, path in equal_files(files, opener.snapshot)]
    return Discovery(
        None,
        "list",
        "",
        tuple(replace(placed[entry.path], order=entry.order) if placed else entry for entry in entries),
        notes=scaled.notes,
        warnings=tuple(warnings),
        checked=True,
    )


def _check_each(entries: Sequence[Entry], snapshot: Snapshot) -> None:
    """That each is there, once, and is a checkpoint."""
    seen: dict[Identity, Path] = {}
    for entry in entries:
        if not snapshot.exists(entry.path):
            raise missing(entry.path, snapshot)
        file = weights_file(entry.path, snapshot)
        if snapshot.is_dir(file) and format_of_directory(file, snapshot) is None:
            _refuse_model_directory(entry.path, snapshot)
        first = seen.setdefault(identity_of(file, snapshot), entry.path)
        if first is not entry.path:
            raise UsageError(
                f"the same checkpoint is given twice: {first} and {entry.path}",
                hint=f"Name each checkpoint once; shares are what {parameter('weights')} is for.",
                path=entry.path,
            )


def _refuse_model_directory(path: Path, snapshot: Snapshot) -> None:
    try:
        found = detect(list_directory(path, snapshot), where=str(path))
    except CkpttoolError:
        return
    raise UsageError(
        f"{path}: a model directory with {len(found.entries)} checkpoints in it, in a list of checkpoints",
        hint="Give one model directory alone, or the checkpoints themselves.",
        path=path,
    )


def _scaled(entries: Sequence[Entry]) -> Scaled:
    """The entries with their steps; without entries where not all have one."""
    named = _named(entries)
    if named is not None:
        words = all(name_numbers(each.name).step is not None for each in named.values())
        scaled = on_one_scale(entries, named, where="the list", words=words)
        if all(entry.step is not None for entry in scaled.entries):
            return scaled
    steps = [entry.facts().step for entry in entries]
    if any(step is None for step in steps):
        return Scaled(())
    return Scaled(
        tuple(replace(entry, step=step, where_step="content") for entry, step in zip(entries, steps, strict=True))
    )


def _named(entries: Sequence[Entry]) -> dict[Entry, Named] | None:
    """What the names say, if they say the same kind of thing for all; None if they do not."""
    for level, names in enumerate(_candidates([entry.path for entry in entries])):
        # What the number of a directory counts must be said by a word: other directories are runs.
        named = _read(names) if level == 0 else _alone(names)
        if named is not None and len({each.key[0] for each in named if each.key}) == 1:
            return dict(zip(entries, named, strict=True))
    return None


def _candidates(paths: Sequence[Path]) -> list[list[str]]:
    """The files' own names, and those of the directories that they are in; none where two are the same."""
    absolute = [Path(os.path.abspath(path)) for path in paths]
    depth = min((len(path.parts) for path in absolute), default=0)
    levels = [[path.parts[-level] for path in absolute] for level in range(1, min(depth, 4))]
    return [names if len(set(names)) == len(names) else [] for names in levels]


def _read(names: Sequence[str]) -> list[Named] | None:
    """What each of the names says, read as those of a directory; None where one of them says nothing."""
    alone = _alone(names)
    if alone is not None or not names:
        return alone
    found: Mapping[str, Named] = {}
    with suppress(CkpttoolError):
        found = detect(dict.fromkeys(names)).entries
    if set(found) != set(names):
        series = list(series_of(name for name in names if not is_run(name)).values())
        found = read_series(series[0]) if len(series) == 1 else {}
    return [found[name] for name in names] if set(found) == set(names) else None


def _alone(names: Sequence[str]) -> list[Named] | None:
    """What each name says by itself; None where one of them says nothing."""
    named = [name_numbers(name) for name in names]
    return named if named and all(each.key for each in named) else None
