"""Averaging profiles: how the mass of a moving average is spread over the steps of a training run.

A moving average of the weights θ after step T is a weighted mean of the weights after every step, ``Σ p(s)·θ(s)`` over
the integer steps s = 0 … T, where θ(0) are the initial weights. A profile is this p, given by its cumulative share

    F(s) = p(0) + … + p(s) = the product of the decays of the steps s+1 … T

which is 1 at s = T. Everything else follows from F: the share of each checkpoint
(`ckpttool.coefficients.weights.from_profile`), the age of the average, and the learning-rate curve that it replaces:
the update of step s is in every later checkpoint, so it counts with 1 - F(s-1) (WSM, arXiv:2507.17634). Between
two moments of one running average, ``mass(a, b)`` is the share of the average at step a that is left in it at step b.

A *decay* is the weight that the old average keeps at an update (0.9999, say); the new value gets 1 - decay. Some
projects call the weight of the new value the decay.

Steps count from the start of training, and ages are in steps before the last one. Between the integers F is
interpolated, so that a half-life need not be a whole number. Where a run counts epochs or checkpoints, and each of them
is taken as one update, "step" is one of those.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction

from ckpttool.coefficients.sums import geometric_sums, power_sum, rising_factorial
from ckpttool.errors import UsageError

__all__ = ["ConstantDecay", "Length", "PowerFunction", "Profile", "WarmupDecay", "Window"]

_MAX_SIGMA_REL = 1 / math.sqrt(12)


@dataclass(frozen=True, slots=True)
class Length:
    """How long an average is, in every term that is in use.

    Attributes:
        mean_age: Mean age of the mass, in steps.
        half_life: Age within which half of the mass is, in steps.
        window_99: Age within which 99 % of the mass is, in steps.
        sigma_rel: Standard deviation of the profile as a share of the run (Karras et al. 2024).
        window: The share of the run whose plain mean has the same mean age; at most 1.
        decay: The constant decay per step that has the same half-life.
    """

    mean_age: float
    half_life: float
    window_99: float
    sigma_rel: float
    window: float
    decay: float


class Profile(ABC):
    """How the mass of a moving average is spread over the steps up to `last`."""

    @abstractmethod
    def mass(self, step: float, last: float) -> float:
        """F(step): the share of the mass at or before `step` in the average after step `last`.

        Args:
            step: 0 ≤ step ≤ last; between two integers, an interpolated value.
            last: The step of the average.

        Returns:
            Between 0 and 1, growing with `step`; 1 at `last`.
        """

    @abstractmethod
    def mean_mass(self, start: int, stop: int, last: int) -> float:
        """Mean of F over the integer steps from `start` up to, not including, `stop`, in closed form.

        Args:
            start: 0 ≤ start < stop.
            stop: start < stop ≤ last.
            last: The step of the average.

        Returns:
            Between F(start) and F(stop-1).
        """

    @abstractmethod
    def sigma_rel(self, last: int) -> float:
        """Standard deviation of the profile as a share of the run (Karras et al. 2024, arXiv:2312.02696)."""

    def mean_age(self, last: int) -> float:
        """Mean age of the mass in steps: Σ (last - s)·p(s) = Σ_{s < last} F(s)."""
        return last * self.mean_mass(0, last, last)

    def age(self, share: float, last: float) -> float:
        """The age within which `share` of the mass is: F(last - age) = 1 - share.

        Args:
            share: 0 ≤ share < 1.
            last: The step of the average.

        Returns:
            Steps, not above `last`: at `last` the start of training is reached.
        """
        rest = 1.0 - share
        if self.mass(0, last) >= rest:
            return float(last)
        young, old = 0.0, float(last)
        while (middle := (young + old) / 2) not in (young, old):
            if self.mass(last - middle, last) > rest:
                young = middle
            else:
                old = middle
        return old

    def length(self, last: int) -> Length:
        """The length of the average after step `last`, in every term that is in use.

        Example:
            >>> length = WarmupDecay(0.9999).length(50_000)
            >>> round(length.mean_age), round(length.half_life), round(length.sigma_rel, 4), round(length.window, 3)
            (5000, 3707, 0.0905, 0.2)

        Raises:
            UsageError: If `last` is not positive.
        """
        if last <= 0:
            raise UsageError(
                f"an average has no length at step {last}", hint="Give the number of training steps, 1 or more."
            )
        half_life, mean_age = self.age(0.5, last), self.mean_age(last)
        return Length(
            mean_age=mean_age,
            half_life=half_life,
            window_99=self.age(0.99, last),
            sigma_rel=self.sigma_rel(last),
            window=min((2 * mean_age + 1) / last, 1.0),  # the mean age of n steps is (n-1)/2
            decay=0.5 ** (1 / half_life),
        )


def _check_decay(decay: float) -> None:
    if 0.0 < decay < 1.0:
        return
    raise UsageError(
        f"the decay must be between 0 and 1, and {decay!r} is not",
        hint="The decay is what the average keeps at each step: 0.9999, for example.",
    )


def _standard_deviation(mean: float, mean_square: float) -> float:
    return math.sqrt(max(mean_square - mean * mean, 0.0))


@dataclass(frozen=True, slots=True)
class ConstantDecay(Profile):
    """The same decay d at every step: F(s) = d^(T-s), from 0 < d < 1.

    The initial weights, at step 0, have what is left: d^T.

    Attributes:
        decay: What the average keeps at each step.

    Raises:
        UsageError: If the decay is not between 0 and 1.

    Example:
        >>> profile = ConstantDecay(0.9999)
        >>> round(profile.age(0.5, 10**6)), round(profile.age(0.99, 10**6))
        (6931, 46049)
    """

    decay: float

    def __post_init__(self) -> None:
        _check_decay(self.decay)

    @classmethod
    def from_half_life(cls, steps: float) -> ConstantDecay:
        """The decay that halves a value's share in `steps` steps: 0.5^(1/steps).

        Raises:
            UsageError: If `steps` is not positive, or so small or large that the decay rounds to 0 or 1.

        Example:
            >>> round(ConstantDecay.from_half_life(693).decay, 6)
            0.999
        """
        if not 0.0 < steps < math.inf:
            raise UsageError(
                f"the half-life must be a positive number, not {steps!r}", hint="Give it in training steps: 1000."
            )
        return cls(0.5 ** (1.0 / steps))

    def mass(self, step: float, last: float) -> float:
        """F(s) = d^(T-s)."""
        return float(self.decay ** (last - step))

    def mean_mass(self, start: int, stop: int, last: int) -> float:
        """Σ_{a ≤ s < b} d^(T-s) / (b-a) = d^(T-b+1)·(1-d^(b-a)) / ((1-d)(b-a))."""
        steps = stop - start
        left = -math.expm1(steps * math.log(self.decay))
        return float(self.decay ** (last - stop + 1) * left / ((1.0 - self.decay) * steps))

    def sigma_rel(self, last: int) -> float:
        """From E[age²] = Σ_{k ≤ T} (2k-1)·d^k."""
        plain, weighted = geometric_sums(self.decay, last)
        return _standard_deviation(plain, 2 * weighted - plain) / last

    def age(self, share: float, last: float) -> float:
        """ln(1-share) / ln d, and not before the start of training."""
        return min(math.log1p(-share) / math.log(self.decay), float(last))


@dataclass(frozen=True, slots=True)
class WarmupDecay(Profile):
    """The decay of step s is min(decay, (1+s)/(10+s)): short memory at first, then up to a cap.

    The rule of ``tf.train.ExponentialMovingAverage`` with `num_updates`, of OpenNMT, Marian, and many others.
    As long as the cap is not reached, F has nine factors whatever the gap, since all others cancel:

        F(s) = Π_{j=2…10} (s+j)/(T+j),

    close to ((s+6)/(T+6))^9. That is the power function with exponent 8: an average over roughly the last tenth of
    training, on which the cap has no influence until step (10·decay - 1)/(1 - decay), 89,990 for 0.9999.

    Attributes:
        decay: The cap, between 0 and 1.

    Raises:
        UsageError: If the decay is not between 0 and 1.

    Example:
        >>> WarmupDecay(0.9999).crossing
        89990
        >>> WarmupDecay(0.9999).at(10)
        0.55
    """

    decay: float

    def __post_init__(self) -> None:
        _check_decay(self.decay)

    @property
    def crossing(self) -> int:
        """The last step at which the cap has no effect; 0 if it has one from the start."""
        # The decimal number that was written, not the binary one next to it: 0.9999 crosses exactly at 89,990.
        decay = Fraction(repr(float(self.decay)))
        return max(math.floor((10 * decay - 1) / (1 - decay)), 0)

    def at(self, step: int) -> float:
        """The decay of one step (1 or later): min(decay, (1+step)/(10+step))."""
        return min(self.decay, (1 + step) / (10 + step))

    def mass(self, step: float, last: float) -> float:
        """Nine factors up to the crossing m, then decay^(T-m)."""
        turn = min(max(self.crossing, step), last)
        product = float(self.decay ** (last - turn))
        for j in range(2, 11):
            product *= (step + j) / (turn + j)
        return product

    def mean_mass(self, start: int, stop: int, last: int) -> float:
        """The sum telescopes: Σ_{a ≤ s < b} Π_{j=2…10}(s+j) = (Π_{j=1…10}(b+j) - Π_{j=1…10}(a+j)) / 10.

        In whole numbers, which lose nothing; the part beyond the crossing as in `ConstantDecay`.
        """
        turn = min(self.crossing, last)
        early, late = min(stop, turn), max(start, turn)
        total = 0.0
        if start < early:
            warm = (rising_factorial(early, 1, 10) - rising_factorial(start, 1, 10)) / (
                10 * rising_factorial(turn, 2, 10)
            )
            total += warm * self.decay ** (last - turn)
        if late < stop:
            total += ConstantDecay(self.decay).mean_mass(late, stop, last) * (stop - late)
        return total / (stop - start)

    def sigma_rel(self, last: int) -> float:
        """From E[age²] = Σ_{s < T} (2(T-s)-1)·F(s), the part below the crossing in whole numbers."""
        turn = min(self.crossing, last)
        plain, weighted = geometric_sums(self.decay, last - turn)
        mean, square = plain, 2 * weighted - plain
        if turn:
            # Σ s·F(s) from s·(s+2)…(s+10) = (s+2)…(s+11) - 11·(s+2)…(s+10); both sums telescope.
            kept = self.decay ** (last - turn)
            nine = rising_factorial(turn, 2, 10)
            tens = rising_factorial(turn, 1, 10) - math.factorial(10)
            elevens = rising_factorial(turn, 1, 11) - math.factorial(11)
            mean += kept * (tens / (10 * nine))
            first = (10 * elevens - 121 * tens) / (110 * nine)
            square += kept * ((2 * last - 1) * (tens / (10 * nine)) - 2 * first)
        return _standard_deviation(mean, square) / last


@dataclass(frozen=True, slots=True)
class PowerFunction(Profile):
    """F(s) = (s/T)^(g+1), which keeps its shape as the run grows: the decay of step s is (1 - 1/s)^(g+1).

    Karras et al. 2024, arXiv:2312.02696, section 3, whose density is p(s) ∝ s^g in continuous time. g = 0 is the plain
    mean of all steps. The initial weights have no share, since the decay of the first step is 0.

    Attributes:
        gamma: The exponent g, above -1.

    Raises:
        UsageError: If the exponent is not a number above -1.

    Example:
        >>> round(PowerFunction.from_sigma_rel(0.10).gamma, 3)
        6.937
    """

    gamma: float

    def __post_init__(self) -> None:
        if not (-1.0 < self.gamma < math.inf):
            raise UsageError(
                f"the exponent of a power function must be above -1, and {self.gamma!r} is not",
                hint="Give the length as a share of the run instead: a sigma_rel of 0.1, for example.",
            )

    @classmethod
    def from_sigma_rel(cls, sigma_rel: float) -> PowerFunction:
        """The power function whose standard deviation is `sigma_rel` of the run.

        The largest root of g³ + 7g² + (16-u)g + (12-u) = 0 with u = sigma_rel⁻², by Viète's formula: shifted by
        7/3 the cubic reads t³ - (u+1/3)·t + (4u/3+2/27) = 0, and it has three real roots from u = 12 on.

        Args:
            sigma_rel: Above 0, at most 1/√12 = 0.2887 (the plain mean of the run).

        Raises:
            UsageError: If `sigma_rel` is out of range.
        """
        if not (0.0 < sigma_rel <= _MAX_SIGMA_REL):
            raise UsageError(
                f"sigma_rel must be above 0 and at most 0.2887, and {sigma_rel!r} is not",
                hint="0.05 to 0.15 is usual; 0.2887 is the plain mean of the whole run.",
            )
        u = sigma_rel**-2
        p, q = u + 1 / 3, 4 * u / 3 + 2 / 27
        radius = 2 * math.sqrt(p / 3)
        angle = math.acos(max(-3 * q / (p * radius), -1.0)) / 3
        gamma = radius * math.cos(angle) - 7 / 3
        # One Newton step takes off what the shift by 7/3 left.
        slope = 3 * gamma**2 + 14 * gamma + 16 - u
        gamma -= (gamma**3 + 7 * gamma**2 + (16 - u) * gamma + 12 - u) / slope
        return cls(max(gamma, 0.0))

    def mass(self, step: float, last: float) -> float:
        """F(s) = (s/T)^(g+1)."""
        return float((step / last) ** (self.gamma + 1)) if last else 1.0

    def mean_mass(self, start: int, stop: int, last: int) -> float:
        """Σ_{a ≤ s < b} (s/T)^(g+1) / (b-a); see `ckpttool.coefficients.sums.power_sum`."""
        return power_sum(self.gamma + 1, start, stop, last) / (stop - start)

    def sigma_rel(self, last: int) -> float:  # noqa: ARG002  # the shape is the same at every step
        """√((g+1) / ((g+2)²·(g+3))): as published, of the density, which the steps' own spread approaches as 1/T."""
        return math.sqrt((self.gamma + 1) / (self.gamma + 3)) / (self.gamma + 2)

    def age(self, share: float, last: float) -> float:
        """T·(1 - (1-share)^(1/(g+1)))."""
        return float(-last * math.expm1(math.log1p(-share) / (self.gamma + 1)))


