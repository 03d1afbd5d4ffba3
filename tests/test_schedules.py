"""Learning-rate schedules: the published numbers, the laws, and other programs as oracles."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpttool.schedules import rates as schedules
from ckpttool.schedules.checks import ParameterError
from ckpttool.schedules.family import ScheduleSpec
from ckpttool.schedules.float32 import noam_applied, noam_logged, to_float32
from ckpttool.schedules.kinds import KINDS, find_kind
from ckpttool.schedules.landmarks import default_last_step, landmarks, sample
from ckpttool.schedules.peers import PEERS, Noam, find_peer
from ckpttool.schedules.rates import noam, wrap

# (scale, model_dim, start, duration, minimum) with 8000 warm-up steps:
# (schedule's argument = logged step, float64, float32, "%f" of both), from a run of OpenNMT-tf 2.32.0.
ACCEPTANCE = {
    # scale, model_dim, start, duration, minimum
    (2, 4, 0, 1, 0): [
        (0, 1.397542486e-06, 1.397542519e-06, "0.000001", "0.000001"),
        (1, 2.795084972e-06, 2.795085038e-06, "0.000003", "0.000003"),
        (70, 9.922551650e-05, 9.922551544e-05, "0.000099", "0.000099"),
        (71, 1.006230590e-04, 1.006230596e-04, "0.000101", "0.000101"),
    ],
    # scale, model_dim, start, duration, minimum
    (2, 4, 0, 1, 0.0001): [
        (0, 1.000000000e-04, 9.999999747e-05, "0.000100", "0.000100"),
        (1, 1.000000000e-04, 9.999999747e-05, "0.000100", "0.000100"),
        (70, 1.000000000e-04, 9.999999747e-05, "0.000100", "0.000100"),
        (71, 1.006230590e-04, 1.006230596e-04, "0.000101", "0.000101"),
        (72, 1.020206015e-04, 1.020206037e-04, "0.000102", "0.000102"),
    ],
    # scale, model_dim, start, duration, minimum
    (2, 768, 0, 1, 0): [
        (0, 1.008589413e-07, 1.008589408e-07, "0.000000", "0.000000"),
        (1, 2.017178826e-07, 2.017178815e-07, "0.000000", "0.000000"),
        (999, 1.008589413e-04, 1.008589461e-04, "0.000101", "0.000101"),
        (1000, 1.009598002e-04, 1.009598054e-04, "0.000101", "0.000101"),
        (7999, 8.068715305e-04, 8.068715688e-04, "0.000807", "0.000807"),
        (8000, 8.068211057e-04, 8.068210445e-04, "0.000807", "0.000807"),
        (10000, 7.216517548e-04, 7.216517697e-04, "0.000722", "0.000722"),
        (50000, 3.227453847e-04, 3.227453853e-04, "0.000323", "0.000323"),
        (100000, 2.282165912e-04, 2.282165951e-04, "0.000228", "0.000228"),
    ],
    # scale, model_dim, start, duration, minimum
    (6, 768, 0, 1, 0): [
        (0, 3.025768239e-07, 3.025768365e-07, "0.000000", "0.000000"),
        (1, 6.051536478e-07, 6.051536730e-07, "0.000001", "0.000001"),
        (999, 3.025768239e-04, 3.025768383e-04, "0.000303", "0.000303"),
        (1000, 3.028794007e-04, 3.028794017e-04, "0.000303", "0.000303"),
        (7999, 2.420614591e-03, 2.420614706e-03, "0.002421", "0.002421"),
        (8000, 2.420463317e-03, 2.420463134e-03, "0.002420", "0.002420"),
        (10000, 2.164955264e-03, 2.164955251e-03, "0.002165", "0.002165"),
        (50000, 9.682361542e-04, 9.682361851e-04, "0.000968", "0.000968"),
        (100000, 6.846497736e-04, 6.846498000e-04, "0.000685", "0.000685"),
    ],
    # scale, model_dim, start, duration, minimum
    (2, 768, 10000, 1, 0.0001): [
        (0, 1.000000000e-04, 9.999999747e-05, "0.000100", "0.000100"),
        (9999, 1.000000000e-04, 9.999999747e-05, "0.000100", "0.000100"),
        (10000, 1.000000000e-04, 9.999999747e-05, "0.000100", "0.000100"),
        (10990, 1.000000000e-04, 9.999999747e-05, "0.000100", "0.000100"),
        (10991, 1.000520698e-04, 1.000520642e-04, "0.000100", "0.000100"),
        (17999, 8.068715305e-04, 8.068715688e-04, "0.000807", "0.000807"),
        (18000, 8.068211057e-04, 8.068210445e-04, "0.000807", "0.000807"),
        (50000, 3.608394078e-04, 3.608393890e-04, "0.000361", "0.000361"),
        (100000, 2.405612757e-04, 2.405612759e-04, "0.000241", "0.000241"),
    ],
    # scale, model_dim, start, duration, minimum
    (2, 768, 10000, 1, 0): [
        (0, 1.008589413e-07, 1.008589408e-07, "0.000000", "0.000000"),
        (9999, 1.008589413e-07, 1.008589408e-07, "0.000000", "0.000000"),
        (10000, 1.008589413e-07, 1.008589408e-07, "0.000000", "0.000000"),
        (10001, 2.017178826e-07, 2.017178815e-07, "0.000000", "0.000000"),
        (17999, 8.068715305e-04, 8.068715688e-04, "0.000807", "0.000807"),
    ],
    # scale, model_dim, start, duration, minimum
    (2, 768, 0, 2, 0): [
        (0, 1.008589413e-07, 1.008589408e-07, "0.000000", "0.000000"),
        (1, 1.008589413e-07, 1.008589408e-07, "0.000000", "0.000000"),
        (2, 2.017178826e-07, 2.017178815e-07, "0.000000", "0.000000"),
        (3, 2.017178826e-07, 2.017178815e-07, "0.000000", "0.000000"),
        (15997, 8.067706715e-04, 8.067706367e-04, "0.000807", "0.000807"),
        (15998, 8.068715305e-04, 8.068715688e-04, "0.000807", "0.000807"),
        (15999, 8.068715305e-04, 8.068715688e-04, "0.000807", "0.000807"),
        (16000, 8.068211057e-04, 8.068210445e-04, "0.000807", "0.000807"),
        (100000, 3.227453847e-04, 3.227453853e-04, "0.000323", "0.000323"),
    ],
    # scale, model_dim, start, duration, minimum
    (2, 768, 0, 8, 0): [
        (7, 1.008589413e-07, 1.008589408e-07, "0.000000", "0.000000"),
        (8, 2.017178826e-07, 2.017178815e-07, "0.000000", "0.000000"),
        (63991, 8.067706715e-04, 8.067706367e-04, "0.000807", "0.000807"),
        (63992, 8.068715305e-04, 8.068715688e-04, "0.000807", "0.000807"),
        (63999, 8.068715305e-04, 8.068715688e-04, "0.000807", "0.000807"),
        (64000, 8.068211057e-04, 8.068210445e-04, "0.000807", "0.000807"),
    ],
    # scale, model_dim, start, duration, minimum
    (2, 768, 10000, 2, 0): [
        (10000, 1.008589413e-07, 1.008589408e-07, "0.000000", "0.000000"),
        (10001, 1.008589413e-07, 1.008589408e-07, "0.000000", "0.000000"),
        (10002, 2.017178826e-07, 2.017178815e-07, "0.000000", "0.000000"),
        (25997, 8.067706715e-04, 8.067706367e-04, "0.000807", "0.000807"),
        (25998, 8.068715305e-04, 8.068715688e-04, "0.000807", "0.000807"),
        (25999, 8.068715305e-04, 8.068715688e-04, "0.000807", "0.000807"),
        (26000, 8.068211057e-04, 8.068210445e-04, "0.000807", "0.000807"),
    ],
}
EACH = [(*parameters, *row) for parameters, rows in ACCEPTANCE.items() for row in rows]


def exactly(step: int, scale, model_dim, warmup, start=0, duration=1, minimum=0.0) -> float:
    """The formula in 50 decimal digits."""
    with localcontext() as context:
        context.prec = 50
        n = Decimal(max(step - start, 0) // duration + 1)
        root = min(1 / n.sqrt(), n / (warmup * Decimal(warmup).sqrt())) if warmup else 1 / n.sqrt()
        return float(max(Decimal(scale) / Decimal(model_dim).sqrt() * root, Decimal(minimum)))


@pytest.mark.parametrize(("scale", "dim", "start", "duration", "minimum", "step", "f64", "f32", "p64", "p32"), EACH)
def test_published_values_hold_in_float64_and_float32(scale, dim, start, duration, minimum, step, f64, f32, p64, p32):
    rate = wrap(noam(scale, dim, 8000), start, duration, minimum)(step)
    assert rate == pytest.approx(exactly(step, scale, dim, 8000, start, duration, minimum), rel=1e-14)
    assert rate == pytest.approx(f64, rel=1e-9)
    for make in (noam_applied, noam_logged):
        single = wrap(make(scale, dim, 8000), start, duration, to_float32(minimum))(step)
        assert single == pytest.approx(f32, rel=5e-7)
        assert f"{single:f}" == p32
    assert f"{rate:f}" == p64


def test_worked_example_of_the_article_step_by_step():
    step, scale, model_dim, warmup = 1, 2, 4, 8000
    n = max(step - 0, 0) // 1 + 1
    assert n == 2
    assert model_dim**-0.5 == pytest.approx(0.5, rel=1e-12)
    assert n**-0.5 == pytest.approx(0.7071067811865476, rel=1e-12)
    assert warmup**-1.5 == pytest.approx(1.3975424859373686e-06, rel=1e-12)
    bare = noam(scale, model_dim, warmup)(step)
    assert bare == pytest.approx(2.7950849718747372e-06, rel=1e-12)
    assert f"{wrap(noam(scale, model_dim, warmup), minimum=0.0001)(step):f}" == "0.000100"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"start": 2}, [0, 0, 0, 1, 2, 3]),
        ({"duration": 2}, [0, 0, 1, 1, 2, 2]),
        ({"minimum": 2}, [2, 2, 2, 3, 4, 5]),
    ],
)
def test_wrapper_over_the_identity_is_opennmts(arguments, expected):
    wrapped = wrap(float, **arguments)
    assert [wrapped(step) for step in range(len(expected))] == expected


def test_opennmts_inverse_square_root_reaches_its_rate_at_update_warmup():
    schedule = schedules.inv_sqrt(0.0002, 4000)
    assert schedule(0) != 0
    assert schedule(3999) == 0.0002


SMALL = {
    "scale": st.floats(1e-3, 10),
    "model_dim": st.integers(1, 64),
    "warmup_steps": st.integers(0, 60),
}
WRAPPERS = {"start": st.integers(0, 40), "duration": st.integers(1, 5)}


@given(step=st.integers(0, 10**9), minimum=st.floats(0, 1e-2), **SMALL, **WRAPPERS)
@settings(max_examples=100, deadline=None)
def test_wrapped_noam_is_the_formula(step, scale, model_dim, warmup_steps, start, duration, minimum):
    rate = wrap(noam(scale, model_dim, warmup_steps), start, duration, minimum)(step)
    assert rate == pytest.approx(exactly(step, scale, model_dim, warmup_steps, start, duration, minimum), rel=1e-13)


@given(step=st.integers(0, 500), minimum=st.floats(0, 1), **SMALL, **WRAPPERS)
@settings(max_examples=100, deadline=None)
def test_laws_of_the_wrapper(step, scale, model_dim, warmup_steps, start, duration, minimum):
    bare = noam(scale, model_dim, warmup_steps)
    assert wrap(bare)(step) == bare(step)
    assert wrap(bare, start)(step + start) == bare(step)
    assert wrap(bare, start)(min(step, start)) == bare(0)
    assert {wrap(bare, 0, duration)(step * duration + each) for each in range(duration)} == {bare(step)}
    assert wrap(bare, 0, 1, minimum)(step) == max(bare(step), minimum)
    assert wrap(wrap(bare), start, duration, minimum)(step) == wrap(bare, start, duration, minimum)(step)


# Every kind with parameters small enough to be walked through.
WALKED = st.one_of(
    st.fixed_dictionaries({"model_dim": SMALL["model_dim"], "warmup_steps": SMALL["warmup_steps"]}).map(
        lambda p: ("noam", p)
    ),
    st.integers(1, 60).map(lambda w: ("rsqrt", {"warmup_steps": w})),
    st.integers(1, 60).map(lambda w: ("inv-sqrt", {"warmup_steps": w, "initial_learning_rate": 1e-4})),
    st.tuples(st.integers(1, 90), st.none() | st.integers(0, 60)).map(
        lambda p: ("cosine", {"max_step": p[0], "warmup_steps": p[1]})
    ),
    st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(0, 300), st.integers(1, 300)).map(
        lambda p: (
            "rnmt+",
            {"num_replicas": p[0], "warmup_steps": p[1], "start_step": p[2], "end_step": p[2] + p[3]},
        )
    ),
    st.tuples(st.integers(0, 60), st.none() | st.integers(1, 100)).map(
        lambda p: ("inverse-sqrt", {"warmup_steps": p[0], "timescale": p[1]})
    ),
    st.tuples(st.integers(0, 60), st.integers(1, 100)).map(
        lambda p: ("linear", {"warmup_steps": p[0], "max_step": sum(p)})
    ),
    st.tuples(st.integers(0, 60), st.integers(1, 100)).map(
        lambda p: ("cosine-warmup", {"warmup_steps": p[0], "max_step": sum(p)})
    ),
    st.tuples(st.integers(0, 40), st.integers(10, 50), st.sampled_from(["linear", "sqrt", "cosine"])).map(
        lambda p: ("wsd", {"warmup_steps": p[0], "max_step": p[0] + p[1], "decay_ratio": 0.1, "decay_type": p[2]})
    ),
    st.just(("constant", {})),
    st.integers(0, 60).map(lambda w: ("constant-warmup", {"warmup_steps": w})),
    st.tuples(st.integers(0, 60), st.integers(1, 100), st.integers(1, 8)).map(
        lambda p: ("cosine-restarts", {"warmup_steps": p[0], "max_step": p[0] + p[1], "num_cycles": p[2]})
    ),
    st.tuples(st.integers(0, 60), st.integers(1, 100), st.floats(0, 1)).map(
        lambda p: ("cosine-min-lr", {"warmup_steps": p[0], "max_step": p[0] + p[1], "min_lr_factor": p[2]})
    ),
    st.tuples(st.integers(0, 60), st.integers(1, 100), st.floats(0.2, 3)).map(
        lambda p: ("polynomial", {"warmup_steps": p[0], "max_step": p[0] + p[1], "power": p[2]})
    ),
    st.tuples(
        st.integers(0, 40), st.integers(1, 50), st.integers(0, 50), st.sampled_from(["linear", "cosine", "1-sqrt"])
    ).map(
        lambda p: (
            "hf-wsd",
            {"warmup_steps": p[0], "decay_steps": p[1], "max_step": p[0] + p[1] + p[2], "decay_type": p[3]},
        )
    ),
    st.tuples(st.integers(2, 90), st.floats(0, 1), st.sampled_from(["cos", "linear"])).map(
        lambda p: ("one-cycle", {"max_step": p[0], "pct_start": p[1], "anneal_strategy": p[2]})
    ),
    st.tuples(st.integers(1, 60), st.integers(1, 3)).map(
        lambda p: ("warm-restarts", {"restart_steps": p[0], "restart_factor": p[1]})
    ),
    st.tuples(st.integers(1, 60), st.floats(0.1, 1)).map(lambda p: ("step", {"step_size": p[0], "gamma": p[1]})),
    st.lists(st.integers(1, 90), min_size=1, max_size=4).map(
        lambda steps: ("multi-step", {"milestones": ":".join(map(str, sorted(steps)))})
    ),
    st.floats(0.5, 1).map(lambda gamma: ("exponential", {"gamma": gamma})),
)


@st.composite
def specs(draw):
    name, parameters = draw(WALKED)
    wrapper = {
        "start_decay_steps": draw(WRAPPERS["start"]),
        "decay_step_duration": draw(WRAPPERS["duration"]),
        "minimum_learning_rate": draw(st.just(0.0) | st.floats(1e-4, 0.5)),
    }
    return ScheduleSpec.from_parameters(
        find_kind(name), {"learning_rate": draw(st.floats(1e-2, 5)), **parameters, **wrapper}
    )


@given(specs())
@settings(max_examples=100, deadline=None)
def test_landmarks_are_what_walking_every_step_finds(spec):
    schedule = spec.build()
    end = 2000
    every = [schedule(step) for step in range(end)]
    length = spec.values.get("max_step")
    rates = every if length is None else every[: spec.argument_of(length) + 1]
    floor = spec.minimum_learning_rate
    found = {mark.mark: mark for mark in landmarks(spec)}

    if "peak" in found:
        peak = found["peak"]
        assert max(rates) == pytest.approx(peak.rate, rel=1e-12)
        assert rates[peak.first] == max(rates)
        assert rates.index(max(rates)) == peak.first
        if peak.last is not None and peak.last + 1 < len(rates):
            assert rates[peak.last] == peak.rate > rates[peak.last + 1]
        if peak.last is None:
            assert set(rates[peak.first :]) == {peak.rate}
    else:
        assert set(rates) == {floor}
    if floor > 0:
        above = [rate > floor for rate in every]
        leaves = next((s for s in range(1, end) if above[s] and not above[s - 1]), None)
        back = next((s for s in range(1, end) if not above[s] and above[s - 1]), None)
        # What the landmarks say of steps from `end` on is not walked here.
        left = found["leaves floor"].first if "leaves floor" in found else None
        assert left == leaves or (leaves is None and left is not None and left >= end)
        there = found["back to floor"].first if "back to floor" in found else None
        assert there == back or (back is None and there is not None and there >= end)
    assert ("start" in found) == (spec.start_decay_steps > 0)


@given(specs(), st.integers(0, 300), st.lists(st.integers(1, 40), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_sampled_columns_have_the_extremes_of_every_step_in_them(spec, first, widths):
    schedule = spec.build()
    ranges = []
    for width in widths:
        ranges.append((first, first + width - 1))
        first += width
    for (low, high), points in zip(ranges, sample(spec, schedule, ranges), strict=True):
        rates = [schedule(step) for step in range(low, high + 1)]
        assert (min(r for _s, r in points), max(r for _s, r in points)) == (min(rates), max(rates))
        assert (points[0][0], points[-1][0]) == (low, high)


@pytest.mark.parametrize(
    ("scale", "dim", "warmup", "above", "back", "peak"),
    [
        (2, 4, 8000, 72, 100_000_000, 1.118033989e-02),
        (2, 768, 8000, 992, 520_833, 8.068715305e-04),
        (6, 768, 8000, 331, 4_687_500, 2.420614591e-03),
        (2, 512, 8000, 810, 781_250, 9.882117688e-04),
        (2, 512, 4000, 287, 781_250, 1.397542486e-03),
    ],
)
def test_crossings_of_the_floor_have_the_published_numbers(scale, dim, warmup, above, back, peak):
    parameters = {"learning_rate": scale, "model_dim": dim, "warmup_steps": warmup, "minimum_learning_rate": 1e-4}
    found = {mark.mark: mark for mark in landmarks(ScheduleSpec.from_parameters(find_kind("noam"), parameters))}
    assert found["leaves floor"].first + 1 == above
    # Published is scale^2 / (d F^2) rounded down: the last n whose rate is not below the floor.
    assert found["back to floor"].first + 1 in (back, back + 1)
    assert found["peak"].rate == pytest.approx(peak, rel=1e-9)
    assert found["peak"].first == found["peak"].last == warmup - 1


def test_delayed_and_floored_schedule_leaves_its_floor_at_logged_step_10991():
    spec = ScheduleSpec.from_parameters(
        find_kind("noam"),
        {
            "learning_rate": 2,
            "model_dim": 768,
            "warmup_steps": 8000,
            "start_decay_steps": 10000,
            "minimum_learning_rate": 1e-4,
        },
    )
    assert [(mark.mark, mark.first) for mark in landmarks(spec)][:3] == [
        ("start", 10000),
        ("leaves floor", 10991),
        ("peak", 17999),
    ]


def single(number: Fraction) -> Fraction:
    """The nearest float32, ties to even; for positive numbers of its normal range."""
    exponent = number.numerator.bit_length() - number.denominator.bit_length()
    exponent -= number < Fraction(2) ** exponent
    unit = Fraction(2) ** (exponent - 23)
    return round(number / unit) * unit


def root(number: Fraction) -> Fraction:
    """A square root, to 150 bits."""
    return Fraction(math.isqrt(number.numerator * number.denominator << 300), number.denominator << 150)


NOAM_IN_FLOAT32 = [
    (*parameters, step)
    for parameters in [(2.0, 512, 8000), (6.0, 768, 4000), (1.3, 4, 10)]
    for step in [*range(30), 999, 7999, 8000, 8001, 123_456]
]


def test_float32_is_every_operation_rounded_once():
    for scale, dim, warmup, step in NOAM_IN_FLOAT32:
        n, w, d = Fraction(step + 1), Fraction(warmup), Fraction(dim)
        slope = single(1 / (w * root(w)))
        # In TensorFlow's graph x^-0.5 is 1 / sqrt(x), two roundings; outside it is one power.
        for make, power in [
            (noam_applied, lambda x: single(1 / single(root(x)))),
            (noam_logged, lambda x: single(1 / root(x))),
        ]:
            factor = single(single(Fraction(scale)) * power(d))
            assert make(scale, dim, warmup)(step) == single(factor * min(power(n), single(n * slope)))


def test_float32_is_near_what_torch_computes():
    """Near: the last bits of a vectorised square root or reciprocal depend on the processor."""
    torch = pytest.importorskip("torch")
    for scale, dim, warmup, step in NOAM_IN_FLOAT32:
        n, d, w = (torch.tensor(float(number), dtype=torch.float32) for number in (step + 1, dim, warmup))
        expected = scale * d.rsqrt() * torch.minimum(n.rsqrt(), n * w.pow(-1.5))
        for make in (noam_applied, noam_logged):
            assert make(scale, dim, warmup)(step) == pytest.approx(expected.item(), rel=1e-6)


@given(st.floats(allow_nan=False, width=64))
def test_rounding_to_float32_is_numpys(number):
    numpy = pytest.importorskip("numpy")
    with numpy.errstate(over="ignore"):
        assert to_float32(number) == float(numpy.float32(number))


def test_update_k_of_lambda_lr_has_schedule_of_k_minus_1():
    torch = pytest.importorskip("torch")
    schedule = wrap(noam(2.0, 64, 5), start=3, duration=2, minimum=1e-3)
    weight = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    for update in range(1, 40):
        assert optimizer.param_groups[0]["lr"] == schedule(update - 1)
        optimizer.step()
        scheduler.step()


def test_cosine_annealing_without_warmup_is_torchs():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.01)
    ours = schedules.cosine_annealing(0.3, 0.01, 50)
    for step in range(51):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (5, 20), (7, 8)])
def test_linear_cosine_and_inverse_square_root_are_transformers(warmup, total):
    def factor(step, after):
        return step / max(1, warmup) if step < warmup else after(step)

    def linear(step):
        return factor(step, lambda s: max(0.0, (total - s) / max(1, total - warmup)))

    def cosine(step):
        return factor(
            step,
            lambda s: max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * ((s - warmup) / max(1, total - warmup))))),
        )

    def inverse_sqrt(step):
        timescale = warmup or 10_000
        return factor(step, lambda s: 1.0 / math.sqrt((s + timescale - warmup) / timescale))

    for step in range(2 * total):
        assert schedules.linear(0.1, warmup, total)(step) == pytest.approx(0.1 * linear(step), abs=1e-16)
        assert schedules.cosine(0.1, warmup, total)(step) == pytest.approx(0.1 * cosine(step), abs=1e-16)
        assert schedules.inverse_sqrt(0.1, warmup)(step) == pytest.approx(0.1 * inverse_sqrt(step), rel=1e-12)


def test_cosine_of_opennmt_jumps_where_its_warmup_ends_and_rises_again_past_its_end():
    schedule = schedules.cosine_annealing(1.0, 0.0, 100, 20)
    assert schedule(0) == 0.0
    assert schedule(19) == 0.95
    assert schedule(20) < schedule(19)
    assert schedule(100) == pytest.approx(0, abs=1e-15)
    assert schedule(150) > 0.4


def test_rnmt_plus_rises_to_n_times_its_scale_stays_and_decays():
    schedule = schedules.rnmt_plus(1e-4, 8)
    assert schedule(0) == 1e-4
    assert schedule(2000) == pytest.approx(1e-4 * (1 + 2000 * 7 / (8 * 500)))
    assert schedule(4000) == schedule(75_000) == 8e-4
    assert schedule(150_000) == pytest.approx(8e-4 * 16**-1.0)


def test_rnmt_plus_does_not_overflow_where_its_decay_is_steep():
    assert schedules.rnmt_plus(1.0, 64, 500, 10**9, 10**9 + 1)(0) == 1.0


def test_wsd_warms_up_stays_and_decays_without_reaching_its_minimum_inside():
    schedule = schedules.wsd(1.0, 10, 100, 0.2)
    assert [schedule(0), schedule(9), schedule(80)] == [0.1, 1.0, 1.0]
    assert schedule(81) == pytest.approx(0.95)
    assert schedule(99) == pytest.approx(0.05)
    assert schedule(100) == schedule(10**6) == 0.0


BAD = [
    (lambda: noam(0, 512, 1), "scale"),
    (lambda: noam(math.nan, 512, 1), "scale"),
    (lambda: noam(2, 0, 1), "model_dim"),
    (lambda: noam(2, -4, 1), "model_dim"),
    (lambda: noam(2, 512, -1), "warmup_steps"),
    (lambda: noam(2, 512, 1.5), "warmup_steps"),
    (lambda: noam(2, True, 1), "model_dim"),
    (lambda: noam("2", 512, 1), "scale"),
    (lambda: noam(2, 512, 1)(-1), "step"),
    (lambda: schedules.inv_sqrt(1, 5)(-1), "step"),
    (lambda: schedules.rsqrt(1, 0), "warmup_steps"),
    (lambda: schedules.cosine_annealing(1, -1), "eta_min"),
    (lambda: schedules.rnmt_plus(1, 2, 500, 10, 10), "end_step"),
    (lambda: schedules.linear(1, 10, 10), "max_step"),
    (lambda: schedules.wsd(1, 10, 100, 0.95), "decay_ratio"),
    (lambda: schedules.wsd(1, 10, 100, 0.5, "cubic"), "decay_type"),
    (lambda: schedules.wsd(1, 10, 100, min_lr_factor=2), "min_lr_factor"),
    (lambda: wrap(float, start=-1), "start"),
    (lambda: wrap(float, duration=0), "duration"),
    (lambda: wrap(float, duration=2.5), "duration"),
    (lambda: wrap(float, minimum=-1), "minimum"),
    (lambda: wrap(float, minimum=math.inf), "minimum"),
    (lambda: noam_applied(2, 0, 1), "model_dim"),
]


@pytest.mark.parametrize(("make", "parameter"), BAD)
def test_a_value_that_cannot_be_names_its_parameter(make, parameter):
    with pytest.raises(ParameterError) as caught:
        make()
    assert caught.value.parameter == parameter
    assert caught.value.exit_code == 2


def test_a_whole_float_is_a_count():
    assert noam(2, 512.0, 8e3)(5) == noam(2, 512, 8000)(5)


def test_without_warmup_noam_only_decays():
    assert [noam(2, 4, 0)(step) for step in (0, 3)] == pytest.approx([1.0, 0.5], rel=1e-15)
    assert [noam_applied(2, 4, 0)(step) for step in (0, 3)] == [1.0, 0.5]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_answers_to_its_names_and_computes_in_float32(kind):
    for name in (kind.name, *kind.aliases):
        assert find_kind(name.upper()) is kind
    needed = {"model_dim": 512, "warmup_steps": 100, "max_step": 1000, "num_replicas": 4, "decay_steps": 200}
    needed |= {"gamma": 0.999, "step_size": 50, "milestones": "200:700", "restart_steps": 100}
    spec = ScheduleSpec.from_parameters(kind, {"learning_rate": 1e-3, **{n: needed[n] for n in kind.required}})
    assert default_last_step(spec) >= 1000
    for semantics in ("applied", "logged"):
        for step in (1, 50, 100, 500):
            single = spec.rate(semantics, "float32")(step)
            assert single == to_float32(single)
            assert single == pytest.approx(spec.rate(semantics)(step), rel=5e-7, abs=1e-12)


# The rates that each framework applies at updates 1, 2, 100, 4000, 8000, 8001 and 100000 with model_dim 512 and 4000
# warm-up steps, scaled so that all peak at 6.987712e-04.
_N_IS_K = "1.746928e-07 3.493856e-07 1.746928e-05 6.987712e-04 4.941059e-04 4.940750e-04 1.397542e-04"
_LATER = "1.746928e-07 1.729459e-05 6.985966e-04 4.941368e-04 4.941059e-04 1.397549e-04"
PEER_TABLE = {
    "opennmt-tf": _N_IS_K,
    "opennmt-py": _N_IS_K,
    "eole": _N_IS_K,
    "t2t": f"0.000000e+00 {_LATER}",
    "t2t-legacy": _N_IS_K,
    "annotated": f"1.746928e-07 {_LATER}",
    "allennlp": _N_IS_K,
    "espnet": _N_IS_K,
    "wenet": f"1.746928e-07 {_LATER}",
    "paddle": f"0.000000e+00 {_LATER}",
    "nemo": f"1.746928e-07 {_LATER}",
    "speechbrain": f"0.000000e+00 {_LATER}",
    "joeynmt": f"nan {_LATER}",
    "fairseq": f"0.000000e+00 {_LATER}",
    "marian": f"0.000000e+00 {_LATER}",
    "hf": f"0.000000e+00 {_LATER}",
    "sockeye": _N_IS_K,
    "lrsched": f"0.000000e+00 {_LATER}",
}


@pytest.mark.parametrize("name", PEER_TABLE)
def test_peers_have_the_rates_read_from_their_sources(name):
    rate = find_peer(name).rate(Noam(1.0, 512, 4000))
    updates = (1, 2, 100, 4000, 8000, 8001, 100_000)
    assert [f"{rate(update):.6e}" for update in updates] == PEER_TABLE[name].split()


def test_the_peer_table_has_every_peer():
    assert {peer.name for peer in PEERS if peer.rate} == set(PEER_TABLE)


def test_options_of_a_peer_give_back_the_same_peak():
    p = Noam(2.0, 512, 8000)
    assert p.peak == pytest.approx(9.882117688e-04, rel=1e-9)
    assert f"--lr {p.peak!r}" in find_peer("fairseq").options(p)
    assert "-hidden_size 512" in find_peer("onmt-py").options(p)
    assert find_peer("timm").options(p) == ()
