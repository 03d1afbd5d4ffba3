"""How much of each checkpoint: against the recurrence done in full, exact fractions, and published tables."""

from __future__ import annotations

import doctest
import math
import random
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckpttool.coefficients.weights
from ckpttool.coefficients.profiles import ConstantDecay, PowerFunction, WarmupDecay, Window
from ckpttool.coefficients.weights import (
    ANNEALING_CURVES,
    anneal,
    explicit,
    from_decays,
    from_profile,
    implied_multipliers,
    per_checkpoint,
    statistics,
    uniform,
)
from ckpttool.errors import UsageError
from tests.test_profiles import EXACT

laws = settings(max_examples=60, deadline=None)
profiles = st.one_of(
    st.builds(ConstantDecay, st.floats(0.01, 0.99999)),
    st.builds(WarmupDecay, st.floats(0.01, 0.99999)),
    st.builds(PowerFunction, st.floats(0, 50)),
    st.builds(Window, st.floats(0.01, 1)),
)
step_lists = st.lists(st.integers(0, 10**6), min_size=1, max_size=12, unique=True).map(sorted)
quadratures = st.sampled_from(["linear", "hold"])

STEPS = range(5000, 50_001, 5000)
RULE = WarmupDecay(0.9999)


def weighted_sum(coefficients, values):
    return math.fsum(c * v for c, v in zip(coefficients, values, strict=True))


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(ckpttool.coefficients.weights).failed == 0


# What all have in common


@laws
@given(steps=step_lists, profile=profiles, quadrature=quadratures)
def test_shares_of_a_moving_average_sum_to_one_and_none_is_negative(steps, profile, quadrature):
    coefficients = from_profile(steps, profile, quadrature)
    assert len(coefficients) == len(steps)
    assert abs(math.fsum(coefficients) - 1) <= 1e-12
    assert min(coefficients) >= 0


@laws
@given(n=st.integers(1, 60), decay=st.floats(0.01, 0.99999), warmup=st.booleans())
def test_shares_by_count_sum_to_one_and_none_is_negative(n, decay, warmup):
    families = [uniform(n), per_checkpoint(n, decay, warmup=warmup), *(anneal(n, curve) for curve in ANNEALING_CURVES)]
    for coefficients in families:
        assert len(coefficients) == n
        assert abs(math.fsum(coefficients) - 1) <= 1e-12
        assert min(coefficients) >= 0


@pytest.mark.parametrize("family", [uniform, lambda n: per_checkpoint(n, 0.9), lambda n: anneal(n, "cosine")])
def test_no_checkpoints_cannot_be_weighed_and_one_gets_everything(family):
    assert family(1) == (1.0,)
    with pytest.raises(UsageError) as caught:
        family(0)
    assert caught.value.hint
    assert from_profile([7], RULE) == from_profile([0], Window(0.5), "hold") == (1.0,)


# Explicit weights


def test_explicit_weights_come_back_as_given():
    assert explicit([0.1, 0.2, 0.7]) == (0.1, 0.2, 0.7)
    assert explicit([0.3333333, 0.3333333, 0.3333333]) == (0.3333333,) * 3


def test_explicit_weights_may_extrapolate():
    assert explicit([-0.5, 1.5]) == (-0.5, 1.5)


def test_explicit_weights_are_normalized_on_request():
    assert explicit([1, 3], normalize=True) == (0.25, 0.75)
    assert explicit([-1, 3], normalize=True) == (-0.5, 1.5)


@pytest.mark.parametrize(
    ("weights", "normalize", "said"),
    [
        ([0.5, 0.4], False, "sum to 0.9"),
        ([0.5, 0.500002], False, "sum to 1.000002"),
        ([1, -1], True, "sum to 0"),
        ([0.1, 0.2, -0.3], True, "sum to 0"),
        ([math.nan, 1], False, "weight 1 is nan"),
        ([1, math.inf], True, "weight 2 is inf"),
        ([], False, "0 checkpoints"),
    ],
)
def test_explicit_weights_that_make_no_average_are_refused(weights, normalize, said):
    with pytest.raises(UsageError, match=said) as caught:
        explicit(weights, normalize=normalize)
    assert caught.value.hint


# The recurrence is a weighted sum


@laws
@given(data=st.lists(st.tuples(st.floats(0, 1), st.floats(-10, 10)), min_size=1, max_size=20))
def test_the_recurrence_is_the_weighted_sum(data):
    decays, values = [d for d, _ in data[1:]], [v for _, v in data]
    shadow = values[0]
    for decay, value in zip(decays, values[1:], strict=True):
        shadow -= (shadow - value) * (1 - decay)
    assert weighted_sum(from_decays(decays), values) == pytest.approx(shadow, abs=1e-13)


