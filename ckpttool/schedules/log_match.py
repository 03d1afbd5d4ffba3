"""Whether a log agrees with a schedule, and which schedule it was if not.

Logs are rounded: OpenNMT-tf prints 6 decimals, so that early in a warm-up a third of the rate is lost. Everything here
compares with half a unit of the last decimal shown, plus what float32 may differ by.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ckpttool.errors import UsageError
from ckpttool.schedules.checks import Schedule
from ckpttool.schedules.family import ScheduleSpec, Semantics
from ckpttool.schedules.train_log import Record
from ckpttool.text import parameter

__all__ = ["Difference", "Fit", "Verdict", "compare_log", "fit_noam"]

Outcome = Literal["agrees", "shifted by one", "restarted warm-up", "different parameters"]

_FLOAT32 = 5e-7  # relative; two units in the last place, and another build's rounding
_FARTHEST_RESTART = 100_000  # updates before the first differing line in which a restart is looked for
_MOST_RATE = 1e100  # as in `rates`
_MOST_PIECES = 64  # ranges of steps that are followed at once while a restart is looked for


@dataclass(frozen=True)
class Difference:
    """A line of the log that is not what the schedule says."""

    record: Record
    expected: float


@dataclass(frozen=True)
class Verdict:
    """What came of a comparison.

    Attributes:
        outcome: The short answer.
        explanation: What it means, one sentence.
        compared: Number of lines.
        differing: Number of lines whose rate is not the schedule's.
        first: The first of them, None if all agree.
    """

    outcome: Outcome
    explanation: str
    compared: int
    differing: int
    first: Difference | None = None

    @property
    def agrees(self) -> bool:
        """Whether the log is the schedule's."""
        return self.outcome == "agrees"


def compare_log(records: Sequence[Record], spec: ScheduleSpec, semantics: Semantics = "logged") -> Verdict:
    """Compare a log with a schedule.

    Args:
        records: At least one, in the log's order.
        spec: The schedule that is expected.
        semantics: What the log is expected to show at step k: the rate applied at update k, or, as OpenNMT-tf logs,
            the next update's.
    """
    schedule = spec.build()
    offset = 0 if semantics == "logged" else -1
    wrong = _differing(records, schedule, offset)
    first = _difference(records[wrong[0]], schedule, offset) if wrong else None

    def verdict(outcome: Outcome, explanation: str) -> Verdict:
        return Verdict(outcome, explanation, len(records), len(wrong), first)

    again = _counter_restart(records)
    if not wrong and again is not None:
        before = records[again - 1]
        return verdict(
            "restarted warm-up",
            f"the step counter starts again after Step = {before.step} (line {before.line}): "
            "the warm-up was run a second time, as with weights loaded into a new training",
        )
    if not wrong:
        return verdict("agrees", _how_surely(records, schedule, offset))
    for shift in (-1, 1):
        if not _differing(records, schedule, offset + shift):
            return verdict("shifted by one", _shift_meaning(offset + shift))
    restart = _restart(records, spec, offset, wrong[0])
    if restart:
        first_begin, last_begin = restart
        where = f"step {first_begin}" if first_begin == last_begin else f"steps {first_begin} to {last_begin}"
        return verdict(
            "restarted warm-up", f"from line {records[wrong[0]].line} on, the schedule starts anew at {where}"
        )
    return verdict("different parameters", _what_fits(records, spec, semantics))


def _margin(record: Record, rate: float) -> float:
    return record.half_unit * (1 + 1e-9) + _FLOAT32 * abs(rate)


def _differing(records: Sequence[Record], schedule: Schedule, offset: int) -> list[int]:
    wrong = []
    for index, record in enumerate(records):
        rate = schedule(max(record.step + offset, 0))
        if not abs(record.rate - rate) <= _margin(record, rate):  # so that NaN differs
            wrong.append(index)
    return wrong


def _difference(record: Record, schedule: Schedule, offset: int) -> Difference:
    return Difference(record, schedule(max(record.step + offset, 0)))


def _how_surely(records: Sequence[Record], schedule: Schedule, offset: int) -> str:
    other = -1 if offset == 0 else 0
    if not _differing(records, schedule, other):
        return "every line is the schedule's; the decimals shown cannot tell it from the same schedule one step off"
    return "every line is the schedule's"


