"""The laws of averaging, on files that safetensors wrote, with torch and exact arithmetic as judges."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plans import build_plan
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file

from ckpttool.engine import run as engine
from ckpttool.engine import work
from ckpttool.engine.run import execute, execute_together
from ckpttool.engine.tasks import Preparation
from ckpttool.errors import (
    CkpttoolError,
    MismatchError,
    NonFiniteError,
    OutputExistsError,
    UnreadableError,
    UsageError,
    WriteError,
)
from ckpttool.formats import safetensors as safetensors_file
from ckpttool.reading.sources import Sources
from ckpttool.reading.values import read_values
from ckpttool.tensors import DTYPES, Checksum, Copy, Extent, OutputFile, TensorSpec, c_strides

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def members(directory: Path, count: int = 3, seed: int = 0) -> list[Path]:
    """Checkpoints with a tensor of every kind, small and large, 0-d and empty."""
    paths = []
    for index in range(count):
        random = torch.Generator().manual_seed(seed * 100 + index)
        tensors = {}
        for dtype in FLOATS:
            name = str(dtype).removeprefix("torch.")
            tensors[f"{name}.large"] = (torch.randn(70, 300, generator=random) * 0.02).to(dtype)
            tensors[f"{name}.scalar"] = torch.randn((), generator=random).to(dtype)
            tensors[f"{name}.empty"] = torch.zeros((3, 0, 2), dtype=dtype)
        tensors["complex"] = torch.randn(40, dtype=torch.complex64, generator=random)
        tensors["position_ids"] = torch.arange(512)
        tensors["num_batches_tracked"] = torch.tensor(100 * (index + 1))
        tensors["mask"] = torch.tensor([True, False, index > 0])
        paths.append(directory / f"m{index}.safetensors")
        save_file(tensors, paths[-1])
    return paths


def expected_mean(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The float64 mean, summed then divided, rounded by torch where torch rounds once."""
    wide = torch.complex128 if tensors[0].is_complex() else torch.float64
    total = tensors[0].to(wide)
    for tensor in tensors[1:]:
        total = total + tensor.to(wide)
    return total / len(tensors)


def leftovers(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if "ckpttool-" in name]


def test_a_uniform_mean_is_what_torch_computes_in_float64(tmp_path):
    paths = members(tmp_path, 5)
    result = execute(build_plan(paths, tmp_path / "out.safetensors"))
    loaded = [load_file(path) for path in paths]
    out = load_file(tmp_path / "out.safetensors")
    assert out.keys() == loaded[0].keys()
    for name, got in out.items():
        assert got.dtype == loaded[0][name].dtype
        assert got.shape == loaded[0][name].shape
        if name in {"position_ids", "num_batches_tracked", "mask"}:
            assert torch.equal(got, loaded[-1][name])
            continue
        exact = expected_mean([one[name] for one in loaded])
        wide = got.to(exact.dtype)
        if got.dtype in {torch.float32, torch.complex64}:
            assert torch.equal(got, exact.to(got.dtype))
        elif got.dtype == torch.float64:
            torch.testing.assert_close(got, exact, rtol=3e-16, atol=1e-18)
        else:  # no neighbour is nearer
            unit = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float8_e4m3fn: 2.0**-4}.get(
                got.dtype, 2.0**-3
            )
            assert ((wide - exact).abs() <= exact.abs() * unit + 2.0**-10).all()
    assert set(result.differing) == {("", "num_batches_tracked"), ("", "mask")}
    assert result.bytes_written == os.path.getsize(tmp_path / "out.safetensors")


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_identical_members_give_the_same_file(tmp_path, count):
    (path,) = members(tmp_path, 1)
    execute(build_plan([path] * count, tmp_path / "out.safetensors"))
    one, out = load_file(path), load_file(tmp_path / "out.safetensors")
    for name, tensor in one.items():
        assert tensor.reshape(-1).view(torch.uint8).equal(out[name].reshape(-1).view(torch.uint8)), name


