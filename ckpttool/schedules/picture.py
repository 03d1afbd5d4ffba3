"""What a picture of schedules shows: curves as points, a title and labels. Drawing is `figures` and the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ckpttool.errors import UsageError
from ckpttool.schedules.family import Dtype, ScheduleSpec
from ckpttool.schedules.landmarks import Point, sample
from ckpttool.text import parameter

__all__ = ["Line", "Picture", "make_picture"]

Shows = Literal["applied", "logged"]


@dataclass(frozen=True)
class Line:
    """A curve of a picture.

    Attributes:
        letter: Short name, empty if it is the only one.
        label: What sets it apart, empty if it is the only one.
        columns: Points in columns from left to right; a column may be empty where a step is wider than a column.
        marked: Points that are marked, with what happens there.
    """

    letter: str
    label: str
    columns: tuple[tuple[Point, ...], ...]
    marked: tuple[tuple[Point, str], ...] = ()

    @property
    def points(self) -> list[Point]:
        """All points, ascending."""
        return [point for column in self.columns for point in column]


@dataclass(frozen=True)
class Picture:
    """Curves over the steps `first` to `last`.

    Attributes:
        lines: One or more.
        title: The parameters that all curves share.
        x_label: What a step is.
        y_label: What the rate is.
        first: The leftmost step.
        last: The rightmost step, greater than `first`.
        log_x: The steps are spaced by their logarithm.
        log_y: The rates are.
        highest: The highest rate of all curves.
        lowest: The lowest; with `log_y` the lowest above 0.
    """

    lines: tuple[Line, ...]
    title: str
    x_label: str
    y_label: str
    first: int
    last: int
    log_x: bool
    log_y: bool
    highest: float
    lowest: float


def make_picture(
    curves: Sequence[tuple[str, str, ScheduleSpec]],
    *,
    title: str,
    shows: Shows,
    first: int,
    last: int,
    columns: int,
    dtype: Dtype = "float64",
    log_x: bool = False,
    log_y: bool = False,
    marked: Sequence[Mapping[int, str]] = (),
) -> Picture:
    """Sample curves for a picture that is `columns` wide.

    Args:
        curves: Letter, label and schedule of each.
        title: See `Picture`.
        shows: The rate applied at update k, or the one that OpenNMT-tf logs at "Step = k".
        first: The leftmost step, at least 0; at least 1 for "applied" and for `log_x`.
        last: The rightmost step.
        columns: How many columns the device has.
        dtype: In which the rates are computed.
        log_x: Space the steps by their logarithm.
        log_y: Space the rates by their logarithm.
        marked: For each curve the steps that are marked, with what happens there.

    Raises:
        UsageError: If there is nothing to draw: one step only, or `log_y` with no rate above 0.
    """
    first = max(first, 1 if shows == "applied" or log_x else 0)
    if last <= first:
        raise UsageError(
            "one step alone makes no picture", hint=f"Give {parameter('steps')} a range, or leave the picture out."
        )
    behind = 1 if shows == "applied" else 0
    ranges = _columns(first, last, columns, log_x=log_x)
    lines = []
    for index, (letter, label, spec) in enumerate(curves):
        schedule = spec.build(dtype, shows)
        filled = [each for each in ranges if each is not None]
        points = iter(sample(spec, schedule, [(low - behind, high - behind) for low, high in filled]))
        cells = tuple(
            () if each is None else tuple((step + behind, rate) for step, rate in next(points)) for each in ranges
        )
        marks = marked[index].items() if marked else ()
        points_marked = tuple(
            ((step, schedule(step - behind)), text) for step, text in marks if max(first, behind) <= step <= last
        )
        lines.append(Line(letter, label, cells, points_marked))
    rates = [rate for line in lines for _step, rate in line.points if rate > 0 or not log_y]
    if not rates:
        raise UsageError(f"{parameter('log_y')}: every rate is 0", hint=f"Leave {parameter('log_y')} out.")
    return Picture(
        tuple(lines),
        title,
        "update k" if shows == "applied" else 'step k as in the log\'s "Step = k"',
        "learning rate applied at update k" if shows == "applied" else "learning rate logged at step k",
        first,
        last,
        log_x,
        log_y,
        max(rates),
        min(rates),
    )


def _columns(first: int, last: int, count: int, *, log_x: bool) -> list[tuple[int, int] | None]:
    """The steps of each column, None where it has none of its own."""

    def edge(index: int) -> int:
        share = index / count
        if log_x:
            return math.ceil(first * math.pow(last / first, share) - 1e-9)
        return first + math.ceil((last - first) * share - 1e-9)

    edges = [edge(index) for index in range(count)] + [last + 1]
    return [(low, high - 1) if high > low else None for low, high in pairwise(edges)]
