"""Averaging profiles: closed forms against step loops, exact fractions, and published tables."""

from __future__ import annotations

import doctest
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckpttool.coefficients.profiles
from ckpttool.coefficients.profiles import ConstantDecay, PowerFunction, Profile, WarmupDecay, Window
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


def masses_by_loop(rule: ConstantDecay | WarmupDecay, last: int) -> list[float]:
    """What each step weighs in the average after `last`, by doing every update; step 0 is the initial value."""
    weights = [1.0]
    for step in range(1, last + 1):
        decay = rule.at(step) if isinstance(rule, WarmupDecay) else rule.decay
        weights = [weight * decay for weight in weights]
        weights.append(1 - decay)
    return weights


RULES = [ConstantDecay(0.99), ConstantDecay(0.9), WarmupDecay(0.9999), WarmupDecay(0.95), WarmupDecay(0.05)]


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(ckpttool.coefficients.profiles).failed == 0


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_cumulative_share_is_that_of_the_step_loop(rule):
    last = 300
    weights = masses_by_loop(rule, last)
    for step in (0, 1, 7, 100, 170, 171, 299, 300):
        assert rule.mass(step, last) == pytest.approx(math.fsum(weights[: step + 1]), rel=1e-11)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_mean_age_and_spread_are_those_of_the_step_loop(rule):
    last = 300
    weights = masses_by_loop(rule, last)
    mean = math.fsum(w * (last - s) for s, w in enumerate(weights))
    variance = math.fsum(w * (last - s - mean) ** 2 for s, w in enumerate(weights))
    assert rule.mean_age(last) == pytest.approx(mean, rel=1e-11)
    assert rule.spread(last) == pytest.approx(math.sqrt(variance), rel=1e-9)


@laws
@given(rule=st.sampled_from(RULES), run=st.lists(st.integers(0, 400), min_size=3, max_size=3, unique=True).map(sorted))
def test_the_mean_of_the_cumulative_share_over_a_gap_is_the_mean_over_its_steps(rule, run):
    start, stop, last = run
    mean = math.fsum(rule.mass(step, last) for step in range(start, stop)) / (stop - start)
    assert rule.mean_mass(start, stop, last) == pytest.approx(mean, rel=1e-11)


@pytest.mark.parametrize("profile", [PowerFunction.from_sigma_rel(0.1), PowerFunction(0), Window(0.3), Window(1)])
@pytest.mark.parametrize("gap", [(0, 500), (600, 750), (699, 1000), (999, 1000)])
def test_the_mean_over_a_gap_is_the_integral_for_profiles_of_continuous_time(profile, gap):
    start, stop = gap
    parts = 20_000
    width = (stop - start) / parts
    middle = math.fsum(profile.mass(start + (i + 0.5) * width, 1000) for i in range(parts)) / parts
    assert profile.mean_mass(start, stop, 1000) == pytest.approx(middle, rel=1e-6, abs=1e-12)


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
def test_the_cumulative_share_grows_to_one_and_the_multiplier_falls_to_zero(profile, run):
    a, b, last = run
    assert 0 <= profile.mass(a, last) <= profile.mass(b, last) <= profile.mass(last, last) == 1
    assert profile.multiplier(last, last) == 0
    mean = profile.mean_mass(a, b, last)
    assert profile.mass(a, last) * (1 - 1e-12) <= mean <= profile.mass(b, last) * (1 + 1e-12)


@laws
@given(profile=profiles.filter(lambda p: not isinstance(p, Window)), run=runs)
def test_what_is_left_over_two_gaps_is_what_is_left_of_what_is_left(profile, run):
    a, b, c = run
    assert profile.mass(a, c) == pytest.approx(profile.mass(a, b) * profile.mass(b, c), rel=1e-9, abs=1e-300)


@laws
@given(profile=profiles, share=st.floats(0.01, 0.99), last=st.integers(1, 10**6))
def test_the_age_of_a_share_is_where_the_rest_of_the_mass_lies(profile, share, last):
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
    assert profile.mean_mass(30 * factor, 70 * factor, 100 * factor) == pytest.approx(profile.mean_mass(30, 70, 100))
    assert profile.sigma_rel(100 * factor) == pytest.approx(profile.sigma_rel(100))


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
    assert profile.mean_age(1000) / 1000 == pytest.approx(mean_age, abs=7e-4)


def test_the_warmup_rule_is_the_power_function_with_exponent_eight():
    rule, power = WarmupDecay(0.9999), PowerFunction(8)
    assert rule.sigma_rel(50_000) == pytest.approx(0.0905, abs=5e-5)
    assert rule.sigma_rel(50_000) == pytest.approx(power.sigma_rel(50_000), rel=1e-3)
    assert rule.mean_age(50_000) == pytest.approx(power.mean_age(50_000), rel=1e-3)


@pytest.mark.parametrize(("decay", "half_life", "window"), [(0.999, 693, 4603), (0.9999, 6931, 46_049)])
def test_lengths_of_constant_decays(decay, half_life, window):
    length = ConstantDecay(decay).length(10**6)
    assert round(length.half_life) == half_life
    assert round(length.window) == window or math.ceil(length.window) == window
    assert length.time_scale == pytest.approx(1 / (1 - decay), rel=1e-3)
    assert length.mean_age == pytest.approx(decay / (1 - decay))
    assert length.decay == pytest.approx(decay, rel=1e-12)
    assert ConstantDecay.from_half_life(length.half_life).decay == pytest.approx(decay, rel=1e-12)
    assert ConstantDecay.from_age(0.99, length.window).decay == pytest.approx(decay, rel=1e-12)
    assert ConstantDecay.from_time_scale(length.time_scale).decay == pytest.approx(decay, rel=1e-12)


def test_the_warmup_rule_averages_the_last_forty_percent_until_its_cap_takes_over():
    rule = WarmupDecay(0.9999)
    assert [round(rule.age(0.99, last) / last, 2) for last in (10_000, 50_000, 100_000)] == [0.40, 0.40, 0.40]
    assert round(rule.age(0.99, 10**6)) == 46_049


def test_the_learning_rate_curve_that_the_warmup_rule_stands_in_for():
    rule, last = WarmupDecay(0.9999), 50_000
    curve = [round(rule.multiplier(x * last, last), 3) for x in (0.5, 0.6, 0.7, 0.8, 0.9, 1)]
    assert curve == [0.998, 0.990, 0.960, 0.866, 0.613, 0]


def test_an_average_longer_than_the_run_lies_on_its_start():
    length = ConstantDecay(0.9999).length(100)
    assert length.half_life == length.window == 100
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
        lambda: ConstantDecay.from_age(1.0, 100),
        lambda: ConstantDecay.from_time_scale(0),
        lambda: ConstantDecay(0.9).length(0),
    ],
)
def test_impossible_lengths_are_refused_with_a_hint(wrong):
    with pytest.raises(UsageError) as caught:
        wrong()
    assert caught.value.hint


def test_every_profile_says_what_it_is():
    assert [str(p) for p in (ConstantDecay(0.9), Window(0.5))] == ["ConstantDecay(decay=0.9)", "Window(fraction=0.5)"]
    assert all(isinstance(p, Profile) for p in (ConstantDecay(0.9), WarmupDecay(0.9), PowerFunction(1), Window(1)))
