"""Lengths as users say them: from where a decay has an effect, what an update is, and the coefficients that follow."""

from __future__ import annotations

import doctest
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckpttool.coefficients.lengths
from ckpttool.coefficients.lengths import Counted, Kind, Unit, Wanted, choose_unit, compute, describe_length
from ckpttool.coefficients.profiles import Window
from ckpttool.coefficients.weights import from_decays, from_profile, per_checkpoint, uniform
from ckpttool.errors import UsageError
from ckpttool.text import Message

laws = settings(max_examples=60, deadline=None)

STEPS = range(5000, 50_001, 5000)


def wanted(kind: Kind, value: float, *, warmup: bool = True) -> Wanted:
    return Wanted(kind, value, repr(value), warmup)


def by_hand(decay: str, last: int) -> tuple[float, ...]:
    """The average of a short run with every step saved, in fractions."""
    cap = Fraction(decay)
    return from_decays([float(min(cap, Fraction(1 + step, 10 + step))) for step in range(1, last + 1)])


def test_the_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(ckpttool.coefficients.lengths).failed == 0


# From where a decay has an effect


@pytest.mark.parametrize("decay", ["0.15", "0.25", "0.5", "0.8", "0.9", "0.95", "0.99"])
def test_a_decay_has_an_effect_from_the_first_step_on_that_it_changes(decay: str) -> None:
    first = wanted("decay", float(decay)).first_effective_update()
    warm_up = [Fraction(1 + step, 10 + step) for step in range(1, 1000)]
    assert first == 1 + next(i for i, rate in enumerate(warm_up) if rate > Fraction(decay))
    assert by_hand(decay, first) != by_hand("0.999999", first)
    if first > 1:
        assert by_hand(decay, first - 1) == by_hand("0.999999", first - 1)


@pytest.mark.parametrize("length", [wanted("decay", 0.9999, warmup=False), wanted("half-life", 500.0)])
def test_without_a_warm_up_a_length_has_an_effect_from_the_first_update_on(length: Wanted) -> None:
    assert length.first_effective_update() == 1
    assert length.no_effect(1) is None


