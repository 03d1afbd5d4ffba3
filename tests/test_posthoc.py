"""Averages from stored averages: published tables, numeric integrals, and averages kept by real step loops."""

from __future__ import annotations

import doctest
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckpttool.coefficients.posthoc
from ckpttool.coefficients.posthoc import (
    Stored,
    inner_product,
    retarget,
    segment,
    stored_power_function,
    synthesize,
    window_from_running_means,
)
from ckpttool.coefficients.profiles import ConstantDecay, PowerFunction, Profile, WarmupDecay, Window
from ckpttool.coefficients.weights import from_profile
from ckpttool.errors import UsageError

laws = settings(max_examples=40, deadline=None)
power = PowerFunction.from_sigma_rel


def snapshots(n: int, *sigmas: float) -> list[Stored]:
    return [Stored(power(sigma), time / n) for time in range(1, n + 1) for sigma in sigmas]


def averages(path: np.ndarray, decays: list[float]) -> np.ndarray:
    """The moving average of a path after every step; decays[s-1] is that of step s."""
    shadow, out = path[0], [path[0]]
    for value, decay in zip(path[1:], decays, strict=True):
        shadow = shadow * decay + value * (1 - decay)
        out.append(shadow)
    return np.array(out)


def one_step_decays(profile: Profile, last: int) -> list[float]:
    return [profile.mass(step - 1, step) for step in range(1, last + 1)]


def random_walk(steps: int, width: int = 200, seed: int = 0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).normal(size=(steps + 1, width)), axis=0)


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(ckpttool.coefficients.posthoc).failed == 0


@laws
@given(times=st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)), gammas=st.tuples(st.floats(0, 20), st.floats(0, 20)))
def test_the_inner_product_is_the_integral(times, gammas):
    (t, u), (g, h) = times, gammas
    nodes, weights = np.polynomial.legendre.leggauss(100)
    v = (nodes + 1) / 2
    s = min(times) * v**4  # a fractional power of s near 0 is none of v, so that the quadrature is good
    densities = (g + 1) * (s / t) ** g / t * (h + 1) * (s / u) ** h / u
    integral = float((densities * 4 * v**3) @ weights) * min(times) / 2
    assert inner_product((t, g), (u, h)) == pytest.approx(integral, rel=1e-8)
    assert inner_product((u, h), (t, g)) == pytest.approx(inner_product((t, g), (u, h)), rel=1e-12)


@pytest.mark.parametrize(
    ("pair", "n", "errors"),
    [
        ((0.05, 0.10), 8, ("0.25", "0.012", "0.033", "0.17")),
        ((0.05, 0.10), 16, ("0.12", "0.0035", "0.0090", "0.077")),
        ((0.05, 0.10), 64, ("0.011", "0.0002", "0.0006", "0.0145")),
        ((0.05, 0.28), 16, ("0.14", "0.0105", "0.009", "0.012")),
        ((0.05,), 64, ("0.13", "0.03", "0.069", "0.14")),
        ((0.05, 0.10), 4, ("0.33", "0.033", "0.099", "0.34")),
    ],
    ids=str,
)
def test_profile_errors_of_stored_pairs(pair, n, errors):
    """To the digits shown, for plain least squares; dividing by the sum afterwards is worse than the side condition."""
    stored = snapshots(n, *pair)
    points = [(one.step, one.profile.gamma) for one in stored]
    gram = np.array([[inner_product(a, b) for b in points] for a in points])
    for sigma, shown in zip((0.02, 0.075, 0.15, 0.25), errors, strict=True):
        goal = (1.0, power(sigma).gamma)
        right = np.array([inner_product(a, goal) for a in points])
        plain = math.sqrt(max(1 - right @ np.linalg.solve(gram, right) / inner_product(goal, goal), 0))
        assert plain == pytest.approx(float(shown), abs=0.5 * 10.0 ** -len(shown.partition(".")[2]))
        fit = synthesize(stored, power(sigma))
        assert abs(math.fsum(fit.coefficients) - 1) < 1e-12
        divided = np.linalg.solve(gram, right)
        divided /= divided.sum()
        norm = inner_product(goal, goal)
        assert fit.error <= math.sqrt(1 + (divided @ gram @ divided - 2 * divided @ right) / norm) * (1 + 1e-4)
        assert plain * (1 - 1e-4) - 1e-7 <= fit.error <= 1.2 * plain


@pytest.mark.parametrize(("pair", "noise"), [((0.05, 0.10), 1.7), ((0.05, 0.28), 5.0), ((0.05,), 1.0)])
def test_noise_of_stored_pairs(pair, noise):
    assert synthesize(snapshots(16, *pair), power(0.15)).noise == pytest.approx(noise, abs=0.05)


def test_a_length_below_the_stored_ones_amplifies_noise():
    assert synthesize(snapshots(64, 0.05, 0.10), power(0.02)).noise > 17


