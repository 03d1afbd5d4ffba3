"""The coefficient of each checkpoint in an average.

Each function returns one coefficient per checkpoint, **oldest first**; they sum to 1. The profiles of moving averages
are in `ckpttool.coefficients.profiles`; averages of averages that training stored, in `ckpttool.coefficients.posthoc`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Literal

from ckpttool.coefficients.profiles import Profile, WarmupDecay
from ckpttool.errors import UsageError
from ckpttool.text import parameter

__all__ = [
    "ANNEALING_CURVES",
    "Quadrature",
    "Statistics",
    "anneal",
    "explicit",
    "from_decays",
    "from_profile",
    "implied_multipliers",
    "per_checkpoint",
    "statistics",
    "uniform",
]

Quadrature = Literal["linear", "hold"]
"""What the weights are taken to have done between two checkpoints (see `from_profile`)."""

ANNEALING_CURVES: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "linear": lambda x: 1.0 - x,
        "1-sqrt": lambda x: 1.0 - math.sqrt(x),
        "cosine": lambda x: (1.0 + math.cos(math.pi * x)) / 2,
    }
)
"""Learning-rate decays by name: progress through the decay (0 to 1) to factor on the rate (1 to 0)."""


def uniform(n: int) -> tuple[float, ...]:
    """The plain mean: 1/n each.

    Stochastic weight averaging (arXiv:1803.05407), LAWA (arXiv:2209.14981), and the checkpoint averaging of machine
    translation. As learning-rate annealing it is the linear one: ``anneal(n, "linear")``.

    Args:
        n: Number of checkpoints, 1 or more.

    Raises:
        UsageError: If `n` is not positive.

    Example:
        >>> uniform(4)
        (0.25, 0.25, 0.25, 0.25)
    """
    _check_count(n)
    return (1.0 / n,) * n


def explicit(weights: Sequence[float], *, normalize: bool = False) -> tuple[float, ...]:
    """Weights as given.

    A negative weight is a request that makes sense: it extrapolates beyond the checkpoints.

    Args:
        weights: One number per checkpoint, oldest first.
        normalize: Divide by their sum. Otherwise they must sum to 1 within 1e-6, and are returned untouched.

    Raises:
        UsageError: If there are none, one is not finite, they do not sum to 1, or they sum to 0 and shall be
            normalized.

    Example:
        >>> explicit([1, 1, 2], normalize=True)
        (0.25, 0.25, 0.5)
    """
    numbers = tuple(float(weight) for weight in weights)
    _check_count(len(numbers))
    for position, number in enumerate(numbers, start=1):
        if not math.isfinite(number):
            raise UsageError(f"weight {position} is {number}", hint="Give a finite number for each checkpoint.")
    total = math.fsum(numbers)
    if not normalize:
        if abs(total - 1.0) > 1e-6:
            raise UsageError(
                f"the weights sum to {total:.9g}, not to 1",
                hint=f"{parameter('normalize', True)} divides them by their sum.",
            )
        return numbers
    if abs(total) <= 1e-12 * math.fsum(map(abs, numbers)):
        raise UsageError("the weights sum to 0 and cannot be normalized", hint="Give weights with a sum other than 0.")
    return tuple(number / total for number in numbers)


def from_decays(decays: Sequence[float]) -> tuple[float, ...]:
    """The weights that a chain of moving-average updates gives to its inputs.

    The first checkpoint is the initial value; each later one is mixed in with its decay d_i,
    ``shadow ← shadow - (shadow - θ_i)·(1 - d_i)``, so that

        c_1 = d_2·…·d_N        c_i = (1 - d_i)·d_(i+1)·…·d_N.

    Args:
        decays: d_2 … d_N, each between 0 and 1 inclusive: one less than there are checkpoints.

    Returns:
        N coefficients, oldest first.

    Raises:
        UsageError: If a decay is out of range.

    Example:
        >>> from_decays([0.5, 0.75])
        (0.375, 0.375, 0.25)
    """
    kept = 1.0
    youngest_first: list[float] = []
    for decay in reversed(decays):
        if not 0.0 <= decay <= 1.0:
            raise UsageError(
                f"a decay must be between 0 and 1, and {decay!r} is not", hint="It is what the average keeps."
            )
        youngest_first.append((1.0 - decay) * kept)
        kept *= decay
    return (kept, *reversed(youngest_first))


def per_checkpoint(n: int, decay: float, *, warmup: bool = True) -> tuple[float, ...]:
    """A moving average over the checkpoints as if each were one training step.

    The decay here says nothing about training steps: it is per checkpoint, so the result depends on how often
    checkpoints were written. `from_profile` does not, and is the better choice where steps are known.

    The oldest checkpoint is the initial value and the k-th one after it is update k, with decay
    ``min(decay, (1+k)/(10+k))`` with warm-up and `decay` without.

    Args:
        n: Number of checkpoints, 1 or more.
        decay: Between 0 and 1.
        warmup: Whether the decay grows towards `decay`.

    Raises:
        UsageError: If `n` is not positive, or the decay out of range.

    Example:
        >>> [round(c, 3) for c in per_checkpoint(4, 0.9999)]
        [0.014, 0.063, 0.231, 0.692]
    """
    _check_count(n)
    rule = WarmupDecay(decay)
    return from_decays([rule.at(update) if warmup else decay for update in range(1, n)])


def from_profile(steps: Sequence[int], profile: Profile, quadrature: Quadrature = "linear") -> tuple[float, ...]:
    """The moving average that the run would have had after its last checkpoint, from its checkpoints alone.

    The weights between two checkpoints are unknown, so something must be said about them:

    * ``linear``: they moved in a straight line. With M_i the mean of F over the steps from t_i up to, not including,
      t_(i+1), and M_N = 1, ``c_1 = M_1`` and ``c_i = M_i - M_(i-1)``. Also the estimate of least variance if they moved
      like a random walk.
    * ``hold``: they jumped to the next checkpoint's at once: ``c_1 = F(t_1)``, ``c_i = F(t_i) - F(t_(i-1))``. This is
      the usual recurrence with the decays of the gap multiplied; it makes the average half a gap too young.

    The average is one over the integer steps, so that a checkpoint at every step gets the mass of that step by either.
    The mass before the first checkpoint is given to the first checkpoint.

    Args:
        steps: Training steps of the checkpoints, oldest first, each once; the last is the step of the average.
        profile: The moving average wanted.
        quadrature: See above.

    Raises:
        UsageError: If there are no steps, or they do not grow.

    Example:
        >>> from ckpttool.coefficients.profiles import WarmupDecay
        >>> [round(c, 3) for c in from_profile([30_000, 40_000, 50_000], WarmupDecay(0.9999))]
        [0.051, 0.396, 0.554]
    """
    _check_steps(steps)
    last = steps[-1]
    if quadrature == "linear":
        cumulative = [profile.mean_mass(start, stop, last) for start, stop in pairwise(steps)]
    elif quadrature == "hold":
        cumulative = [profile.mass(step, last) for step in steps[:-1]]
    else:
        raise UsageError(f"there is no quadrature {quadrature!r}", hint="It is linear or hold.")
    # F never falls; max() takes off what rounding may add where it is flat.
    return tuple(max(after - before, 0.0) for before, after in pairwise((0.0, *cumulative, 1.0)))


def anneal(n: int, curve: str) -> tuple[float, ...]:
    """The weights with which a merge of checkpoints replaces a decay of the learning rate.

    A weighted mean of checkpoints counts each update as often as the checkpoints after it weigh. So if w(x) is the
    wanted factor on the learning rate, from w(0) = 1 to w(1) = 0, the differences

        c_i = w(i/n) - w((i+1)/n),   i = 0 … n-1

    give the updates between checkpoint i and i+1 the factor w((i+1)/n), for checkpoints trained at a constant rate
    (WSM, arXiv:2507.17634, whose c_0 … c_k are n = k+1 checkpoints here; Megatron-LM's merge schedules give the same
    numbers). The linear curve gives the plain mean. ``1-sqrt`` weighs the oldest most, cosine the middle.

    Args:
        n: Number of checkpoints, 1 or more.
        curve: A name in `ANNEALING_CURVES`: linear, 1-sqrt, cosine.

    Raises:
        UsageError: If `n` is not positive, or there is no such curve.

    Example:
        >>> [round(c, 3) for c in anneal(5, "1-sqrt")]
        [0.447, 0.185, 0.142, 0.12, 0.106]
    """
    _check_count(n)
    if curve not in ANNEALING_CURVES:
        raise UsageError(f"there is no annealing curve {curve!r}", hint=f"It is one of {', '.join(ANNEALING_CURVES)}.")
    if curve == "linear":
        return uniform(n)  # the differences would only round 1/n
    factor = ANNEALING_CURVES[curve]
    factors = [factor(i / n) for i in range(n)] + [0.0]
    return tuple(before - after for before, after in pairwise(factors))


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a set of coefficients amounts to.

    Attributes:
        effective_number: 1/Σc²: how many checkpoints a plain mean of the same variance would have.
        mean_age: Σ c·(T - t) in steps.
        oldest_share: The coefficient of the oldest checkpoint.
        mass_before_first: The share of the wanted average that is from before the first checkpoint, where nothing is
            known; it is given to the first checkpoint. None if no profile was asked for.
        multipliers: (step, factor): the learning-rate curve that the average replaces. The updates from this
            checkpoint to the next count with this factor; before the first checkpoint it is 1.
    """

    effective_number: float
    mean_age: float
    oldest_share: float
    mass_before_first: float | None
    multipliers: tuple[tuple[int, float], ...]


