"""Which checkpoints: choose among what `ckpttool.selection.discovery` found.

    discover("runs/a").between(from_step=5000).last(5)

Everything that is seen and left out keeps its reason. What is selected is opened before it counts: an unreadable
checkpoint is an error and an earlier average is left out, but only where it would have been taken.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Literal

from ckpttool.errors import CkpttoolError, NotFoundError, UnreadableError, UsageError
from ckpttool.formats import CHECKPOINT_SUFFIXES, format_of_directory, open_checkpoint
from ckpttool.run_layouts import WEIGHT_FILES
from ckpttool.selection.families import question
from ckpttool.selection.metrics import (
    Mode,
    Tables,
    find_metric,
    mode_of,
    name_metrics,
    read_sidecar,
    read_tables,
    sidecars_of,
)
from ckpttool.tensors import Checkpoint, Skipped
from ckpttool.text import ending, first_names

__all__ = ["DEFAULT_LAST", "Discovery", "Entry", "Unit", "stated_step", "weights_file"]

DEFAULT_LAST = 8
"""How many of the newest checkpoints are taken where nobody says it, as OpenNMT-tf's average_last_checkpoints."""

Unit = Literal["step", "epoch", "date"]


@dataclass(frozen=True)
class Entry:
    """A checkpoint in a directory or a list.

    Attributes:
        path: The file or directory, as it is called there.
        step: Its number on the scale of its directory, in `unit`s; None where it has none (or only a date).
        unit: What `step` counts.
        where_step: Whether the step comes from the content or from the name; None where there is none.
        order: What it is sorted by; in a list, its place.
        epoch: The epoch in its name.
        section: Where the weights are inside, where the user said it.
        listed: Whether the user named it, instead of its directory.
        weights: For a directory: globs of the file that holds its weights, best first.
        kind: What tells it from checkpoints of other kinds in its directory; see `ckpttool.selection.families`.
        alike: A glob of the names of its kind.
    """

    path: Path
    step: int | None = None
    unit: Unit = "step"
    where_step: Literal["content", "name"] | None = None
    order: int = 0
    epoch: int | None = None
    section: str | None = None
    listed: bool = False
    weights: tuple[str, ...] = ()
    kind: tuple[str, ...] = ()
    alike: str = ""

    @property
    def name(self) -> str:
        """Its own name, without the directory."""
        return self.path.name

    @cached_property
    def file(self) -> Path:
        """What is opened: the path itself, or the only file with weights in a directory that no format knows."""
        return weights_file(self.path, self.weights)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, opened once and kept. No weight is read.

        Raises:
            UnreadableError: It cannot be read; the hint says how to leave it out.
        """
        return self._open()

    def peek(self) -> Checkpoint:
        """The checkpoint, opened and not kept: a long directory's contents do not fit in memory together."""
        return self.__dict__.get("checkpoint") or self._open()

    def _open(self) -> Checkpoint:
        try:
            return open_checkpoint(self.file, section=self.section)
        except UnreadableError as error:
            if not self.listed:
                error.hint = f"{error.hint + ' ' if error.hint else ''}To go without it: --exclude {self.name!r}."
            raise


def weights_file(path: Path, globs: Sequence[str] = ()) -> Path:
    """What to open of a checkpoint: the path itself for a file and for a directory that a format knows.

    In any other directory it is the single file that its layout, or custom, calls the weights.

    Args:
        path: A checkpoint.
        globs: What its layout calls the weights, best first.
    """
    if not path.is_dir() or format_of_directory(path) is not None:
        return path
    inside = sorted(name for name in os.listdir(path) if name.lower().endswith((*CHECKPOINT_SUFFIXES, ".index.json")))
    if any(name.endswith(".index.json") for name in inside):
        return path
    for glob in (*globs, *WEIGHT_FILES):
        matches = [name for name in inside if fnmatchcase(name, glob)]
        if len(matches) == 1 and not (path / matches[0]).is_dir():
            return path / matches[0]
    return path


def stated_step(path: Path) -> int | None:
    """The step that a checkpoint's content states; None where it states none or cannot be read."""
    try:
        return open_checkpoint(weights_file(path)).step
    except CkpttoolError:
        return None


