"""Further schedules of transformers' optimization.py, as ``get_scheduler`` makes them. See `ckpttool.schedules.rates`.

All begin with a linear warm-up from 0: ``learning_rate * step / W`` while step < W.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from ckpttool.schedules.checks import (
    ParameterError,
    Schedule,
    at_least_zero,
    count,
    fraction,
    positive,
    warmup_within,
)

__all__ = [
    "constant_with_warmup",
    "cosine_with_min_lr",
    "cosine_with_restarts",
    "polynomial",
    "warmup_stable_decay",
]


def constant_with_warmup(learning_rate: float, warmup_steps: int) -> Schedule:
    """Linear warm-up from 0, then constant.

    Args:
        learning_rate: The peak, above 0, from step W on (update W + 1).
        warmup_steps: Length W of the warm-up in updates, at least 0.

    Source: transformers' get_constant_schedule_with_warmup.

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    learning_rate = positive("learning_rate", learning_rate)
    warmup_steps = count("warmup_steps", warmup_steps, 0)
    return lambda step: learning_rate if step >= warmup_steps else learning_rate * (step / warmup_steps)


def cosine_with_restarts(learning_rate: float, warmup_steps: int, max_step: int, num_cycles: int = 1) -> Schedule:
    """Linear warm-up from 0, then cycles of half a cosine from the peak to 0, and 0 from ``max_step`` on.

    Args:
        learning_rate: The peak, above 0, at step W (update W + 1) and at each restart.
        warmup_steps: Length W of the warm-up in updates, at least 0.
        max_step: Number of updates of the whole training, above W.
        num_cycles: Number of cycles, at least 1.

    Source: transformers' get_cosine_with_hard_restarts_schedule_with_warmup.

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    learning_rate = positive("learning_rate", learning_rate)
    warmup_steps, max_step = warmup_within(warmup_steps, max_step)
    num_cycles = count("num_cycles", num_cycles, 1)

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return learning_rate * (step / warmup_steps)
        progress = (step - warmup_steps) / (max_step - warmup_steps)
        if progress >= 1:
            return 0.0
        return learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((num_cycles * progress) % 1.0))))

    return schedule


def polynomial(
    learning_rate: float, warmup_steps: int, max_step: int, end_learning_rate: float = 1e-7, power: float = 1.0
) -> Schedule:
    """Linear warm-up from 0, then ``end + (learning_rate - end) * (1 - p)^power`` with p the progress to ``max_step``.

    With ``warmup_steps=0`` and ``end_learning_rate=0`` it is ``torch.optim.lr_scheduler.PolynomialLR``.

    Args:
        learning_rate: The peak, above 0, at step W (update W + 1).
        warmup_steps: Length W of the warm-up in updates, at least 0.
        max_step: Number of updates of the whole training, above W. The end rate holds from there on.
        end_learning_rate: The last rate, at least 0 and below the peak.
        power: The exponent, above 0.

    Source: transformers' get_polynomial_decay_schedule_with_warmup.

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    learning_rate = positive("learning_rate", learning_rate)
    warmup_steps, max_step = warmup_within(warmup_steps, max_step)
    end = at_least_zero("end_learning_rate", end_learning_rate)
    if end >= learning_rate:
        raise ParameterError(
            "end_learning_rate", f"must be below learning_rate, which is {learning_rate:g}, not {end:g}"
        )
    power = positive("power", power)

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return learning_rate * (step / warmup_steps)
        if step >= max_step:
            return end
        remaining = 1 - (step - warmup_steps) / (max_step - warmup_steps)
        return end + (learning_rate - end) * math.pow(remaining, power)

    return schedule


def cosine_with_min_lr(learning_rate: float, warmup_steps: int, max_step: int, min_lr_factor: float = 0.0) -> Schedule:
    """Linear warm-up from 0, then half a cosine down to ``min_lr_factor`` of the peak. Past the end it rises again.

    Args:
        learning_rate: The peak, above 0, at step W (update W + 1).
        warmup_steps: Length W of the warm-up in updates, at least 0.
        max_step: Number of updates of the whole training, above W.
        min_lr_factor: The lowest factor, 0 to 1 (transformers: ``min_lr_rate``).

    Source: transformers' get_cosine_with_min_lr_schedule_with_warmup with its default of half a cycle.

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    learning_rate = positive("learning_rate", learning_rate)
    warmup_steps, max_step = warmup_within(warmup_steps, max_step)
    lowest = fraction("min_lr_factor", min_lr_factor)

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return learning_rate * (step / warmup_steps)
        progress = (step - warmup_steps) / (max_step - warmup_steps)
        factor = 0.5 * (1.0 + math.cos(math.pi * progress))
        return learning_rate * max(0.0, factor * (1 - lowest) + lowest)

    return schedule


def warmup_stable_decay(
    learning_rate: float,
    warmup_steps: int,
    max_step: int,
    decay_steps: int,
    decay_type: Literal["linear", "cosine", "1-sqrt"] = "cosine",
    min_lr_factor: float = 0.0,
) -> Schedule:
    """Linear warm-up, a plateau, and decay over the last updates; the lowest rate from ``max_step`` on.

    Unlike `ckpttool.schedules.rates.wsd` (torchtitan) its first update has the lowest rate, and its decay begins with
    the peak.

    Args:
        learning_rate: The peak, above 0, at step W (update W + 1).
        warmup_steps: Length W of the warm-up in updates, at least 0. It begins at the lowest rate.
        max_step: Number of updates of the whole training, above W.
        decay_steps: Updates of the decay, at least 1 and at most ``max_step - W``.
        decay_type: Shape of the decay; with p the progress in it, the factor is ``1 - p``, ``(1 + cos(pi p)) / 2`` or
            ``1 - sqrt(p)``.
        min_lr_factor: The lowest factor, 0 to 1.

    Source: transformers' get_wsd_schedule with its linear warm-up.

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    learning_rate = positive("learning_rate", learning_rate)
    warmup_steps, max_step = warmup_within(warmup_steps, max_step)
    decay_steps = count("decay_steps", decay_steps, 1)
    if warmup_steps + decay_steps > max_step:
        most = max_step - warmup_steps
        raise ParameterError(
            "decay_steps", f"must be at most {most}, which is what the warm-up leaves, not {decay_steps}"
        )
    if decay_type not in _DECAYS:
        raise ParameterError("decay_type", f"must be one of {', '.join(_DECAYS)}, not {decay_type!r}")
    decay = _DECAYS[decay_type]
    lowest = fraction("min_lr_factor", min_lr_factor)

    def schedule(step: int) -> float:
        if step >= max_step:
            return learning_rate * lowest
        if step < warmup_steps:
            factor = step / warmup_steps
        elif step < max_step - decay_steps:
            return learning_rate
        else:
            factor = decay((step - (max_step - decay_steps)) / decay_steps)
        return learning_rate * max(0.0, factor * (1 - lowest) + lowest)

    return schedule


_DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "1-sqrt": lambda progress: 1 - math.sqrt(progress),
}