def _shift_meaning(offset: int) -> str:
    if offset == -1:
        return "Step = k shows the rate that update k was applied with, not the next update's"
    if offset == 0:
        return "Step = k shows the rate of the next update, not the one that update k was applied with"
    return f"Step = k shows the rate of {abs(offset)} update{'s' if abs(offset) > 1 else ''} off"


def _counter_restart(records: Sequence[Record]) -> int | None:
    """The index at which the steps begin again at the beginning; going back to a checkpoint is none."""
    gaps = [b.step - a.step for a, b in pairwise(records) if b.step > a.step]
    interval = min(gaps, default=0)
    for index in range(1, len(records)):
        if records[index].step < records[index - 1].step and records[index].step <= interval:
            return index
    return None


def _restart(records: Sequence[Record], spec: ScheduleSpec, offset: int, first: int) -> tuple[int, int] | None:
    """The first and the last step at which the schedule may have begun anew, so that all from `first` on fits.

    What each record allows are ranges of steps, found by bisection between the curve's turning points; what all allow
    is their intersection, so that the time is proportional to the number of records.
    """
    rest = records[first:]
    if first == 0 or len(rest) < 2:
        return None
    before, top = records[first - 1].step, min(record.step for record in rest)
    # Where the steps went on counting, the restart came after the last good line; where they went back, anywhere.
    earliest = before if before < top else max(top - _FARTHEST_RESTART, 1)
    schedule = spec.build()
    turns = [spec.argument_of(turn) for turn in spec.turns()]
    begins = [(earliest, top)] if earliest <= top else []
    for record in rest:
        begins = [allowed for low, high in begins for allowed in _allowed(record, offset, schedule, turns, low, high)]
        if not begins or len(begins) > _MOST_PIECES:
            return None
    return begins[0][0], begins[-1][1]


def _allowed(
    record: Record, offset: int, schedule: Schedule, turns: Sequence[int], low: int, high: int
) -> Iterator[tuple[int, int]]:
    """The ranges of begins within [low, high] at which the schedule has the record's rate. Ascending."""

    def rate(begin: int) -> float:
        return schedule(max(record.step + offset - begin, 0))

    def difference(begin: int) -> int:
        expected = rate(begin)
        if abs(record.rate - expected) <= _margin(record, expected):
            return 0
        return 1 if expected > record.rate else -1

    # The argument falls as the begin rises: the turning points, ascending in begin.
    reach = turns[bisect_right(turns, record.step + offset - high) : bisect_left(turns, record.step + offset - low)]
    ends = [low, *(record.step + offset - turn for turn in reversed(reach)), high]
    last = low - 1
    for begin, end in pairwise(ends):
        falling = rate(begin) > rate(end)
        # On a monotonic piece the sign goes once through 0: the first begin there, and the first one past it.
        key: Callable[[int], int] = (lambda at: -difference(at)) if falling else difference
        steps = range(begin, end + 1)
        inside = begin + bisect_left(steps, 0, key=key)
        past = begin + bisect_right(steps, 0, key=key)
        if inside < past and past - 1 > last:
            yield max(inside, last + 1), past - 1
            last = past - 1


def _what_fits(records: Sequence[Record], spec: ScheduleSpec, semantics: Semantics) -> str:
    if spec.kind.name != "noam":
        return f"no shift or restart of the {spec.kind.name} schedule explains it"
    try:
        fit = fit_noam(records, spec, semantics)
    except UsageError as error:
        return error.message
    if not fit.differing and (fit.scale is None or fit.warmup_steps is None):
        return "no shift or restart explains it; other parameters may, but the log shows one side of the peak only"
    if fit.differing or fit.scale is None or fit.warmup_steps is None:
        return "no shift or restart explains it, and no other Noam schedule of one learning_rate and warm-up does"
    return f"learning_rate={fit.scale:g}, warmup_steps={fit.warmup_steps} explain every line"


@dataclass(frozen=True)
class Fit:
    """The Noam schedules that a log allows.

    Attributes:
        scale: The roundest ``learning_rate`` that fits, None if the log has no line after the peak.
        scale_bounds: The least and greatest that fit.
        warmup_steps: The roundest that fits, None if the log does not show both sides of the peak.
        warmup_bounds: The least and greatest that fit.
        slope_bounds: Rate per step of the warm-up, least and greatest; None if the log has no line before the peak.
        compared: Number of lines that took part; lines at the floor do not.
        differing: Number of lines that `scale` and `warmup_steps` do not explain.
        first: The first of them.
    """

    scale: float | None
    scale_bounds: tuple[float, float] | None
    warmup_steps: int | None
    warmup_bounds: tuple[float, float] | None
    slope_bounds: tuple[float, float] | None
    compared: int
    differing: int
    first: Difference | None = None