@dataclass(frozen=True, slots=True)
class Window(Profile):
    """The plain mean of the last fraction·T steps.

    F(s) = 1 - (T-s)/(fraction·T), and 0 before the window. Where fraction·T is not a whole number, the oldest step
    counts in part. It replaces a linear decay of the learning rate to zero over that part of the run.

    Attributes:
        fraction: Above 0, at most 1 (the whole run).

    Raises:
        UsageError: If the fraction is out of range.

    Example:
        >>> Window(0.1).mean_age(50_000)  # of 5,000 steps, aged 0 to 4,999
        2499.5
    """

    fraction: float

    def __post_init__(self) -> None:
        if not (0.0 < self.fraction <= 1.0):
            raise UsageError(
                f"the window must be above 0 and at most 1, and {self.fraction!r} is not",
                hint="It is a share of the run: 0.1 is the last tenth.",
            )

    def _steps(self, last: float) -> Fraction:
        """fraction·T of the decimal number that was written, so that 0.29 of 100 steps are 29."""
        return Fraction(repr(float(self.fraction))) * Fraction(last)

    def mass(self, step: float, last: float) -> float:
        """F(s) = 1 - (T-s)/(fraction·T), and 0 before the window."""
        if not last:
            return 1.0
        age = Fraction(last) - Fraction(step)
        return max(float(1 - age / self._steps(last)), 0.0)

    def mean_mass(self, start: int, stop: int, last: int) -> float:
        """The sum of an arithmetic series, over the steps inside the window; in fractions, which lose nothing."""
        steps = self._steps(last)
        first = max(start, math.floor(last - steps) + 1)
        if first >= stop:
            return 0.0
        ages = Fraction((last - first) + (last - stop + 1), 2)  # their mean
        return float((1 - ages / steps) * (stop - first) / (stop - start))

    def sigma_rel(self, last: int) -> float:
        """From E[age²] = Σ_{k < n} (2k-1)·(1 - k/n), with n = fraction·T; √((n²-1)/12) if n is a whole number."""
        n = self._steps(last)
        whole = math.floor(n)
        ages, squares = Fraction(whole * (whole + 1), 2), Fraction(whole * (whole + 1) * (2 * whole + 1), 6)
        mean = whole - ages / n
        return math.sqrt(whole**2 - (2 * squares - ages) / n - mean**2) / last

    def age(self, share: float, last: float) -> float:
        """share·fraction·T."""
        return share * self.fraction * last