def test_a_one_hot_weighting_returns_that_member_and_reads_no_other(tmp_path):
    paths = members(tmp_path)
    spoiled = load_file(paths[0])
    spoiled["float32.large"][3] = float("nan")
    save_file(spoiled, paths[0])
    plan = build_plan(paths, tmp_path / "out.safetensors", weights=[0, 1, 0])
    result = execute(plan)
    one, out = load_file(paths[1]), load_file(tmp_path / "out.safetensors")
    for name, tensor in one.items():
        if tensor.is_floating_point() or tensor.is_complex():
            assert tensor.reshape(-1).view(torch.uint8).equal(out[name].reshape(-1).view(torch.uint8)), name
    averaged = sum(t.nbytes for t in one.values() if t.is_floating_point() or t.is_complex())
    kept = sum(t.nbytes for t in one.values()) - averaged
    assert result.bytes_read == averaged + 3 * kept == plan.bytes_to_read


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    jobs=st.integers(1, 5),
    chunk=st.integers(1, 30_000),
    weights=st.one_of(st.none(), st.just([0.2, 0.3, 0.5]), st.just([2.5, -1.0, -0.5])),
)
def test_threads_and_chunks_do_not_show_in_the_output(tmp_path, jobs, chunk, weights):
    paths = [tmp_path / f"m{index}.safetensors" for index in range(3)]
    if not paths[0].exists():
        members(tmp_path)
    chunk = max(chunk, 500)  # or the test takes minutes
    execute(build_plan(paths, tmp_path / "a.safetensors", weights=weights, force=True))
    execute(build_plan(paths, tmp_path / "b.safetensors", weights=weights, force=True), jobs=jobs, chunk_elements=chunk)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_chunks_of_one_element_give_the_same(tmp_path):
    for index in range(2):
        save_file(
            {"a": torch.randn(37), "b": torch.randn(3, 5).half(), "c": torch.arange(9)},
            tmp_path / f"{index}.safetensors",
        )
    paths = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    execute(build_plan(paths, tmp_path / "a.safetensors"))
    execute(build_plan(paths, tmp_path / "b.safetensors"), chunk_elements=1, jobs=3)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_plans_executed_together_give_what_each_gives_alone_and_read_once(tmp_path):
    paths = members(tmp_path)
    weightings = [None, [0.2, 0.3, 0.5], [0.0, 0.25, 0.75], [0.0, 0.0, 1.0]]
    alone = [build_plan(paths, tmp_path / f"alone{i}.safetensors", weights=w) for i, w in enumerate(weightings)]
    together = [build_plan(paths, tmp_path / f"together{i}.safetensors", weights=w) for i, w in enumerate(weightings)]
    for plan in alone:
        execute(plan)
    results = execute_together(together, jobs=2)
    for one, other in zip(alone, together, strict=True):
        assert one.output.read_bytes() == other.output.read_bytes()
    assert {result.bytes_read for result in results} == {alone[0].bytes_to_read}


def test_plans_that_do_not_belong_together_are_refused(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "0.safetensors")
    save_file({"b": torch.ones(3)}, tmp_path / "1.safetensors")
    one = build_plan([tmp_path / "0.safetensors"], tmp_path / "x.safetensors")
    two = build_plan([tmp_path / "1.safetensors"], tmp_path / "y.safetensors")
    with pytest.raises(UsageError):
        execute_together([one, two])
    with pytest.raises(UsageError, match="same output"):
        execute_together([one, one])
    assert execute_together([]) == []
    assert sorted(os.listdir(tmp_path)) == ["0.safetensors", "1.safetensors"]


def test_progress_adds_up_to_the_bytes_of_the_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "_REPORT_BYTES", 1)
    seen = []
    plan = build_plan(members(tmp_path), tmp_path / "out.safetensors")
    result = execute(plan, on_progress=seen.append, chunk_elements=1000)
    assert sum(seen) == plan.bytes_to_read == result.bytes_read
    assert len(seen) > 5


def test_fp16_near_its_limit_is_summed_without_overflow(tmp_path):
    for index in range(3):
        save_file({"a": torch.full((5,), 30000.0 + 16 * index, dtype=torch.float16)}, tmp_path / f"{index}.safetensors")
    execute(build_plan([tmp_path / f"{index}.safetensors" for index in range(3)], tmp_path / "out.safetensors"))
    assert load_file(tmp_path / "out.safetensors")["a"].tolist() == [30016.0] * 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_another_output_dtype_is_rounded_to_once(tmp_path, dtype):
    paths = members(tmp_path, 2)
    execute(build_plan(paths, tmp_path / "out.safetensors", dtype=dtype))
    out = load_file(tmp_path / "out.safetensors")
    one, two = (load_file(path)["float32.large"].double() for path in paths)
    exact = (one + two) / 2
    assert out["float32.large"].dtype == getattr(torch, dtype)
    if dtype in {"float32", "float64"}:
        assert torch.equal(out["float32.large"], exact.to(getattr(torch, dtype)))
    else:
        np.testing.assert_array_equal(
            out["float32.large"].double().numpy(), rounded_by_neighbours(exact.numpy(), getattr(torch, dtype))
        )


