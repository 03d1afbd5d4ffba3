"""Averaging profiles: closed forms against step loops, exact fractions, and published tables."""

from __future__ import annotations

import doctest
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckpttool.coefficients.profiles
import ckpttool.coefficients.sums
from ckpttool.coefficients.profiles import ConstantDecay, PowerFunction, Profile, WarmupDecay, Window
from ckpttool.coefficients.sums import geometric_sums, power_sum, rising_factorial
from ckpttool.errors import UsageError

laws = settings(max_examples=60, deadline=None)
decays = st.floats(0.01, 0.99999)
sigmas = st.floats(1e-3, 1 / math.sqrt(12))
profiles = st.one_of(
    st.builds(ConstantDecay, decays),
    st.builds(WarmupDecay, decays),
    st.builds(PowerFunction.from_sigma_rel, sigmas),
    st.builds(Window, st.floats(0.01, 1)),
)
runs = st.lists(st.integers(0, 100_000), min_size=3, max_size=3, unique=True).map(sorted)


def decay_of_step(profile: Profile, step: int) -> Fraction:
    """The decay of one update in exact fractions, from the definition of each rule."""
    if isinstance(profile, ConstantDecay):
        return Fraction(repr(profile.decay))
    if isinstance(profile, WarmupDecay):
        return min(Fraction(repr(profile.decay)), Fraction(1 + step, 10 + step))
    assert isinstance(profile, PowerFunction)
    assert profile.gamma == int(profile.gamma)
    return Fraction(step - 1, step) ** (int(profile.gamma) + 1)


def masses_by_loop(profile: Profile, last: int) -> list[Fraction]:
    """The mass of each step in the average after `last`, by doing every update; step 0 has the initial weights.

    A window has no decays: its steps count alike, and the oldest one with what is left.
    """
    if isinstance(profile, Window):
        steps = Fraction(repr(profile.fraction)) * last
        return [max(min(Fraction(1), steps - (last - step)), Fraction(0)) / steps for step in range(last + 1)]
    masses = [Fraction(1)]
    for step in range(1, last + 1):
        decay = decay_of_step(profile, step)
        masses = [mass * decay for mass in masses]
        masses.append(1 - decay)
    return masses


RULES = [
    *(ConstantDecay(0.99), ConstantDecay(0.9), WarmupDecay(0.9999), WarmupDecay(0.95), WarmupDecay(0.05)),
    *(PowerFunction(0.0), PowerFunction(1.0), PowerFunction(8.0), PowerFunction(40.0)),
    *(Window(1.0), Window(0.5), Window(0.29), Window(0.003), Window(0.1234)),
]
EXACT = {(rule, last): masses_by_loop(rule, last) for rule in RULES for last in (1, 4, 120)}


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(ckpttool.coefficients.profiles).failed == 0
    assert doctest.testmod(ckpttool.coefficients.sums).failed == 0


@pytest.mark.parametrize(("rule", "last"), EXACT, ids=str)
def test_the_cumulative_share_is_that_of_the_step_loop(rule, last):
    """Up to rounding where two numbers nearly cancel: the mass of the last steps is next to 1."""
    exact = Fraction(0)
    for step, mass in enumerate(EXACT[rule, last]):
        exact += mass
        assert rule.mass(step, last) == pytest.approx(float(exact), rel=1e-13, abs=1e-300)
    assert exact == 1


