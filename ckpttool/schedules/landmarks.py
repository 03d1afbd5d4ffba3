"""Where a schedule turns: its start, its peak, where it leaves its floor and returns to it.

All steps here are numbers of updates done, which is what OpenNMT-tf logs as "Step"; the update that is applied with
that rate has the next number. Nothing is searched step by step: the curve is monotonic between its known turning
points, so that ends decide and bisection finds, for a training of any length.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ckpttool.schedules.checks import MOST_STEPS, Schedule
from ckpttool.schedules.family import ScheduleSpec

__all__ = ["Landmark", "Point", "default_last_step", "landmarks", "sample"]

Mark = Literal["start", "peak", "leaves floor", "back to floor"]


@dataclass(frozen=True)
class Landmark:
    """A place of the curve.

    Attributes:
        mark: What it is. "start" is where `start_decay_steps` are over; "leaves floor" is the first step above the
            floor, "back to floor" the first step at it again.
        first: Its first step.
        last: Its last step: `first`, or the end of a plateau; None if it never ends.
        rate: The rate there.
    """

    mark: Mark
    first: int
    last: int | None
    rate: float


Point = tuple[int, float]
"""A step and its rate."""


def landmarks(spec: ScheduleSpec) -> list[Landmark]:
    """The landmarks of a schedule, in the order of their steps.

    A peak that the floor hides is left out, and so is one after the ``max_step`` of a schedule that has one. Of a
    curve that comes and goes (a cosine past its end) only the first crossing of each kind is given. For the Noam
    schedule the floor F is left at ``n = floor(F sqrt(d) W^1.5 / scale) + 1`` and met again at
    ``n = scale^2 / (d F^2)``, n = step + 1.
    """
    found = []
    schedule = spec.build()
    if spec.start_decay_steps:
        found.append(Landmark("start", spec.start_decay_steps, None, schedule(spec.start_decay_steps)))
    found += _peak(spec)
    if spec.minimum_learning_rate > 0:
        found += _crossings(spec)
    return sorted(found, key=lambda landmark: landmark.first)


def _peak(spec: ScheduleSpec) -> Iterator[Landmark]:
    schedule = spec.unwrapped()
    end_of_training = spec.values.get("max_step")
    turns = [turn for turn in spec.turns() if end_of_training is None or turn <= int(end_of_training)]
    rates = [schedule(step) for step in turns]
    highest = max(rates)
    if highest <= spec.minimum_learning_rate:
        return
    at = rates.index(highest)
    end = at
    while end + 1 < len(turns) and rates[end + 1] == highest:
        end += 1
    last: int | None = spec.argument_of(turns[end] + 1) - 1
    if turns[end] == spec.turns()[-1] and schedule(turns[end] + 1) == highest == schedule(MOST_STEPS):
        last = None
    yield Landmark("peak", spec.argument_of(turns[at]), last, highest)


def _crossings(spec: ScheduleSpec) -> Iterator[Landmark]:
    schedule, floor = spec.unwrapped(), spec.minimum_learning_rate
    turns = spec.turns()
    pieces = [*pairwise(turns), *_unbounded(schedule, turns[-1], floor)]
    left = returned = False
    for low, high in pieces:
        rises, falls = schedule(low) <= floor < schedule(high), schedule(high) <= floor < schedule(low)
        if not (rises and not left) and not (falls and not returned):
            continue
        step = _first_change(schedule, floor, low, high)
        if rises:
            left = True
            yield Landmark("leaves floor", spec.argument_of(step), spec.argument_of(step), schedule(step))
        else:
            returned = True
            yield Landmark("back to floor", spec.argument_of(step), None, floor)


def _unbounded(schedule: Schedule, turn: int, floor: float) -> Iterator[tuple[int, int]]:
    """The piece after the last turning point, cut where the rate is on the other side of the floor; none if never."""
    above = schedule(turn) > floor
    reach = 1
    while turn + reach <= MOST_STEPS:
        if (schedule(turn + reach) > floor) != above:
            yield turn, turn + reach
            return
        reach *= 2


def _first_change(schedule: Schedule, floor: float, low: int, high: int) -> int:
    above = schedule(low) > floor
    while high - low > 1:
        middle = (low + high) // 2
        if (schedule(middle) > floor) == above:
            low = middle
        else:
            high = middle
    return high


def sample(spec: ScheduleSpec, schedule: Schedule, ranges: Iterable[tuple[int, int]]) -> list[list[Point]]:
    """The points that decide how the curve runs over each range of steps: its ends, and its turning points inside.

    Between them the curve only rises or only falls, so that their lowest and highest rates are those of the whole
    range, and a staircase or a peak between two columns of a picture is not lost.

    Args:
        spec: The schedule as data.
        schedule: ``spec.build()``, in whatever dtype.
        ranges: First and last step of each, both included, at least 0.
    """
    turns = [spec.argument_of(turn) for turn in spec.turns()]
    found = []
    for first, last in ranges:
        inside = turns[bisect_right(turns, first) : bisect_left(turns, last)]
        steps = [first, *inside, last] if last > first else [first]
        found.append([(step, schedule(step)) for step in steps])
    return found


def default_last_step(spec: ScheduleSpec) -> int:
    """The last step that is shown where the length of the training is not given.

    The end of a schedule that has one; else four times the start and warm-up, and 100,000 updates at least.
    """
    for name in ("max_step", "end_step"):
        if spec.values.get(name) is not None:
            return spec.argument_of(int(spec.values[name] or 0))
    return max(100_000, _round_up(4 * spec.argument_of(int(spec.values.get("warmup_steps") or 1))))


def _round_up(number: int) -> int:
    power: int = 10 ** (len(str(number)) - 1)
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= number)
