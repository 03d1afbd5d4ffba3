"""How long a moving average shall be, in a user's terms, and the coefficients that it means for a run's checkpoints.

A length counts updates (a decay, a half-life) or is a share of the run (sigma_rel, a window). For the first kind it has
to be known what an update is: a training step, an epoch, or a checkpoint (`Unit`). A share needs no unit: any numbers
that grow in proportion to training will do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ckpttool.coefficients.profiles import ConstantDecay, PowerFunction, Profile, WarmupDecay, Window
from ckpttool.coefficients.weights import Quadrature, Statistics, from_profile, per_checkpoint, statistics
from ckpttool.errors import UsageError
from ckpttool.text import Message, parameter

__all__ = [
    "ALMOST_THE_LAST",
    "LARGE_OLDEST_SHARE",
    "Computed",
    "Counted",
    "Kind",
    "Unit",
    "Wanted",
    "choose_unit",
    "compute",
    "describe_length",
]

Kind = Literal["decay", "half-life", "sigma-rel", "window"]

Unit = Literal["steps", "epochs", "checkpoints"]
"""What one update of the average is, as users say it."""

Counted = Literal["steps", "epochs", "checkpoints", "numbers"]
"""What numbers count: one of the units, or something unknown."""

LARGE_OLDEST_SHARE = 0.10
"""A share of the oldest checkpoint from which on too much of the average is not known."""

ALMOST_THE_LAST = 1.5
"""An effective number of checkpoints below which an average is little more than one of them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A length that was asked for.

    Attributes:
        kind: In which terms.
        value: The number.
        text: The number as it was typed, for file names.
        warmup: For "decay": whether it is the cap of min(decay, (1+step)/(10+step)), or the decay of every step.
        is_default: Whether it is the default, which is used if no length is given.
    """

    kind: Kind
    value: float
    text: str
    warmup: bool = True
    is_default: bool = False

    @property
    def is_share(self) -> bool:
        """Whether it is a share of the run, and counts no updates."""
        return self.kind in {"sigma-rel", "window"}

    def profile(self) -> Profile:
        """The moving average over the updates of the run.

        Raises:
            UsageError: The number is out of range.
        """
        if self.kind == "decay":
            return WarmupDecay(self.value) if self.warmup else ConstantDecay(self.value)
        if self.kind == "half-life":
            return ConstantDecay.from_half_life(self.value)
        return PowerFunction.from_sigma_rel(self.value) if self.kind == "sigma-rel" else Window(self.value)

    def first_effective_update(self) -> int:
        """The first update on which the number has an effect: with a warm-up, the decay is its cap, and 1 otherwise.

        Example:
            >>> Wanted("decay", 0.9999, "0.9999").first_effective_update()
            89991
        """
        profile = self.profile()
        return profile.crossing + 1 if isinstance(profile, WarmupDecay) else 1

    def no_effect(self, updates: int, unit: Counted = "steps") -> str | None:
        """What to tell a user whose decay has no effect, because the warm-up is below it in the whole run.

        Args:
            updates: How many updates the average has had in the end.
            unit: What an update is.

        Returns:
            None where the decay has an effect, and for the default.
        """
        first = self.first_effective_update()
        if self.is_default or updates >= first:
            return None
        digits = len(str(updates)) + 2
        same = math.ceil(10**digits * (1 + updates) / (10 + updates)) / 10**digits
        one = unit.removesuffix("s")
        return Message(
            f"{self}: the decay has an effect from {one} {first:,} on, and the average ends at {one} {updates:,}. "
            f"The warm-up (1 + {one}) / (10 + {one}) is below it until then, so that every decay of {same:.{digits}g} "
            f"or more gives this average. {parameter('warmup', False)} keeps the decay constant; "
            f"{parameter('half_life')} and {parameter('sigma_rel')} are lengths without a warm-up"
        )

    def __str__(self) -> str:
        rule = {"decay": ", with warm-up" if self.warmup else ", constant"}.get(self.kind, "")
        return f"{self.kind} {self.text}{rule}"

    def as_parameter(self) -> str:
        """The parameter and its value, marked for a `ckpttool.text.Message`."""
        return parameter(self.kind.replace("-", "_"), self.text) + (" (the default)" if self.is_default else "")


@dataclass(frozen=True)
class Computed:
    """A length, and what it means for the checkpoints.

    Attributes:
        wanted: The length.
        unit: What an update is; "numbers" for a share of a run whose numbers have an unknown unit.
        coefficients: One for each checkpoint, oldest first.
        profile: The moving average over the updates; None for unit "checkpoints".
        statistics: What the coefficients amount to.
        ages: What its ages count: checkpoints where nothing else is known.
        warnings: What a user must know before relying on it.
    """

    wanted: Wanted
    unit: Counted
    coefficients: tuple[float, ...]
    profile: Profile | None
    statistics: Statistics
    ages: Counted
    warnings: tuple[str, ...]


def choose_unit(wanted: Wanted, asked: Unit | None, counted: Counted | None) -> Counted:
    """What an update is, for one length.

    A share of the run goes by whatever grows with training: steps, epochs or other numbers, else the checkpoints.

    Args:
        wanted: The length.
        asked: What the user says; None: nothing.
        counted: What the checkpoints' numbers count; "numbers" where that is not known, None where they have none.

    Raises:
        UsageError: The length counts updates, and what an update is is not known; or a unit was asked for that the
            checkpoints do not have.
    """
    if asked == "checkpoints" or (asked is not None and counted in {asked, "numbers"}):
        return asked
    if asked is not None:
        raise UsageError(
            f"{wanted.as_parameter()} by {asked}: the checkpoints' {asked} are not known",
            hint=f"Leave {parameter('unit')} out: a share of the run needs none."
            if wanted.is_share
            else f"Say what one update is: {_choices(counted)}.",
        )
    if counted == "steps" or (wanted.is_share and counted is not None):
        return counted
    if wanted.is_share:
        return "checkpoints"
    known = {"epochs": "are numbered by epoch", "numbers": "have numbers of an unknown unit"}
    raise UsageError(
        f"{wanted.as_parameter()} counts updates of the average, and the checkpoints "
        f"{known.get(counted or '', 'do not say their training steps')}",
        hint=f"Say what one update is: {_choices(counted)}. {parameter('sigma_rel')} and {parameter('window')} are "
        "shares of the run, and need no unit.",
    )


def _choices(counted: Counted | None) -> str:
    """The units that can be asked for, by what the checkpoints' numbers count."""
    units = [unit for unit in ("steps", "epochs") if counted in {unit, "numbers"}]
    *first, last = (parameter("unit", unit) for unit in (*units, "checkpoints"))
    return f"{', '.join(first)} or {last}" if first else last


