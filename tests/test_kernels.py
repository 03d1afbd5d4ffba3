"""The kernels have the same bits on every input, and the environment chooses between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ckpttool.cli import group
from ckpttool.engine import kernels
from ckpttool.engine.kernels import compiled
from ckpttool.engine.kernels.numpy_kernel import NumpyKernel
from ckpttool.errors import UsageError
from ckpttool.reading.dtypes import numpy_dtype

ROOT = Path(__file__).parent.parent
NAN = {
    "float64": 0x7FF8000000000000,
    "float32": 0x7FC00000,
    "float16": 0x7E00,
    "bfloat16": 0x7FC0,
    "float8_e4m3fn": 0x7F,
    "float8_e4m3fnuz": 0x80,
    "float8_e5m2": 0x7E,
    "float8_e5m2fnuz": 0x80,
}
DTYPES = list(NAN)
COMPILED = pytest.mark.skipif(len(kernels.available()) == 1, reason="the compiled kernel is not built here")


def means(raws, dtypes, weights, divisor, out):
    """What each kernel makes of the same input, by its name: the output's bytes, and whether it is not finite."""
    count = raws[0].nbytes // numpy_dtype(dtypes[0]).itemsize
    results = {}
    for kernel in kernels.available():
        buffer = np.full(count * numpy_dtype(out).itemsize, 0xAA, np.uint8)
        nonfinite = kernel.weighted_mean(raws, dtypes, weights, divisor, out, buffer)
        results[kernel.name] = (buffer.tobytes(), nonfinite)
    return results


def interesting(dtype, random, count):
    """Numbers of a dtype: any bits, or of nearly one size, or few different ones (ties, cancellation, overflow)."""
    as_numpy = numpy_dtype(dtype)
    way = random.integers(4)
    if way == 0:
        return random.integers(0, 256, count * as_numpy.itemsize, dtype=np.uint8)
    with np.errstate(all="ignore"):
        if way == 1:
            values = random.standard_normal(count) * 2.0 ** random.integers(-150, 130)
        elif way == 2:
            values = random.integers(-512, 513, count) * 2.0 ** random.integers(-149, 120)
        else:
            special = [
                0.0,
                -0.0,
                np.inf,
                -np.inf,
                np.nan,
                -np.nan,
                1.0,
                5e-324,
                1e-45,
                6e-8,
                65504,
                65520,
                3.4e38,
                1e308,
            ]
            values = random.choice(np.array(special), count)
        return np.ascontiguousarray(values.astype(as_numpy)).view(np.uint8)


@COMPILED
@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=6),
    alike=st.booleans(),
    out=st.sampled_from(DTYPES),
    count=st.sampled_from([0, 1, 7, 64, 1023, 1024, 1025, 3000]),
    weighted=st.booleans(),
    divisor=st.sampled_from([1.0, 2.0, 3.0, 5.0, 7.0, 0.37]),
)
@example(seed=1, dtypes=["float32"] * 5, alike=True, out="float32", count=200_000, weighted=False, divisor=5.0)
@example(seed=2, dtypes=["bfloat16"] * 5, alike=True, out="bfloat16", count=200_000, weighted=False, divisor=5.0)
@example(seed=3, dtypes=["float16"] * 5, alike=True, out="float16", count=200_000, weighted=True, divisor=1.0)
def test_kernels_have_the_same_bits(seed, dtypes, alike, out, count, weighted, divisor):
    random = np.random.default_rng(seed)
    if alike:
        dtypes = [out] * len(dtypes)
    raws = [interesting(dtype, random, count) for dtype in dtypes]
    weights = (random.standard_normal(len(dtypes)) if weighted else np.ones(len(dtypes))).tolist()
    results = means(raws, dtypes, weights, divisor, out)
    assert set(results.values()) == {results["numpy"]}


@COMPILED
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(2, 40),
    spread=st.floats(0, 6),
    scale=st.integers(-30, 12),
    weighted=st.booleans(),
    jitter=st.sampled_from([0.0, 0.01, 1.0]),
)
def test_halves_that_lie_near_each_other_have_the_same_bits(dtype, seed, count, spread, scale, weighted, jitter):
    """As members of one run do; here numpy goes its short way, in float32 with a bound."""
    random = np.random.default_rng(seed)
    base = random.standard_normal(2000) * np.exp(random.standard_normal(2000) * spread) * 2.0**scale
    with np.errstate(over="ignore"):
        terms = [
            np.clip(base * (1 + jitter * random.standard_normal(2000)), -6e4, 6e4).astype(numpy_dtype(dtype))
            for _ in range(count)
        ]
    weights = (random.standard_normal(count) / count if weighted else np.ones(count)).tolist()
    raws = [term.view(np.uint8) for term in terms]
    results = means(raws, [dtype] * count, weights, 1.0 if weighted else float(count), dtype)
    assert set(results.values()) == {results["numpy"]}