def implied_multipliers(coefficients: Sequence[float]) -> tuple[float, ...]:
    """The factor with which the updates after each checkpoint count in the average: the sum of the later shares.

    θ̄ = Σ c_i·θ_i = θ_1 + Σ w_i·(θ_(i+1) - θ_i) with w_i = c_(i+1) + … + c_N (WSM, arXiv:2507.17634).

    Args:
        coefficients: Oldest first, summing to 1.

    Returns:
        As many factors as there are coefficients; the last is 0.

    Example:
        >>> implied_multipliers(uniform(4))
        (0.75, 0.5, 0.25, 0.0)
    """
    return tuple(math.fsum(coefficients[i + 1 :]) for i in range(len(coefficients)))


def statistics(steps: Sequence[int], coefficients: Sequence[float], profile: Profile | None = None) -> Statistics:
    """What `coefficients` for the checkpoints at `steps` amount to.

    Args:
        steps: Training steps, oldest first.
        coefficients: One for each step.
        profile: The moving average that they approximate, if they do.

    Raises:
        UsageError: If the steps do not grow, or there are not as many coefficients as steps.

    Example:
        >>> found = statistics([1000, 2000, 3000], (0.25, 0.25, 0.5))
        >>> round(found.effective_number, 2), found.mean_age
        (2.67, 750.0)
    """
    _check_steps(steps)
    if len(steps) != len(coefficients):
        raise UsageError(
            f"{len(coefficients)} coefficients for {len(steps)} checkpoints", hint="Give one for each checkpoint."
        )
    last = steps[-1]
    return Statistics(
        effective_number=1.0 / math.fsum(c * c for c in coefficients),
        mean_age=math.fsum(c * (last - step) for step, c in zip(steps, coefficients, strict=True)),
        oldest_share=coefficients[0],
        mass_before_first=None if profile is None else profile.mass(steps[0], last),
        multipliers=tuple(zip(steps, implied_multipliers(coefficients), strict=True)),
    )


def _check_count(n: int) -> None:
    if n < 1:
        raise UsageError(f"cannot weigh {n} checkpoints", hint="Give 1 or more.")


def _check_steps(steps: Sequence[int]) -> None:
    _check_count(len(steps))
    if steps[0] < 0:
        raise UsageError(f"a checkpoint is at step {steps[0]}", hint="Steps count from 0, the start of training.")
    for before, after in pairwise(steps):
        if after <= before:
            raise UsageError(
                f"the step {after} comes after the step {before}",
                hint="Give each training step once, oldest first; a run that was restarted has some twice.",
            )
