"""Averaging profiles: how the mass of a moving average is spread over the steps of a training run.

A moving average of the weights θ after step T is a weighted mean of everything that training passed through,
``Σ p(s)·θ(s)``. A profile is that p, told by its cumulative share

    F(s) = the mass at or before step s = the product of the decays of the steps s+1 … T

which is 1 at s = T. Everything else follows from F: what share a checkpoint deserves
(`ckpttool.coefficients.weights.from_profile`), how old the average is, and which learning-rate curve it stands in for
(1 - F, see `Profile.multiplier`). Between two moments of one running average, ``mass(a, b)`` is the share of the
average at step a that is left in it at step b.

Here a *decay* is the weight that the old average keeps at an update (0.9999, say); the new value gets 1 - decay.
Some projects call the weight of the new value the decay.

Steps count from the start of training, and ages are in steps before the last one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction

from ckpttool.errors import UsageError

__all__ = ["ConstantDecay", "Length", "PowerFunction", "Profile", "WarmupDecay", "Window"]

_MAX_SIGMA_REL = 1 / math.sqrt(12)


@dataclass(frozen=True, slots=True)
class Length:
    """How long an average is, said in every way that is in use.

    Attributes:
        mean_age: Mean age of the mass, in steps.
        half_life: Age within which half of the mass lies, in steps.
        time_scale: Age within which 1 - 1/e of the mass lies, in steps.
        window: Age within which 99 % of the mass lies, in steps.
        sigma_rel: Standard deviation of the profile as a share of the run (Karras et al. 2024).
        decay: The constant decay per step that has the same half-life.
    """

    mean_age: float
    half_life: float
    time_scale: float
    window: float
    sigma_rel: float
    decay: float


class Profile(ABC):
    """How the mass of a moving average is spread over the steps up to `last`."""

    @abstractmethod
    def mass(self, step: float, last: float) -> float:
        """F(step): the share of the mass at or before `step` in the average after step `last`.

        Args:
            step: 0 ≤ step ≤ last; need not be whole.
            last: The step of the average.

        Returns:
            Between 0 and 1, growing with `step`; 1 at `last`.
        """

    @abstractmethod
    def mean_mass(self, start: int, stop: int, last: int) -> float:
        """Mean of F over the steps from `start` up to, not including, `stop`, in closed form.

        Args:
            start: 0 ≤ start < stop.
            stop: start < stop ≤ last.
            last: The step of the average.

        Returns:
            Between F(start) and F(stop).
        """

    @abstractmethod
    def spread(self, last: int) -> float:
        """Standard deviation of the ages, in steps."""

    def multiplier(self, step: float, last: float) -> float:
        """1 - F(step): the factor on the learning rate at `step` that the average stands in for.

        An average of the weights is a weighted sum of the updates: the one made at step s is in every
        checkpoint from s on, so it counts with the mass after it (WSM, arXiv:2507.17634).
        """
        return 1.0 - self.mass(step, last)

    def mean_age(self, last: int) -> float:
        """Mean age of the mass in steps: Σ (last - s)·p(s) = Σ_{s < last} F(s)."""
        return last * self.mean_mass(0, last, last)

    def sigma_rel(self, last: int) -> float:
        """Standard deviation of the profile as a share of the run (Karras et al. 2024, arXiv:2312.02696)."""
        return self.spread(last) / last

    def age(self, share: float, last: float) -> float:
        """The age within which `share` of the mass lies: F(last - age) = 1 - share.

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
        """The length of the average after step `last`, said in every way that is in use.

        Example:
            >>> length = WarmupDecay(0.9999).length(50_000)
            >>> round(length.mean_age), round(length.half_life), round(length.sigma_rel, 4)
            (5000, 3707, 0.0905)

        Raises:
            UsageError: If `last` is not positive.
        """
        if last <= 0:
            raise UsageError(
                f"an average has no length at step {last}", hint="give the number of training steps, 1 or more"
            )
        half_life = self.age(0.5, last)
        return Length(
            mean_age=self.mean_age(last),
            half_life=half_life,
            time_scale=self.age(1 - math.exp(-1), last),
            window=self.age(0.99, last),
            sigma_rel=self.sigma_rel(last),
            decay=0.5 ** (1 / half_life),
        )