def rounded_by_neighbours(exact: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The nearest of every finite value that a two-byte dtype has, ties to the even pattern."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = patterns.view(dtype).double().numpy()
    keep = np.isfinite(values)
    values, index = np.unique(values[keep], return_index=True)
    even = (patterns.numpy()[keep][index] & 1) == 0
    upper = np.clip(np.searchsorted(values, exact), 1, len(values) - 1)
    above, below = values[upper] - exact, exact - values[upper - 1]
    take_upper = (above < below) | ((above == below) & even[upper])
    return np.where(take_upper, values[upper], values[upper - 1])


# ---------------------------------------------------------------------------------------------------------------
# Views


def write_storages(path: Path, arrays: dict[str, np.ndarray], views: dict[str, tuple]) -> dict[str, TensorSpec]:
    """Storages as a safetensors file, and arbitrary views of them: name -> (storage, offset, shape, strides)."""
    save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    stored = safetensors_file.read(path).weights
    return {
        name: TensorSpec.view(stored[storage].dtype, stored[storage].storage, offset, shape, strides)
        for name, (storage, offset, shape, strides) in views.items()
    }


@st.composite
def strided_views(draw):
    """Shape, strides and offset of any view that torch's as_strided makes of a storage of 4096 elements."""
    rank = draw(st.integers(0, 4))
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=rank, max_size=rank)))
    strides = tuple(draw(st.lists(st.integers(0, 90), min_size=rank, max_size=rank)))
    order = tuple(draw(st.permutations(range(rank))))
    return draw(st.integers(0, 100)), shape, strides, order


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(view=strided_views(), chunk=st.integers(1, 3000), transposed=st.booleans())
def test_any_view_is_read_as_torch_reads_it(tmp_path, view, chunk, transposed):
    offset, shape, strides, order = view
    arrays = [np.random.default_rng(index).standard_normal(4096, dtype=np.float32) for index in range(2)]
    paths, tensors = [], []
    for index, array in enumerate(arrays):
        paths.append(tmp_path / f"{index}.safetensors")
        tensors.append(write_storages(paths[-1], {"storage": array}, {"x": ("storage", offset, shape, strides)}))
    dense = [0] * len(shape)  # the output's own dense order of dimensions
    step = 1
    for axis in order:
        dense[axis] = step
        step *= shape[axis]
    out_strides = {"x": tuple(dense)} if transposed else None
    plan = build_plan(paths, tmp_path / "out.raw", tensors=tensors, force=True)
    if out_strides:
        (planned,) = plan.tensors
        output = dataclasses.replace(planned.output, strides=out_strides["x"])
        plan = dataclasses.replace(plan, tensors=(dataclasses.replace(planned, output=output),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "read_back", lambda _: lambda _: None)
        execute(plan, chunk_elements=chunk)
    slot = plan.files[0].slots[0]
    got = torch.from_numpy(np.fromfile(plan.output, np.float32, offset=slot.offset))
    got = got.as_strided(shape, out_strides["x"] if out_strides else c_strides(shape))
    views = [torch.from_numpy(array).as_strided(shape, strides, offset).double() for array in arrays]
    assert torch.equal(got, ((views[0] + views[1]) / 2).float())
    np.testing.assert_array_equal(
        read_values(tensors[0]["x"]), torch.from_numpy(arrays[0]).as_strided(shape, strides, offset).numpy()
    )


def test_a_transposed_matrix_larger_than_one_read_is_gathered_right(tmp_path, monkeypatch):
    monkeypatch.setattr("ckpttool.reading.strided._LARGE_SPAN", 40_000)
    monkeypatch.setattr("ckpttool.reading.strided._SMALL_SPAN", 2_000)
    array = np.arange(300 * 400, dtype=np.float32)
    tensors = write_storages(tmp_path / "0.safetensors", {"s": array}, {"x": ("s", 0, (400, 300), (1, 400))})
    np.testing.assert_array_equal(read_values(tensors["x"]), array.reshape(300, 400).T)


def test_a_view_beyond_its_storage_is_refused(tmp_path):
    tensors = write_storages(
        tmp_path / "0.safetensors", {"s": np.zeros(10, np.float32)}, {"x": ("s", 2, (3, 3), (3, 1))}
    )
    with pytest.raises(UnreadableError, match="beyond its storage"):
        read_values(tensors["x"])


def test_big_endian_and_deflated_storages_are_read(tmp_path):
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    plain = values.astype(">f4").tobytes()
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(plain) + packer.flush()
    (tmp_path / "x.bin").write_bytes(b"junk" + packed)
    extent = Extent(
        tmp_path / "x.bin", 4, len(plain), deflated=len(packed), checksum=Checksum("crc32", zlib.crc32(plain))
    )
    spec = TensorSpec(DTYPES["float32"], (5000,), extent, big_endian=True)
    np.testing.assert_array_equal(read_values(spec), values)
    save_file({"x": torch.zeros(5000)}, tmp_path / "0.safetensors")
    plan = build_plan([tmp_path / "0.safetensors"] * 2, tmp_path / "out.safetensors", tensors=[{"x": spec}] * 2)
    execute(plan, chunk_elements=700)
    assert np.array_equal(load_file(plan.output)["x"].numpy(), values)
    for wrong in (
        dataclasses.replace(extent, checksum=Checksum("crc32", 1)),
        dataclasses.replace(extent, nbytes=len(plain) - 4),
        dataclasses.replace(extent, nbytes=len(plain) + 4),
        dataclasses.replace(extent, deflated=len(packed) - 9),
        dataclasses.replace(extent, offset=3),
    ):
        with pytest.raises(UnreadableError):
            read_values(TensorSpec(DTYPES["uint8"], (wrong.nbytes,), wrong))


def test_tied_names_stay_tied(tmp_path):
    tensors = []
    for index in range(2):
        specs = write_storages(
            tmp_path / f"{index}.safetensors", {"s": np.full(12, index, np.float32)}, {"b": ("s", 0, (3, 4), (4, 1))}
        )
        tensors.append({"b": specs["b"], "a": specs["b"]})
    plan = build_plan(
        [tmp_path / "0.safetensors", tmp_path / "1.safetensors"], tmp_path / "o.safetensors", tensors=tensors
    )
    result = execute(plan)
    assert result.bytes_read == 2 * 48
    again = safetensors_file.read(plan.output)
    assert again.weights["a"] == again.weights["b"]
    assert load_file(plan.output)["a"].tolist() == [[0.5] * 4] * 3


def test_tensors_that_the_output_ties_must_be_equal(tmp_path):
    for index in range(2):
        save_file(
            {"a": torch.ones(5), "b": torch.ones(5) + index, "c": torch.ones(5)}, tmp_path / f"{index}.safetensors"
        )
    paths = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    plan = build_plan(paths, tmp_path / "o.safetensors")
    weights = [member.checkpoint.weights for member in plan.members]

    def with_pairs(*pairs):
        first = dataclasses.replace(plan.tensors[0], must_equal=pairs)
        return dataclasses.replace(plan, tensors=(first, *plan.tensors[1:]))

    held_against = with_pairs(("b", weights[0]["a"], weights[0]["b"]))
    assert execute(held_against).bytes_read == held_against.bytes_to_read == plan.bytes_to_read + 2 * 20
    plan.output.unlink()
    with pytest.raises(MismatchError, match="a and b differ"):
        execute(with_pairs(("b", weights[1]["a"], weights[1]["b"])))
    assert not plan.output.exists()


# ---------------------------------------------------------------------------------------------------------------
# Integers


def test_integers_that_must_be_equal_and_are_not_are_an_error(tmp_path):
    paths = members(tmp_path)
    execute(build_plan(paths, tmp_path / "a.safetensors", actions={"position_ids": "equal"}))
    with pytest.raises(MismatchError, match="num_batches_tracked"):
        execute(build_plan(paths, tmp_path / "b.safetensors", actions={"num_batches_tracked": "equal"}))
    assert not (tmp_path / "b.safetensors").exists()


def test_integers_are_compared_by_value_across_dtypes(tmp_path):
    save_file(
        {"a": torch.arange(9, dtype=torch.int32), "b": torch.ones(3, dtype=torch.int32)}, tmp_path / "0.safetensors"
    )
    save_file({"a": torch.arange(9), "b": torch.zeros(3, dtype=torch.int64)}, tmp_path / "1.safetensors")
    result = execute(build_plan([tmp_path / "0.safetensors", tmp_path / "1.safetensors"], tmp_path / "o.safetensors"))
    assert result.differing == (("", "b"),)
    assert load_file(tmp_path / "o.safetensors")["a"].tolist() == list(range(9))


# ---------------------------------------------------------------------------------------------------------------
# NaN, infinity, overflow


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_member_with_nan_or_infinity_is_named(tmp_path, dtype, value):
    if dtype == torch.float8_e4m3fn and value != "nan":
        pytest.skip("it has no infinity")
    paths = members(tmp_path)
    name = f"{str(dtype).removeprefix('torch.')}.large"
    spoiled = load_file(paths[1])
    spoiled[name].view(-1)[777] = float(value)
    spoiled[name].view(-1)[20_999] = float(value)
    save_file(spoiled, paths[1])
    with pytest.raises(NonFiniteError, match="2 of 21,000") as caught:
        execute(build_plan(paths, tmp_path / "o.safetensors"))
    assert caught.value.path == paths[1]
    assert caught.value.tensor == name
    assert sorted(os.listdir(tmp_path)) == [path.name for path in paths]
    execute(build_plan(paths, tmp_path / "o.safetensors", allow_nonfinite=True))
    assert not torch.isfinite(load_file(tmp_path / "o.safetensors")[name].float().view(-1)[777])


@pytest.mark.parametrize("dtype", [dtype for dtype in FLOATS if dtype != torch.float8_e4m3fn])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [-1.0, 3.0, -1.0]])
def test_infinities_that_every_member_has_stay(tmp_path, dtype, weights):
    paths = members(tmp_path)
    name = f"{str(dtype).removeprefix('torch.')}.large"
    for path in paths:
        masked = load_file(path)
        masked[name].view(-1)[777] = float("-inf")
        masked[name].view(-1)[20_999] = float("inf")
        save_file(masked, path)
    plan = build_plan(paths, tmp_path / "o.safetensors", weights=weights)
    result = execute(plan, chunk_elements=1000)
    assert result.infinite == (("", name),)
    found = load_file(tmp_path / "o.safetensors")[name].float().view(-1)
    assert found[777] == float("-inf")
    assert found[20_999] == float("inf")
    assert int(torch.isfinite(found).sum()) == found.numel() - 2


