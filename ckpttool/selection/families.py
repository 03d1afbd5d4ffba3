"""Families of checkpoints in one directory: the ends of epochs and updates between them, or several averages.

fairseq, icefall, WeNet, torchtune and mmengine save an epoch's end and every so many updates under names of their own,
and edm2 an average of each length. The last five of such a directory are not five of anything: their spacing jumps, and
near the end of an epoch two of them are nearly the same weights. The frameworks' own scripts ask which family is
meant, and so does ckpttool.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Protocol

from ckpttool.errors import UsageError
from ckpttool.text import Message, parameter

__all__ = ["Member", "parting", "question", "told"]


class Member(Protocol):
    """What is asked of an entry."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def kind(self) -> tuple[str, ...]:
        """What tells its family from others: what its name counts, and which series it is of."""

    @property
    def alike(self) -> str:
        """A glob of names like its own."""


def question(where: str, entries: Sequence[Member], *, both: bool) -> UsageError | None:
    """What to ask about entries of several families; None where there is one family.

    Args:
        where: The directory, for the message.
        entries: In their order.
        both: Whether all of them can be taken, in one order.
    """
    groups = _groups(entries)
    if len(groups) < 2:
        return None
    answers = [answer for group in groups if (answer := _answer(group, entries))]
    also = f"; {parameter('include', '*')} takes all of them, in one order" if both else ""
    return UsageError(
        f"{where}: {_counted(groups)}",
        hint=f"Say which: {_joined(answers, 'or')}{also}."
        if answers
        else f"Choose with {parameter('include')} and {parameter('exclude')}.",
    )


def told(entries: Sequence[Member]) -> list[str]:
    """What to say where the user has chosen names of several families: at most one sentence."""
    groups = _groups(entries)
    said = f"{_counted(groups)}, in one order, as {parameter('include')} names them"
    return [Message(said)] if len(groups) > 1 else []


def parting(first: Member, second: Member, entries: Sequence[Member]) -> str:
    """The parameter that leaves out one of two: with all names like its own, where those are not the other's as well.

    Lightning's ``...-v1.ckpt`` of a second run in the same directory go with one glob.
    """
    for glob in (second.alike, first.alike) if first.alike != second.alike else ():
        if _matching([glob], entries) == {entry.name for entry in entries if entry.alike == glob}:
            return parameter("exclude", glob)
    return parameter("exclude", second.name)


def _groups(entries: Sequence[Member]) -> list[list[Member]]:
    families: dict[tuple[str, ...], list[Member]] = {}
    for entry in entries:
        families.setdefault(entry.kind, []).append(entry)
    return [families[kind] for kind in sorted(families)]


def _counted(groups: Sequence[Sequence[Member]]) -> str:
    counts = [f"{len(group)} like {group[-1].name}" for group in groups]
    return f"{len(groups)} families of checkpoints: {_joined(counts, 'and')}"


def _answer(group: Sequence[Member], entries: Sequence[Member]) -> str:
    """Parameters that take one family and no other."""
    wanted = {entry.name for entry in group}
    globs = list(dict.fromkeys(entry.alike for entry in group))
    if _matching(globs, entries) == wanted:
        return " ".join(parameter("include", glob) for glob in globs)
    others = list(dict.fromkeys(entry.alike for entry in entries if entry.name not in wanted))
    if _matching(others, entries).isdisjoint(wanted):
        return " ".join(parameter("exclude", glob) for glob in others)
    return ""


def _matching(globs: Sequence[str], entries: Sequence[Member]) -> set[str]:
    return {entry.name for entry in entries if any(fnmatchcase(entry.name, glob) for glob in globs)}


def _joined(phrases: Sequence[str], word: str) -> str:
    return f", {word} ".join([", ".join(phrases[:-1]), phrases[-1]]) if phrases[2:] else f" {word} ".join(phrases)