def _check_decay(decay: float) -> None:
    if 0.0 < decay < 1.0:
        return
    raise UsageError(
        f"the decay must lie between 0 and 1, and {decay!r} does not",
        hint="the decay is what the average keeps at each step, for example 0.9999",
    )


def _check_positive(value: float, what: str) -> None:
    if not (0.0 < value < math.inf):
        raise UsageError(f"{what} must be a positive number, not {value!r}", hint="give it in training steps")


def _geometric(decay: float, count: int) -> tuple[float, float]:
    """Σ d^k and Σ k·d^k for k = 1 … count.

    By doubling, which only ever adds positive numbers; the textbook forms lose every digit near d = 1.
    """
    plain = weighted = 0.0
    done = 0
    for bit in format(count, "b"):
        kept = decay**done
        plain, weighted = plain + kept * plain, weighted + kept * (weighted + done * plain)
        done *= 2
        if bit == "1":
            plain, weighted = decay * (1 + plain), decay * (1 + plain + weighted)
            done += 1
    return plain, weighted


@dataclass(frozen=True, slots=True)
class ConstantDecay(Profile):
    """The same decay d at every step: F(s) = d^(T-s), from 0 < d < 1.

    What is older than the run would reach lies on its first step.

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
            UsageError: If `steps` is not positive.

        Example:
            >>> round(ConstantDecay.from_half_life(693).decay, 6)
            0.999
        """
        return cls.from_age(0.5, steps)

    @classmethod
    def from_age(cls, share: float, steps: float) -> ConstantDecay:
        """The decay that has `share` of the mass (0.99: the 99 % window) within `steps` steps.

        Raises:
            UsageError: If `steps` is not positive, or `share` not between 0 and 1.
        """
        _check_positive(steps, "the length of the average")
        if not 0.0 < share < 1.0:
            raise UsageError(f"the share must lie between 0 and 1, and {share!r} does not", hint="0.99, for example")
        return cls((1.0 - share) ** (1.0 / steps))

    @classmethod
    def from_time_scale(cls, steps: float) -> ConstantDecay:
        """The decay with which a value's share falls by e in `steps` steps: exp(-1/steps).

        Raises:
            UsageError: If `steps` is not positive.
        """
        _check_positive(steps, "the time scale of the average")
        return cls(math.exp(-1.0 / steps))

    def mass(self, step: float, last: float) -> float:
        """F(s) = d^(T-s)."""
        return float(self.decay ** (last - step))

    def mean_mass(self, start: int, stop: int, last: int) -> float:
        """Σ_{a ≤ s < b} d^(T-s) / (b-a) = d^(T-b+1)·(1-d^(b-a)) / ((1-d)(b-a))."""
        steps = stop - start
        left = -math.expm1(steps * math.log(self.decay))
        return float(self.decay ** (last - stop + 1) * left / ((1.0 - self.decay) * steps))

    def spread(self, last: int) -> float:
        """From E[age²] = Σ_{k ≤ T} (2k-1)·d^k."""
        plain, weighted = _geometric(self.decay, last)
        return math.sqrt(max(2 * weighted - plain - plain * plain, 0.0))

    def age(self, share: float, last: float) -> float:
        """ln(1-share) / ln d, and not before the start of training."""
        return min(math.log1p(-share) / math.log(self.decay), float(last))


def _rising(step: float, first: int, through: int) -> float:
    """(step+first)·…·(step+through): exact for whole steps."""
    product: float = 1
    for j in range(first, through + 1):
        product *= step + j
    return product


