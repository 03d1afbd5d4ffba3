"""The landmarks of schedules as rows of a table: which steps, with which note, and the lines above the table."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ckpttool.cli._lr_request import title
from ckpttool.cli._lr_rows import Curve
from ckpttool.schedules.family import Semantics
from ckpttool.schedules.landmarks import Landmark, landmarks

__all__ = ["caption", "marked_rows"]

_MARKERS = {"start": "@start", "peak": "@peak", "leaves floor": "@floor", "back to floor": "@floor"}


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