@pytest.mark.parametrize(
    "values",
    [
        ([0.0, math.inf], [math.inf, math.inf]),
        ([math.inf], [-math.inf]),
        ([math.nan], [math.nan]),
        ([math.inf, math.nan], [math.inf, math.nan]),
        ([math.inf, 1.0], [math.inf, math.nan]),
    ],
)
def test_infinities_that_not_every_member_has_are_refused(tmp_path, values):
    for number, row in enumerate(values):
        save_file({"a": torch.tensor(row)}, tmp_path / f"{number}.safetensors")
    with pytest.raises(NonFiniteError, match="holds NaN or infinity"):
        execute(build_plan([tmp_path / "0.safetensors", tmp_path / "1.safetensors"], tmp_path / "o.safetensors"))
    assert not (tmp_path / "o.safetensors").exists()


def test_an_infinity_that_the_output_dtype_lacks_is_refused(tmp_path):
    save_file({"a": torch.tensor([1.0, math.inf])}, tmp_path / "0.safetensors")
    with pytest.raises(NonFiniteError):
        execute(build_plan([tmp_path / "0.safetensors"] * 2, tmp_path / "o.safetensors", dtype="float8_e4m3fn"))


def test_an_average_too_great_for_the_output_dtype_is_an_error_that_says_what_to_do(tmp_path):
    save_file({"a": torch.tensor([1.0, 1e6])}, tmp_path / "0.safetensors")
    with pytest.raises(NonFiniteError, match="too great for float16") as caught:
        execute(build_plan([tmp_path / "0.safetensors"] * 2, tmp_path / "o.safetensors", dtype="float16"))
    assert str(caught.value.hint) == "Choose a greater range: dtype='float32' or dtype='bfloat16'."


