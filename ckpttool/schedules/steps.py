"""Which steps a table shows, as text.

    1,2,100               these steps
    4000:12000:500        from 4000 to 12000 by 500; the end is included where the stride meets it
    1:100                 from 1 to 100
    log:1:100000:25       25 steps from 1 to 100000, evenly spaced on a logarithmic axis, both ends included
    all                   every step, from 1 to the end of the training
    @peak @start @floor   the landmarks of the schedule

Items are joined by commas. Steps come out ascending and once each, however many millions they are.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ckpttool.errors import UsageError
from ckpttool.schedules.checks import MOST_STEPS
from ckpttool.schedules.kinds import suggest
from ckpttool.text import parameter

__all__ = ["MARKERS", "StepSelection", "parse_steps", "salient_steps", "these_steps"]

MARKERS = ("@peak", "@start", "@floor")

_HINT = 'Steps look like "1,2,100,4000:12000:500,log:1:100000:25,all,@peak,@start,@floor"; ranges include their end.'
_MOST_LOG_STEPS = 1_000_000  # these are the only steps that are held in memory


@dataclass(frozen=True)
class StepSelection:
    """A parsed list of steps.

    Attributes:
        ranges: Ascending steps, each item of the text on its own.
        everything: ``all`` was asked for.
        markers: The markers that were asked for.
    """

    ranges: tuple[Sequence[int], ...]
    everything: bool = False
    markers: frozenset[str] = frozenset()

    def iterate(self, last_step: int, marked: Iterable[int] = ()) -> Iterable[int]:
        """The steps, ascending and once each, without holding them in memory.

        Args:
            last_step: Where ``all`` ends.
            marked: The steps of the markers.
        """
        everything = (range(1, last_step + 1),) if self.everything else ()
        sources: list[Sequence[int]] = [*self.ranges, *everything, sorted(set(marked))]
        sources = [source for source in sources if source]
        if len(sources) == 1:
            return sources[0]
        return _once(heapq.merge(*sources))

    def last(self, last_step: int, marked: Iterable[int] = ()) -> int:
        """The greatest step of them; 0 if there is none."""
        return max([*(steps[-1] for steps in self.ranges), *([last_step] if self.everything else []), *marked, 0])

    def first(self, marked: Iterable[int] = ()) -> int:
        """The smallest step of them; 0 if there is none."""
        return min([*(steps[0] for steps in self.ranges), *([1] if self.everything else []), *marked], default=0)


def parse_steps(text: str) -> StepSelection:
    """Read a selection of steps.

    Raises:
        UsageError: If an item makes no sense; the message quotes the item.
    """
    ranges: list[Sequence[int]] = []
    markers = set()
    everything = False
    for item in (part.strip() for part in text.split(",")):
        if not item:
            raise UsageError(f"{parameter('steps')} {text!r} has an empty item", hint=_HINT)
        if item == "all":
            everything = True
        elif item.startswith("@"):
            if item not in MARKERS:
                raise UsageError(
                    f"{parameter('steps')}: there is no marker {item!r}",
                    hint=suggest(item, MARKERS) or f"The markers are {', '.join(MARKERS)}.",
                )
            markers.add(item)
        elif item.startswith("log:"):
            ranges.append(_log_steps(item))
        else:
            ranges.append(_range(item))
    return StepSelection(tuple(ranges), everything, frozenset(markers))


def these_steps(steps: Iterable[int]) -> StepSelection:
    """Steps as numbers, in any order.

    Raises:
        UsageError: If there is none, or one is not a number of updates.
    """
    chosen = sorted(set(steps))
    if not chosen:
        raise UsageError(f"{parameter('steps')} is empty", hint=_HINT)
    for step in (chosen[0], chosen[-1]):
        if not isinstance(step, int) or not 0 <= step <= MOST_STEPS:
            raise UsageError(f"{parameter('steps')}: {_shown(str(step))} is not a number of updates", hint=_HINT)
    return StepSelection((chosen,))


def salient_steps(last_step: int, marked: Iterable[int]) -> StepSelection:
    """The default rows: 1, 2, 5, 10, 20, 50, ... the landmarks, and the last step.

    Landmarks behind the last step are left out.
    """
    steps = {1, last_step}
    power = 1
    while power <= last_step:
        steps.update(power * digit for digit in (1, 2, 5) if power * digit <= last_step)
        power *= 10
    steps.update(step for step in marked if 1 <= step <= last_step)
    return StepSelection((tuple(sorted(steps)),))


def _once(steps: Iterable[int]) -> Iterator[int]:
    last = None
    for step in steps:
        if step != last:
            yield step
            last = step


def _range(item: str) -> Sequence[int]:
    parts = item.split(":")
    if len(parts) > 3:
        raise _error(item, "has more than first:last:stride")
    numbers = [_whole(part, item) for part in parts]
    first = numbers[0]
    last = numbers[1] if len(numbers) > 1 else first
    stride = numbers[2] if len(numbers) > 2 else 1
    if stride == 0:
        raise _error(item, "has a stride of 0")
    if last < first:
        raise _error(item, f"is an empty range: it ends before it begins ({last} < {first})")
    return range(first, last + 1, stride)


def _log_steps(item: str) -> Sequence[int]:
    parts = item.split(":")[1:]
    if len(parts) != 3:
        raise _error(item, "is not log:first:last:count")
    first, last, count = (_whole(part, item) for part in parts)
    if first < 1:
        raise _error(item, "starts below 1, which a logarithmic axis does not have")
    if last < first:
        raise _error(item, f"is an empty range: it ends before it begins ({last} < {first})")
    if not 2 <= count <= _MOST_LOG_STEPS:
        raise _error(item, f"asks for {count} steps, not for 2 to {_MOST_LOG_STEPS:,}")
    ratio = math.log(last / first)
    inner = {round(first * math.exp(ratio * index / (count - 1))) for index in range(1, count - 1)}
    return sorted({first, last, *(min(max(step, first), last) for step in inner)})


def _whole(part: str, item: str) -> int:
    part = part.strip()
    if part.startswith("-") and part[1:].isdecimal():
        raise _error(item, f"has the negative step {part[:40]}; steps are counted from 0")
    plain = part.replace("_", "")
    if not (plain.isascii() and plain.isdecimal()):
        raise _error(item, f"has {_shown(part)} instead of a whole number")
    if len(plain) > 15:
        raise _error(item, "has a step beyond 10^15, which float64 does not count to")
    return int(plain)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _error(item: str, complaint: str) -> UsageError:
    return UsageError(f"{parameter('steps')}: {_shown(item)} {complaint}", hint=_HINT)