@COMPILED
@pytest.mark.parametrize("source", ["float32", "bfloat16", "float16", *[name for name in DTYPES if "float8" in name]])
@pytest.mark.parametrize("out", DTYPES)
def test_every_pattern_is_converted_alike(source, out):
    itemsize = numpy_dtype(source).itemsize
    patterns = np.arange(min(256**itemsize, 65536), dtype=f"u{itemsize}")
    if itemsize == 4:
        patterns = (patterns << 16) | patterns[::-1]
    results = means([patterns.view(np.uint8)], [source], [1.0], 1.0, out)
    assert set(results.values()) == {results["numpy"]}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_result_that_is_no_number_is_one_quiet_nan(dtype):
    as_numpy = numpy_dtype(dtype)
    patterns = np.arange(256**2 if as_numpy.itemsize > 1 else 256, dtype=f"u{as_numpy.itemsize}")
    patterns <<= max(0, 8 * as_numpy.itemsize - 16)  # the bits that tell
    with np.errstate(invalid="ignore"):
        patterns = patterns[np.isnan(patterns.view(as_numpy))]
    assert patterns.size
    for raw, nonfinite in means([patterns.view(np.uint8)] * 2, [dtype] * 2, [1.0, 1.0], 2.0, dtype).values():
        assert nonfinite
        assert set(np.frombuffer(raw, patterns.dtype).tolist()) == {NAN[dtype]}


@COMPILED
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_input_may_be_at_any_address(offset):
    random = np.random.default_rng(offset)
    aligned = [random.integers(0, 256, 4000, dtype=np.uint8) for _ in range(3)]
    shifted = []
    for raw in aligned:
        buffer = np.empty(raw.size + offset, np.uint8)
        buffer[offset:] = raw
        shifted.append(buffer[offset:])
    for kernel in kernels.available()[:-1]:
        one, other = np.empty(4000, np.uint8), np.empty(4000 + offset, np.uint8)[offset:]
        kernel.weighted_mean(aligned, ["float32"] * 3, [1.0] * 3, 3.0, "float32", one)
        kernel.weighted_mean(shifted, ["float32"] * 3, [1.0] * 3, 3.0, "float32", other)
        assert one.tobytes() == other.tobytes()


@COMPILED
def test_wrong_sizes_are_refused_before_c_sees_them():
    kernel = kernels.available()[0]
    four, eight = np.zeros(4, np.uint8), np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="not 2 elements"):
        kernel.weighted_mean([four], ["float32"], [1.0], 1.0, "float32", eight)
    with pytest.raises(ValueError, match="one weight"):
        kernel.weighted_mean([eight], ["float32"], [], 1.0, "float32", eight)


def test_the_environment_chooses(monkeypatch):
    names = [kernel.name for kernel in kernels.available()]
    assert names[-1] == "numpy"
    monkeypatch.setenv(kernels.VARIABLE, "no")
    assert kernels.active().name == "numpy"
    monkeypatch.setenv(kernels.VARIABLE, "auto")
    assert kernels.active().name == names[0]
    monkeypatch.setenv(kernels.VARIABLE, "perhaps")
    with pytest.raises(UsageError, match="auto, yes, no"):
        kernels.active()


def test_a_kernel_that_is_insisted_on_and_missing_is_an_error(monkeypatch):
    only_numpy = (NumpyKernel(),)
    monkeypatch.setattr(kernels, "available", lambda: only_numpy)
    kernels._chosen.cache_clear()
    try:
        monkeypatch.setenv(kernels.VARIABLE, "yes")
        with pytest.raises(UsageError, match="not installed"):
            kernels.active()
        monkeypatch.setenv(kernels.VARIABLE, "auto")
        assert kernels.active().name == "numpy"
    finally:
        kernels._chosen.cache_clear()


def test_what_is_not_the_library_is_left_alone(tmp_path):
    assert compiled.compiled_kernels(tmp_path / "missing.so") == []
    foreign = tmp_path / "_kernel.so"
    foreign.write_bytes(b"\x7fELF" + bytes(100))
    assert compiled.compiled_kernels(foreign) == []


def build(tree, **environment):
    """Build in place, in a copy of what a build needs."""
    shutil.copy(ROOT / "hatch_build.py", tree)
    for folder in ("ckpttool/engine/kernels", "ckpttool/checksums"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("*.so", "*.py*"))
    done = subprocess.run(
        [sys.executable, "-I", str(tree / "hatch_build.py")],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    return done, tree / "ckpttool/engine/kernels/_kernel.so"


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="there is no C compiler")
@pytest.mark.skipif(sys.platform == "win32", reason="not built on Windows")
def test_flags_of_the_environment_do_not_change_the_bits(tmp_path):
    """CFLAGS that would allow other results come before those that forbid them."""
    done, library = build(tmp_path, CFLAGS="-ffast-math -O0", LDFLAGS="", CC="")
    assert done.returncode == 0, done.stderr
    random = np.random.default_rng(0)
    raws = [random.standard_normal(1000).astype(np.float32).view(np.uint8) for _ in range(3)]
    weights, divisor = [0.3, 0.5, 0.2], 7.0
    expected = means(raws, ["float32"] * 3, weights, divisor, "float32")["numpy"][0]
    built = compiled.compiled_kernels(library)
    assert built
    for kernel in built:
        out = np.empty(4000, np.uint8)
        kernel.weighted_mean(raws, ["float32"] * 3, weights, divisor, "float32", out)
        assert out.tobytes() == expected


def test_without_a_working_compiler_the_build_says_so(tmp_path):
    done, library = build(tmp_path, CC=f"{sys.executable} -c raise(SystemExit(1))")
    assert done.returncode == 1
    assert "raise(SystemExit(1))" in done.stderr
    assert not library.exists()


def test_the_command_line_says_which_kernel_is_active(monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "no")
    for arguments in (["--version", "-v"], ["-v", "--version"]):
        done = CliRunner().invoke(group, arguments)
        assert done.exit_code == 0
        assert "kernel: numpy" in done.output.splitlines()
    assert "kernel" not in CliRunner().invoke(group, ["--version"]).output