# ---------------------------------------------------------------------------------------------------------------
# The output appears whole or not at all


@pytest.fixture
def two(tmp_path):
    paths = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    for index, path in enumerate(paths):
        save_file({"a": torch.full((300, 300), float(index)), "b": torch.arange(3)}, path)
    return paths


def test_an_existing_output_stays_unless_forced(two, tmp_path):
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"precious")
    with pytest.raises(OutputExistsError):
        execute(build_plan(two, output))
    assert output.read_bytes() == b"precious"
    execute(build_plan(two, output, force=True))
    assert load_file(output)["a"][0, 0] == 0.5
    assert leftovers(tmp_path) == []


def test_an_output_that_appears_meanwhile_stays(two, tmp_path):
    output = tmp_path / "out.safetensors"
    with pytest.raises(OutputExistsError):
        execute(build_plan(two, output), on_progress=lambda _: output.write_bytes(b"faster"))
    assert output.read_bytes() == b"faster"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("kind", ["itself", "symlink", "hard link"])
def test_an_input_is_never_an_output(two, tmp_path, kind):
    before = two[0].read_bytes()
    output = two[0]
    if kind == "symlink":
        output = tmp_path / "link.safetensors"
        output.symlink_to(two[0])
    elif kind == "hard link":
        output = tmp_path / "link.safetensors"
        output.hardlink_to(two[0])
    with pytest.raises(OutputExistsError):
        execute(build_plan(two, output, force=True))
    assert two[0].read_bytes() == before