def test_two_lengths_converge_with_the_square_of_their_number_and_one_with_the_number():
    def gain(*sigmas: float) -> float:
        few, many = (synthesize(snapshots(n, *sigmas), power(0.15)).error for n in (16, 64))
        return few / many

    assert gain(0.05, 0.10) == pytest.approx(16, rel=0.1)
    assert gain(0.05) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("sigma", [0.05, 0.10])
def test_a_stored_average_is_its_own_synthesis(sigma):
    stored = snapshots(8, 0.05, 0.10)
    fit = synthesize(stored, power(sigma))
    best = max(range(len(stored)), key=fit.coefficients.__getitem__)
    assert stored[best] == Stored(power(sigma), 1.0)
    assert fit.coefficients[best] == pytest.approx(1, abs=1e-6)
    assert fit.error < 1e-5


def test_synthesis_comes_close_to_the_average_that_a_run_kept():
    """A random walk of 4000 steps with eight snapshots each of two lengths; the measure is the last raw weights."""
    path = random_walk(4000)
    kept = {sigma: averages(path, one_step_decays(power(sigma), 4000)) for sigma in (0.05, 0.10, 0.15)}
    stored = [(sigma, step) for step in range(500, 4001, 500) for sigma in (0.05, 0.10)]
    fit = synthesize([Stored(power(sigma), step) for sigma, step in stored], power(0.15))
    found = sum(c * kept[sigma][step] for c, (sigma, step) in zip(fit.coefficients, stored, strict=True))
    true = kept[0.15][4000]
    assert np.linalg.norm(found - true) < 0.02 * np.linalg.norm(path[4000] - true)


@laws
@given(order=st.permutations(range(8)))
def test_the_order_of_the_stored_averages_does_not_matter(order):
    stored = snapshots(4, 0.05, 0.10)
    straight = synthesize(stored, power(0.15)).coefficients
    shuffled = synthesize([stored[i] for i in order], power(0.15)).coefficients
    assert [shuffled[order.index(i)] for i in range(8)] == pytest.approx(straight, abs=1e-9)


def test_what_was_stored_after_the_wanted_moment_gets_nothing():
    stored = snapshots(8, 0.05, 0.10)
    for fit in (synthesize(stored, power(0.15), at=0.5), retarget(stored, power(0.15), at=0.5)):
        assert fit.coefficients[8:] == (0.0,) * 8
        assert math.fsum(fit.coefficients) == pytest.approx(1)
    assert synthesize(stored, power(0.15), at=0.5).coefficients[:8] == pytest.approx(
        synthesize(stored[:8], power(0.15)).coefficients, abs=1e-9
    )


@pytest.mark.parametrize(("update_every", "mean_age"), [(1, 0.11), (10, 0.56), (100, 0.93)])
def test_an_uncorrected_update_every_makes_an_average_much_longer_than_its_label(update_every, mean_age):
    true = stored_power_function(power(0.10), update_every)
    assert true.mean_age(10_000) / 10_000 == pytest.approx(mean_age, abs=5e-3)


def test_the_true_exponent_is_that_of_the_step_loop():
    """The one-step decay (1 - 1/t)^(g+1), applied at every tenth step only."""
    labelled = power(0.10)
    shares = [0.0] * 2001
    shares[0] = 1.0
    for step in range(10, 2001, 10):
        decay = (1 - 1 / step) ** (labelled.gamma + 1)
        shares = [share * decay for share in shares]
        shares[step] = 1 - decay
    true = stored_power_function(labelled, 10)
    for step in (500, 1000, 1500):
        assert math.fsum(shares[: step + 1]) == pytest.approx(true.mass(step, 2000), abs=0.01)


def test_true_exponents_without_a_finite_norm_are_refused_by_synthesis_and_met_by_retargeting():
    stored = [
        Stored(stored_power_function(power(sigma), 100), step)
        for step in range(500, 6001, 500)
        for sigma in (0.05, 0.28)
    ]
    with pytest.raises(UsageError, match="no finite norm") as caught:
        synthesize(stored, power(0.10))
    assert "retarget" in caught.value.hint
    fit = retarget(stored, power(0.20))
    assert abs(math.fsum(fit.coefficients) - 1) < 1e-12
    assert fit.error < 0.05


# Any profile into any other

EVERY_500 = [Stored(ConstantDecay(0.999), step) for step in range(500, 6001, 500)]


@pytest.mark.parametrize(
    ("target", "left"),
    [
        (power(0.10), 0.005),
        (power(0.20), 0.0041),
        (ConstantDecay(0.9995), 0.010),
        (WarmupDecay(0.9999), 0.009),
        (PowerFunction(0), 0.030),
        (ConstantDecay(0.998), 0.030),
    ],
    ids=str,
)
def test_twelve_ordinary_averages_become_any_other(target, left):
    """The distance that is left, as a share of the last raw weights', stays below what a real run showed."""
    fit = retarget(EVERY_500, target)
    assert fit.error <= left
    assert abs(math.fsum(fit.coefficients) - 1) < 1e-12