@laws
@given(decays=st.lists(st.fractions(0, 1, max_denominator=1000), max_size=12))
def test_the_shares_of_the_recurrence_are_exact(decays):
    exact = [Fraction(1)]
    for decay in decays:
        exact = [share * decay for share in exact] + [1 - decay]
    assert from_decays([float(d) for d in decays]) == pytest.approx([float(share) for share in exact], abs=1e-15)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_recurrence_that_keeps_all_or_nothing_is_one_checkpoint(n):
    first, last = (1.0,) + (0.0,) * (n - 1), (0.0,) * (n - 1) + (1.0,)
    assert from_decays([1.0] * (n - 1)) == first
    assert from_decays([0.0] * (n - 1)) == last
    assert explicit(first) == first
    assert explicit(last, normalize=True) == last


@laws
@given(steps=step_lists, profile=profiles.filter(lambda p: not isinstance(p, Window)))
def test_holding_is_the_recurrence_with_the_decays_of_each_gap_multiplied(steps, profile):
    decays = [profile.mass(start, stop) for start, stop in pairwise(steps)]
    assert from_profile(steps, profile, "hold") == pytest.approx(from_decays(decays), abs=1e-12)


@pytest.mark.parametrize("rule", [WarmupDecay(0.9999), WarmupDecay(0.95), ConstantDecay(0.99)], ids=str)
def test_with_a_checkpoint_at_every_step_both_quadratures_are_the_average_of_training_itself(rule):
    """Linear gives each step's share to that step: nothing is smeared over its neighbours."""
    last = 250
    at = rule.at if isinstance(rule, WarmupDecay) else lambda _: rule.decay
    true = from_decays([at(step) for step in range(1, last + 1)])
    for quadrature in ("linear", "hold"):
        assert from_profile(range(last + 1), rule, quadrature) == pytest.approx(true, abs=1e-14)


@pytest.mark.parametrize(
    "rule", [WarmupDecay(0.9999), WarmupDecay(0.97), ConstantDecay(0.98), ConstantDecay(0.9)], ids=str
)
@pytest.mark.parametrize("steps", [range(0, 301, 50), [0, 3, 7, 100, 260, 300], [0, 300]], ids=str)
def test_linear_is_exact_for_weights_that_move_in_straight_lines_between_checkpoints(rule, steps):
    noise = random.Random(5)
    kept = {step: noise.gauss(0, 1) for step in steps}
    path = [kept[0]]
    for start, stop in pairwise(steps):
        path += [
            kept[start] + (kept[stop] - kept[start]) * (s - start) / (stop - start) for s in range(start + 1, stop + 1)
        ]
    at = rule.at if isinstance(rule, WarmupDecay) else lambda _: rule.decay
    shadow = path[0]
    for step, value in enumerate(path[1:], start=1):
        shadow -= (shadow - value) * (1 - at(step))
    assert weighted_sum(from_profile(list(steps), rule), kept.values()) == pytest.approx(shadow, abs=1e-12)


@laws
@given(
    rule=st.sampled_from([WarmupDecay(0.9999), WarmupDecay(0.97), ConstantDecay(0.98), ConstantDecay(0.9)]),
    steps=st.lists(st.integers(0, 300), min_size=2, max_size=8, unique=True).map(sorted),
    change=st.floats(-0.1, 0.1).filter(lambda x: abs(x) > 1e-4),
    data=st.data(),
)
def test_linear_is_the_best_estimate_for_a_random_walk(rule, steps, change, data):
    """Its distance from the true average is Σ_s (F(s) - share so far)² times the variance of a step."""
    last = steps[-1]

    def distance(coefficients: list[float]) -> float:
        total, square = 0.0, 0.0
        for coefficient, (start, stop) in zip(coefficients, pairwise(steps), strict=False):
            total += coefficient
            square += math.fsum((rule.mass(step, last) - total) ** 2 for step in range(start, stop))
        return square

    linear = list(from_profile(steps, rule))
    assert distance(linear) <= distance(list(from_profile(steps, rule, "hold"))) + 1e-12
    moved = list(linear)
    i = data.draw(st.integers(0, len(steps) - 2))
    moved[i] += change
    moved[i + 1] -= change
    assert distance(linear) < distance(moved)


# One definition for all profiles: an average over the integer steps, in exact fractions