def test_a_symbolic_link_is_followed(two, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "real.safetensors"
    real.write_bytes(b"old")
    link = tmp_path / "link.safetensors"
    link.symlink_to(real)
    execute(build_plan(two, link, force=True))
    assert link.is_symlink()
    assert load_file(real)["a"][0, 0] == 0.5


def test_the_umask_decides_about_the_mode(two, tmp_path):
    before = os.umask(0o027)
    try:
        execute(build_plan(two, tmp_path / "out.safetensors"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "out.safetensors").st_mode) == 0o640


def test_missing_parents_are_made_and_go_again_on_failure(two, tmp_path):
    execute(build_plan(two, tmp_path / "deep" / "avg" / "out.safetensors"))
    assert (tmp_path / "deep" / "avg" / "out.safetensors").exists()
    spoiled = load_file(two[0])
    spoiled["a"][0] = float("nan")
    save_file(spoiled, two[0])
    with pytest.raises(NonFiniteError):
        execute(build_plan(two, tmp_path / "other" / "avg" / "out.safetensors"))
    assert not (tmp_path / "other").exists()


def test_a_full_disk_is_seen_before_anything_is_read(two, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    seen = []
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(WriteError) as caught:
            execute(build_plan(two, tmp_path / "out.safetensors"), on_progress=seen.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.exit_code == 7
    assert caught.value.hint
    assert seen == []
    assert sorted(os.listdir(tmp_path)) == ["0.safetensors", "1.safetensors"]


@pytest.mark.skipif(not os.path.exists("/dev/full") or os.getuid() != 0, reason="needs root to mount a small disk")
def test_a_disk_that_is_too_small(two, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "none", disk], check=False, capture_output=True
    ).returncode:
        pytest.skip("may not mount")
    try:
        plan = build_plan(two, disk / "out.safetensors")
        with pytest.raises(WriteError, match="the disk has 102,400 free"):
            execute(plan)
        # Another process may take the space between the check and the run.
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))
        with pytest.raises(WriteError, match="space") as caught:
            execute(plan)
        assert "Free some space" in caught.value.hint
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_that_is_shorter_than_its_plan_is_refused_by_name(two, tmp_path):
    plan = build_plan(two, tmp_path / "out.safetensors")
    os.truncate(two[1], 100_000)
    with pytest.raises(UnreadableError, match=r"1\.safetensors: the file changed while it was read"):
        execute(plan)
    assert sorted(os.listdir(tmp_path)) == ["0.safetensors", "1.safetensors"]


def test_a_file_that_shrinks_while_it_is_read_is_refused(two, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "_REPORT_BYTES", 1)
    plan = build_plan(two, tmp_path / "out.safetensors")
    with pytest.raises(UnreadableError, match="became shorter") as caught:
        execute(plan, jobs=1, chunk_elements=100, on_progress=lambda _: os.truncate(two[1], 4_000))
    assert caught.value.path == two[1]
    assert leftovers(tmp_path) == []


def test_an_input_that_changes_during_the_run_is_an_error(two, tmp_path):
    def touch(_):
        with two[0].open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"!")
        os.utime(two[0], ns=(1, 1))

    with pytest.raises(UnreadableError, match="changed while it was read"):
        execute(build_plan(two, tmp_path / "out.safetensors"), on_progress=touch)
    assert sorted(os.listdir(tmp_path)) == ["0.safetensors", "1.safetensors"]


def test_what_is_written_is_read_back_before_it_is_published(two, tmp_path):
    plan = build_plan(two, tmp_path / "out.safetensors")
    (file,) = plan.files
    header = file.literals[0][1].replace(b"[300,300]", b"[100,900]")
    spoiled = dataclasses.replace(plan, files=(dataclasses.replace(file, literals=((0, header),)),))
    with pytest.raises(CkpttoolError, match="does not read back"):
        execute(spoiled)
    assert not plan.output.exists()


