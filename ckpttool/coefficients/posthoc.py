"""An average of another length, from averages that training stored.

A stored average is itself a weighted mean over the steps. So a weighted sum of stored averages has the weighted sum
of their profiles, and any wanted profile is approached by least squares:

* `synthesize`: from power-function averages, as Karras et al. 2024 (arXiv:2312.02696, section 3.2) do;
* `retarget`: from averages of any known profile, an ordinary constant decay for one;
* `segment`: two moments of one average give the mean over the steps between them, exactly.

Coefficients come in the order of the stored averages that were given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpttool.coefficients.profiles import PowerFunction, Profile
from ckpttool.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Fit",
    "Stored",
    "inner_product",
    "retarget",
    "segment",
    "stored_power_function",
    "synthesize",
    "window_from_running_means",
]


@dataclass(frozen=True, slots=True)
class Stored:
    """An average that training stored: its profile, and when.

    Attributes:
        profile: How it was averaged.
        step: When it was stored: training steps, images, or another measure of time, the same for all; above 0.
    """

    profile: Profile
    step: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A weighted sum of stored averages, and how good it is.

    Attributes:
        coefficients: One for each stored average, in the order given; they sum to 1. Averages that were stored after
            the wanted moment get 0.
        error: How far the profile is from the wanted one; 0 is exact. For `synthesize`: the distance of the
            densities, as a share of the wanted density's norm. For `retarget`: the distance of the cumulative
            shares, as a share of that of the last raw weights: for weights that move like a random walk, the
            distance from the wanted average that is left.
        noise: Σ|c|. What averaging took off the noise is put back in by this factor; 1 is the least.
    """

    coefficients: tuple[float, ...]
    error: float
    noise: float


def stored_power_function(profile: PowerFunction, update_every: int) -> PowerFunction:
    """The true profile of a power-function average whose one-step decay is applied once in `update_every` steps.

    The decay (1 - 1/t)^(g+1), meant for every step, leaves the exponent (g+1)/update_every - 1. Trainers that
    update rarely and do not correct for it store a far longer average than its label says.

    Args:
        profile: The profile that its label says.
        update_every: Steps from update to update, 1 or more.

    Raises:
        UsageError: If `update_every` is not positive.

    Example:
        >>> labelled = PowerFunction.from_sigma_rel(0.10)
        >>> [round(stored_power_function(labelled, k).mean_age(1000)) for k in (1, 10, 100)]
        [111, 557, 926]
    """
    if update_every < 1:
        raise UsageError(f"an average cannot be updated every {update_every} steps", hint="Give 1 or more.")
    return PowerFunction((profile.gamma + 1) / update_every - 1)


def inner_product(a: tuple[float, float], b: tuple[float, float]) -> float:
    """∫ p_a·p_b of two power-function densities.

    p_i(s) = (g_i+1)·s^g_i / t_i^(g_i+1) for s ≤ t_i. With t the smaller and T the larger of the two times, and g the
    exponent of the density with the larger time (Karras et al. 2024, appendix C):

        (g_a+1)(g_b+1) / ((g_a+g_b+1)·T) · (t/T)^g.

    Args:
        a: (time, exponent); time above 0, and g_a + g_b above -1.
        b: The same.

    Example:
        >>> inner_product((10.0, 0.0), (20.0, 0.0))
        0.05
    """
    (early, early_gamma), (late, late_gamma) = sorted((a, b))
    scale = (early_gamma + 1) * (late_gamma + 1) / ((early_gamma + late_gamma + 1) * late)
    return float(scale * (early / late) ** late_gamma)


