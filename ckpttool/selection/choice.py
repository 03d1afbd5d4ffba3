"""Choose among the checkpoints that `ckpttool.selection.discovery` found.

    discover("runs/a").between(from_step=5000).last(5)

Everything that is seen and left out keeps its reason. What is selected is opened before it counts: an unreadable
checkpoint is an error and an earlier average is left out, but only where it would have been taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from ckpttool.errors import NotFoundError, UsageError
from ckpttool.run_layouts import Reason
from ckpttool.selection.families import question
from ckpttool.selection.metrics import Mode
from ckpttool.selection.names import Unit
from ckpttool.selection.opening import Entry, Facts, Ignored
from ckpttool.selection.ranking import rank
from ckpttool.tensors import Skipped
from ckpttool.text import Message, ending, parameter

__all__ = ["DEFAULT_LAST", "Discovery", "Entry", "Unit"]

DEFAULT_LAST = 8
"""How many of the newest checkpoints are taken by default, as OpenNMT-tf's average_last_checkpoints."""

_THINNED = {Reason.NOT_EVERY: "every", Reason.BEFORE: "from_step", Reason.AFTER: "to_step"}
"""Reasons that the user's other choices give, and the parameters that are those choices."""


@dataclass(frozen=True)
class Discovery:
    """Checkpoints that were found or given, and what was left out. Every verb returns a new one.

    Attributes:
        directory: The model directory; None for a list.
        layout: Name of the layout that it follows; "list" for a list.
        why: One sentence: how that was decided. Empty for a list.
        entries: The checkpoints, oldest first; a list keeps the order in which it was given.
        skipped: What was seen and left out, with reasons; `Ignored` where the reason is one of a selection.
        notes: Sentences that a user should read.
        warnings: Sentences that a user must read.
        checked: Whether every entry has been looked into, so that none is an earlier average.
        contradicted: Whether a warning says that the contents state other steps than the names.
    """

    directory: Path | None
    layout: str
    why: str
    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    checked: bool = field(default=False, compare=False)
    contradicted: bool = field(default=False, compare=False)

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
            Reason.NOT_INCLUDED,
            globs=" ".join(globs),
        )

    def exclude(self, *globs: str) -> Discovery:
        """No entries whose name matches one of the globs."""
        return _keep(
            self,
            [not any(fnmatchcase(entry.name, glob) for glob in globs) for entry in self.entries],
            Reason.EXCLUDED,
            globs=" ".join(globs),
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
            raise UsageError(
                f"from step {from_step} to step {to_step}: no step is in there",
                hint=f"Did you mean {parameter('from_step', to_step)} {parameter('to_step', from_step)}?",
            )
        stepless = [entry.name for entry in self.entries if entry.step is None]
        if stepless:
            raise UsageError(
                f"no step is known of {stepless[0]}" + (f" and {len(stepless) - 1} more" if stepless[1:] else ""),
                hint=f"Choose by name, with {parameter('include')} and {parameter('exclude')}.",
            )
        result = self
        if from_step is not None:
            keep = [entry.step is not None and entry.step >= from_step for entry in result.entries]
            result = _keep(result, keep, Reason.BEFORE, step=from_step)
        if to_step is not None:
            keep = [entry.step is not None and entry.step <= to_step for entry in result.entries]
            result = _keep(result, keep, Reason.AFTER, step=to_step)
        if self.entries and not result.entries:
            first = "" if from_step is None else f" from {self.unit} {from_step}{'' if to_step is not None else ' on'}"
            last = "" if to_step is None else f"{' up' if from_step is None else ''} to {self.unit} {to_step}"
            raise NotFoundError(
                f"{self._where()}no checkpoint{first}{last}",
                hint=f"There {'is' if len(self.entries) == 1 else 'are'} {self.describe()}.",
                path=self.directory,
            )
        if self.unit == "number":
            note = "nothing says what the numbers in the names count; the bounds are such numbers"
            result = replace(result, notes=(*result.notes, note))
        elif self.unit != "step":
            result = replace(result, notes=(*result.notes, f"this directory counts {self.unit}s, and so do the bounds"))
        return result

    def every(self, k: int) -> Discovery:
        """Every k-th entry, counted back from the newest, which is always among them.

        Raises:
            UsageError: k is not positive, or there are several families of checkpoints.
        """
        if k < 1:
            raise UsageError(f"every {k}: must be at least 1")
        opened = self.open()
        count = len(opened.entries)
        keep = [(count - 1 - index) % k == 0 for index in range(count)]
        return _keep(opened, keep, Reason.NOT_EVERY, count=k)

    def last(self, n: int) -> Discovery:
        """The newest n entries. They are opened, so that an earlier average among them does not count.

        Raises:
            UsageError: n is not positive, or there are several families of checkpoints to take more than one of.
            NotFoundError: There are fewer.
        """
        if n < 1:
            raise UsageError(f"last {n}: must be at least 1")
        if n > 1:
            self._ask_for_one_family()
        result = self._newest(n, keep=True)
        if len(result.entries) < n:
            raise self._too_few(result, n)
        return result

    def last_with_start(self, n: int | None = None) -> Discovery:
        """The newest n entries and the one before them, oldest first: n intervals of training, and where they begin.

        Each is looked into, so that an earlier average among them does not count, and only kept open when it is used.

        Args:
            n: How many intervals; None: the last `DEFAULT_LAST`, or all there are if those are fewer, and a note says
                which.

        Raises:
            UsageError: n is not positive, or there are several families of checkpoints to count.
            NotFoundError: There are fewer; the hint says how many there are.
        """
        if n is not None and n < 1:
            raise UsageError(f"last {n}: must be at least 1")
        self._ask_for_one_family()
        wanted = (n or DEFAULT_LAST) + 1
        result = self._newest(wanted, Reason.BEFORE_START, count=wanted - 1)
        there = len(result.entries)
        if there < 2 or (n is not None and there < wanted):
            asked = "any part of the run" if n is None else f"the last {n}"
            hint = f"The mean since the start is in {result.entries[-1].path} itself."
            raise NotFoundError(
                f"{self._where()}the mean over {asked} needs {2 if n is None else wanted} checkpoints, since the one "
                f"before says where it begins, and there {'is' if there == 1 else 'are'} only {result.describe()}"
                f"{self._thinned()}",
                hint=f"Ask for {parameter('last', there - 1)}. {hint}" if there > 1 else hint,
                path=self.directory,
            )
        cut = _count(result.skipped, Reason.BEFORE_START) > 0
        said = f"the last {wanted - 1} and the one before"
        if n is not None:
            return result
        note = f"no number was asked for: {said if cut else 'all there are'} ({result.describe()})"
        return replace(result, notes=(*result.notes, note))

    def last_default(self) -> Discovery:
        """The newest `DEFAULT_LAST` entries, or all there are if those are fewer; a note says which.

        Raises:
            UsageError: There are several families of checkpoints.
        """
        self._ask_for_one_family()
        result = self._newest(DEFAULT_LAST, keep=True)
        cut = _count(result.skipped, Reason.OLDER) > _count(self.skipped, Reason.OLDER)
        what = f"the last {len(result.entries)}" if cut else "all there are"
        note = f"no number was asked for: {what} ({result.describe()})"
        return replace(result, notes=(*result.notes, note))

    def best(self, n: int, metric: str, mode: Mode | None = None) -> Discovery:
        """The n entries with the best metric, oldest first. Of equal ones the newer is better; NaN never is.

        Args:
            n: How many.
            metric: Its name: a dotted key, the ending of one, or its name in the file names or sidecars.
            mode: Whether lower ("min") or higher ("max") is better; None: known metrics only, and a note says it.

        Raises:
            UsageError: n is not positive, the direction of the metric is not known, or the name is ambiguous.
            NotFoundError: Entries without the metric, or fewer than n.
        """
        if n < 1:
            raise UsageError(f"best {n}: must be at least 1")
        # The metric decides, of whatever family they are.
        opened = self._opened()
        ranked = rank(opened.entries, n, metric, mode, layout=self.layout, directory=self.directory)
        return replace(
            opened,
            entries=ranked.entries,
            skipped=(*opened.skipped, *ranked.skipped),
            notes=(*opened.notes, *ranked.notes),
            warnings=(*opened.warnings, *ranked.warnings),
        )

    def open(self, *, mixed: bool = False) -> Discovery:
        """Open every entry: earlier averages are left out, and steps are compared with the contents.

        Args:
            mixed: Whether entries of several families may be taken together, in one order.

        Raises:
            UsageError: There are several families of checkpoints (without `mixed`).
            UnreadableError: One of them cannot be read; the hint says how to go without it.
        """
        if not mixed:
            self._ask_for_one_family()
        return self._opened()

    # --- inside

    def _opened(self) -> Discovery:
        return self if self.checked else self._newest(len(self.entries))

    def _ask_for_one_family(self) -> None:
        asked = question(str(self.directory), self.entries, both=True)
        if asked is not None:
            asked.path = self.directory
            raise asked

    def _where(self) -> str:
        return f"{self.directory}: " if self.directory else ""

    def _too_few(self, result: Discovery, n: int) -> NotFoundError:
        """That there are fewer than the last n, why, and what to ask for."""
        count = len(result.entries)
        path = result.entries[0].path
        if self.layout == "single":
            return NotFoundError(
                f"{path}: one checkpoint, and the last {n} were asked for",
                hint=f"Name the directory that the checkpoints are in. {parameter('last', 1)} writes this one as it "
                "is.",
                path=path,
            )
        thinned = self._thinned()
        instead = f"{parameter('last', 1)} writes it as it is."
        if count > 1:
            instead = f"Ask for {parameter('last', count)}, or leave {parameter('last')} out to take all there are."
        every = _count(self.skipped, Reason.NOT_EVERY)
        if every:
            step = (count + every - 1) // (n - 1)
            instead = (
                f"Ask for {parameter('every', step)}, or for {parameter('last', count)}."
                if step
                else f"Leave {parameter('every')} out, and ask for {parameter('last', count + every)}."
            )
        elif thinned:
            instead = f"Widen the bounds, or ask for {parameter('last', count)}."
        return NotFoundError(
            f"{self._where()}the last {n} were asked for, and there {'is' if count == 1 else 'are'} only"
            f" {result.describe()}{thinned}",
            hint=instead,
            path=self.directory,
        )

    def _thinned(self) -> str:
        """How many there were before other choices: `` of 6, since every 10th is taken``; empty where all are left."""
        left_out = [each for each in self.skipped if isinstance(each, Ignored) and each.code in _THINNED]
        if not left_out:
            return ""
        names = sorted({_THINNED[each.code] for each in left_out})
        said = " and ".join(map(parameter, names))
        return f" of the {len(self.entries) + len(left_out)} that there are without {said}"

    def _newest(
        self, n: int, older: Reason = Reason.OLDER, *, keep: bool = False, count: int | None = None
    ) -> Discovery:
        """The newest n entries that are not averages.

        Args:
            n: How many.
            older: Why the others are left out.
            keep: Whether what was opened for it stays open.
            count: What the reason calls n.

        Raises:
            NotFoundError: None is left.
        """
        kept: list[Entry] = []
        skipped: list[Skipped] = []
        warnings: list[str] = []
        for entry in reversed(self.entries):
            if len(kept) == n:
                skipped.append(Ignored.because(entry.path, older, count=n if count is None else count))
                continue
            if keep:
                _ = entry.checkpoint
            facts = entry.facts()
            if facts.is_average and self.directory is not None:
                skipped.append(Ignored.because(entry.path, Reason.SAYS_AVERAGE))
                continue
            if entry.where_step == "name" and not self.contradicted:
                warnings += _contradiction(entry, facts)
            kept.append(entry)
        if not kept:
            reasons = Counter(Message(each.reason).marked for each in (*self.skipped, *skipped))
            listed = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common(4))
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


def _contradiction(entry: Entry, facts: Facts) -> list[str]:
    """What to say where the name of one entry and its content differ, although those of the others agree."""
    if entry.unit == "step" and facts.step is not None and facts.step != entry.step:
        return [f"{entry.name}: its name says step {entry.step}, its content step {facts.step}"]
    # Epochs are counted from 0 or from 1.
    if entry.unit == "epoch" and facts.epoch is not None and abs(facts.epoch - (entry.step or 0)) > 1:
        return [f"{entry.name}: its name says epoch {entry.step}, its content epoch {facts.epoch}"]
    return []


def _keep(found: Discovery, keep: Sequence[bool], code: Reason, **facts: object) -> Discovery:
    """Only the entries that are wanted; the others are skipped for one reason."""
    pairs = list(zip(found.entries, keep, strict=True))
    kept = tuple(entry for entry, wanted in pairs if wanted)
    dropped = (Ignored.because(entry.path, code, **facts) for entry, wanted in pairs if not wanted)
    return replace(found, entries=kept, skipped=(*found.skipped, *dropped))


def _count(skipped: Iterable[Skipped], code: Reason) -> int:
    """How many were left out for a reason."""
    return sum(isinstance(each, Ignored) and each.code is code for each in skipped)