def test_an_exception_in_the_callers_code_leaves_nothing(two, tmp_path):
    def fail(_):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        execute(build_plan(two, tmp_path / "out.safetensors"), on_progress=fail)
    assert sorted(os.listdir(tmp_path)) == ["0.safetensors", "1.safetensors"]


def test_interrupted_nothing_is_left(two, tmp_path):
    script = textwrap.dedent(
        """
        import signal, sys, time
        from pathlib import Path
        from plans import build_plan
        from ckpttool.engine.run import execute

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

        def wait(_):
            print("reading", flush=True)
            time.sleep(30)

        paths = [Path(path) for path in sys.argv[1:3]]
        execute(build_plan(paths, Path(sys.argv[3])), on_progress=wait)
        """
    )
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, two), str(tmp_path / "out.safetensors")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])},
    )
    with process:
        assert process.stdout.readline() == b"reading\n"
        assert leftovers(tmp_path) != []
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert process.returncode == -signal.SIGINT
    assert sorted(os.listdir(tmp_path)) == ["0.safetensors", "1.safetensors"]


def test_executing_a_plan_installs_no_signal_handlers(two, tmp_path):
    """A library leaves them to the program."""
    numbers = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]
    before = [signal.getsignal(number) for number in numbers]
    seen = []
    execute(
        build_plan(two, tmp_path / "out.safetensors"),
        on_progress=lambda _: seen.append([signal.getsignal(number) for number in numbers]),
    )
    assert seen
    assert all(handlers == before for handlers in seen)


# ---------------------------------------------------------------------------------------------------------------
# Several files, copies, seals


def several_files(plan, tmp_path):
    """The plan's one file as two, with a verbatim copy and a seal."""
    (file,) = plan.files
    blob = tmp_path / "blob.bin"
    blob.write_bytes(bytes(range(256)) * 9000)
    sealed = {}

    def seal(checksums):
        sealed.update(checksums)
        return [(0, json.dumps(sorted(checksums.values())).encode()[:60])]

    first = dataclasses.replace(file, name="model.safetensors")
    (slot,) = [slot for slot in file.slots if slot.tensor == ("", "a")]
    second = OutputFile(
        "extra/state.bin",
        100 + slot.nbytes + 1_000 + 2_000_000,
        slots=(dataclasses.replace(slot, offset=100),),
        copies=(Copy(100 + slot.nbytes + 1_000, Extent(blob, 5, 2_000_000)),),
        seal=seal,
    )
    return dataclasses.replace(plan, files=(first, second)), sealed, blob


def test_several_files_copies_and_seals(two, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "read_back", lambda _: lambda _: None)
    output = tmp_path / "out"
    plan, sealed, blob = several_files(build_plan(two, output, provenance={"ckpttool": "0"}), tmp_path)
    # The slot of the second file wins for "a": one tensor has one place.
    first = dataclasses.replace(
        plan.files[0], slots=tuple(slot for slot in plan.files[0].slots if slot.tensor != ("", "a"))
    )
    plan = dataclasses.replace(plan, files=(first, plan.files[1]))
    execute(plan, chunk_elements=7_000)
    data = (output / "extra" / "state.bin").read_bytes()
    values = data[100 : 100 + 360_000]
    assert np.frombuffer(values, np.float32).tolist() == [0.5] * 90_000
    copied = data[100 + 360_000 + 1_000 :]
    assert copied == blob.read_bytes()[5:2_000_005]
    assert data[100 + 360_000 : 100 + 361_000] == bytes(1_000)
    assert sealed == {100: zlib.crc32(values), 100 + 361_000: zlib.crc32(copied)}
    assert data.startswith(json.dumps(sorted(sealed.values())).encode()[:60])

    with pytest.raises(OutputExistsError):
        execute(plan)
    execute(dataclasses.replace(plan, force=True))
    assert sorted(os.listdir(tmp_path)) == ["0.safetensors", "1.safetensors", "blob.bin", "out"]
    (output / "tokenizer.json").write_text("{}")
    with pytest.raises(OutputExistsError, match=r"tokenizer\.json"):
        execute(dataclasses.replace(plan, force=True))
    assert (output / "tokenizer.json").exists()


def test_a_directory_that_holds_an_input_is_never_replaced(two, tmp_path):
    plan = build_plan(two, tmp_path, force=True)
    plan = dataclasses.replace(plan, files=(dataclasses.replace(plan.files[0], name="x.safetensors"),))
    with pytest.raises(OutputExistsError, match="is in the output's directory"):
        execute(plan)
    assert two[0].exists()