@pytest.mark.parametrize("target", [power(0.10), ConstantDecay(0.9995), WarmupDecay(0.9999), Window(0.5)], ids=str)
def test_the_predicted_distance_is_that_of_a_random_walk(target):
    path = random_walk(6000, width=800)
    kept = averages(path, [0.999] * 6000)
    masses = np.array([target.mass(step, 6000) for step in range(6001)])
    true = np.diff(masses, prepend=0.0) @ path
    fit = retarget(EVERY_500, target)
    found = sum(c * kept[one.step] for c, one in zip(fit.coefficients, EVERY_500, strict=True))
    distance = np.linalg.norm(found - true) / np.linalg.norm(path[6000] - true)
    assert distance == pytest.approx(fit.error, rel=0.2)
    raw = from_profile(list(range(500, 6001, 500)), target)
    from_raw = sum(c * path[one.step] for c, one in zip(raw, EVERY_500, strict=True))
    assert np.linalg.norm(found - true) < np.linalg.norm(from_raw - true) / 2


def test_retargeting_to_what_is_stored_takes_it():
    fit = retarget(EVERY_500, ConstantDecay(0.999))
    assert fit.coefficients == pytest.approx([0.0] * 11 + [1.0], abs=1e-6)
    assert fit.error < 1e-6
    assert retarget(EVERY_500[-1:], power(0.2)).coefficients == (1.0,)


def test_an_average_much_shorter_than_the_gaps_is_resolved():
    """Time scale 100 steps, gaps of ten million: the quadrature must see it."""
    stored = [Stored(ConstantDecay(0.99), step) for step in (10**7, 2 * 10**7)]
    fit = retarget(stored, ConstantDecay(0.999))
    assert fit.coefficients == pytest.approx((0, 1), abs=1e-3)
    # ∫(e^(-x/99.5) - e^(-x/999.5))² / ∫e^(-2x/999.5), x the age
    a, b = -math.log(0.99), -math.log(0.999)
    assert fit.error == pytest.approx(math.sqrt((1 / (2 * a) - 2 / (a + b) + 1 / (2 * b)) * 2 * b), rel=1e-3)


# Segments


@pytest.mark.parametrize("profile", [ConstantDecay(0.995), WarmupDecay(0.9999), PowerFunction(3)], ids=str)
def test_a_segment_forgets_everything_before_it(profile):
    """Two runs that differ before step 300 only have the same segment after it, and it is an average."""
    noise = random.Random(1)
    after = [noise.gauss(0, 1) for _ in range(400)]
    decays = one_step_decays(profile, 700)
    found = []
    for spike in (0.0, 50.0):
        kept = averages(np.array([*([spike] * 301), *after]), decays)
        early, late = segment(profile, 300, 700)
        assert early + late == pytest.approx(1)
        found.append(early * kept[300] + late * kept[700])
    assert found[0] == pytest.approx(found[1], abs=1e-9)
    weights = np.diff([profile.mass(step, 700) for step in range(300, 701)])
    assert found[0] == pytest.approx(float(weights @ after / weights.sum()), abs=1e-9)


def test_a_window_from_two_running_means_is_its_mean():
    path = [random.Random(2).gauss(0, 1) for _ in range(900)]
    means = {n: math.fsum(path[:n]) / n for n in (300, 900)}
    early, late = window_from_running_means(300, 900)
    assert early * means[300] + late * means[900] == pytest.approx(math.fsum(path[300:]) / 600, abs=1e-13)
    assert (early, late) == pytest.approx(segment(PowerFunction(0), 300, 900))
    assert window_from_running_means(0, 900) == (0.0, 1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: segment(ConstantDecay(0.9), 5, 5),
        lambda: segment(ConstantDecay(0.9), 5, 3),
        lambda: segment(ConstantDecay(0.9), -1, 3),
        lambda: window_from_running_means(5, 5),
        lambda: stored_power_function(power(0.1), 0),
        lambda: synthesize([], power(0.1)),
        lambda: synthesize(snapshots(4, 0.1), power(0.1), at=0.1),
        lambda: synthesize([Stored(power(0.1), 0.0)], power(0.1)),
        lambda: synthesize([Stored(power(0.1), math.nan)], power(0.1)),
        lambda: synthesize([*snapshots(4, 0.1), Stored(power(0.1), 1.0)], power(0.1)),
        lambda: synthesize([Stored(ConstantDecay(0.9), 5)], power(0.1)),
        lambda: synthesize(snapshots(4, 0.1), PowerFunction(-0.6)),
        lambda: retarget([], power(0.1)),
        lambda: retarget([EVERY_500[0], EVERY_500[0]], power(0.1)),
    ],
)
def test_what_cannot_be_computed_is_refused_with_a_hint(wrong):
    with pytest.raises(UsageError) as caught:
        wrong()
    assert caught.value.hint
