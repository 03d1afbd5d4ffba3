"""Schedules of ``torch.optim.lr_scheduler``, stepped once for each update. See `ckpttool.schedules.rates`.

``CosineAnnealingLR`` is `ckpttool.schedules.rates.cosine_annealing`, ``PolynomialLR`` is
`ckpttool.schedules.transformers_rates.polynomial`, and ``LinearLR`` and ``ConstantLR`` are warm-ups.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Literal

from ckpttool.schedules.checks import (
    ParameterError,
    Schedule,
    at_least_zero,
    count,
    fraction,
    positive,
    shown,
)

__all__ = ["cosine_with_warm_restarts", "exponential", "milestone_steps", "multi_step", "one_cycle", "step_decay"]


def step_decay(learning_rate: float, step_size: int, gamma: float = 0.1) -> Schedule:
    """Multiplied by ``gamma`` every ``step_size`` updates: ``learning_rate * gamma^(step // step_size)``.

    Args:
        learning_rate: The first rate, above 0.
        step_size: Updates of each stair, at least 1.
        gamma: The factor, above 0, at most 1.

    Source: torch's StepLR.

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    learning_rate = positive("learning_rate", learning_rate)
    step_size = count("step_size", step_size, 1)
    gamma = _gamma(gamma)
    return lambda step: learning_rate * math.pow(gamma, step // step_size)


def multi_step(learning_rate: float, milestones: int | str, gamma: float = 0.1) -> Schedule:
    """Multiplied by ``gamma`` at each milestone.

    Args:
        learning_rate: The first rate, above 0.
        milestones: Numbers of updates done, at least 1 each, ascending, joined by colons: ``30000:80000``. One that is
            there twice counts twice.
        gamma: The factor, above 0, at most 1.

    Source: torch's MultiStepLR.

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    learning_rate = positive("learning_rate", learning_rate)
    steps = milestone_steps(milestones)
    gamma = _gamma(gamma)
    return lambda step: learning_rate * math.pow(gamma, bisect_right(steps, step))


def milestone_steps(milestones: int | str) -> tuple[int, ...]:
    """The milestones as numbers.

    Raises:
        ParameterError: If they are none, or do not ascend.
    """
    parts = str(milestones).split(":")
    if not all(part.isascii() and part.isdecimal() and len(part) < 20 for part in parts):
        raise ParameterError("milestones", f"must be steps joined by colons, as 30000:80000, not {shown(milestones)}")
    steps = tuple(count("milestones", int(part), 1) for part in parts)
    if list(steps) != sorted(steps):
        raise ParameterError("milestones", f"must ascend, not {shown(milestones)}")
    return steps


def exponential(learning_rate: float, gamma: float) -> Schedule:
    """Multiplied by ``gamma`` at every update: ``learning_rate * gamma^step``.

    Args:
        learning_rate: The first rate, above 0.
        gamma: The factor, above 0, at most 1.

    Source: torch's ExponentialLR.

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    learning_rate = positive("learning_rate", learning_rate)
    gamma = _gamma(gamma)
    return lambda step: learning_rate * math.pow(gamma, step)


def one_cycle(
    learning_rate: float,
    max_step: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    anneal_strategy: Literal["cos", "linear"] = "cos",
) -> Schedule:
    """Up from ``learning_rate / div_factor`` to the peak, and down to that start ``/ final_div_factor``.

    Up to step ``pct_start * max_step - 1`` it rises, until ``max_step - 1`` it falls, by half a cosine or linearly. The
    last rate is kept from there on, where torch raises an error.

    Args:
        learning_rate: The peak, above 0 (torch: ``max_lr``).
        max_step: Number of updates of the whole training, at least 2 (torch: ``total_steps``).
        pct_start: Share of the rise, 0 to 1.
        div_factor: Peak divided by the first rate, above 0.
        final_div_factor: First rate divided by the last, above 0.
        anneal_strategy: ``cos`` or ``linear``.

    Source: torch's OneCycleLR with two phases; Smith and Topin 2017 (https://arxiv.org/abs/1708.07120).

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    peak = positive("learning_rate", learning_rate)
    last = count("max_step", max_step, 2) - 1
    share = fraction("pct_start", pct_start)
    first = peak / positive("div_factor", div_factor)
    end = first / positive("final_div_factor", final_div_factor)
    if anneal_strategy not in ("cos", "linear"):
        raise ParameterError("anneal_strategy", f"must be cos or linear, not {shown(anneal_strategy)}")
    top = share * (last + 1) - 1

    def between(high: float, low: float, progress: float) -> float:
        if anneal_strategy == "linear":
            return high + (low - high) * progress
        return low + (high - low) / 2.0 * (math.cos(math.pi * progress) + 1)

    def schedule(step: int) -> float:
        if step <= top and top > 0:
            return between(first, peak, step / top)
        if step >= last:
            return end
        return between(peak, end, (step - top) / (last - top))

    return schedule


def cosine_with_warm_restarts(
    learning_rate: float, restart_steps: int, restart_factor: int = 1, eta_min: float = 0.0
) -> Schedule:
    """Half a cosine from the peak to ``eta_min``, again and again; each cycle ``restart_factor`` times as long.

    Args:
        learning_rate: The peak, above ``eta_min``.
        restart_steps: Updates of the first cycle, at least 1 (torch: ``T_0``).
        restart_factor: At least 1 (torch: ``T_mult``).
        eta_min: The lowest rate, at least 0.

    Source: torch's CosineAnnealingWarmRestarts; Loshchilov and Hutter 2017 (https://arxiv.org/abs/1608.03983).

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    learning_rate = positive("learning_rate", learning_rate)
    restart_steps = count("restart_steps", restart_steps, 1)
    restart_factor = count("restart_factor", restart_factor, 1)
    eta_min = at_least_zero("eta_min", eta_min)
    if eta_min >= learning_rate:
        raise ParameterError("eta_min", f"must be below learning_rate, which is {learning_rate:g}, not {eta_min:g}")

    def schedule(step: int) -> float:
        length = restart_steps
        if restart_factor == 1:
            step %= length
        while step >= length:
            step -= length
            length *= restart_factor
        return eta_min + (learning_rate - eta_min) * (1 + math.cos(math.pi * step / length)) / 2

    return schedule


def _gamma(value: object) -> float:
    gamma = positive("gamma", value)
    if gamma > 1:
        raise ParameterError("gamma", f"must be at most 1, not {gamma:g}")
    return gamma