def test_ten_thousand_small_tensors_are_few_chunks_of_work(tmp_path):
    """Small tensors share a chunk, so that what each piece of work costs is not paid for each tensor."""
    rows = np.arange(10_000, dtype=np.float32).repeat(256).reshape(10_000, 256)
    save_numpy({f"t{index:05d}": row for index, row in enumerate(rows)}, tmp_path / "0.safetensors")
    plan = build_plan([tmp_path / "0.safetensors"] * 5, tmp_path / "o.safetensors")
    with contextlib.closing(Sources(None)) as sources:
        assert len(Preparation([plan], sources).tasks(work.CHUNK_ELEMENTS)) <= 20
    execute(plan)
    assert safetensors_file.read(plan.output).weights.keys() == plan.members[0].checkpoint.weights.keys()
    assert plan.output.read_bytes()[-rows.nbytes :] == rows.tobytes()


def test_a_member_that_is_replaced_after_its_header_was_read_is_refused(two, tmp_path):
    """The new file has other tensors at the old offsets: reading them would give wrong values without a word."""
    plan = build_plan(two, tmp_path / "out.safetensors")
    other = tmp_path / "new"
    other.write_bytes(two[1].read_bytes())
    os.replace(other, two[1])
    with pytest.raises(UnreadableError, match="changed while it was read") as caught:
        execute(plan)
    assert caught.value.path == two[1]
    assert not plan.output.exists()


def test_more_files_than_a_process_may_have_open(tmp_path):
    """Files are closed and opened again: 20 members of 8 shards, 24 descriptors, and an output of 8 files."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import json, resource, sys
import numpy as np
from pathlib import Path
from safetensors.numpy import save_file, load_file
import ckpttool as ct

directory = Path(sys.argv[1])
for member in range(20):
    folder = directory / f"checkpoint-{member}"
    folder.mkdir()
    names = {}
    for shard in range(8):
        name = f"model-{shard + 1:05d}-of-00008.safetensors"
        save_file({f"t{shard}": np.full(5, member + shard, np.float32)}, folder / name)
        names[f"t{shard}"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
ct.average(sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name[11:])), directory / "out")
for shard in range(8):
    values = load_file(directory / "out" / f"model-{shard + 1:05d}-of-00008.safetensors")[f"t{shard}"]
    assert (values == 9.5 + shard).all()
"""
    )
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_neighbours_are_done_together_and_blamed_one_by_one(tmp_path):
    """Ten thousand tensors that follow each other in every file are one task; errors still name the tensor."""
    rows = np.arange(3_000, dtype=np.float32).repeat(7).reshape(3_000, 7)
    for member in range(3):
        names = {f"t{index:05d}": row + member for index, row in enumerate(rows)}
        names["t01234"] = names["t01234"].astype(np.float16)  # apart from the others, by dtype
        save_numpy(names, tmp_path / f"{member}.safetensors")
    paths = [tmp_path / f"{member}.safetensors" for member in range(3)]
    plan = build_plan(paths, tmp_path / "o.safetensors")
    with contextlib.closing(Sources(None)) as sources:
        chunks = Preparation([plan], sources).tasks(work.CHUNK_ELEMENTS)
        assert [len(chunk.ranges) for chunk in chunks] == [1, 1]
    execute(plan, chunk_elements=1_000)
    for name, tensor in load_file(plan.output).items():
        assert (tensor == int(name[1:]) + 1).all()
    with paths[1].open("r+b") as file:
        spec = safetensors_file.read(paths[1]).weights["t02345"]
        file.seek(spec.storage.offset + 8)
        file.write(np.float32(np.nan).tobytes())
    plan = build_plan(paths, tmp_path / "p.safetensors")
    with pytest.raises(NonFiniteError, match=r"1\.safetensors: t02345 holds NaN or infinity \(1 of 7 values\)"):
        execute(plan)
    execute(dataclasses.replace(plan, allow_nonfinite=True))
    assert [name for name, tensor in load_file(plan.output).items() if not tensor.isfinite().all()] == ["t02345"]


def test_infinities_of_one_of_many_neighbours_are_told_by_its_name(tmp_path):
    for member in range(2):
        names = {f"t{index}": np.full(4, member, np.float32) for index in range(9)}
        names["t5"][2] = -np.inf
        save_numpy(names, tmp_path / f"{member}.safetensors")
    plan = build_plan([tmp_path / "0.safetensors", tmp_path / "1.safetensors"], tmp_path / "o.safetensors")
    assert execute(plan).infinite == (("", "t5"),)