def fit_noam(records: Sequence[Record], spec: ScheduleSpec, semantics: Semantics = "logged") -> Fit:
    """Find ``learning_rate`` and ``warmup_steps`` of a Noam schedule from a log.

    Only scale / sqrt(model_dim) shows in a curve, so that `spec` has to give ``model_dim``; start, duration and floor
    are taken from it too, its other parameters are not looked at. Each line bounds the two unknowns from both sides
    (rate = min(a n^-1/2, b n)); what all lines allow is the answer, with its bounds.

    Raises:
        UsageError: If no line is above the floor.
    """
    dimension = float(spec.values["model_dim"] or 1)
    counted = [(record, _n(record.step, spec, semantics)) for record in records]
    floor = spec.minimum_learning_rate
    used = [(record, n) for record, n in counted if floor < record.rate - record.half_unit < _MOST_RATE]
    if not used:
        raise UsageError("no line of the log is above the floor", hint=f"Check {parameter('minimum_learning_rate')}.")
    highest = max(record.rate for record, _n in used)
    top = [n for record, n in used if record.rate == highest]
    rising = [(record, n) for record, n in used if n < min(top)]
    falling = [(record, n) for record, n in used if n > max(top)]

    slope = _bounds(used, rising, float)
    decay = _bounds(used, falling, lambda n: n**-0.5)
    if slope is None or decay is None:
        scale_bounds = _times(decay, math.sqrt(dimension))
        scale = _roundest(*scale_bounds) if scale_bounds else None
        return Fit(scale, scale_bounds, None, None, slope, len(used), 0)

    warmup_bounds = ((decay[0] / slope[1]) ** (2 / 3), (decay[1] / slope[0]) ** (2 / 3))
    scale_bounds = (decay[0] * math.sqrt(dimension), decay[1] * math.sqrt(dimension))
    warmup = max(int(_roundest(math.ceil(min(warmup_bounds)), max(warmup_bounds))), 1)
    best = None
    for scale in _candidates(*sorted(scale_bounds)):
        fitted = ScheduleSpec(
            spec.kind,
            {**spec.values, "learning_rate": scale, "warmup_steps": warmup},
            spec.start_decay_steps,
            spec.decay_step_duration,
            floor,
        )
        schedule, offset = fitted.build(), 0 if semantics == "logged" else -1
        wrong = _differing(records, schedule, offset)
        first = _difference(records[wrong[0]], schedule, offset) if wrong else None
        fit = Fit(scale, scale_bounds, warmup, warmup_bounds, slope, len(used), len(wrong), first)
        if best is None or fit.differing < best.differing:
            best = fit
    if best is None:
        raise AssertionError("there is always a candidate")
    return best


def _n(step: int, spec: ScheduleSpec, semantics: Semantics) -> int:
    done = step if semantics == "logged" else step - 1
    return max(done - spec.start_decay_steps, 0) // spec.decay_step_duration + 1


def _bounds(
    everything: Iterable[tuple[Record, int]],
    side: Sequence[tuple[Record, int]],
    shape: Callable[[int], float],
) -> tuple[float, float] | None:
    """The factors f for which ``f * shape(n)`` is at least every rate, and on its own side not above it."""
    if not side:
        return None
    low = max((record.rate - _margin(record, record.rate)) / shape(n) for record, n in everything)
    high = min((record.rate + _margin(record, record.rate)) / shape(n) for record, n in side)
    return low, high


def _times(bounds: tuple[float, float] | None, factor: float) -> tuple[float, float] | None:
    return (bounds[0] * factor, bounds[1] * factor) if bounds else None


def _candidates(low: float, high: float) -> list[float]:
    return [_roundest(low, high), (low + high) / 2]


def _roundest(low: float, high: float) -> float:
    """The number between two (positive, in any order) with the fewest significant digits; their middle if none."""
    low, high = min(low, high), max(low, high)
    for digits in range(15):
        unit = 10.0 ** (math.floor(math.log10(high)) - digits)
        nearest = round((low + high) / 2 / unit)
        for count in (nearest, math.ceil(low / unit)):
            number = float(f"{count * unit:.15g}")
            if low <= number <= high:
                return number
    return (low + high) / 2
