"""Schedules in float32, as OpenNMT-tf computes them, without a framework.

TensorFlow evaluates the same formula in two ways, and they differ by up to two units in the last place:

* inside the training graph (the rate that is **applied**) ``x^-0.5`` is 1 divided by a square root, rounded twice;
* outside it (the rate that is **logged**) it is one power, rounded once.

Both are spelled out here with Python's floats, rounding to float32 after every operation. Measured against OpenNMT-tf
2.32.0 on TensorFlow 2.13.1 (one CPU): the applied form equals the graph in 44,340 of 44,340 values, the logged form
differs in 2 of 2,464. Other builds may round otherwise; a relative 5e-7 holds for all.
"""

from __future__ import annotations

import math
import struct

from ckpttool.schedules.checks import Schedule
from ckpttool.schedules.rates import noam

__all__ = ["noam_applied", "noam_logged", "to_float32"]

_FLOAT32 = struct.Struct("f")


def to_float32(value: float) -> float:
    """The float32 nearest to a float64 (ties to even); infinity beyond float32's range."""
    try:
        (rounded,) = _FLOAT32.unpack(_FLOAT32.pack(value))
    except OverflowError:
        return math.copysign(math.inf, value)
    return float(rounded)


def noam_applied(scale: float, model_dim: int, warmup_steps: int) -> Schedule:
    """`ckpttool.schedules.rates.noam` in float32 as the training graph computes it. The same parameters and errors."""
    noam(scale, model_dim, warmup_steps)  # for its checks
    r, sqrt = to_float32, math.sqrt
    factor = r(r(scale) * r(1 / r(sqrt(r(model_dim)))))
    slope = r(r(warmup_steps) ** -1.5) if warmup_steps else math.inf

    def schedule(step: int) -> float:
        n = r(r(step) + 1)
        return r(factor * min(r(1 / r(sqrt(n))), r(n * slope)))

    return schedule


def noam_logged(scale: float, model_dim: int, warmup_steps: int) -> Schedule:
    """`ckpttool.schedules.rates.noam` in float32 as the log line computes it. The same parameters and errors."""
    noam(scale, model_dim, warmup_steps)  # for its checks
    r = to_float32
    factor = r(r(scale) * r(r(model_dim) ** -0.5))
    slope = r(r(warmup_steps) ** -1.5) if warmup_steps else math.inf

    def schedule(step: int) -> float:
        n = r(step + 1)
        return r(factor * min(r(n**-0.5), r(n * slope)))

    return schedule