def by_quadrature(masses: list[Fraction], steps: list[int], quadrature: str) -> list[Fraction]:
    """The mass of each step given to the checkpoints: to both neighbours (linear), or to the later one (hold)."""
    shares = dict.fromkeys(steps, Fraction(0))
    for step, mass in enumerate(masses):
        later = next(s for s in steps if s >= step)
        earlier = max((s for s in steps if s <= step), default=later)
        if quadrature == "hold" or earlier == later:
            shares[later] += mass
        else:
            part = Fraction(step - earlier, later - earlier)
            shares[earlier] += mass * (1 - part)
            shares[later] += mass * part
    return list(shares.values())


@laws
@given(case=st.sampled_from([case for case in EXACT if case[1] > 1]), data=st.data(), quadrature=quadratures)
def test_every_moving_average_is_the_mass_of_its_steps_given_to_the_checkpoints(case, data, quadrature):
    profile, last = case
    steps = sorted({*data.draw(st.lists(st.integers(0, last), max_size=8)), last})
    exact = by_quadrature(EXACT[case], steps, quadrature)
    assert sum(exact) == 1
    assert from_profile(steps, profile, quadrature) == pytest.approx([float(share) for share in exact], abs=1e-14)


@pytest.mark.parametrize(("profile", "last"), EXACT, ids=str)
@pytest.mark.parametrize("quadrature", ["linear", "hold"])
def test_with_a_checkpoint_at_every_step_each_gets_the_mass_of_its_step(profile, last, quadrature):
    exact = [float(mass) for mass in EXACT[profile, last]]
    assert from_profile(range(last + 1), profile, quadrature) == pytest.approx(exact, abs=1e-14)


def test_a_window_over_checkpoints_of_every_step_is_the_plain_mean_of_the_last_ones():
    assert from_profile(range(5), Window(0.5)) == (0, 0, 0, 0.5, 0.5)
    assert from_profile(range(1, 11), Window(0.3)) == pytest.approx([0] * 7 + [1 / 3] * 3, abs=1e-15)
    assert from_profile(range(101), Window(0.29))[:72] == (0,) * 72
    assert from_profile(range(1, 5), Window(1)) == (0.25,) * 4


def test_a_window_that_is_no_whole_number_of_steps_counts_its_oldest_step_in_part():
    """2.5 of 5 steps: the newest two count 1/2.5 each, the third 0.5/2.5."""
    assert from_profile(range(6), Window(0.5)) == pytest.approx([0, 0, 0, 0.2, 0.4, 0.4], abs=1e-15)


@laws
@given(steps=step_lists.filter(lambda steps: len(steps) > 1), decay=st.floats(0.01, 0.99999), quadrature=quadratures)
def test_a_constant_decay_knows_gaps_only_and_not_where_they_are(steps, decay, quadrature):
    shifted = [step + 12_345 for step in steps]
    profile = ConstantDecay(decay)
    assert from_profile(shifted, profile, quadrature) == from_profile(steps, profile, quadrature)


@laws
@given(steps=step_lists, quadrature=quadratures)
def test_a_window_of_less_than_one_step_is_the_last_checkpoint(steps, quadrature):
    window = Window(0.5 / max(steps[-1], 1))
    assert from_profile(steps, window, quadrature) == (0.0,) * (len(steps) - 1) + (1.0,)


@laws
@given(n=st.integers(1, 25), cap=st.fractions(Fraction(1, 100), Fraction(99, 100)), warmup=st.booleans())
def test_shares_by_count_are_those_of_the_recurrence_done_in_fractions(n, cap, warmup):
    exact = [Fraction(1)]
    for update in range(1, n):
        decay = min(cap, Fraction(1 + update, 10 + update)) if warmup else cap
        exact = [share * decay for share in exact] + [1 - decay]
    assert per_checkpoint(n, float(cap), warmup=warmup) == pytest.approx([float(x) for x in exact], abs=1e-14)


@laws
@given(steps=step_lists, gamma=st.floats(0, 50), factor=st.integers(2, 1000))
def test_a_power_function_that_is_held_weighs_the_same_whatever_the_unit_of_time(steps, gamma, factor):
    scaled = [step * factor for step in steps]
    profile = PowerFunction(gamma)
    assert from_profile(scaled, profile, "hold") == pytest.approx(from_profile(steps, profile, "hold"), abs=1e-12)


@laws
@given(steps=step_lists, gamma=st.floats(0, 20))
def test_straight_lines_under_a_power_function_differ_by_half_a_step_between_units_of_time(steps, gamma):
    """A run counted in steps and in thousands of them: what is left of a step is at most its own mass."""
    profile = PowerFunction(gamma)
    fine = from_profile([1000 * step for step in steps], profile)
    assert from_profile(steps, profile) == pytest.approx(fine, abs=(gamma + 1) / max(steps[-1], 1))


