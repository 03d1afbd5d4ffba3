"""The arithmetic against exact fractions: one rounding, whatever the dtype, with every kernel of this machine."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpttool.engine import kernels, numerics
from ckpttool.engine.nonfinite import count_nonfinite, has_nonfinite
from ckpttool.reading.dtypes import numpy_dtype
from ckpttool.reading.scratch import Scratch

# name: (bits of precision, exponent of the smallest normal number, greatest finite number)
FORMATS = {
    "float64": (53, -1022, Fraction(np.finfo(np.float64).max)),
    "float32": (24, -126, Fraction(float(np.finfo(np.float32).max))),
    "bfloat16": (8, -126, Fraction(2) ** 128 - Fraction(2) ** 120),
    "float16": (11, -14, Fraction(65504)),
    "float8_e4m3fn": (4, -6, Fraction(448)),
    "float8_e4m3fnuz": (4, -7, Fraction(240)),
    "float8_e5m2": (3, -14, Fraction(57344)),
    "float8_e5m2fnuz": (3, -15, Fraction(57344)),
}
PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NARROW = [name for name in FORMATS if name not in {"float64", "float32"}]


def rounded(value: Fraction, dtype: str) -> Fraction | None:
    """The nearest number of a dtype, ties to even; None where that is beyond its greatest."""
    precision, smallest, greatest = FORMATS[dtype]
    if value == 0:
        return Fraction(0)
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, smallest) - precision + 1)
    result = round(value / unit) * unit
    return result if abs(result) <= greatest else None


@pytest.fixture(params=kernels.available(), ids=lambda kernel: kernel.name, autouse=True)
def kernel(request, monkeypatch):
    """Every test here runs with each kernel."""
    monkeypatch.setattr(kernels, "active", lambda: request.param)
    return request.param


def mean(terms, dtypes, out, weights=None, divisor=None):
    """weighted_mean of arrays, back as an array of the output's dtype."""
    weights = [1.0] * len(terms) if weights is None else weights
    divisor = float(len(terms)) if divisor is None else divisor
    weighting = numerics.Weighting(tuple(dtypes), tuple(weights), divisor, out)
    raws = [np.ascontiguousarray(term).view(np.uint8).copy() for term in terms]
    result, nonfinite = numerics.weighted_mean(weighting, raws, Scratch())
    values = result.view(numpy_dtype(out)).copy()
    assert nonfinite == (not finite(values).all())
    return values


def assert_rounded_once(values, dtype):
    result = mean([np.array(values, np.float64)], ["float64"], dtype).astype(np.float64)
    for value, got in zip(values, result, strict=True):
        expected = rounded(Fraction(value), dtype)
        if expected is None:
            assert not math.isfinite(got), (value, got)
        else:
            assert Fraction(float(got)) == expected, (value, got, float(expected))
            assert math.copysign(1, got) == math.copysign(1, value) or (got == 0 and dtype.endswith("fnuz"))