def synthesize(stored: Sequence[Stored], target: PowerFunction, at: float | None = None) -> Fit:
    """Any power-function average, from snapshots of power-function averages.

    Least squares on the densities, as published, with Σc = 1 as a side condition rather than divided in afterwards.
    Two stored lengths converge with the square of the number of snapshots, one length with the number.

    Args:
        stored: The averages at hand, with their true profiles (see `stored_power_function`), in any order.
        target: The average wanted.
        at: The time it is wanted for; the latest stored one if not given. Later snapshots get 0.

    Raises:
        UsageError: If there is nothing stored up to `at`, a time is not positive, two averages are too alike to be
            told apart, one is not a power function, or has an exponent of -1/2 or less, where the densities have no
            finite norm.

    Example:
        >>> pair = [PowerFunction.from_sigma_rel(s) for s in (0.05, 0.10)]
        >>> stored = [Stored(profile, time) for time in range(100, 1601, 100) for profile in pair]
        >>> fit = synthesize(stored, PowerFunction.from_sigma_rel(0.15))
        >>> round(fit.error, 3), round(fit.noise, 1)
        (0.009, 1.7)
    """
    import numpy as np

    used, last = _usable(stored, at)
    goal = (last, _finite_gamma(target))
    points = [(stored[i].step, _finite_gamma(stored[i].profile)) for i in used]
    gram = np.array([[inner_product(a, b) for b in points] for a in points])
    right = np.array([inner_product(a, goal) for a in points])
    try:
        free, towards = np.linalg.solve(gram, np.stack([right, np.ones(len(points))], axis=1)).T
    except np.linalg.LinAlgError:
        raise UsageError(
            "two of the stored averages are too alike to be told apart", hint="Leave one of them out."
        ) from None
    # The unconstrained optimum, moved onto Σc = 1 along the direction that costs least.
    solution = free + towards * ((1.0 - free.sum()) / towards.sum())
    norm = inner_product(goal, goal)
    square = norm - 2 * solution @ right + solution @ gram @ solution
    return _fit(len(stored), used, solution, math.sqrt(max(float(square), 0.0) / norm))


def retarget(stored: Sequence[Stored], target: Profile, at: float | None = None) -> Fit:
    """Another profile, from snapshots of averages with known profiles.

    Least squares on the cumulative shares F with Σc = 1. For weights that move like a random walk, the squared
    distance of the result from the wanted average is Σ_s (Σ c_i·F_i(s) - F(s))², which this makes least; and unlike
    densities, cumulative shares are bounded for every profile.

    Args:
        stored: The averages at hand, in any order.
        target: The average wanted.
        at: The step it is wanted for; the latest stored one if not given. Later snapshots get 0.

    Raises:
        UsageError: If there is nothing stored up to `at`, a step is not positive, or the same average is there twice.

    Example:
        >>> from ckpttool.coefficients.profiles import ConstantDecay
        >>> every = [Stored(ConstantDecay(0.999), step) for step in range(500, 6001, 500)]
        >>> fit = retarget(every, ConstantDecay(0.9995))
        >>> fit.error < 0.03
        True
    """
    import numpy as np

    used, last = _usable(stored, at)
    nodes, weights = _quadrature(sorted({stored[i].step for i in used} | {last}))

    def shares(profile: Profile, step: float) -> NDArray[np.float64]:
        return np.array([profile.mass(node, step) if node < step else 1.0 for node in nodes.tolist()])

    root = np.sqrt(weights)
    wanted = shares(target, last)
    columns = np.stack([shares(stored[i].profile, stored[i].step) for i in used], axis=1)
    # Σc = 1 leaves the last one to be 1 minus the others: least squares on the differences from it.
    base, differences = columns[:, -1], columns[:, :-1] - columns[:, -1:]
    others = np.linalg.lstsq(root[:, None] * differences, root * (wanted - base), rcond=None)[0]
    solution = np.append(others, 1.0 - others.sum())
    left = root * (columns @ solution - wanted)
    error = math.sqrt(float(left @ left) / float(np.sum(weights * wanted * wanted)))
    return _fit(len(stored), used, solution, error)