@laws
@given(gap=st.integers(1, 5000), n=st.integers(2, 20), sigma_rel=st.floats(0.02, 0.25))
def test_newer_checkpoints_weigh_more_than_older_ones_under_a_rising_profile(gap, n, sigma_rel):
    """By holding; the linear rule halves the last, which has no gap after it."""
    steps = [gap * i for i in range(1, n + 1)]
    rising = PowerFunction.from_sigma_rel(sigma_rel)
    held = from_profile(steps, rising, "hold")
    assert all(after >= before - 1e-15 for before, after in pairwise(held))
    linear = from_profile(steps, rising)[1:-1]
    assert all(after >= before - 1e-15 for before, after in pairwise(linear))


# Tables


@pytest.mark.parametrize(
    ("coefficients", "oldest", "newest", "effective", "mean_age"),
    [
        pytest.param(from_decays([RULE.at(s) for s in STEPS[1:]]), ".9965", ".0002", "1.01", "9.0", id="naive"),
        pytest.param(per_checkpoint(10, 0.9999), ".0001", ".474", "3.1", "1.0", id="ordinal"),
        pytest.param(from_profile(STEPS, RULE, "hold"), "0", ".613", "2.2", ".57", id="hold"),
        pytest.param(from_profile(STEPS, RULE), "0", ".349", "3.1", "1.0", id="linear"),
        pytest.param(
            from_profile(STEPS, ConstantDecay(0.9999), "hold"), ".011", ".393", "4.1", "1.5", id="constant-gaps"
        ),
        pytest.param(per_checkpoint(10, 0.9999, warmup=False), ".9991", ".0001", "1.0", "9.0", id="constant-once"),
        pytest.param(per_checkpoint(10, 0.95, warmup=False), ".63", ".05", "2.4", "7.0", id=".95"),
        pytest.param(per_checkpoint(10, 0.5, warmup=False), ".002", ".5", "3.0", "1.0", id=".5"),
        pytest.param(per_checkpoint(10, 0.8, warmup=False), ".13", ".2", "7.9", "3.5", id=".8"),
    ],
)
def test_ten_checkpoints_every_5000_steps(coefficients, oldest, newest, effective, mean_age):
    """To the digits shown. The rule of training applied once per file leaves almost everything on the first one."""
    found = statistics(list(STEPS), coefficients)

    def agrees(value: float, shown: str) -> bool:
        digits = len(shown.partition(".")[2])
        return abs(value - float(shown)) <= 0.5 * 10**-digits

    assert agrees(found.oldest_share, oldest) or (oldest == "0" and found.oldest_share < 1e-6)
    assert agrees(coefficients[-1], newest)
    assert agrees(found.effective_number, effective)
    assert agrees(found.mean_age / 5000, mean_age)


def test_the_second_newest_weighs_most_when_the_weights_move_in_straight_lines():
    assert round(from_profile(STEPS, RULE)[-2], 3) == 0.410


def test_holding_makes_the_average_half_a_gap_too_young():
    steps = list(STEPS)
    assert round(RULE.mean_age(50_000)) == 5000
    assert round(statistics(steps, from_profile(steps, RULE, "hold")).mean_age) == 2872
    assert statistics(steps, from_profile(steps, RULE)).mean_age == pytest.approx(RULE.mean_age(50_000), abs=1e-3)


def test_the_sum_over_steps_is_half_a_step_younger_than_the_integral():
    """In continuous time the mean of F is ((b+6)^10 - (a+6)^10) / (10·(b-a)·(T+6)^9), and the mean age 5001."""
    last = 50_000

    def mean_mass(a: int, b: int) -> float:
        return ((b + 6) ** 10 - (a + 6) ** 10) / (10 * (b - a) * (last + 6) ** 9)

    means = [mean_mass(a, b) for a, b in pairwise(STEPS)] + [1.0]
    integral = [after - before for before, after in pairwise([0.0, *means])]
    assert round(statistics(list(STEPS), integral).mean_age) == 5001
    assert from_profile(STEPS, RULE) == pytest.approx(integral, abs=1e-4)