def finite(values):
    """isfinite, without ml_dtypes' warning about what it finds."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(values)


def every_value(dtype):
    """Every finite number of a dtype of one or two bytes, in order."""
    as_numpy = numpy_dtype(dtype)
    count = 256**as_numpy.itemsize
    values = np.arange(count, dtype=f"u{as_numpy.itemsize}").view(as_numpy)
    return np.unique(values[finite(values)].astype(np.float64))


@pytest.mark.parametrize("dtype", NARROW)
def test_between_any_two_neighbours_the_nearer_is_chosen_and_half_way_the_even(dtype):
    values = every_value(dtype)
    middles = (values[:-1] + values[1:]) / 2  # exact in float64
    just_below, just_above = np.nextafter(middles, -np.inf), np.nextafter(middles, np.inf)
    below = mean([just_below], ["float64"], dtype).astype(np.float64)
    above = mean([just_above], ["float64"], dtype).astype(np.float64)
    np.testing.assert_array_equal(below, values[:-1])
    np.testing.assert_array_equal(above, values[1:])
    pick = slice(None, None, max(1, len(middles) // 4000))
    assert_rounded_once(middles[pick].tolist(), dtype)


@pytest.mark.parametrize("dtype", NARROW)
def test_every_value_survives_widening_and_rounding(dtype):
    as_numpy = numpy_dtype(dtype)
    patterns = np.arange(256**as_numpy.itemsize, dtype=f"u{as_numpy.itemsize}")
    patterns = patterns[finite(patterns.view(as_numpy))]
    result = mean([patterns, patterns, patterns], [dtype] * 3, dtype)
    np.testing.assert_array_equal(result.view(patterns.dtype), patterns)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_widening_is_what_torch_says(dtype):
    patterns = np.arange(65536, dtype=np.uint16)
    expected = torch.from_numpy(patterns.view(np.int16)).view(getattr(torch, dtype)).to(torch.float32).numpy()
    for chosen in (patterns, patterns[np.isfinite(expected)]):  # with NaN and infinity, and without
        result = mean([chosen], [dtype], "float32")
        np.testing.assert_array_equal(result, expected[chosen])
        assert np.array_equal(np.signbit(result), np.signbit(expected[chosen])) or np.isnan(result).any()


@pytest.mark.parametrize("dtype", list(FORMATS))
@PROPERTY
@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_any_float64_is_rounded_once(dtype, values):
    assert_rounded_once(values, dtype)


@pytest.mark.parametrize("dtype", list(FORMATS))
@PROPERTY
@given(
    data=st.lists(
        st.tuples(
            st.integers(-(2**12), 2**12), st.integers(-170, 130), st.integers(-3, 3), st.sampled_from([20, 40, 44])
        ),
        min_size=1,
        max_size=50,
    )
)
def test_values_next_to_ties_are_rounded_once(dtype, data):
    values = [math.ldexp(mantissa, exponent) * (1 + step * 2.0**-bits) for mantissa, exponent, step, bits in data]
    assert_rounded_once(values, dtype)


def test_the_value_that_two_roundings_miss():
    value = 1 + 2.0**-8 + 2.0**-40
    assert torch.tensor(value, dtype=torch.float64).to(torch.bfloat16).item() == 1.0  # twice
    assert mean([np.array([value])], ["float64"], "bfloat16")[0] == 1.0078125  # once


@PROPERTY
@given(
    st.lists(st.lists(st.floats(-1e300, 1e300), min_size=4, max_size=4), min_size=2, max_size=6),
)
def test_a_mean_of_float64_is_the_nearest_to_the_exact_one(rows):
    result = mean([np.array(row) for row in rows], ["float64"] * len(rows), "float64")
    for column, got in enumerate(result):
        terms = [Fraction(row[column]) for row in rows]
        exact = sum(terms) / len(rows)
        unit = Fraction(math.ulp(float(exact)))
        # The pair carries 105 bits of the greatest partial sum: what cancels from there is lost.
        slack = sum(abs(term) for term in terms) * Fraction(2) ** -100
        assert abs(Fraction(float(got)) - exact) <= unit / 2 + slack


@PROPERTY
@given(
    st.lists(
        st.tuples(st.floats(-4, 4), st.lists(st.floats(-1e100, 1e100), min_size=3, max_size=3)), min_size=1, max_size=6
    )
)
def test_a_weighted_sum_of_float64_is_the_nearest_to_the_exact_one(rows):
    weights = [weight for weight, _ in rows]
    result = mean([np.array(row) for _, row in rows], ["float64"] * len(rows), "float64", weights, 1.0)
    for column, got in enumerate(result):
        products = [Fraction(weight) * Fraction(row[column]) for weight, row in rows]
        exact = sum(products)
        slack = sum(abs(product) for product in products) * Fraction(2) ** -100 + Fraction(2) ** -1074 * 9
        assert abs(Fraction(float(got)) - exact) <= Fraction(math.ulp(float(exact))) / 2 + slack


@pytest.mark.parametrize("count", [2, 3, 5, 7, 49])
@pytest.mark.parametrize("dtype", list(FORMATS))
def test_identical_members_give_the_same_bits(dtype, count):
    as_numpy = numpy_dtype(dtype)
    random = np.random.default_rng(count)
    patterns = random.integers(0, 256, 8 * 4096, dtype=np.uint8).view(as_numpy)
    patterns = patterns[finite(patterns)]
    result = mean([patterns] * count, [dtype] * count, dtype)
    assert result.tobytes() == patterns.tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_pair_of_neighbouring_halves_has_its_exact_mean(dtype):
    """Ties, all of them, subnormal ones too, among values of one magnitude (numpy takes its long way otherwise)."""
    values = every_value(dtype)
    for start in range(0, len(values) - 1, 1000):
        one, two = values[start : start + 1000], values[start + 1 : start + 1001]
        one = one[: len(two)]
        terms = [part.astype(numpy_dtype(dtype)) for part in (one, two)]
        short = mean(terms, [dtype] * 2, dtype).astype(np.float64)
        long = mean([one / 2 + two / 2], ["float64"], dtype).astype(np.float64)
        np.testing.assert_array_equal(short, long)


def test_a_mean_of_huge_float64_does_not_overflow():
    huge = np.array([np.finfo(np.float64).max, -np.finfo(np.float64).max, 1e308, 3.0])
    np.testing.assert_array_equal(mean([huge] * 5, ["float64"] * 5, "float64"), huge)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_nan_and_infinity_go_where_ieee_754_says(dtype):
    as_numpy = numpy_dtype(dtype)
    one = np.array([np.inf, -np.inf, np.nan, np.inf, 1, 1], np.float32).astype(as_numpy)
    two = np.array([1, 1, 1, -np.inf, -np.inf, 2], np.float32).astype(as_numpy)
    expected = [np.inf, -np.inf, np.nan, np.nan, -np.inf, 1.5]
    np.testing.assert_array_equal(mean([one, two], [dtype] * 2, dtype).astype(np.float64), expected)


def test_negative_zero_stays():
    zeros = np.array([-0.0, 0.0], np.float32)
    for count in (1, 3):
        for out in ("float32", "float64", "bfloat16", "float16"):
            assert np.signbit(mean([zeros] * count, ["float32"] * count, out).astype(np.float64)).tolist() == [
                True,
                False,
            ]


def test_members_of_different_dtypes_are_each_widened_from_their_own():
    values = np.array([0.1, 1.0, -3.0, 70.0])
    dtypes = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn"]
    terms = [values.astype(numpy_dtype(dtype)) for dtype in dtypes]
    exact = [sum(Fraction(float(term[column])) for term in terms) / 5 for column in range(4)]
    assert [Fraction(float(got)) for got in mean(terms, dtypes, "float32")] == [rounded(e, "float32") for e in exact]


@pytest.mark.parametrize("dtype", list(FORMATS))
def test_has_nonfinite_sees_every_pattern(dtype):
    as_numpy = numpy_dtype(dtype)
    if as_numpy.itemsize <= 2:
        patterns = np.arange(256**as_numpy.itemsize, dtype=f"u{as_numpy.itemsize}").view(as_numpy)
        step = 1 if as_numpy.itemsize == 1 else 31
        special = ~finite(patterns)
        chosen = np.concatenate([np.flatnonzero(special)[::step], np.flatnonzero(~special)[::step]])
        for index in chosen:
            assert has_nonfinite(patterns[index : index + 1].view(np.uint8), dtype) == special[index]
    for value in (np.inf, -np.inf, np.nan):
        array = np.ones(9, np.float32).astype(as_numpy)
        assert not has_nonfinite(array.view(np.uint8), dtype)
        array[4] = np.array(value, np.float32).astype(as_numpy)
        assert has_nonfinite(array.view(np.uint8), dtype)
        assert count_nonfinite(array.view(np.uint8), dtype) == 1
    assert not has_nonfinite(np.empty(0, np.uint8), dtype)
