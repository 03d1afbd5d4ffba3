"""What a schedule is, and the checks of its parameters."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from contextlib import suppress
from numbers import Real
from typing import SupportsIndex

from ckpttool.errors import UsageError
from ckpttool.text import parameter as mark

__all__ = [
    "MOST_STEPS",
    "ParameterError",
    "Schedule",
    "at_least_zero",
    "count",
    "fraction",
    "number",
    "positive",
    "shown",
    "warmup_within",
]

MOST_STEPS = 2**53
"""The largest number of updates: float64 does not count further."""

Schedule = Callable[[int], float]
"""From the number of updates done (>= 0) to the rate of the next one."""


class ParameterError(UsageError):
    """A parameter of a schedule cannot have this value.

    Attributes:
        parameter: Its name, as the function calls it.
        reason: What is asked of it and what it was: ``must be at least 1, not 0``.
    """

    def __init__(self, name: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{mark(name)} {reason}", hint=hint)
        self.parameter = name
        self.reason = reason


_MOST = 1e100  # beyond it products overflow


def number(name: str, value: object) -> float:
    """A finite number that is not a bool."""
    found = math.nan
    if not isinstance(value, bool) and isinstance(value, Real):
        with suppress(OverflowError):
            found = float(value)
    if not abs(found) <= _MOST:  # NaN too
        raise ParameterError(name, f"must be a finite number, not {shown(value)}")
    return found


def positive(name: str, value: object) -> float:
    """A number above 0."""
    found = number(name, value)
    if found <= 0:
        raise ParameterError(name, f"must be greater than 0, not {value!r}")
    return found


def at_least_zero(name: str, value: object) -> float:
    """A number of at least 0."""
    found = number(name, value)
    if found < 0:
        raise ParameterError(name, f"must be at least 0, not {value!r}")
    return found


def fraction(name: str, value: object) -> float:
    """A number from 0 to 1."""
    found = at_least_zero(name, value)
    if found > 1:
        raise ParameterError(name, f"must be at most 1, not {found:g}")
    return found


def count(name: str, value: object, least: int) -> int:
    """A whole number of at least `least`; 8e3, as configurations write 8000, is one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        found = operator.index(value)
        if found > MOST_STEPS:
            raise ParameterError(name, f"must be at most {MOST_STEPS}, not {shown(value)}")
        if found >= least:
            return found
    raise ParameterError(name, f"must be a whole number of at least {least}, not {shown(value)}")


def shown(value: object) -> str:
    """A value in a message, cut short."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def warmup_within(warmup_steps: object, max_step: object) -> tuple[int, int]:
    """The length of a warm-up and of the training, which is longer."""
    warmup = count("warmup_steps", warmup_steps, 0)
    last = count("max_step", max_step, 1)
    if last <= warmup:
        raise ParameterError("max_step", f"must be greater than warmup_steps, which is {warmup}, not {last}")
    return warmup, last