@dataclass(frozen=True)
class Discovery:
    """Checkpoints that were found or given, and what was left out. Every verb returns a new one.

    Attributes:
        directory: The model directory; None for a list.
        layout: Name of the layout that it follows; "list" for a list.
        why: One sentence: how that was decided. Empty for a list.
        entries: The checkpoints, oldest first; a list keeps the order in which it was given.
        skipped: What was seen and left out, with reasons.
        notes: Sentences that a user should read.
        warnings: Sentences that a user must read.
    """

    directory: Path | None
    layout: str
    why: str
    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    checked: bool = field(default=False, compare=False)

    # --- what there is

    @property
    def unit(self) -> Unit:
        """What the steps of the entries count."""
        return self.entries[0].unit if self.entries else "step"

    def describe(self) -> str:
        """How many entries there are, and from where to where: ``3 checkpoints, steps 1000 to 3000``."""
        count = f"{len(self.entries)} checkpoint{'s' * (len(self.entries) != 1)}"
        steps = [entry.step for entry in self.entries]
        if not steps or steps[0] is None or steps[-1] is None:
            return count
        if len(steps) == 1:
            return f"{count}, {self.unit} {steps[0]}"
        return f"{count}, {self.unit}s {steps[0]} to {steps[-1]}"

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        where = ending(self.directory) if self.directory is not None else "of a list"
        return f"<Discovery {where}: layout {self.layout}, {self.describe()}, {len(self.skipped):,} left out>"

    # --- choosing

    def include(self, *globs: str) -> Discovery:
        """Only entries whose name matches one of the globs."""
        return _keep(
            self,
            [any(fnmatchcase(entry.name, glob) for glob in globs) for entry in self.entries],
            f"not in --include {' '.join(globs)}",
        )

    def exclude(self, *globs: str) -> Discovery:
        """No entries whose name matches one of the globs."""
        return _keep(
            self,
            [not any(fnmatchcase(entry.name, glob) for glob in globs) for entry in self.entries],
            f"--exclude {' '.join(globs)}",
        )

    def between(self, from_step: int | None = None, to_step: int | None = None) -> Discovery:
        """Only entries from one step to another, both included, in the unit of the directory.

        Raises:
            UsageError: The bounds are the wrong way round, or entries have no step.
            NotFoundError: No entry is between them; the hint says from where to where there are some.
        """
        if from_step is None and to_step is None:
            return self
        if from_step is not None and to_step is not None and from_step > to_step:
            raise UsageError(f"from step {from_step} to step {to_step}: no step is in there")
        stepless = [entry.name for entry in self.entries if entry.step is None]
        if stepless:
            raise UsageError(
                f"no step is known of {stepless[0]}" + (f" and {len(stepless) - 1} more" if stepless[1:] else ""),
                hint="Choose by name, with --include and --exclude.",
            )
        result = self
        if from_step is not None:
            keep = [entry.step is not None and entry.step >= from_step for entry in result.entries]
            result = _keep(result, keep, f"before --from-step {from_step}")
        if to_step is not None:
            keep = [entry.step is not None and entry.step <= to_step for entry in result.entries]
            result = _keep(result, keep, f"after --to-step {to_step}")
        if self.entries and not result.entries:
            first = "" if from_step is None else f" from {self.unit} {from_step}{'' if to_step is not None else ' on'}"
            last = "" if to_step is None else f"{' up' if from_step is None else ''} to {self.unit} {to_step}"
            raise NotFoundError(
                f"{self._where()}no checkpoint{first}{last}",
                hint=f"There {'is' if len(self.entries) == 1 else 'are'} {self.describe()}.",
                path=self.directory,
            )
        if self.unit != "step":
            result = replace(result, notes=(*result.notes, f"this directory counts {self.unit}s, and so do the bounds"))
        return result

    def every(self, k: int) -> Discovery:
        """Every k-th entry, counted back from the newest, which is always among them.

        Raises:
            UsageError: k is not positive, or there are several kinds of checkpoints.
        """
        if k < 1:
            raise UsageError(f"every {k}: must be at least 1")
        opened = self.open()
        count = len(opened.entries)
        keep = [(count - 1 - index) % k == 0 for index in range(count)]
        return _keep(opened, keep, f"not one of every {k}, counted from the newest")

    def last(self, n: int) -> Discovery:
        """The newest n entries. They are opened, so that an earlier average among them does not count.

        Raises:
            UsageError: n is not positive, or there are several kinds of checkpoints to take more than one of.
            NotFoundError: There are fewer.
        """
        if n < 1:
            raise UsageError(f"last {n}: must be at least 1")
        if n > 1:
            self._ask_for_one_kind()
        result = self._newest(n, keep=True)
        count = len(result.entries)
        if self.layout == "single" and n > 1:
            raise NotFoundError(
                f"{result.entries[0].path}: one checkpoint, and the last {n} were asked for",
                hint="Name the directory that the checkpoints are in. --last 1 writes this one as it is.",
                path=result.entries[0].path,
            )
        if count < n:
            raise NotFoundError(
                f"{self._where()}the last {n} were asked for, and there {'is' if count == 1 else 'are'} only"
                f" {result.describe()}",
                hint="--last 1 writes it as it is."
                if count == 1
                else f"Ask for --last {count}, or leave --last away to take all there are.",
                path=self.directory,
            )
        return result

    def last_with_start(self, n: int | None = None) -> Discovery:
        """The newest n entries and the one before them, oldest first: n intervals of training, and where they begin.

        Each is looked into, so that an earlier average among them does not count, and only kept open when it is used.

        Args:
            n: How many intervals; None: the last `DEFAULT_LAST`, or all there are if those are fewer, and a note says
                which.

        Raises:
            UsageError: n is not positive, or there are several kinds of checkpoints to count.
            NotFoundError: There are fewer; the hint says how many there are.
        """
        if n is not None and n < 1:
            raise UsageError(f"last {n}: must be at least 1")
        self._ask_for_one_kind()
        wanted = (n or DEFAULT_LAST) + 1
        result = self._newest(wanted)
        there = len(result.entries)
        if there < 2 or (n is not None and there < wanted):
            asked = "any part of the run" if n is None else f"the last {n}"
            hint = f"ckpttool ema-apply {result.entries[-1].path} takes the mean since the start."
            raise NotFoundError(
                f"{self._where()}the mean over {asked} needs {2 if n is None else wanted} checkpoints, since the one "
                f"before says where it begins, and there {'is' if there == 1 else 'are'} only {result.describe()}",
                hint=f"Ask for --last {there - 1}; {hint}" if there > 1 else hint,
                path=self.directory,
            )
        older, said = _older(wanted), f"the last {wanted - 1} and the one before"
        cut = any(each.reason == older for each in result.skipped)
        result = replace(
            result,
            skipped=tuple(
                replace(each, reason=f"older than {said}") if each.reason == older else each for each in result.skipped
            ),
        )
        if n is not None:
            return result
        note = f"no number was asked for: {said if cut else 'all there are'} ({result.describe()})"
        return replace(result, notes=(*result.notes, note))

    def last_default(self) -> Discovery:
        """The newest `DEFAULT_LAST` entries, or all there are if those are fewer; a note says which.

        Raises:
            UsageError: There are several kinds of checkpoints.
        """
        self._ask_for_one_kind()
        result = self._newest(DEFAULT_LAST, keep=True)
        cut = any(each.reason == _older(DEFAULT_LAST) for each in result.skipped)
        what = f"the last {len(result.entries)}" if cut else "all there are"
        note = f"no number was asked for: {what} ({result.describe()})"
        return replace(result, notes=(*result.notes, note))

    def best(self, n: int, metric: str, mode: Mode | None = None) -> Discovery:
        """The n entries with the best metric, oldest first. Of equal ones the newer is better; NaN never is.

        Args:
            n: How many.
            metric: Its name: a dotted key, the ending of one, or as it stands in the file names or sidecars.
            mode: Whether lower ("min") or higher ("max") is better; None: known metrics only, and a note says it.

        Raises:
            UsageError: n is not positive, the direction of the metric is not known, or the name is ambiguous.
            NotFoundError: Entries without the metric, or fewer than n.
        """
        if n < 1:
            raise UsageError(f"best {n}: must be at least 1")
        # The metric decides, of whatever kind they are. A name that nothing has is not asked for its direction.
        opened = self._opened()
        values, metric_notes = _read_metric(opened, metric)
        notes = []
        if mode is None:
            mode = mode_of(metric)
            notes.append(f"a {'lower' if mode == 'min' else 'higher'} {metric} is better")
        nan = [math.isnan(value) for value in values]
        result = _keep(opened, [not bad for bad in nan], f"{metric} is NaN")
        values = [value for value, bad in zip(values, nan, strict=True) if not bad]
        if len(values) < n:
            raise NotFoundError(
                f"{self._where()}the best {n} by {metric} were asked for, and only {len(values)} have it",
                hint=f"Ask for --best {len(values)}." if values else None,
                path=self.directory,
            )
        sign = 1 if mode == "min" else -1
        ranked = sorted(range(len(values)), key=lambda index: (sign * values[index], -index))
        chosen = set(ranked[:n])
        for index in ranked[n:]:
            reason = f"not among the best {n}: {metric} {values[index]:.6g}"
            result = replace(result, skipped=(*result.skipped, Skipped(result.entries[index].path, reason)))
        kept = tuple(entry for index, entry in enumerate(result.entries) if index in chosen)
        listed = ", ".join(f"{result.entries[index].name} {values[index]:.6g}" for index in ranked[:n])
        notes.append(f"best {n} by {metric}: {listed}")
        return replace(result, entries=kept, notes=(*result.notes, *metric_notes, *notes))

    def open(self, *, mixed: bool = False) -> Discovery:
        """Open every entry: earlier averages are left out, and steps are compared with the contents.

        Args:
            mixed: Whether entries of several kinds may stand beside each other, in one order.

        Raises:
            UsageError: There are several kinds of checkpoints (without `mixed`).
            UnreadableError: One of them cannot be read; the hint says how to go without it.
        """
        if not mixed:
            self._ask_for_one_kind()
        return self._opened()

    # --- inside

    def _opened(self) -> Discovery:
        return self if self.checked else self._newest(len(self.entries))

    def _ask_for_one_kind(self) -> None:
        asked = question(str(self.directory), self.entries, both=True)
        if asked is not None:
            asked.path = self.directory
            raise asked

    def _where(self) -> str:
        return f"{self.directory}: " if self.directory else ""

    def _newest(self, n: int, *, keep: bool = False) -> Discovery:
        """The newest n entries that are no averages; with `keep`, what was opened for it stays open."""
        kept: list[Entry] = []
        skipped: list[Skipped] = []
        warnings: list[str] = []
        for entry in reversed(self.entries):
            if len(kept) == n:
                skipped.append(Skipped(entry.path, _older(n)))
                continue
            checkpoint = entry.checkpoint if keep else entry.peek()
            if checkpoint.provenance is not None and self.directory is not None:
                skipped.append(Skipped(entry.path, "an earlier average, by what it says of itself"))
                continue
            stated = checkpoint.step
            if entry.where_step == "name" and entry.unit == "step" and stated is not None and stated != entry.step:
                warnings.append(f"{entry.name}: its name says step {entry.step}, its content step {stated}")
            kept.append(entry)
        if not kept:
            reasons = Counter(each.reason for each in (*self.skipped, *skipped))
            listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(4))
            raise NotFoundError(
                f"{self._where()}no checkpoint is left to take",
                hint=f"Left out: {listed}." if listed else None,
                path=self.directory,
            )
        new = tuple(warning for warning in reversed(warnings) if warning not in self.warnings)
        return replace(
            self,
            entries=tuple(reversed(kept)),
            skipped=(*self.skipped, *reversed(skipped)),
            warnings=(*self.warnings, *new),
            checked=True,
        )