def segment(profile: Profile, start: float, stop: float) -> tuple[float, float]:
    """The mean over the steps after `start` up to `stop` alone, from one average stored at both.

    With D the share of the earlier average that the later one still holds, the product of the decays between,

        mean = (E_stop - D·E_start) / (1 - D),

    exactly: an average of what training did there, weighted as the profile weighs it. It cuts the time before out, a
    spike of the loss for one.

    Args:
        profile: The profile of the average.
        start: When the earlier one was stored.
        stop: When the later one was stored.

    Returns:
        The coefficients of E_start (negative) and E_stop. Noise grows by the sum of their sizes.

    Raises:
        UsageError: If `stop` is not after `start`, or the average did not change between them.

    Example:
        >>> segment(PowerFunction(0), 3000, 4000)
        (-3.0, 4.0)
    """
    if not 0 <= start < stop:
        raise UsageError(
            f"there is no training between step {start} and step {stop}", hint="Give the earlier step first."
        )
    kept = profile.mass(start, stop)
    if kept >= 1.0:
        raise UsageError(f"the average holds nothing of the steps {start} to {stop}", hint="Give a longer segment.")
    return -kept / (1.0 - kept), 1.0 / (1.0 - kept)


def window_from_running_means(start: float, stop: float) -> tuple[float, float]:
    """The plain mean over the steps after `start` up to `stop`, from two plain means since the start of training.

    (stop·M_stop - start·M_start) / (stop - start), the way icefall averages any window from two checkpoints.

    Raises:
        UsageError: If `stop` is not after `start`.

    Example:
        >>> window_from_running_means(0, 500)
        (0.0, 1.0)
    """
    if not 0 <= start < stop:
        raise UsageError(
            f"there is no training between step {start} and step {stop}", hint="Give the earlier step first."
        )
    return (-start / (stop - start) if start else 0.0), stop / (stop - start)


def _finite_gamma(profile: Profile) -> float:
    """The exponent of a power function whose density has a finite norm."""
    if not isinstance(profile, PowerFunction):
        raise UsageError(
            f"{profile} is not a power function", hint="Fit the cumulative shares instead (retarget), for any profile."
        )
    if profile.gamma <= -0.5:
        raise UsageError(
            f"a power function with exponent {profile.gamma:.3g} has no finite norm to fit by",
            hint="Fit the cumulative shares instead (retarget).",
        )
    return profile.gamma


def _usable(stored: Sequence[Stored], at: float | None) -> tuple[list[int], float]:
    """The indices of what was stored up to the wanted moment, and that moment."""
    for one in stored:
        if not 0 < one.step < math.inf:
            raise UsageError(
                f"an average cannot be stored at step {one.step}", hint="Give its training step, 1 or more."
            )
    last = max((one.step for one in stored), default=0.0) if at is None else at
    used = [i for i, one in enumerate(stored) if one.step <= last]
    if not used:
        raise UsageError("there is no stored average to start from", hint="Give one from before the wanted step.")
    seen: set[Stored] = set()
    for i in used:
        if stored[i] in seen:
            raise UsageError(f"the same average of step {stored[i].step} is there twice", hint="Give each one once.")
        seen.add(stored[i])
    return used, last


def _quadrature(ends: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gauss-Legendre nodes and weights from 0 through `ends`, ever denser towards each end.

    An average of decay d changes within 1/(1-d) steps before it is stored, however long the gap: pieces that halve
    towards the end resolve every such scale, down to 2^-16 of the gap.
    """
    import numpy as np

    unit_nodes, unit_weights = np.polynomial.legendre.leggauss(8)
    edges = np.concatenate([1.0 - 0.5 ** np.arange(17.0), [1.0]])
    starts, sizes = edges[:-1], np.diff(edges)
    piece_nodes = (starts[:, None] + sizes[:, None] * (unit_nodes + 1) / 2).ravel()
    piece_weights = (sizes[:, None] * unit_weights / 2).ravel()
    left = np.array([0.0, *ends[:-1]])
    gaps = np.array(ends) - left
    return (left[:, None] + gaps[:, None] * piece_nodes).ravel(), (gaps[:, None] * piece_weights).ravel()


def _fit(count: int, used: Sequence[int], solution: NDArray[np.float64], error: float) -> Fit:
    coefficients = [0.0] * count
    for i, value in zip(used, solution.tolist(), strict=True):
        coefficients[i] = value
    return Fit(tuple(coefficients), error, math.fsum(map(abs, coefficients)))
