"""How long a moving average shall be, as users say it, and the coefficients that it means for a run's checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ckpttool.coefficients import Quadrature, Statistics, from_profile, per_checkpoint, statistics
from ckpttool.errors import UsageError
from ckpttool.profiles import ConstantDecay, PowerFunction, Profile, WarmupDecay, Window

__all__ = ["ALMOST_THE_LAST", "LARGE_OLDEST_SHARE", "Computed", "Kind", "Unit", "Wanted", "compute", "describe_length"]

Kind = Literal["decay", "half-life", "sigma-rel", "window"]
Unit = Literal["steps", "checkpoints"]

LARGE_OLDEST_SHARE = 0.10
"""From here on the oldest checkpoint stands for too much that is not known."""

ALMOST_THE_LAST = 1.5
"""An effective number of checkpoints below which an average is little more than one of them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A length that was asked for.

    Attributes:
        kind: How it was said.
        value: The number.
        text: The number as it was typed, for file names.
        warmup: For "decay": whether it is the cap of min(decay, (1+step)/(10+step)), or the decay of every step.
    """

    kind: Kind
    value: float
    text: str
    warmup: bool = True

    def profile(self) -> Profile:
        """The moving average over the steps of the run.

        Raises:
            UsageError: The number is out of range.
        """
        if self.kind == "decay":
            return WarmupDecay(self.value) if self.warmup else ConstantDecay(self.value)
        if self.kind == "half-life":
            return ConstantDecay.from_half_life(self.value)
        return PowerFunction.from_sigma_rel(self.value) if self.kind == "sigma-rel" else Window(self.value)

    def per_checkpoint(self, n: int) -> tuple[float, ...]:
        """The moving average over the checkpoints, each of which counts as one update.

        Raises:
            UsageError: The length is a share of the run, which needs the steps; or out of range.
        """
        if self.kind == "decay":
            return per_checkpoint(n, self.value, warmup=self.warmup)
        if self.kind == "half-life":
            return per_checkpoint(n, ConstantDecay.from_half_life(self.value).decay, warmup=False)
        raise UsageError(
            f"--{self.kind} {self.text} is a share of the run, and --unit checkpoints does not look at its steps",
            hint="Leave --unit out, or say --decay or --half-life (in checkpoints).",
        )

    def __str__(self) -> str:
        rule = {"decay": ", with warm-up" if self.warmup else ", constant"}.get(self.kind, "")
        return f"{self.kind} {self.text}{rule}"


@dataclass(frozen=True)
class Computed:
    """A length, and what it means for the checkpoints.

    Attributes:
        wanted: The length.
        unit: What an update is: a step of training, or a checkpoint.
        coefficients: One for each checkpoint, oldest first.
        profile: The moving average over the steps; None for unit "checkpoints".
        statistics: What the coefficients amount to.
        ages: What its ages count: checkpoints where no step is known.
        warnings: What a user must know before relying on it.
    """

    wanted: Wanted
    unit: Unit
    coefficients: tuple[float, ...]
    profile: Profile | None
    statistics: Statistics
    ages: Unit
    warnings: tuple[str, ...]


def compute(
    wanted: Wanted, steps: Sequence[int] | None, count: int, *, unit: Unit, quadrature: Quadrature = "linear"
) -> Computed:
    """The coefficients of a length.

    Args:
        wanted: The length.
        steps: The checkpoints' training steps, oldest first; None where they are not known.
        count: How many checkpoints there are.
        unit: What an update is.
        quadrature: What the weights did between two checkpoints; see `ckpttool.coefficients.from_profile`.

    Raises:
        UsageError: The length is out of range, needs steps that are not known, or steps do not grow.
    """
    profile = None
    if unit == "steps":
        if steps is None:
            raise UsageError(
                f"--{wanted.kind} {wanted.text} counts training steps, and the checkpoints' steps are not known",
                hint="--unit checkpoints counts each checkpoint as one update.",
            )
        profile = wanted.profile()
        coefficients = from_profile(steps, profile, quadrature)
    else:
        coefficients = wanted.per_checkpoint(count)
    times = steps if steps is not None else range(1, count + 1)
    found = statistics(times, coefficients, profile)
    warnings = _warnings(wanted, found, coefficients, times, profile)
    return Computed(
        wanted, unit, coefficients, profile, found, "steps" if steps is not None else "checkpoints", warnings
    )


def _warnings(
    wanted: Wanted, found: Statistics, coefficients: Sequence[float], steps: Sequence[int], profile: Profile | None
) -> tuple[str, ...]:
    warnings = []
    if len(coefficients) > 1 and found.oldest_share > LARGE_OLDEST_SHARE:
        before = found.mass_before_first
        known = "" if before is None else f"; {before:.0%} of this average lies before it, where nothing is known"
        warnings.append(
            f"{wanted}: the oldest checkpoint has {found.oldest_share:.0%} of the average{known}. "
            "A shorter length, or older checkpoints, make it an average of the run"
        )
    if len(coefficients) > 1 and found.effective_number < ALMOST_THE_LAST and coefficients[-1] > 0.5:
        gap = steps[-1] - steps[-2]
        window = (
            ""
            if profile is None
            else f": 99% of it are {profile.age(0.99, steps[-1]):,.0f} steps, and the last gap is {gap:,}"
        )
        warnings.append(
            f"{wanted}: this is almost the last checkpoint (it has {coefficients[-1]:.0%}){window}. "
            "A longer length averages more"
        )
    return tuple(warnings)


def describe_length(profile: Profile, last: int) -> dict[str, float]:
    """A length said in every way that is in use, at the last step: the names are those of the options.

    Returns:
        mean-age, half-life and window-99 in steps; sigma-rel and window (the part of the run that a plain mean of equal
        mean age would cover) as shares of the run; decay, the constant one with the same half-life.
    """
    length = profile.length(last)
    return {
        "mean-age": length.mean_age,
        "half-life": length.half_life,
        "window-99": length.window,
        "sigma-rel": length.sigma_rel,
        "window": min(2 * length.mean_age / last, 1.0),
        "decay": length.decay if math.isfinite(length.decay) else 0.0,
    }
