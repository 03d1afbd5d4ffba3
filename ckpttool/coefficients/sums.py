"""Sums over the steps of a run, in closed form: what `ckpttool.coefficients.profiles` is computed with."""

from __future__ import annotations

import math

__all__ = ["geometric_sums", "power_sum", "rising_factorial"]

_EULER_MACLAURIN = (1 / 12, -1 / 720, 1 / 30_240, -1 / 1_209_600, 1 / 47_900_160, -691 / 1_307_674_368_000)
"""B_2k / (2k)! for k = 1 … 6, with the Bernoulli numbers B."""

_NEGLIGIBLE = 2.0**-60


def geometric_sums(ratio: float, count: int) -> tuple[float, float]:
    """Σ d^k and Σ k·d^k for k = 1 … count.

    By doubling, which only adds positive numbers; the textbook forms lose every digit near d = 1.

    Args:
        ratio: d, from 0 to 1.
        count: The number of terms, 0 or more.

    Example:
        >>> geometric_sums(0.5, 3)
        (0.875, 1.375)
    """
    plain = weighted = 0.0
    done = 0
    for bit in format(count, "b"):
        kept = ratio**done
        plain, weighted = plain + kept * plain, weighted + kept * (weighted + done * plain)
        done *= 2
        if bit == "1":
            plain, weighted = ratio * (1 + plain), ratio * (1 + plain + weighted)
            done += 1
    return plain, weighted


def rising_factorial(step: int, first: int, through: int) -> int:
    """(step + first)·…·(step + through).

    Example:
        >>> rising_factorial(5, 1, 3)
        336
    """
    return math.prod(range(step + first, step + through + 1))


def power_sum(power: float, start: int, stop: int, scale: int) -> float:
    """Σ (s/scale)^power over the steps s from `start` up to, not including, `stop`.

    The Euler-Maclaurin formula from step 4·power on, where its terms fall by a factor of 600 and more; term by term
    below, down to where nothing is left (there each term is at most e^(-1/4) of the one after it, or there are few).

    Args:
        power: Above 0.
        start: 0 ≤ start < stop.
        stop: stop ≤ scale.
        scale: 1 or more.

    Example:
        >>> power_sum(2, 0, 4, 10)  # (0 + 1 + 4 + 9) / 100
        0.14
    """
    turn = min(max(start, math.ceil(4 * power), 32), stop)
    terms = []
    if turn < stop:
        log = math.log1p((turn - stop) / stop)  # of the ratio of the two ends
        parts = [-stop * math.expm1((power + 1) * log) / (power + 1), math.expm1(power * log) / 2]
        derivative = power / stop  # the (2k-1)-th of (s/stop)^power, at stop
        for k, factor in enumerate(_EULER_MACLAURIN, start=1):
            order = 2 * k - 1
            parts.append(-factor * derivative * math.expm1((power - order) * log))
            derivative *= (power - order) * (power - order - 1) / stop**2
        terms.append(math.fsum(parts) * (stop / scale) ** power)
    for step in range(turn - 1, start - 1, -1):
        terms.append((step / scale) ** power)
        if terms[-1] <= _NEGLIGIBLE * terms[0]:
            break
    return math.fsum(terms)