@pytest.mark.parametrize(("rule", "last"), EXACT, ids=str)
def test_the_mean_of_the_cumulative_share_over_any_gap_is_the_mean_over_its_steps(rule, last):
    cumulative = [Fraction(0)]
    for mass in EXACT[rule, last]:
        cumulative.append(cumulative[-1] + mass)
    sums = [Fraction(0)]  # sums[k]: F(0) + … + F(k-1)
    for share in cumulative[1:]:
        sums.append(sums[-1] + share)
    for start, stop in [(0, last), *((k, k + 1) for k in range(last)), (last // 2, last), (last // 3, last // 2 + 1)]:
        exact = (sums[stop] - sums[start]) / (stop - start)
        assert rule.mean_mass(start, stop, last) == pytest.approx(float(exact), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize(("rule", "last"), EXACT, ids=str)
def test_mean_age_and_spread_are_those_of_the_step_loop(rule, last):
    """The sigma_rel of a power function is by definition that of its density, which the steps approach."""
    masses = EXACT[rule, last]
    mean = sum(mass * (last - step) for step, mass in enumerate(masses))
    variance = sum(mass * (last - step - mean) ** 2 for step, mass in enumerate(masses))
    assert rule.mean_age(last) == pytest.approx(float(mean), rel=1e-12)
    tolerance = 2 / last if isinstance(rule, PowerFunction) else 1e-7
    assert rule.sigma_rel(last) == pytest.approx(math.sqrt(variance) / last, abs=tolerance)


@laws
@given(power=st.integers(1, 60), scale=st.integers(1, 600), ends=st.lists(st.integers(0, 600), min_size=2, max_size=2))
def test_a_sum_of_powers_is_the_sum(power, scale, ends):
    stop = max(1, min(max(ends), scale))
    start = min(*ends, stop - 1)
    exact = sum(Fraction(step) ** power for step in range(start, stop)) / Fraction(scale) ** power
    assert power_sum(power, start, stop, scale) == pytest.approx(float(exact), rel=1e-13, abs=1e-300)


@laws
@given(power=st.floats(0.01, 3000), scale=st.integers(1, 5000), ends=st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_a_sum_of_powers_that_are_no_whole_numbers_is_the_sum(power, scale, ends):
    stop = max(1, round(max(ends) * scale))
    start = min(round(min(ends) * scale), stop - 1)
    terms = math.fsum((step / scale) ** power for step in range(start, stop))
    assert power_sum(power, start, stop, scale) == pytest.approx(terms, rel=1e-11, abs=1e-250)


@pytest.mark.parametrize("power", [1e-3, 1.0, 9.0, 1e3, 1e6])
def test_a_sum_of_powers_over_a_very_long_run_is_the_integral_less_half_a_step(power):
    scale = 10**12
    assert power_sum(power, 0, scale, scale) == pytest.approx(scale / (power + 1) - 0.5, rel=1e-11)


def test_powers_so_high_that_only_the_last_step_counts_are_answered_at_once():
    assert power_sum(1e18, 0, 10**9, 10**9) == 0
    assert PowerFunction(1e18).mean_age(10**9) == 0


@laws
@given(ratio=st.fractions(0, 1, max_denominator=50), count=st.integers(0, 60))
def test_geometric_sums_are_the_sums(ratio, count):
    plain, weighted = geometric_sums(float(ratio), count)
    assert plain == pytest.approx(float(sum(ratio**k for k in range(1, count + 1))), rel=1e-12)
    assert weighted == pytest.approx(float(sum(k * ratio**k for k in range(1, count + 1))), rel=1e-12)


def test_a_rising_factorial_is_the_product():
    assert rising_factorial(4, 2, 5) == 6 * 7 * 8 * 9
    assert rising_factorial(4, 2, 1) == 1


@laws
@given(start=st.integers(0, 80_000), gap=st.integers(0, 9_000))
def test_below_the_crossing_a_gap_of_any_size_has_nine_factors(start, gap):
    stop = start + gap
    exact = Fraction(1)
    for j in range(2, 11):
        exact *= Fraction(start + j, stop + j)
    loop = Fraction(1)
    if gap <= 200:
        for step in range(start + 1, stop + 1):
            loop *= Fraction(1 + step, 10 + step)
        assert loop == exact
    assert WarmupDecay(0.9999).mass(start, stop) == pytest.approx(float(exact), rel=1e-14)


def test_nine_factors_are_close_to_a_ninth_power():
    assert WarmupDecay(0.9999).mass(5000, 10_000) == pytest.approx((5006 / 10_006) ** 9, rel=1e-6)


@pytest.mark.parametrize(
    ("cap", "crossing"), [(0.999, 8990), (0.9995, 17_990), (0.9999, 89_990), (0.99999, 899_990), (0.1, 0), (0.05, 0)]
)
def test_the_cap_starts_to_matter_after_the_crossing(cap, crossing):
    rule = WarmupDecay(cap)
    assert rule.crossing == crossing
    assert rule.at(crossing + 10) == cap
    if crossing:
        assert Fraction(1 + crossing, 10 + crossing) <= Fraction(repr(cap)) < Fraction(2 + crossing, 11 + crossing)


@pytest.mark.parametrize("gap", [(8000, 9500), (8000, 8990), (8990, 9100), (8989, 8991), (0, 12_000)])
def test_a_gap_across_the_crossing_is_the_product_of_its_decays(gap):
    rule = WarmupDecay(0.999)
    start, stop = gap
    assert rule.mass(start, stop) == pytest.approx(
        math.prod(rule.at(step) for step in range(start + 1, stop + 1)), rel=1e-11
    )


@laws
@given(profile=profiles, run=runs)
def test_the_cumulative_share_grows_to_one(profile, run):
    a, b, last = run
    assert 0 <= profile.mass(a, last) <= profile.mass(b, last) <= profile.mass(last, last) == 1
    mean = profile.mean_mass(a, b, last)
    assert profile.mass(a, last) * (1 - 1e-11) <= mean <= profile.mass(b - 1, last) * (1 + 1e-11)


@laws
@given(profile=profiles.filter(lambda p: not isinstance(p, Window)), run=runs)
def test_what_is_left_over_two_gaps_is_what_is_left_of_what_is_left(profile, run):
    a, b, c = run
    assert profile.mass(a, c) == pytest.approx(profile.mass(a, b) * profile.mass(b, c), rel=1e-9, abs=1e-300)


@laws
@given(profile=profiles, share=st.floats(0.01, 0.99), last=st.integers(1, 10**6))
def test_the_age_of_a_share_is_where_the_rest_of_the_mass_is(profile, share, last):
    age = profile.age(share, last)
    assert 0 <= age <= last
    rest = profile.mass(last - age, last)
    assert rest >= (1 - share) * (1 - 1e-6)
    if age < last:
        assert rest == pytest.approx(1 - share, rel=1e-5)


@laws
@given(gamma=st.floats(-0.9, 50), factor=st.integers(2, 1000))
def test_a_power_function_keeps_its_shape_as_the_run_grows(gamma, factor):
    profile = PowerFunction(gamma)
    assert profile.mass(30 * factor, 100 * factor) == pytest.approx(profile.mass(30, 100))
    assert profile.sigma_rel(100 * factor) == profile.sigma_rel(100)


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"), [(0.05, 16.972), (0.10, 6.937), (0.15, 3.558), (0.20, 1.826), (0.25, 0.720)]
)
def test_the_exponents_of_usual_lengths(sigma_rel, gamma):
    assert PowerFunction.from_sigma_rel(sigma_rel).gamma == pytest.approx(gamma, abs=5e-4)


@laws
@given(sigma_rel=st.floats(1e-4, 1 / math.sqrt(12)))
def test_sigma_rel_there_and_back(sigma_rel):
    assert PowerFunction.from_sigma_rel(sigma_rel).sigma_rel(1) == pytest.approx(sigma_rel, rel=1e-9)


def test_the_longest_power_function_is_the_plain_mean():
    assert PowerFunction.from_sigma_rel(1 / math.sqrt(12)).gamma == pytest.approx(0, abs=1e-12)
    assert PowerFunction(0).sigma_rel(1) == pytest.approx(0.2887, abs=5e-5)
    assert PowerFunction(0).mass(300, 1000) == pytest.approx(0.3)
    assert Window(1).mass(300, 1000) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("gamma", "sigma_rel", "mean_age"),
    [(0, 0.2887, 0.50), (6.70, 0.1024, 0.115), (8, 0.0905, 0.10), (12.86, 0.0629, 0.067), (99, 0.0098, 0.01)],
)
def test_known_rules_as_power_functions(gamma, sigma_rel, mean_age):
    """The plain mean, two ramps of EDM, the warm-up rule, and an annealing with constant 100."""
    profile = PowerFunction(gamma)
    assert profile.sigma_rel(1) == pytest.approx(sigma_rel, abs=5e-5)
    assert profile.mean_age(10**6) / 10**6 == pytest.approx(mean_age, abs=7e-4)


def test_the_warmup_rule_is_the_power_function_with_exponent_eight():
    rule, power = WarmupDecay(0.9999), PowerFunction(8)
    assert rule.sigma_rel(50_000) == pytest.approx(0.0905, abs=5e-5)
    assert rule.sigma_rel(50_000) == pytest.approx(power.sigma_rel(50_000), rel=1e-3)
    assert rule.mean_age(50_000) == pytest.approx(power.mean_age(50_000), rel=1e-3)


@pytest.mark.parametrize(("decay", "half_life", "window"), [(0.999, 693, 4603), (0.9999, 6931, 46_049)])
def test_lengths_of_constant_decays(decay, half_life, window):
    length = ConstantDecay(decay).length(10**6)
    assert round(length.half_life) == half_life
    assert round(length.window_99) == window or math.ceil(length.window_99) == window
    assert length.mean_age == pytest.approx(decay / (1 - decay))
    assert length.decay == pytest.approx(decay, rel=1e-12)
    assert ConstantDecay.from_half_life(length.half_life).decay == pytest.approx(decay, rel=1e-12)


def test_the_warmup_rule_averages_the_last_forty_percent_until_its_cap_takes_over():
    rule = WarmupDecay(0.9999)
    assert [round(rule.age(0.99, last) / last, 2) for last in (10_000, 50_000, 100_000)] == [0.40, 0.40, 0.40]
    assert round(rule.age(0.99, 10**6)) == 46_049


def test_the_learning_rate_curve_that_the_warmup_rule_replaces():
    rule, last = WarmupDecay(0.9999), 50_000
    curve = [round(1 - rule.mass(x * last, last), 3) for x in (0.5, 0.6, 0.7, 0.8, 0.9, 1)]
    assert curve == [0.998, 0.990, 0.960, 0.866, 0.613, 0]


def test_an_average_longer_than_the_run_is_at_its_start():
    length = ConstantDecay(0.9999).length(100)
    assert length.half_life == length.window_99 == 100
    assert length.window == 1
    assert length.mean_age == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        *(lambda d=d: ConstantDecay(d) for d in (0.0, 1.0, -1.0, 2.0, math.nan)),
        *(lambda d=d: WarmupDecay(d) for d in (0.0, 1.0, math.nan)),
        *(lambda s=s: PowerFunction.from_sigma_rel(s) for s in (0.0, 0.3, -0.1, math.nan)),
        *(lambda g=g: PowerFunction(g) for g in (-1.0, math.inf, math.nan)),
        *(lambda f=f: Window(f) for f in (0.0, 1.01, math.nan)),
        *(lambda h=h: ConstantDecay.from_half_life(h) for h in (0.0, -5.0, math.inf, math.nan)),
        lambda: ConstantDecay(0.9).length(0),
    ],
)
def test_impossible_lengths_are_refused_with_a_hint(wrong):
    with pytest.raises(UsageError) as caught:
        wrong()
    assert caught.value.hint


@pytest.mark.parametrize(("window", "last"), [(0.5, 4), (0.1, 50_000), (0.29, 100), (1.0, 7)])
def test_a_window_comes_back_as_the_plain_mean_of_its_own_mean_age(window, last):
    assert Window(window).length(last).window == pytest.approx(window, rel=1e-12)


def test_every_profile_says_what_it_is():
    assert [str(p) for p in (ConstantDecay(0.9), Window(0.5))] == ["ConstantDecay(decay=0.9)", "Window(fraction=0.5)"]
    assert all(isinstance(p, Profile) for p in (ConstantDecay(0.9), WarmupDecay(0.9), PowerFunction(1), Window(1)))
