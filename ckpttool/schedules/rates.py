"""Learning-rate schedules: pure functions from a step to a learning rate.

Every function here validates its parameters once and returns a `Schedule`, a callable that takes the number of updates
done so far (0 before the first update, as ``torch.optim.lr_scheduler.LambdaLR`` counts) and returns the rate of the
next update as a float64::

    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, noam(2.0, 512, 8000))

So update k (counted from 1) is applied with ``schedule(k - 1)``. OpenNMT-tf's log line "Step = k" shows
``schedule(k)``, the rate of the update that follows.

`noam`, `rsqrt`, `inv_sqrt`, `cosine_annealing`, `rnmt_plus` and `wrap` follow OpenNMT-tf's lr_schedules.py exactly;
`inverse_sqrt`, `linear` and `cosine` follow transformers' optimization.py, `wsd` follows torchtitan's lr_scheduler.py.
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
    "ParameterError",
    "Schedule",
    "constant",
    "cosine",
    "cosine_annealing",
    "inv_sqrt",
    "inverse_sqrt",
    "linear",
    "noam",
    "rnmt_plus",
    "rsqrt",
    "wrap",
    "wsd",
]


def noam(scale: float, model_dim: int, warmup_steps: int) -> Schedule:
    """Linear warm-up, then inverse square root: ``scale * d^-0.5 * min(n^-0.5, n * W^-1.5)`` with n = step + 1.

    The peak is ``scale / sqrt(d * W)``, at step W - 1 (update W). With ``warmup_steps=0`` there is no warm-up and the
    curve is ``scale * d^-0.5 * n^-0.5``.

    Args:
        scale: Factor of the whole curve, above 0. OpenNMT-tf takes it from ``learning_rate``.
        model_dim: Size d of the model's layers, at least 1.
        warmup_steps: Length W of the warm-up in updates, at least 0.

    Source: Vaswani et al. 2017, section 5.3 (https://arxiv.org/abs/1706.03762); OpenNMT-tf's NoamDecay.

    Raises:
        ParameterError: If a parameter is out of its range. The schedule itself raises it for a negative step.
    """
    factor: float = positive("scale", scale) * count("model_dim", model_dim, 1) ** -0.5
    warmup_steps = count("warmup_steps", warmup_steps, 0)
    slope: float = warmup_steps**-1.5 if warmup_steps else math.inf

    def schedule(step: int) -> float:
        n = step + 1
        if n >= warmup_steps and n > 0:  # n^-0.5 is the minimum: said so, a million rows need one power each
            fall: float = n**-0.5
            return factor * fall
        if n <= 0:
            raise _negative(step)
        return factor * (n * slope)

    return schedule


def rsqrt(scale: float, warmup_steps: int) -> Schedule:
    """Constant until W, then decay by the inverse square root: ``scale / sqrt(max(step, W))``.

    There is no linear warm-up: the first W + 1 updates all have the peak rate ``scale / sqrt(W)``.

    Args:
        scale: Factor of the whole curve, above 0.
        warmup_steps: Length W of the plateau in updates, at least 1 (0 would divide by zero at step 0).

    Source: OpenNMT-tf's RsqrtDecay.

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    scale = positive("scale", scale)
    warmup_steps = count("warmup_steps", warmup_steps, 1)

    def schedule(step: int) -> float:
        return scale / math.sqrt(max(step, warmup_steps))

    return schedule


def inv_sqrt(learning_rate: float, warmup_steps: int, initial_learning_rate: float = 0.0) -> Schedule:
    """OpenNMT-tf's inverse square root: up to ``learning_rate`` at update W, then ``learning_rate * sqrt(W / n)``.

    With n = step + 1: ``initial + (learning_rate - initial) * n / W`` while n <= W. It is one step ahead of
    `inverse_sqrt` (fairseq, Marian, transformers), whose first update has the initial rate.

    Args:
        learning_rate: The peak, above 0.
        warmup_steps: Length W of the warm-up in updates, at least 1.
        initial_learning_rate: Where the warm-up comes from, at least 0.

    Source: OpenNMT-tf's InvSqrtDecay.

    Raises:
        ParameterError: If a parameter is out of its range. The schedule itself raises it for a negative step.
    """
    learning_rate = positive("learning_rate", learning_rate)
    warmup_steps = count("warmup_steps", warmup_steps, 1)
    initial = at_least_zero("initial_learning_rate", initial_learning_rate)
    slope = (learning_rate - initial) / warmup_steps

    def schedule(step: int) -> float:
        if step < 0:
            raise _negative(step)
        n = step + 1
        if n < warmup_steps:
            return initial + slope * n
        return learning_rate * math.sqrt(warmup_steps / n)

    return schedule


def cosine_annealing(
    eta_max: float, eta_min: float = 0.0, max_step: int = 1_000_000, warmup_steps: int | None = None
) -> Schedule:
    """OpenNMT-tf's cosine: ``eta_min + (eta_max - eta_min) * (1 + cos(pi * step / max_step)) / 2``.

    With a warm-up, ``eta_max * step / W`` while step < W: the first update has rate 0, and the cosine is not re-based,
    so that the curve jumps down a little at W. Past ``max_step`` the cosine rises again. Both are as in OpenNMT-tf;
    without a warm-up it equals ``torch.optim.lr_scheduler.CosineAnnealingLR``.

    Args:
        eta_max: The highest rate, above 0.
        eta_min: The lowest rate, at least 0.
        max_step: The step of the lowest rate, at least 1.
        warmup_steps: Length W of the warm-up in updates, at least 0, or None for no warm-up.

    Source: OpenNMT-tf's CosineAnnealing; Loshchilov and Hutter 2017 (https://arxiv.org/abs/1608.03983), equation 5.

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    eta_max = positive("eta_max", eta_max)
    eta_min = at_least_zero("eta_min", eta_min)
    max_step = count("max_step", max_step, 1)
    warmup = 0 if warmup_steps is None else count("warmup_steps", warmup_steps, 0)
    half = 0.5 * (eta_max - eta_min)

    def schedule(step: int) -> float:
        if step < warmup:
            return eta_max * step / warmup
        return eta_min + half * (1 + math.cos(math.pi * step / max_step))

    return schedule


def rnmt_plus(
    scale: float,
    num_replicas: int,
    warmup_steps: int = 500,
    start_step: int = 600_000,
    end_step: int = 1_200_000,
) -> Schedule:
    """The schedule of RNMT+: up to n times ``scale`` for n replicas, a plateau, then exponential decay.

    ``scale * min(1 + t (n - 1) / (n p), n, n (2n)^((s - n t) / (e - s)))`` with t = step, p = ``warmup_steps``,
    s = ``start_step``, e = ``end_step``. The decay has no end.

    Args:
        scale: The rate of one replica, above 0.
        num_replicas: Number n of replicas, at least 1.
        warmup_steps: p, at least 1.
        start_step: s, at least 0.
        end_step: e, above s.

    Source: Chen et al. 2018, equation 10 (https://arxiv.org/abs/1804.09849); OpenNMT-tf's RNMTPlusDecay.

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    scale = positive("scale", scale)
    replicas = count("num_replicas", num_replicas, 1)
    warmup_steps = count("warmup_steps", warmup_steps, 1)
    start = count("start_step", start_step, 0)
    end = count("end_step", end_step, 0)
    if end <= start:
        raise ParameterError("end_step", f"must be greater than start_step, which is {start}, not {end}")
    slope = (replicas - 1) / (replicas * warmup_steps)

    def schedule(step: int) -> float:
        rate = min(1 + step * slope, float(replicas))
        exponent = (start - replicas * step) / (end - start)
        if exponent < 0:  # a positive one cannot be the minimum, and could overflow
            rate = min(rate, replicas * (2.0 * replicas) ** exponent)
        return scale * rate

    return schedule


def constant(learning_rate: float) -> Schedule:
    """The same rate at every step: what OpenNMT-tf does without ``decay_type``.

    Args:
        learning_rate: The rate, above 0.

    Raises:
        ParameterError: If the rate is out of its range.
    """
    learning_rate = positive("learning_rate", learning_rate)
    return lambda _step: learning_rate


def inverse_sqrt(
    learning_rate: float, warmup_steps: int, initial_learning_rate: float = 0.0, timescale: int | None = None
) -> Schedule:
    """The inverse square root of fairseq and transformers: no "+ 1", so that the first update has the initial rate.

    ``initial + (learning_rate - initial) * step / W`` while step < W, then
    ``learning_rate * sqrt(T / (step - W + T))`` with T = ``timescale``.

    Args:
        learning_rate: The peak, above 0, at step W (update W + 1).
        warmup_steps: Length W of the warm-up in updates, at least 0.
        initial_learning_rate: The rate of the first update, at least 0 (fairseq's ``--warmup-init-lr``).
        timescale: How slowly it decays, at least 1: W if None (10,000 if W is 0), which is what fairseq does always.

    Source: transformers' get_inverse_sqrt_schedule; fairseq's inverse_sqrt.

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    learning_rate = positive("learning_rate", learning_rate)
    warmup_steps = count("warmup_steps", warmup_steps, 0)
    initial = at_least_zero("initial_learning_rate", initial_learning_rate)
    scale_steps = (warmup_steps or 10_000) if timescale is None else count("timescale", timescale, 1)
    shift = scale_steps - warmup_steps

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return initial + (learning_rate - initial) * step / warmup_steps
        return learning_rate / math.sqrt((step + shift) / scale_steps)

    return schedule


def linear(learning_rate: float, warmup_steps: int, max_step: int) -> Schedule:
    """Linear warm-up from 0, then linear decay to 0 at ``max_step``, and 0 from there on.

    Args:
        learning_rate: The peak, above 0, at step W (update W + 1).
        warmup_steps: Length W of the warm-up in updates, at least 0.
        max_step: Number of updates of the whole training, above W.

    Source: transformers' get_linear_schedule_with_warmup.

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    learning_rate = positive("learning_rate", learning_rate)
    warmup_steps, max_step = warmup_within(warmup_steps, max_step)

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return learning_rate * (step / warmup_steps)
        return learning_rate * max(0.0, (max_step - step) / (max_step - warmup_steps))

    return schedule


def cosine(learning_rate: float, warmup_steps: int, max_step: int) -> Schedule:
    """Linear warm-up from 0, then half a cosine down to 0 at ``max_step``. Past it the cosine rises again.

    Unlike `cosine_annealing` the cosine starts where the warm-up ends, so that the curve has no jump.

    Args:
        learning_rate: The peak, above 0, at step W (update W + 1).
        warmup_steps: Length W of the warm-up in updates, at least 0.
        max_step: Number of updates of the whole training, above W.

    Source: transformers' get_cosine_schedule_with_warmup with its default of half a cycle.

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    learning_rate = positive("learning_rate", learning_rate)
    warmup_steps, max_step = warmup_within(warmup_steps, max_step)

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return learning_rate * (step / warmup_steps)
        progress = (step - warmup_steps) / (max_step - warmup_steps)
        return learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))

    return schedule


def wsd(
    learning_rate: float,
    warmup_steps: int,
    max_step: int,
    decay_ratio: float | None = None,
    decay_type: Literal["linear", "sqrt", "cosine"] = "linear",
    min_lr_factor: float = 0.0,
) -> Schedule:
    """Warm-up, stable, decay: up by ``(step + 1) / W``, a plateau, and down over the last share of the training.

    The last update still has a rate above the minimum: the minimum belongs to the update after ``max_step``, and is
    kept from there on.

    Args:
        learning_rate: The peak, above 0, first at step W - 1 (update W).
        warmup_steps: Length W of the warm-up in updates, at least 0.
        max_step: Number of updates of the whole training, above W.
        decay_ratio: Share of ``max_step`` that decays, 0 < share <= 1 - W / max_step. None: all that follows the
            warm-up.
        decay_type: Shape of the decay; with p the progress in it, the factor is ``1 - p``, ``1 - sqrt(p)`` or
            ``(1 + cos(pi p)) / 2``.
        min_lr_factor: The lowest factor, 0 to 1.

    Source: torchtitan's linear_warmup_stable_decay, with its virtual last step; Hu et al. 2024, section 4
    (https://arxiv.org/abs/2404.06395) for the idea.

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    learning_rate = positive("learning_rate", learning_rate)
    warmup_steps, max_step = warmup_within(warmup_steps, max_step)
    decay_steps = _decay_steps(decay_ratio, warmup_steps, max_step)
    if decay_type not in _DECAYS:
        raise ParameterError("decay_type", f"must be one of {', '.join(_DECAYS)}, not {decay_type!r}")
    decay = _DECAYS[decay_type]
    lowest = fraction("min_lr_factor", min_lr_factor)
    stable_until = max_step + 1 - decay_steps

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return learning_rate * ((step + 1) / warmup_steps)
        if step < stable_until:
            return learning_rate
        progress = min((step + 1 - stable_until) / decay_steps, 1.0)
        return learning_rate * (lowest + (1 - lowest) * decay(progress))

    return schedule


_DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "sqrt": lambda progress: 1 - math.sqrt(progress),
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


def wrap(schedule: Schedule, start: int = 0, duration: int = 1, minimum: float = 0.0) -> Schedule:
    """Delay a schedule, stretch it, and give it a floor: ``max(schedule(max(step - start, 0) // duration), minimum)``.

    During the first ``start`` updates the rate is ``schedule(0)`` or the floor, not 0. The floor holds for the whole
    curve, the warm-up too. A ``duration`` above 1 makes the curve a staircase of that tread and leaves its peak alone.

    Args:
        schedule: Any schedule.
        start: Updates before the schedule begins, at least 0 (OpenNMT-tf: ``start_decay_steps``).
        duration: Updates that make one step of the schedule, at least 1 (``decay_step_duration``).
        minimum: The floor, at least 0 (``minimum_learning_rate``).

    Source: OpenNMT-tf's ScheduleWrapper, which checks none of this: a duration of 0 there trains at rate 0.

    Raises:
        ParameterError: If a parameter is out of its range.
    """
    start = count("start", start, 0)
    duration = count("duration", duration, 1)
    minimum = at_least_zero("minimum", minimum)

    def wrapped(step: int) -> float:
        step -= start
        rate = schedule(step // duration if step > 0 else 0)
        return rate if rate > minimum else minimum  # noqa: FURB136 (max() takes twice as long)

    return wrapped


def _decay_steps(decay_ratio: object, warmup_steps: int, max_step: int) -> int:
    if decay_ratio is None:
        return max_step - warmup_steps
    ratio = positive("decay_ratio", decay_ratio)
    steps = round(max_step * ratio)
    if steps < 1 or warmup_steps + steps > max_step:
        raise ParameterError(
            "decay_ratio",
            f"must leave {warmup_steps} warm-up steps of {max_step}, and at least one step of decay; it is {ratio:g}",
        )
    return steps


def _negative(step: int) -> ParameterError:
    return ParameterError("step", f"must be at least 0, not {step}")