def _keep(found: Discovery, keep: Sequence[bool], reason: str) -> Discovery:
    """Only the entries that are wanted; the others are skipped for one reason."""
    pairs = list(zip(found.entries, keep, strict=True))
    kept = tuple(entry for entry, wanted in pairs if wanted)
    dropped = (Skipped(entry.path, reason) for entry, wanted in pairs if not wanted)
    return replace(found, entries=kept, skipped=(*found.skipped, *dropped))


def _older(n: int) -> str:
    return f"older than the last {n}"


# --- Metrics ---------------------------------------------------------------------------------------------------


def _read_metric(found: Discovery, metric: str) -> tuple[list[float], list[str]]:
    """The metric of every entry, and notes about sources that disagree."""
    tables = read_tables(found.directory) if found.directory else Tables()
    values: list[float] = []
    notes: list[str] = []
    missing: list[str] = []
    known: set[str] = set()
    for entry in found.entries:
        sources = _metric_sources(entry, tables)
        reading, others = find_metric(metric, sources)
        for other in others[:1]:
            assert reading is not None
            notes.append(
                f"{entry.name}: {metric} is {reading.value:.6g} by {reading.source} and {other.value:.6g} by "
                f"{other.source}; the former counts"
            )
        if reading is None:
            missing.append(entry.name)
            known.update(key for _, numbers in sources for key in numbers)
        else:
            values.append(reading.value)
    if missing:
        raise NotFoundError(
            f"no metric {metric!r} for {first_names(missing)}",
            hint=f"Metrics that are there: {', '.join(sorted(known)[:20])}."
            if known
            else "No numbers were found in the checkpoints, in files beside them, or in their names.",
            path=found.directory,
        )
    return values, notes


def _metric_sources(entry: Entry, tables: Tables) -> list[tuple[str, Mapping[str, float]]]:
    checkpoint = entry.peek()
    own = {
        key: float(value)
        for key, value in checkpoint.values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    sources: list[tuple[str, Mapping[str, float]]] = [("the checkpoint itself", own)]
    sources += [(path.name, read_sidecar(path)) for path in sidecars_of(entry.path, entry.step)]
    rows = list(tables.by_step)
    if entry.path.is_dir():
        rows = [*read_tables(entry.path).by_step, *rows]
    # A checkpoint is looked up by its update and by its own number; Sockeye's table counts checkpoints.
    steps = [entry.step if entry.unit == "step" else None, checkpoint.step]
    sources += [(name, table[step]) for name, table in rows for step in steps if step is not None and step in table]
    epoch = entry.epoch if entry.epoch is not None else (entry.step if entry.unit == "epoch" else None)
    sources += [(name, table[epoch]) for name, table in tables.by_epoch if epoch is not None and epoch in table]
    sources.append(("the file name", name_metrics(entry.name)))
    return sources
