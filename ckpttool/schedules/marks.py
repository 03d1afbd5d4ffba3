"""The landmarks of schedules as rows of a table: which steps, with which note, and the lines above the table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckpttool.errors import UsageError
from ckpttool.schedules.family import Semantics
from ckpttool.schedules.landmarks import Landmark, landmarks
from ckpttool.schedules.request import Curve, Request, title
from ckpttool.schedules.steps import MARKERS, StepSelection, parse_steps, salient_steps, these_steps
from ckpttool.text import parameter

__all__ = ["ChosenRows", "caption", "choose_rows", "marked_rows"]

_MARKERS = {"start": "@start", "peak": "@peak", "leaves floor": "@floor", "back to floor": "@floor"}


@dataclass(frozen=True)
class ChosenRows:
    """The rows of a table.

    Attributes:
        selection: The steps that were asked for, or the salient ones.
        marked: The rows of the landmarks that are asked for.
        notes: Row -> what happens there.
        by_default: Whether these rows are the default.
    """

    selection: StepSelection
    marked: tuple[int, ...]
    notes: Mapping[int, str]
    by_default: bool = False

    @property
    def only_landmarks(self) -> bool:
        """Whether landmarks were asked for, and no other rows."""
        return bool(self.selection.markers) and not self.selection.ranges and not self.selection.everything


def choose_rows(request: Request, semantics: Sequence[Semantics], steps: str | Iterable[int] | None) -> ChosenRows:
    """The rows of these steps, or that a text asks for (`parse_steps`); None: 1, 2, 5, 10, ... and the landmarks.

    Raises:
        UsageError: If the text makes no sense, or asks for what the schedules do not have.
    """
    if steps is None:
        notes = marked_rows(request.curves, semantics, MARKERS, undelayed=False)
        return ChosenRows(salient_steps(request.last_step, notes), (), notes, by_default=True)
    selection = parse_steps(steps) if isinstance(steps, str) else these_steps(steps)
    name, floor = parameter("steps"), parameter("minimum_learning_rate")
    why = {
        "@floor": ("the schedule never meets its floor", f"Give {floor}, or leave @floor out."),
        "@peak": ("the floor hides it", "Leave @peak out."),
    }
    for marker, (reason, hint) in why.items():
        if marker in selection.markers and not marked_rows(request.curves, semantics, [marker]):
            raise UsageError(f"{name}: {marker!r} marks no row: {reason}", hint=hint)
    notes = marked_rows(request.curves, semantics, selection.markers)
    # An undelayed schedule starts before there is a row for it: "Step = 0" is never logged.
    marked = tuple(step for step in notes if step > 0 or semantics == ("logged",))
    if semantics == ("applied",) and selection.first(marked) == 0:
        raise UsageError(
            f"{name}: there is no update 0: updates are counted from 1",
            hint=f"Begin at 1, or set {parameter('semantics', 'logged')}, which begins at 0.",
        )
    return ChosenRows(selection, marked, notes)


def marked_rows(
    curves: Sequence[Curve], semantics: Sequence[Semantics], markers: Collection[str], *, undelayed: bool = True
) -> dict[int, str]:
    """Row -> what happens there. A landmark has a row for each semantics, since they are one step apart.

    Args:
        curves: The schedules.
        semantics: The columns.
        markers: Which of ``@start``, ``@peak`` and ``@floor``.
        undelayed: Mark the start of a schedule that has no delay too, which is the first step.
    """
    notes: dict[int, list[str]] = {}
    for curve in curves:
        marks = landmarks(curve.spec)
        if undelayed and not any(mark.mark == "start" for mark in marks):
            marks = [Landmark("start", 0, None, 0.0), *marks]
        for mark in marks:
            if _MARKERS[mark.mark] not in markers:
                continue
            for done, words in _moments(mark):
                for each in semantics:
                    step = done + 1 if each == "applied" else done
                    words_here = f"{words} ({each})" if len(semantics) > 1 else words
                    notes.setdefault(step, []).append(f"{curve.letter} {words_here}".strip())
    return {step: "; ".join(dict.fromkeys(words)) for step, words in notes.items()}


def _moments(mark: Landmark) -> list[tuple[int, str]]:
    """Numbers of updates done, and what to call them."""
    if mark.mark == "start":
        return [(mark.first, "start")]
    if mark.mark == "leaves floor":
        return [(mark.first - 1, "last at floor"), (mark.first, "above floor")]
    if mark.mark == "back to floor":
        return [(mark.first, "back at floor")]
    if mark.last is not None and mark.last > mark.first:
        return [(mark.first, "peak begins"), (mark.last, "peak ends")]
    return [(mark.first, "peak")]


def caption(curves: Sequence[Curve], semantics: Sequence[Semantics], *, titled: bool) -> list[str]:
    """What a reader of the table wants to know first: the parameters and the landmarks, in numbers of updates.

    A picture above the table has told the parameters: `titled` false leaves them out.
    """
    lines = [title(curves)] if titled else []
    for curve in curves:
        words = [_sentence(mark) for mark in landmarks(curve.spec)]
        head = f"{curve.letter}  {curve.label}: " if curve.letter else ""
        lines.append((head + "; ".join(words)).rstrip(": ") if words else head.rstrip(": "))
    meaning = {
        "applied": "applied: the rate of update k",
        "logged": 'logged: what OpenNMT-tf\'s "Step = k" shows, the rate of update k + 1',
    }
    return [*(line for line in lines if line), "; ".join(meaning[each] for each in semantics), ""]


def _sentence(mark: Landmark) -> str:
    update = mark.first + 1
    if mark.mark == "start":
        return f"starts at update {update}"
    if mark.mark == "leaves floor":
        return f"leaves its floor at update {update}"
    if mark.mark == "back to floor":
        return f"is back at its floor at update {update}"
    where = f"at update {update}"
    if mark.last is None:
        where = f"from update {update} on"
    elif mark.last > mark.first:
        where = f"at updates {update} to {mark.last + 1}"
    return f"peak {mark.rate:.6e} {where}"