@laws
@given(decay=st.integers(1, 9999).map(lambda n: n / 10_000), updates=st.integers(1, 200_000))
def test_it_is_said_of_a_decay_exactly_where_the_largest_one_gives_the_same_average(decay: float, updates: int) -> None:
    steps = [0, (updates + 1) // 2, updates] if updates > 1 else [0, 1]
    said = wanted("decay", decay).no_effect(updates)
    if said is not None:
        largest = wanted("decay", 1 - 2**-53)
        assert from_profile(steps, wanted("decay", decay).profile()) == from_profile(steps, largest.profile())
    assert (said is not None) == (Fraction(1 + updates, 10 + updates) <= Fraction(repr(decay)))


@laws
@given(updates=st.integers(1, 10**9))
def test_the_least_decay_that_gives_the_same_average_is_named(updates: int) -> None:
    said = wanted("decay", 1 - 2**-53).no_effect(updates)
    assert said is not None
    match = re.search(r"every decay of (0\.\d+) or more", said)
    assert match is not None
    assert wanted("decay", float(match[1])).no_effect(updates) is not None
    assert float(match[1]) - (1 + updates) / (10 + updates) <= 0.1 / updates


def test_two_decays_without_effect_are_warned_of_with_what_to_type() -> None:
    both = [compute(wanted("decay", decay), STEPS, 10, unit="steps") for decay in (0.9999, 0.99999)]
    assert both[0].coefficients == both[1].coefficients
    for one, first in zip(both, ("89,991", "899,991"), strict=True):
        (warning,) = one.warnings
        assert isinstance(warning, Message)
        assert f"has an effect from step {first} on, and the average ends at step 50,000" in warning
        assert "every decay of 0.9998201 or more" in warning
        assert "warmup=False keeps the decay constant; half_life and sigma_rel" in warning


def test_a_decay_that_has_an_effect_and_the_default_come_without_that_warning() -> None:
    assert compute(wanted("decay", 0.9995), STEPS, 10, unit="steps").warnings == ()
    assert compute(wanted("decay", 0.9999, warmup=False), STEPS, 10, unit="steps").warnings == ()
    default = Wanted("decay", 0.9999, "0.9999", is_default=True)
    assert compute(default, STEPS, 10, unit="steps").warnings == ()


def test_updates_are_counted_in_what_an_update_is() -> None:
    (warning, *_) = compute(wanted("decay", 0.9), None, 20, unit="checkpoints").warnings
    assert "from checkpoint 81 on, and the average ends at checkpoint 19" in warning
    (warning, *_) = compute(wanted("decay", 0.95), [10, 20, 30], 3, counted="epochs", unit="epochs").warnings
    assert "from epoch 171 on, and the average ends at epoch 30" in warning


# What an update is


COUNTED = [wanted("decay", 0.999), wanted("half-life", 30.0)]
SHARES = [wanted("sigma-rel", 0.1), wanted("window", 0.5)]


@pytest.mark.parametrize("length", [*COUNTED, *SHARES], ids=str)
def test_known_steps_are_what_an_update_is_unless_checkpoints_are_asked_for(length: Wanted) -> None:
    assert choose_unit(length, None, "steps") == choose_unit(length, "steps", "steps") == "steps"
    assert choose_unit(length, "checkpoints", "steps") == "checkpoints"


@pytest.mark.parametrize("length", COUNTED, ids=str)
@pytest.mark.parametrize(("known", "units"), [("epochs", {"epochs"}), ("numbers", {"steps", "epochs"}), (None, set())])
def test_a_length_that_counts_updates_asks_what_one_is_where_steps_are_not_known(
    length: Wanted, known: Counted | None, units: set[Unit]
) -> None:
    with pytest.raises(UsageError, match="counts updates of the average") as caught:
        choose_unit(length, None, known)
    hint = caught.value.hint
    assert hint is not None
    assert set(re.findall("unit='([a-z]+)'", hint)) == units | {"checkpoints"}
    assert "sigma_rel and window are shares of the run" in hint
    for unit in (*units, "checkpoints"):
        assert choose_unit(length, unit, known) == unit


@pytest.mark.parametrize("length", SHARES, ids=str)
def test_a_share_of_the_run_needs_no_steps(length: Wanted) -> None:
    assert choose_unit(length, None, "epochs") == "epochs"
    assert choose_unit(length, None, "numbers") == "numbers"
    assert choose_unit(length, "steps", "numbers") == "steps"
    assert choose_unit(length, None, None) == "checkpoints"


@pytest.mark.parametrize(("asked", "known"), [("steps", "epochs"), ("steps", None), ("epochs", "steps")])
def test_a_unit_that_the_checkpoints_do_not_have_is_refused_without_sending_in_a_circle(
    asked: Unit, known: Unit | None
) -> None:
    with pytest.raises(UsageError, match=f"the checkpoints' {asked} are not known") as caught:
        choose_unit(SHARES[0], asked, known)
    assert caught.value.hint == "Leave unit out: a share of the run needs none."
    assert choose_unit(SHARES[0], None, known) is not None
    with pytest.raises(UsageError, match=f"the checkpoints' {asked} are not known") as caught:
        choose_unit(COUNTED[0], asked, known)
    assert set(re.findall("unit='([a-z]+)'", caught.value.hint or "")) == {"checkpoints", *([known] if known else [])}
    assert choose_unit(COUNTED[0], "checkpoints", known) == "checkpoints"


@pytest.mark.parametrize("unit", ["steps", "epochs"])
def test_times_that_are_not_known_are_refused(unit: Unit) -> None:
    with pytest.raises(UsageError, match="are not known"):
        compute(COUNTED[0], None, 3, unit=unit)


# The coefficients


def test_a_window_over_epochs_is_the_plain_mean_of_the_last_ones() -> None:
    for counted in ("epochs", "numbers", "steps"):
        found = compute(wanted("window", 0.5), [1, 2, 3, 4], 4, counted=counted)
        assert found.coefficients == (0, 0, 0.5, 0.5)
        assert (found.unit, found.ages, found.statistics.mean_age) == (counted, counted, 0.5)


@laws
@given(count=st.integers(1, 30), share=st.sampled_from([1.0, 0.5, 0.1]))
def test_a_share_of_checkpoints_without_numbers_takes_them_for_equal_parts_of_a_run(count: int, share: float) -> None:
    found = compute(wanted("window", share), None, count, unit="checkpoints")
    assert found.coefficients == from_profile(range(1, count + 1), Window(share))
    if share == 1:
        assert found.coefficients == pytest.approx(uniform(count), abs=1e-15)
    assert (found.ages, found.profile) == ("checkpoints", None)


@laws
@given(count=st.integers(1, 30), decay=st.floats(0.01, 0.9999), warmup=st.booleans())
def test_a_decay_by_checkpoint_is_the_recurrence_over_them(count: int, decay: float, *, warmup: bool) -> None:
    found = compute(wanted("decay", decay, warmup=warmup), None, count, unit="checkpoints")
    assert found.coefficients == per_checkpoint(count, decay, warmup=warmup)
    with_steps = compute(wanted("decay", decay, warmup=warmup), range(7, 7 + count), count, unit="checkpoints")
    assert with_steps.coefficients == found.coefficients
    assert with_steps.ages == "steps"


@pytest.mark.parametrize(
    "length",
    [wanted("decay", 0.9), wanted("decay", 0.9, warmup=False), wanted("half-life", 4.0), *SHARES],
    ids=str,
)
def test_every_unit_gives_the_same_where_each_update_has_its_checkpoint(length: Wanted) -> None:
    """Steps 1 to 9 of a share, and 0 to 9 of a decay, whose oldest checkpoint are the initial weights."""
    times = range(1, 10) if length.is_share else range(10)
    by_checkpoint = compute(length, None, len(times), unit="checkpoints").coefficients
    for unit in ("steps", "epochs"):
        found = compute(length, times, len(times), unit=unit, counted=unit)
        assert found.coefficients == pytest.approx(by_checkpoint, abs=1e-15)


def test_a_length_comes_back_in_its_own_terms() -> None:
    for kind, value in (("half-life", 300.0), ("sigma-rel", 0.1), ("window", 0.4)):
        length = wanted(kind, value)
        assert describe_length(length.profile(), 5000)[kind] == pytest.approx(value, rel=1e-12)