@dataclass(frozen=True, slots=True)
class WarmupDecay(Profile):
    """The decay of step s is min(decay, (1+s)/(10+s)): short memory at first, then up to a cap.

    The rule of TensorFlow's ExponentialMovingAverage with `num_updates`, of OpenNMT, Marian, and many others.
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
        # The decimal number that was written, not the binary one beside it: 0.9999 crosses exactly at 89,990.
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
            warm = (_rising(early, 1, 10) - _rising(start, 1, 10)) / (10 * _rising(turn, 2, 10))
            total += warm * self.decay ** (last - turn)
        if late < stop:
            total += ConstantDecay(self.decay).mean_mass(late, stop, last) * (stop - late)
        return total / (stop - start)

    def spread(self, last: int) -> float:
        """From E[age²] = Σ_{s < T} (2(T-s)-1)·F(s), the part below the crossing in whole numbers."""
        turn = min(self.crossing, last)
        plain, weighted = _geometric(self.decay, last - turn)
        mean, square = plain, 2 * weighted - plain
        if turn:
            # Σ s·F(s) from s·(s+2)…(s+10) = (s+2)…(s+11) - 11·(s+2)…(s+10); both sums telescope.
            kept = self.decay ** (last - turn)
            nine = _rising(turn, 2, 10)
            tens = _rising(turn, 1, 10) - math.factorial(10)
            elevens = _rising(turn, 1, 11) - math.factorial(11)
            mean += kept * (tens / (10 * nine))
            first = (10 * elevens - 121 * tens) / (110 * nine)
            square += kept * ((2 * last - 1) * (tens / (10 * nine)) - 2 * first)
        return math.sqrt(max(square - mean * mean, 0.0))


@dataclass(frozen=True, slots=True)
class PowerFunction(Profile):
    """p(s) ∝ s^g, which keeps its shape as the run grows: F(s) = (s/T)^(g+1).

    Karras et al. 2024, arXiv:2312.02696, section 3. g = 0 is the plain mean of the run.

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
                hint="say the length as a share of the run instead, for example a sigma_rel of 0.1",
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
                hint="0.05 to 0.15 is usual; 0.2887 is the plain mean of the whole run",
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
        """(b^(g+2) - a^(g+2)) / ((g+2)·(b-a)·T^(g+1)); time is continuous here, as in the paper."""
        power = self.gamma + 2
        share = -math.expm1(power * math.log1p((start - stop) / stop)) if start else 1.0
        return float((stop / last) ** power * share * last / (power * (stop - start)))

    def spread(self, last: int) -> float:
        """√((g+1) / ((g+2)²·(g+3))) of the run."""
        return last * math.sqrt((self.gamma + 1) / (self.gamma + 3)) / (self.gamma + 2)

    def age(self, share: float, last: float) -> float:
        """T·(1 - (1-share)^(1/(g+1)))."""
        return float(-last * math.expm1(math.log1p(-share) / (self.gamma + 1)))


@dataclass(frozen=True, slots=True)
class Window(Profile):
    """The plain mean of the last `fraction` of the run: F rises in a straight line from 0 to 1 there.

    Stands in for a linear decay of the learning rate to zero over that part.

    Attributes:
        fraction: Above 0, at most 1 (the whole run).

    Raises:
        UsageError: If the fraction is out of range.

    Example:
        >>> Window(0.1).mean_age(50_000)
        2500.0
    """

    fraction: float

    def __post_init__(self) -> None:
        if not (0.0 < self.fraction <= 1.0):
            raise UsageError(
                f"the window must be above 0 and at most 1, and {self.fraction!r} is not",
                hint="it is a share of the run: 0.1 is the last tenth",
            )

    def mass(self, step: float, last: float) -> float:
        """F(s) = 1 - (T-s)/(fraction·T), and 0 before the window."""
        return max(1.0 - (last - step) / (self.fraction * last), 0.0) if last else 1.0

    def mean_mass(self, start: int, stop: int, last: int) -> float:
        """Half of the sum of the two ends, over the part inside the window."""
        opening = last * (1.0 - self.fraction)
        inside = max(float(start), opening)
        if inside >= stop:
            return 0.0
        ends = self.mass(inside, last) + self.mass(stop, last)
        return ends / 2 * (stop - inside) / (stop - start)

    def spread(self, last: int) -> float:
        """fraction·T/√12."""
        return self.fraction * last * _MAX_SIGMA_REL

    def age(self, share: float, last: float) -> float:
        """share·fraction·T."""
        return share * self.fraction * last
