"""All checkpoints of a run on one scale: by the steps that their contents state, or by the numbers in their names.

A name and its content may both count, and not the same. The rules, for the oldest and the newest that can be read:

* A name that says steps, and contents that say nothing or the same: steps, by name.
* A bare number that is the step inside is a step; one that is the epoch inside is an epoch; else what it
  counts is not known.
* Names that count epochs, or nothing known, and contents whose steps rise with them and are at least as large: the
  steps inside count, and all of them are read.
* Names that say steps, and contents that say others: the names count, with a warning.
* Contents whose steps do not rise with the names, or are smaller than a bare number: the names count, with a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

from ckpttool.errors import CkpttoolError, UsageError
from ckpttool.selection.families import question
from ckpttool.selection.names import Named, Unit
from ckpttool.selection.opening import Entry, Facts
from ckpttool.text import parameter

__all__ = ["Scaled", "on_one_scale"]


@dataclass(frozen=True)
class Scaled:
    """Entries in their order, each with its step, and what is to be said of it."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    contradicted: bool = False
    """Whether a warning says that the contents state other steps than the names."""


def on_one_scale(
    plain: Sequence[Entry], names: Mapping[Entry, Named], *, where: str, words: bool, mixed: bool = False
) -> Scaled:
    """Put entries in their order.

    Args:
        plain: The entries.
        names: What each one's name says.
        where: The directory, for messages.
        words: Whether the names themselves have a word for what they count; else a row of the table says it.
        mixed: Whether the user has chosen among the names, so that nothing is asked about their families.

    Raises:
        UsageError: Some names count epochs and others steps, and the contents do not state the step.
    """
    keys = {named.key for named in names.values()}
    units = {key[0] for key in keys if key is not None}
    entries = sorted(plain, key=lambda entry: (names[entry].order, entry.name))
    if len(units) != 1 or None in keys:
        return _by_content_alone(entries, where=where, mixed=mixed)
    run = _Run(entries, names, units.pop())
    ends = [end for end in (_readable(entries[:2]), _readable(entries[:-3:-1])) if end is not None]
    found = [(run.number(entry), facts) for entry, facts in ends]
    stated = [(number, facts.step) for number, facts in found if facts.step is not None]
    if all(number == step for number, step in stated):
        if run.unit == "epoch" or (run.unit == "step" and (stated or words)):
            return run.by_name(run.unit)
        if stated and run.unit == "number":
            return run.by_name("step")
        return _by_epoch_inside(run, found)
    if run.unit == "step":
        return _step_against_step(run, ends)
    return _by_content(run)


@dataclass(frozen=True)
class _Run:
    """Entries in the order of their names, and the unit of those."""

    entries: Sequence[Entry]
    names: Mapping[Entry, Named]
    unit: Unit

    def number(self, entry: Entry) -> int:
        """What the name of an entry says, in the unit of all of them."""
        key = self.names[entry].key
        return key[1] if key else 0

    def by_name(self, unit: Unit, notes: Sequence[str] = (), warnings: Sequence[str] = ()) -> Scaled:
        """The numbers in the names count."""
        entries = tuple(
            replace(
                entry,
                step=None if unit == "date" else self.number(entry),
                unit=unit,
                where_step="name",
                order=self.names[entry].order,
            )
            for entry in self.entries
        )
        return Scaled(entries, tuple(notes), tuple(warnings))


def _readable(entries: Iterable[Entry]) -> tuple[Entry, Facts] | None:
    """The first of a few that can be opened. What cannot is an error when it is selected, not before."""
    for entry in entries:
        with suppress(CkpttoolError):
            return entry, entry.facts()
    return None


def _by_epoch_inside(run: _Run, found: Sequence[tuple[int, Facts]]) -> Scaled:
    """No content states a step: a number that is the epoch inside is an epoch."""
    offsets = {number - facts.epoch for number, facts in found if facts.epoch is not None}
    stated = sum(facts.epoch is not None for _, facts in found)
    distinct = len({number for number, _ in found})
    # Counted from 0 inside and from 1 in the name, or the other way round: two checkpoints have to agree on it.
    if stated == len(found) and (offsets == {0} or (len(offsets) == 1 and offsets <= {-1, 1} and distinct > 1)):
        if run.unit == "date":
            return run.by_name("date")
        return run.by_name("epoch", [f"the numbers in the names are the epochs inside: {run.entries[-1].name}"])
    return run.by_name(run.unit)


def _step_against_step(run: _Run, ends: Sequence[tuple[Entry, Facts]]) -> Scaled:
    """The names say steps and the contents others."""
    entry, facts = next(end for end in reversed(ends) if end[1].step not in {None, run.number(end[0])})
    warning = (
        f"{entry.name}: its name says step {run.number(entry)}, its content step {facts.step}; the steps in the names "
        "count"
    )
    return replace(run.by_name("step", warnings=[warning]), contradicted=True)


def _by_content(run: _Run) -> Scaled:
    """The steps inside count if they are known, rise with the names, and may be what the names do not count."""
    # The newest first: those that are kept open are the ones that are most often taken.
    steps = [entry.facts().step for entry in reversed(run.entries)][::-1]
    without = next((entry.name for entry, step in zip(run.entries, steps, strict=True) if step is None), None)
    if without is not None:
        note = f"the {run.unit} in the name counts: {without} does not state its step"
        return run.by_name(run.unit, [note])
    inside = [step for step in steps if step is not None]
    odd = next((index for index, (a, b) in enumerate(pairwise(inside)) if a >= b), None)
    if odd is not None:
        said = " and ".join(f"{run.entries[index].name} says {inside[index]}" for index in (odd, odd + 1))
        warning = f"the steps inside do not rise with the names ({said}); the {run.unit} in the name counts"
        return run.by_name(run.unit, warnings=[warning])
    small = next((i for i, (e, step) in enumerate(zip(run.entries, inside, strict=True)) if step < run.number(e)), None)
    if small is not None and run.unit != "date":
        warning = (
            f"{run.entries[small].name}: its name says {run.number(run.entries[small])}, its content step "
            f"{inside[small]}: at least one of them is not a number of steps; the {run.unit} in the name counts"
        )
        return run.by_name(run.unit, warnings=[warning])
    entries = tuple(
        replace(entry, step=step, unit="step", where_step="content", order=step)
        for entry, step in zip(run.entries, inside, strict=True)
    )
    notes = []
    if run.unit == "number":
        newest = run.entries[-1]
        notes.append(
            "the steps that the files state count, not the numbers in the names: "
            f"{newest.name} states step {inside[-1]}"
        )
    return Scaled(entries, tuple(notes))


def _by_content_alone(entries: Sequence[Entry], *, where: str, mixed: bool) -> Scaled:
    """The names count differently: only the contents give one scale."""
    steps = [entry.facts().step for entry in reversed(entries)][::-1]
    without = next((entry for entry, step in zip(entries, steps, strict=True) if step is None), None)
    if without is not None:
        raise (None if mixed else question(where, entries, both=False)) or UsageError(
            f"{where}: some names count epochs and others steps, and {without.name} does not state its step",
            hint=f"Choose one family with {parameter('include')} or {parameter('exclude')}.",
        )
    placed = [
        replace(entry, step=step, unit="step", where_step="content", order=step or 0)
        for entry, step in zip(entries, steps, strict=True)
    ]
    return Scaled(tuple(sorted(placed, key=lambda entry: (entry.order, entry.name))))