def test_linear_is_the_integral_of_the_density_against_hat_functions():
    """In the limit of many steps: here half a million between the checkpoints."""
    steps, power = list(range(500, 5001, 500)), PowerFunction(8)
    fine = 10
    hats = [0.0] * len(steps)
    for i in range(5000 * fine):
        s = (i + 0.5) / fine
        density = power.mass((i + 1) / fine, 5000) - power.mass(i / fine, 5000)
        if s <= steps[0]:
            hats[0] += density
            continue
        left = min(int(s - 500) // 500, len(steps) - 2)
        part = (s - steps[left]) / 500
        hats[left] += density * (1 - part)
        hats[left + 1] += density * part
    assert from_profile([1000 * step for step in steps], power) == pytest.approx(hats, abs=1e-6)


# Annealing


def test_shares_of_an_inverse_square_root_decay_over_eleven_checkpoints():
    assert [round(c, 3) for c in anneal(11, "1-sqrt")] == [
        *(0.302, 0.125, 0.096, 0.081, 0.071, 0.064, 0.059, 0.055, 0.052, 0.049, 0.047),
    ]


def test_shares_over_five_checkpoints():
    assert [round(c, 3) for c in anneal(5, "1-sqrt")] == [0.447, 0.185, 0.142, 0.120, 0.106]
    assert anneal(5, "cosine") == pytest.approx([0.096, 0.25, 0.309, 0.25, 0.096], abs=6e-4)
    assert anneal(5, "linear") == uniform(5) == (0.2,) * 5
    assert [round(c, 3) for c in per_checkpoint(5, 0.9, warmup=False)] == [0.656, 0.073, 0.081, 0.09, 0.1]


@laws
@given(n=st.integers(1, 40), curve=st.sampled_from(sorted(ANNEALING_CURVES)))
def test_annealing_gives_back_the_curve_that_it_replaces(n, curve):
    factor = ANNEALING_CURVES[curve]
    expected = [factor((i + 1) / n) for i in range(n)]
    assert implied_multipliers(anneal(n, curve)) == pytest.approx(expected, abs=1e-12)


@laws
@given(updates=st.lists(st.floats(-1, 1), min_size=1, max_size=15), curve=st.sampled_from(sorted(ANNEALING_CURVES)))
def test_merging_is_training_with_the_updates_scaled_down(updates, curve):
    path = [0.0]
    for update in updates:
        path.append(path[-1] - update)
    coefficients = anneal(len(path), curve)
    factors = implied_multipliers(coefficients)
    annealed = -math.fsum(factor * update for factor, update in zip(factors, updates, strict=False))
    assert weighted_sum(coefficients, path) == pytest.approx(annealed, abs=1e-12)


def test_an_unknown_curve_or_quadrature_is_refused_with_the_known_ones():
    with pytest.raises(UsageError) as caught:
        anneal(3, "sqrt")
    assert caught.value.hint == "It is one of linear, 1-sqrt, cosine."
    with pytest.raises(UsageError) as caught:
        from_profile([1, 2], RULE, "cubic")
    assert caught.value.hint == "It is linear or hold."


# Statistics


def test_statistics_of_a_plain_mean():
    found = statistics([10, 20, 30, 40], uniform(4))
    assert found.effective_number == 4
    assert found.mean_age == 15
    assert found.oldest_share == 0.25
    assert found.mass_before_first is None
    assert found.multipliers == ((10, 0.75), (20, 0.5), (30, 0.25), (40, 0.0))


def test_mass_before_the_first_checkpoint_is_what_the_profile_has_there():
    steps = [40_000, 50_000]
    found = statistics(steps, from_profile(steps, RULE), RULE)
    assert found.mass_before_first == RULE.mass(40_000, 50_000) == pytest.approx(0.134, abs=5e-4)


def test_the_learning_rate_curve_from_checkpoints_follows_the_profile():
    steps = list(range(500, 50_001, 500))
    multipliers = statistics(steps, from_profile(steps, RULE)).multipliers
    for step, multiplier in multipliers[:-1]:
        earliest, latest = 1 - RULE.mass(step, 50_000), 1 - RULE.mass(step + 500, 50_000)
        assert latest - 1e-12 <= multiplier <= earliest + 1e-12


@pytest.mark.parametrize(
    ("steps", "coefficients", "said"),
    [
        ([1, 2], (1.0,), "1 coefficients for 2 checkpoints"),
        ([2, 1], (0.5, 0.5), "step 1 comes after the step 2"),
        ([5, 5], (0.5, 0.5), "step 5 comes after the step 5"),
        ([-1, 5], (0.5, 0.5), "at step -1"),
        ([], (), "0 checkpoints"),
    ],
)
def test_steps_that_do_not_fit_are_refused(steps, coefficients, said):
    with pytest.raises(UsageError, match=said) as caught:
        statistics(steps, coefficients)
    assert caught.value.hint


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(UsageError, match="between 0 and 1"):
        from_decays([decay])
    with pytest.raises(UsageError, match="between 0 and 1"):
        per_checkpoint(3, decay, warmup=False)
