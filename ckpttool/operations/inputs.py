"""Which checkpoints an operation takes: of a model directory, or a list as it is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckpttool.ema.already_averaged import describe_averages_of_averages
from ckpttool.errors import NotFoundError, UsageError
from ckpttool.operations.records import Selection
from ckpttool.reading.snapshot import Snapshot
from ckpttool.selection.choice import Discovery
from ckpttool.selection.discovery import discover, from_paths
from ckpttool.text import parameter

__all__ = [
    "averages_of_averages",
    "find_checkpoints",
    "select",
    "select_window",
]


def find_checkpoints(directory: Path, selection: Selection, snapshot: Snapshot | None = None) -> Discovery:
    """All checkpoints of a model directory that the names asked for leave.

    Raises:
        CkpttoolError: See `ckpttool.selection.discovery.discover`.
    """
    return discover(
        directory,
        layout=selection.layout,
        section=selection.section,
        include=selection.include,
        exclude=selection.exclude,
        snapshot=snapshot,
    )


def select(
    sources: Sequence[Path],
    selection: Selection,
    *,
    count: int | None = None,
    take_all: bool = False,
    snapshot: Snapshot | None = None,
) -> Discovery:
    """The checkpoints that take part in an average.

    Args:
        sources: One model directory, or two checkpoints or more.
        selection: Which of a directory's.
        count: How many newest ones where the selection does not say it: the number of coefficients.
        take_all: Take all of a directory where nothing says how many; otherwise the default number.
        snapshot: What is seen of the storage.

    Raises:
        NotFoundError: Fewer than two were found, and one was not asked for; or fewer than were asked for.
        UsageError: A list from which a part shall be taken, or of one checkpoint.
    """
    snapshot = snapshot or Snapshot()
    if len(sources) == 1 and (snapshot.is_dir(sources[0]) or not snapshot.exists(sources[0])):
        found = _chosen(
            _thinned(find_checkpoints(sources[0], selection, snapshot), selection, count), selection, count, take_all
        )
        if len(found.entries) == 1 and 1 not in (selection.last, selection.best):
            raise NotFoundError(
                f"{sources[0]}: only one checkpoint, {found.entries[0].name}, and one is not an average",
                hint=f"{parameter('last', 1)} writes it as it is, in another format if {parameter('output')} says so.",
                path=sources[0],
            )
        return found
    return _listed(sources, selection, snapshot)


def select_window(sources: Sequence[Path], selection: Selection, *, snapshot: Snapshot | None = None) -> Discovery:
    """The checkpoints of a stretch of training, and the one before them, where it begins.

    `Selection.last` counts the intervals between checkpoints. Where `Selection.from_step` alone says where the window
    begins, all checkpoints from the first one on are taken.

    Args:
        sources: One model directory, or two checkpoints.
        selection: Which of a directory's.
        snapshot: What is seen of the storage.

    Raises:
        NotFoundError: There are fewer; the hint says how many there are.
        UsageError: A choice by metric; a list from which a part shall be taken, or of one checkpoint.
    """
    for name in ("best", "metric", "mode"):
        if getattr(selection, name) is not None:
            raise UsageError(
                f"{parameter('window_from_running_mean', True)} and {parameter(name)}: a window is one stretch of "
                "training, and the best checkpoints are none",
                hint="Leave out one of the two.",
            )
    snapshot = snapshot or Snapshot()
    if not (len(sources) == 1 and (snapshot.is_dir(sources[0]) or not snapshot.exists(sources[0]))):
        return _listed(sources, selection, snapshot)
    found = _thinned(find_checkpoints(sources[0], selection, snapshot), selection, None)
    if selection.last is None and selection.from_step is not None:
        # The two ends say the window, and nothing is counted: which families they are of makes no difference.
        opened = found.open(mixed=True)
        return opened if len(opened.entries) > 1 else opened.last_with_start(1)
    return found.last_with_start(selection.last)


def _listed(sources: Sequence[Path], selection: Selection, snapshot: Snapshot) -> Discovery:
    given = selection.choosing()
    if len(sources) == 1 and selection.last != 1:
        raise UsageError(
            f"{sources[0]} is one checkpoint, and one is not an average",
            hint=f"Name a model directory, or two checkpoints or more. {parameter('last', 1)} converts a single one.",
        )
    if given and not (len(sources) == 1 and given == ("last",)):
        raise UsageError(
            f"{', '.join(parameter(name) for name in given)}: a list of checkpoints is taken whole",
            hint="Name the model directory to select from it, or leave this out.",
        )
    return from_paths(sources, section=selection.section, snapshot=snapshot)


def _thinned(found: Discovery, selection: Selection, count: int | None) -> Discovery:
    """The checkpoints between the bounds, and each k-th of them.

    Raises:
        NotFoundError: Each k-th are fewer than are asked for; the error says how many there were.
    """
    if selection.from_step is not None or selection.to_step is not None:
        found = found.between(selection.from_step, selection.to_step)
    if selection.every is None:
        return found
    there = found.open()
    thinned = there.every(selection.every)
    wanted = selection.last or selection.best or count or 2
    if len(thinned.entries) < wanted:
        total, left = len(there.entries), len(thinned.entries)
        largest = (total - 1) // (wanted - 1) if wanted > 1 else 0
        raise NotFoundError(
            f"{found.directory}: {wanted} checkpoints are needed, and {parameter('every', selection.every)} leaves "
            f"{left} of the {total}",
            hint=f"{parameter('every', largest)} leaves enough." if largest > 0 else "Leave it out.",
            path=found.directory,
        )
    return thinned


def _chosen(found: Discovery, selection: Selection, count: int | None, take_all: bool) -> Discovery:
    if selection.last is not None:
        found = found.last(selection.last)
    if selection.best is not None and selection.metric is not None:
        return found.best(selection.best, selection.metric, selection.mode)
    if selection.last is not None:
        return found
    if count is not None:
        if len(found.entries) < count:
            raise NotFoundError(
                f"{found.directory}: {parameter('weights')} has {count} numbers, and there are {found.describe()}",
                hint="Give one for each, the oldest first.",
                path=found.directory,
            )
        return found.last(count)
    return found.open() if take_all else found.last_default()


def averages_of_averages(found: Discovery) -> tuple[str, ...]:
    """Notes where the weights of selected checkpoints are averages already.

    Of a directory, whose checkpoints are alike and do not include earlier outputs, the newest is examined.
    """
    if len(found.entries) < 2:
        return ()
    examined = found.entries if found.directory is None else found.entries[-1:]
    return describe_averages_of_averages([entry.checkpoint for entry in examined])