def compute(
    wanted: Wanted,
    times: Sequence[int] | None,
    count: int,
    *,
    unit: Unit | None = None,
    counted: Counted = "steps",
    quadrature: Quadrature = "linear",
) -> Computed:
    """The coefficients of a length.

    For unit "checkpoints", a decay or half-life takes the oldest checkpoint for the initial value, and the k-th after
    it for update k; a share takes the checkpoints for a whole run that saved one after each of `count` equal parts.

    Args:
        wanted: The length.
        times: The checkpoints' steps, epochs or other numbers, oldest first; None where they have none.
        count: How many checkpoints there are.
        unit: What an update is, where the user says it; see `choose_unit`.
        counted: What `times` counts.
        quadrature: What the weights did between two checkpoints; see `ckpttool.coefficients.weights.from_profile`.

    Raises:
        UsageError: The length is out of range, what an update is is not known, or the times do not grow.
    """
    chosen = choose_unit(wanted, unit, None if times is None else counted)
    places = range(1, count + 1)
    profile = None
    if chosen != "checkpoints" and times is not None:
        profile = wanted.profile()
        coefficients = from_profile(times, profile, quadrature)
        updates = times[-1]
    elif wanted.is_share:
        coefficients, updates = from_profile(places, wanted.profile(), quadrature), count
    else:
        coefficients, updates = _by_checkpoint(wanted, count), count - 1
    found = statistics(times if times is not None else places, coefficients, profile)
    warnings = tuple(_warnings(wanted, chosen, updates, found, coefficients, profile))
    ages: Counted = "checkpoints" if times is None else counted if profile is None else chosen
    return Computed(wanted, chosen, coefficients, profile, found, ages, warnings)


def _by_checkpoint(wanted: Wanted, count: int) -> tuple[float, ...]:
    profile = wanted.profile()
    assert isinstance(profile, (WarmupDecay, ConstantDecay))
    return per_checkpoint(count, profile.decay, warmup=isinstance(profile, WarmupDecay))


def _warnings(
    wanted: Wanted,
    unit: Counted,
    updates: int,
    found: Statistics,
    coefficients: Sequence[float],
    profile: Profile | None,
) -> Iterator[str]:
    if len(coefficients) == 1:
        return
    idle = wanted.no_effect(updates, unit)
    if idle is not None:
        yield idle
    if found.oldest_share > LARGE_OLDEST_SHARE:
        before = found.mass_before_first
        known = "" if before is None else f"; {before:.0%} of this average is from before it, where nothing is known"
        yield (
            f"{wanted}: the oldest checkpoint has {found.oldest_share:.0%} of the average{known}. "
            "A shorter length, or older checkpoints, make it an average of the run"
        )
    if found.effective_number < ALMOST_THE_LAST and coefficients[-1] > 0.5:
        last, before_last = found.multipliers[-1][0], found.multipliers[-2][0]
        window = (
            ""
            if profile is None
            else f": 99% of it are {profile.age(0.99, last):,.0f} {unit}, and the last gap is {last - before_last:,}"
        )
        yield (
            f"{wanted}: this is almost the last checkpoint (it has {coefficients[-1]:.0%}){window}. "
            "A longer length averages more"
        )


def describe_length(profile: Profile, last: int) -> dict[str, float]:
    """A length in every term that is in use, at the last update: the names are those of the options.

    Returns:
        mean-age, half-life and window-99 in updates; sigma-rel and window (the part of the run whose plain mean has the
        same mean age) as shares of the run; decay, the constant one with the same half-life.
    """
    length = profile.length(last)
    return {
        "mean-age": length.mean_age,
        "half-life": length.half_life,
        "window-99": length.window_99,
        "sigma-rel": length.sigma_rel,
        "window": length.window,
        "decay": length.decay if math.isfinite(length.decay) else 0.0,
    }
