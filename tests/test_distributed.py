"""Directories of torch.distributed.checkpoint: what torch saves is read, and what is written is what torch loads."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import shutil
import sys
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from dcp_writer import Sharding, flatten, save, split
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

import ckpttool as ct
from ckpttool.errors import CkpttoolError, UnreadableError, UnsupportedError
from ckpttool.formats import open_checkpoint
from ckpttool.reading.values import read_values
from ckpttool.selection.discovery import discover
from ckpttool.tensors import Region
from ckpttool.tiling import TilingError, check_tiling, narrow

FIXTURE = Path(__file__).parent / "data" / "dcp"


@pytest.fixture(autouse=True)
def _one_process() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def seeded(seed: int) -> dict[str, Any]:
    """A state dict as trainers have it: weights in three dtypes, an optimizer, and small objects."""
    torch.manual_seed(seed)
    model = {
        "embed.weight": torch.randn(7, 5),
        "layers.0.w": torch.randn(6, 8),
        "layers.0.half": torch.randn(9, 3).bfloat16(),
        "conv": torch.randn(4, 3, 5),
        "scalar": torch.tensor(float(seed)),
        "count": torch.tensor(seed),
        "empty": torch.zeros(0, 3),
    }
    moments = {name: {"exp_avg": torch.randn_like(value.float())} for name, value in model.items()}
    return {"model": model, "optim": {"state": moments}, "step": 100 * seed, "name": "run", "_extra_state": b"fp8"}


def load(path: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """What torch loads from a directory into a state dict of this shape."""
    target = {
        key: {name: torch.full_like(value, 77) for name, value in node.items()} if isinstance(node, Mapping) else None
        for key, node in like.items()
        if key != "optim"
    }
    dcp.load(target, checkpoint_id=str(path), no_dist=True)
    return target


def mean(states: Sequence[Mapping[str, Any]], name: str) -> torch.Tensor:
    """The mean in float64, rounded once where torch does that (never for values that float32 holds exactly)."""
    values = [state["model"][name] for state in states]
    if not values[-1].is_floating_point():
        return values[-1]
    total = torch.stack([value.double() for value in values]).sum(0) / len(values)
    return total.to(torch.float32).to(values[-1].dtype) if values[-1].dtype != torch.float32 else total.float()


def assert_mean(got: Mapping[str, torch.Tensor], states: Sequence[Mapping[str, Any]]) -> None:
    for name in states[-1]["model"]:
        assert got[name].dtype == states[-1]["model"][name].dtype
        assert torch.equal(got[name], mean(states, name)), name


CUTS: dict[str, dict[str, Sharding]] = {
    "unsharded": {},
    "dim 0": {
        "model.embed.weight": split(torch.empty(7, 5), 0, [3, 4]),
        "model.layers.0.w": split(torch.empty(6, 8), 0, [3, 3]),
        "model.layers.0.half": split(torch.empty(9, 3), 0, [2, 7]),
    },
    "dim 1": {
        "model.embed.weight": split(torch.empty(7, 5), 1, [2, 2, 1]),
        "model.layers.0.w": split(torch.empty(6, 8), 1, [1, 3, 4]),
        "model.conv": split(torch.empty(4, 3, 5), 2, [4, 1]),
    },
    "uneven, with empty shards": {
        "model.embed.weight": split(torch.empty(7, 5), 0, [3, 3, 1, 0, 0]),
        "model.conv": split(torch.empty(4, 3, 5), 1, [1, 0, 2, 0, 0]),
    },
    "two dimensions": {
        "model.layers.0.w": [
            (rank, Region((row, column), (3, 4))) for rank, (row, column) in enumerate([(0, 0), (0, 4), (3, 0), (3, 4)])
        ],
        # No straight cut divides these five.
        "model.embed.weight": [
            (0, Region((0, 0), (2, 4))),
            (1, Region((0, 4), (5, 1))),
            (2, Region((5, 1), (2, 4))),
            (3, Region((2, 0), (5, 1))),
            (3, Region((2, 1), (3, 3))),
        ],
    },
}


@pytest.fixture(scope="module")
def states() -> list[dict[str, Any]]:
    return [seeded(seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, states: list[dict[str, Any]]) -> Path:
    """Every state in every cut: ``CUT/step-N``."""
    root = tmp_path_factory.mktemp("saved")
    for cut, cuts in CUTS.items():
        for state in states:
            save(root / cut / f"step-{state['step']}", state, cuts)
    return root


# --- Reading and averaging --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", CUTS)
def test_every_sharding_reads_as_torch_reads_it(saved: Path, states: list[dict[str, Any]], cut: str) -> None:
    checkpoint = open_checkpoint(saved / cut / "step-300")
    assert list(checkpoint.weights) == list(states[2]["model"])
    assert checkpoint.section == "model"
    assert checkpoint.step == 300
    assert checkpoint.values["name"] == "run"
    assert checkpoint.state == ("optim",)
    for name, value in states[2]["model"].items():
        assert torch.equal(torch.from_numpy(read_values(checkpoint.weights[name]).astype(np.float64)), value.double())


@pytest.mark.parametrize("cut", CUTS)
def test_the_average_loads_in_torch_and_is_the_mean(
    saved: Path, states: list[dict[str, Any]], cut: str, tmp_path: Path
) -> None:
    ct.average(saved / cut, tmp_path / "out", last=3)
    got = load(tmp_path / "out", states[2])
    assert_mean(got["model"], states)
    assert (got["step"], got["name"], got["_extra_state"]) == (300, "run", b"fp8")


def test_the_output_has_the_newest_files_and_cut_and_no_optimizer(
    saved: Path, states: list[dict[str, Any]], tmp_path: Path
) -> None:
    source = saved / "dim 1" / "step-300"
    ct.average(saved / "dim 1", tmp_path / "out", last=3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*os.listdir(source), "ckpttool.json"}
    written, old = (pickle.loads((path / ".metadata").read_bytes()) for path in (tmp_path / "out", source))
    assert isinstance(written, Metadata)
    kept = {key: value for key, value in old.state_dict_metadata.items() if not key.startswith("optim.")}
    assert written.state_dict_metadata == kept
    assert written.planner_data == {key: old.planner_data[key] for key in kept}
    assert {(index.fqn, index.offset) for index in written.storage_data} == {
        (index.fqn, index.offset) for index in old.storage_data if index.fqn in kept
    }
    assert all(
        info.relative_path == old.storage_data[index].relative_path for index, info in written.storage_data.items()
    )
    assert written.storage_meta.checkpoint_id is None  # no path of another machine, and no PosixPath for Windows
    said = json.loads((tmp_path / "out" / "ckpttool.json").read_text())
    assert [member["name"] for member in said["members"]] == ["step-100", "step-200", "step-300"]


def test_every_chunk_that_is_written_is_a_sound_torch_file(saved: Path, tmp_path: Path) -> None:
    import zipfile

    ct.average(saved / "two dimensions", tmp_path / "out", last=3)
    metadata = pickle.loads((tmp_path / "out" / ".metadata").read_bytes())
    for index, info in metadata.storage_data.items():
        data = (tmp_path / "out" / info.relative_path).read_bytes()[info.offset : info.offset + info.length]
        assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None, index
        loaded = torch.load(io.BytesIO(data), weights_only=not index.fqn.startswith("_extra"))
        if isinstance(loaded, torch.Tensor):
            chunks = metadata.state_dict_metadata[index.fqn].chunks
            assert loaded.shape == next(chunk.sizes for chunk in chunks if chunk.offsets == index.offset)


@pytest.mark.parametrize("order", [("unsharded", "dim 0", "dim 1"), ("dim 1", "two dimensions", "dim 0")])
def test_members_may_be_cut_differently(
    saved: Path, states: list[dict[str, Any]], order: tuple[str, ...], tmp_path: Path
) -> None:
    members = [saved / cut / f"step-{100 * (index + 1)}" for index, cut in enumerate(order)]
    ct.average(members, tmp_path / "out")
    assert_mean(load(tmp_path / "out", states[2])["model"], states)


@pytest.mark.parametrize("newest", ["distributed", "safetensors"])
def test_members_of_other_formats_average_with_it(
    saved: Path, states: list[dict[str, Any]], newest: str, tmp_path: Path
) -> None:
    members = [saved / "dim 1" / "step-100", saved / "two dimensions" / "step-200", saved / "dim 0" / "step-300"]
    position = 0 if newest == "distributed" else 2
    state = states[position]
    save_file(state["model"], tmp_path / "other.safetensors", metadata={"step": str(state["step"])})
    members[position] = tmp_path / "other.safetensors"
    out = tmp_path / ("out" if newest == "distributed" else "out.safetensors")
    ct.average(members, out)
    got = load(out, states[2])["model"] if newest == "distributed" else load_file(out)
    assert_mean(got, states)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_one_file_holds_the_same_mean(saved: Path, states: list[dict[str, Any]], suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"out.{suffix}"
    ct.average(saved / "two dimensions", out, last=3)
    assert_mean(load_file(out) if suffix == "safetensors" else torch.load(out), states)


def test_one_checkpoint_converts_without_loss(saved: Path, tmp_path: Path) -> None:
    ct.average(saved / "dim 1", tmp_path / "out.safetensors", last=1)
    dcp_to_torch_save(saved / "dim 1" / "step-300", tmp_path / "torch.pt")
    expected = torch.load(tmp_path / "torch.pt")["model"]
    got = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    ct.average(saved / "dim 1", tmp_path / "again", last=1)
    dcp_to_torch_save(tmp_path / "again", tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt")["model"]
    assert all(torch.equal(again[name], value) for name, value in expected.items())


def test_another_dtype_is_what_the_metadata_says(saved: Path, states: list[dict[str, Any]], tmp_path: Path) -> None:
    ct.average(saved / "dim 0", tmp_path / "out", last=3, dtype="bfloat16")
    metadata = pickle.loads((tmp_path / "out" / ".metadata").read_bytes())
    described = metadata.state_dict_metadata
    assert described["model.layers.0.w"].properties.dtype == torch.bfloat16
    assert described["model.empty"].properties.dtype == torch.bfloat16
    assert described["model.count"].properties.dtype == torch.int64
    got = {"model": {"layers.0.w": torch.empty(6, 8, dtype=torch.bfloat16)}}
    dcp.load(got, checkpoint_id=str(tmp_path / "out"), no_dist=True)
    expected = torch.stack([state["model"]["layers.0.w"].double() for state in states]).mean(0)
    assert (got["model"]["layers.0.w"].double() - expected).abs().max() <= 2**-8 * expected.abs().max()


def test_kept_state_is_the_newest_optimizer(saved: Path, states: list[dict[str, Any]], tmp_path: Path) -> None:
    ct.average(saved / "dim 0", tmp_path / "out", last=3, keep_state=True)
    got = {"optim": {"state": {"layers.0.w": {"exp_avg": torch.zeros(6, 8)}}}}
    dcp.load(got, checkpoint_id=str(tmp_path / "out"), no_dist=True)
    assert torch.equal(
        got["optim"]["state"]["layers.0.w"]["exp_avg"], states[2]["optim"]["state"]["layers.0.w"]["exp_avg"]
    )


def test_the_output_is_the_same_for_every_order_and_number_of_threads(saved: Path, tmp_path: Path) -> None:
    from ckpttool.engine.run import execute
    from ckpttool.planning.planner import make_plan
    from ckpttool.selection.discovery import from_paths

    members = [saved / "dim 1" / f"step-{step}" for step in (100, 200, 300)]
    for name, order, jobs, chunk in (("a", members, 1, 1 << 18), ("b", members[::-1], 3, 7)):
        execute(make_plan(from_paths(order), tmp_path / name), jobs=jobs, chunk_elements=chunk)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_pieces_are_read_in_the_order_of_dimensions_that_the_newest_has(tmp_path: Path) -> None:
    """A .pt keeps channels last; the member in pieces next to it is gathered in that order."""
    images = [torch.randn(4, 6, 5, 3) for _ in range(3)]
    for step, cut in ((1, split(images[0], 1, [1, 5])), (2, split(images[1], 3, [2, 1]))):
        save(tmp_path / f"step-{step}", {"model": {"w": images[step - 1]}, "step": step}, {"model.w": cut})
    torch.save({"model": {"w": images[2].to(memory_format=torch.channels_last)}, "step": 3}, tmp_path / "step-3.pt")
    members = [tmp_path / "step-1", tmp_path / "step-2", tmp_path / "step-3.pt"]
    ct.average(members, tmp_path / "out.pt")
    got = torch.load(tmp_path / "out.pt")["model"]["w"]
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, torch.stack([image.double() for image in images]).mean(0).float())


def test_a_directory_and_a_file_are_written_from_one_reading(
    saved: Path, states: list[dict[str, Any]], tmp_path: Path
) -> None:
    from ckpttool.engine import execute_together
    from ckpttool.planning.planner import make_plan

    found = discover(saved / "two dimensions").last(3)
    outputs = [tmp_path / "out", tmp_path / "out.safetensors"]
    execute_together([make_plan(found, output) for output in outputs], chunk_elements=11)
    assert_mean(load(outputs[0], states[2])["model"], states)
    assert_mean(load_file(outputs[1]), states)


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Region]]:
    """A shape and regions that tile it, by cuts at random places."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    regions = [Region((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 5))):
        offsets, sizes = regions.pop(draw(st.integers(0, len(regions) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        size = draw(st.integers(0, sizes[axis]))
        low, high = list(sizes), list(sizes)
        low[axis], high[axis] = size, sizes[axis] - size
        start = list(offsets)
        start[axis] += size
        regions += [Region(tuple(offsets), tuple(low)), Region(tuple(start), tuple(high))]
    return shape, draw(st.permutations([region for region in regions if math.prod(region.sizes)]))


@given(tiling=tilings(), data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tiling_reads_back_whole_and_in_any_part(
    tmp_path: Path, tiling: tuple[tuple[int, ...], list[Region]], data: st.DataObject
) -> None:
    shape, regions = tiling
    value = torch.arange(math.prod(shape), dtype=torch.int32).reshape(shape)
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    save(tmp_path / "c", {"w": value}, {"w": [(index % 3, region) for index, region in enumerate(regions)]})
    spec = open_checkpoint(tmp_path / "c").weights["w"]
    assert np.array_equal(read_values(spec), value.numpy())
    offsets = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    sizes = tuple(data.draw(st.integers(1, size - start)) for size, start in zip(shape, offsets, strict=True))
    part = value[tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))]
    assert np.array_equal(read_values(narrow(spec, Region(offsets, sizes))), part.numpy())


@given(tiling=tilings(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_regions_that_leave_holes_or_overlap_are_no_tiling(
    tiling: tuple[tuple[int, ...], list[Region]], data: st.DataObject
) -> None:
    shape, regions = tiling
    check_tiling(shape, regions)
    chosen = data.draw(st.integers(0, len(regions) - 1))
    with pytest.raises(TilingError, match="in no piece"):
        check_tiling(shape, regions[:chosen] + regions[chosen + 1 :])
    with pytest.raises(TilingError, match="overlap"):
        check_tiling(shape, [*regions, regions[chosen]])
    # As many elements as the whole, and yet a hole and an overlap: one region takes the place of another.
    for other in range(len(regions)):
        if other != chosen and regions[other].sizes == regions[chosen].sizes:
            with pytest.raises(TilingError, match="overlap"):
                check_tiling(shape, [regions[chosen] if i == other else r for i, r in enumerate(regions)])


def test_what_two_processes_saved_with_fsdp_averages(tmp_path: Path) -> None:
    """Written by a run of two processes (``data/dcp/generate.py``), element i of a tensor being i + 1000 * step."""
    checkpoint = open_checkpoint(FIXTURE / "step-2")
    assert {name: len(spec.pieces) for name, spec in checkpoint.weights.items()} == {
        "weight": 2,
        "bias": 2,
        "columns": 2,
        "everywhere": 0,
    }
    assert (checkpoint.section, checkpoint.step, checkpoint.state) == ("model", 2, ("optim",))
    ct.average(FIXTURE, tmp_path / "out", last=2)
    got = {"model": {name: torch.zeros(spec.shape) for name, spec in checkpoint.weights.items()}}
    dcp.load(got, checkpoint_id=str(tmp_path / "out"), no_dist=True)
    for value in got["model"].values():
        assert torch.equal(value.reshape(-1), torch.arange(value.numel()) + 1500.0)


# --- Where weights stand ----------------------------------------------------------------------------------------


def test_a_flat_dict_of_weights_with_an_optimizer_is_told_apart(tmp_path: Path) -> None:
    """torchtitan and Megatron save the weights at the top, next to keys that begin with ``optimizer.``."""
    for step in (1, 2):
        state = {
            "tok_embeddings.weight": torch.full((4, 2), float(step)),
            "layers.0.wq.weight": torch.full((2, 2), float(step)),
            "decoder.layers.0._extra_state/shard_0_1": b"x",
            "optimizer.state.exp_avg.layers.0.wq.weight": torch.ones(2, 2),
            "chained_0.optimizer.state.exp_avg.w": torch.ones(2),
        }
        save(tmp_path / "run" / f"iter_{step:07d}", state)
        torch.save({"iteration": step, "args": {"lr": 1}}, tmp_path / "run" / f"iter_{step:07d}" / "common.pt")
        (tmp_path / "run" / f"iter_{step:07d}" / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    checkpoint = open_checkpoint(tmp_path / "run" / "iter_0000002")
    assert list(checkpoint.weights) == ["tok_embeddings.weight", "layers.0.wq.weight"]
    assert (checkpoint.section, checkpoint.step) == ("", 2)
    found = discover(tmp_path / "run")
    assert found.layout == "megatron"
    ct.average(tmp_path / "run", tmp_path / "out", last=2)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"common.pt", "metadata.json"}
    assert set(pickle.loads((tmp_path / "out" / ".metadata").read_bytes()).state_dict_metadata) == {
        "tok_embeddings.weight",
        "layers.0.wq.weight",
        "decoder.layers.0._extra_state/shard_0_1",
    }


def test_olmo_core_keeps_its_folder_and_its_settings_and_not_its_ranks(tmp_path: Path) -> None:
    for step in (10, 20):
        root = tmp_path / "run" / f"step{step}"
        save(root / "model_and_optim", {"model": {"w": torch.full((2,), float(step))}, "optim": {"m": torch.ones(2)}})
        (root / "train").mkdir()
        torch.save({"step": step}, root / "train" / "rank0.pt")
        (root / "config.json").write_text("{}")
        (root / ".metadata.json").write_text('{"version": "1"}')
    assert discover(tmp_path / "run").layout == "olmo-core"
    ct.average(tmp_path / "run", tmp_path / "out", last=2)
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {
        *("model_and_optim/.metadata", "model_and_optim/__0_0.distcp", "config.json", ".metadata.json", "ckpttool.json")
    }
    got = {"model": {"w": torch.zeros(2)}}
    dcp.load(got, checkpoint_id=str(tmp_path / "out" / "model_and_optim"), no_dist=True)
    assert got["model"]["w"].tolist() == [15, 15]


def test_a_lightning_directory_has_its_step_in_meta_pt(tmp_path: Path) -> None:
    for step in (10, 20):
        root = tmp_path / "run" / f"epoch=0-step={step}.ckpt"
        save(root, {"state_dict": {"model.w": torch.full((2,), float(step))}, "optimizer_0": {"m": torch.ones(2)}})
        meta = {"epoch": 0, "global_step": step, "pytorch-lightning_version": "2.5.0", "lr_schedulers": []}
        torch.save(meta, root / "meta.pt")
    found = discover(tmp_path / "run")
    assert (found.layout, [entry.step for entry in found.entries]) == ("lightning-sharded", [10, 20])
    result = ct.average(tmp_path / "run", f"{tmp_path / 'run' / 'avg'}/", last=2)
    assert result.output == tmp_path / "run" / "avg" / "epoch=0-step=20.ckpt"
    assert torch.load(result.output / "meta.pt")["global_step"] == 20
    got = {"state_dict": {"model.w": torch.zeros(2)}}
    dcp.load(got, checkpoint_id=str(result.output), no_dist=True)
    assert got["state_dict"]["model.w"].tolist() == [15, 15]
    assert [entry.name for entry in discover(tmp_path / "run").last(2).entries] == [e.name for e in found.entries]


def test_fsdp_weights_in_a_trainer_directory_go_with_its_tokenizer(tmp_path: Path) -> None:
    for step in (10, 20):
        root = tmp_path / f"checkpoint-{step}"
        save(root / "pytorch_model_fsdp_0", {"model": {"model.layers.0.w": torch.full((2,), float(step))}})
        (root / "optimizer_0").mkdir()
        (root / "optimizer_0" / ".metadata").write_bytes(b"")
        (root / "config.json").write_text("{}")
        (root / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    ct.average([tmp_path / "checkpoint-10", tmp_path / "checkpoint-20"], tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["ckpttool.json", "config.json", "pytorch_model_fsdp_0"]


def test_nemo_keeps_its_context(tmp_path: Path) -> None:
    for step in (10, 20):
        root = tmp_path / "run" / f"asr--val_loss=1.0-epoch=0-step={step}"
        save(root / "weights", {"module.w": torch.full((2,), float(step)), "optimizer.state.exp_avg.w": torch.ones(2)})
        torch.save({"global_step": step}, root / "weights" / "common.pt")
        (root / "context").mkdir()
        (root / "context" / "model.yaml").write_text("a: 1")
    assert [entry.step for entry in discover(tmp_path / "run").entries] == [10, 20]
    ct.average(tmp_path / "run", tmp_path / "out", last=2)
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files >= {"weights/.metadata", "weights/common.pt", "context/model.yaml"}
    got = {"module.w": torch.zeros(2)}
    dcp.load(got, checkpoint_id=str(tmp_path / "out" / "weights"), no_dist=True)
    assert got["module.w"].tolist() == [15, 15]


def test_composer_nests_everything_in_state(tmp_path: Path) -> None:
    for step in (10, 20):
        state = {"model": {"w": torch.full((2,), float(step))}, "optimizers": {"AdamW": {"w": {"m": torch.ones(2)}}}}
        save(tmp_path / f"ep0-ba{step}", {"state": {**state, "timestamp": {"Timestamp": {"batch": step}}}})
    checkpoint = open_checkpoint(tmp_path / "ep0-ba20")
    assert (checkpoint.section, checkpoint.step, checkpoint.state) == ("state.model", 20, ("state.optimizers",))
    ct.average([tmp_path / "ep0-ba10", tmp_path / "ep0-ba20"], tmp_path / "out")
    kept = pickle.loads((tmp_path / "out" / ".metadata").read_bytes()).state_dict_metadata
    assert set(kept) == {"state.model.w", "state.timestamp.Timestamp.batch"}


def test_a_half_written_newest_is_left_out_by_name(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "dim 0", tmp_path / "run")
    (tmp_path / "run" / "step-300" / ".metadata").unlink()
    found = discover(tmp_path / "run")
    assert [entry.name for entry in found.entries] == ["step-100", "step-200"]
    assert any("step-300" in str(each.path) and "unfinished" in each.reason for each in found.skipped)
    with pytest.raises(UnreadableError, match=r"unfinished checkpoint: it has no \.metadata"):
        open_checkpoint(tmp_path / "run" / "step-300")


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata"])
def test_a_piece_of_a_directory_is_told_from_the_directory(saved: Path, name: str) -> None:
    with pytest.raises(UnsupportedError, match="a piece of a checkpoint") as caught:
        open_checkpoint(saved / "dim 0" / "step-300" / name)
    assert str(saved / "dim 0" / "step-300") in (caught.value.hint or "")


def test_metadata_is_read_by_its_structure_and_not_by_the_names_of_its_classes(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OLMo-core's own writer (1.8 to 3.0) has a dataclass of its own for the place of a chunk."""
    name = "olmo_core.distributed.checkpoint.filesystem"
    module = types.ModuleType(name)

    @dataclass
    class _StorageInfo:
        relative_path: str
        offset: int
        length: int

    _StorageInfo.__module__, _StorageInfo.__qualname__ = name, "_StorageInfo"
    module._StorageInfo = _StorageInfo
    parts = name.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    monkeypatch.setitem(sys.modules, name, module)
    path = _copy(saved, tmp_path)
    before = open_checkpoint(path).weights

    def change(metadata: Metadata) -> None:
        metadata.storage_data = {
            index: _StorageInfo(info.relative_path, info.offset, info.length)
            for index, info in metadata.storage_data.items()
        }

    _edit(path, change)
    assert b"olmo_core" in (path / ".metadata").read_bytes()
    assert open_checkpoint(path).weights == before
    shutil.copytree(path, tmp_path / "d")
    ct.average([path, tmp_path / "d"], output=tmp_path / "avg")
    kept = pickle.loads((tmp_path / "avg" / ".metadata").read_bytes())
    assert {type(info) for info in kept.storage_data.values()} == {_StorageInfo}


# --- What is refused --------------------------------------------------------------------------------------------


class _Boom:
    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self._command,)


def _copy(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved / "dim 0" / "step-300", tmp_path / "c")
    return tmp_path / "c"


def _edit(path: Path, change: Any) -> None:
    metadata = pickle.loads((path / ".metadata").read_bytes())
    change(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


def _entry(metadata: Metadata, key: str, offset: Sequence[int]) -> Any:
    return metadata.storage_data[MetadataIndex(key, torch.Size(offset))]


def test_nothing_that_a_metadata_file_names_is_executed(saved: Path, tmp_path: Path) -> None:
    path = _copy(saved, tmp_path)
    proof = tmp_path / "proof"
    (path / ".metadata").write_bytes(pickle.dumps(_Boom(f"touch {proof}")))
    with pytest.raises(UnreadableError, match="neither what there is nor where"):
        open_checkpoint(path)
    shutil.copy(saved / "dim 0" / "step-300" / ".metadata", path / ".metadata")
    _edit(path, lambda metadata: setattr(metadata, "extra", _Boom(f"touch {proof}")))
    # What is not understood is kept as it is, and does nothing while it is kept.
    ct.average([path, saved / "dim 0" / "step-200"], tmp_path / "out")
    assert not proof.exists()


def _relocate(name: str) -> Any:
    return lambda metadata: setattr(_entry(metadata, "model.layers.0.w", (0, 0)), "relative_path", name)


@pytest.mark.parametrize("name", ["../__0_0.distcp", "/etc/passwd", "a/../../b", "C:\\x", "", ".", "a//b", "x\0y"])
def test_no_path_leads_out_of_the_directory(saved: Path, tmp_path: Path, name: str) -> None:
    path = _copy(saved, tmp_path)
    _edit(path, _relocate(name))
    with pytest.raises(UnreadableError, match="not a file of this directory"):
        open_checkpoint(path)


def _drop_chunk(metadata: Metadata) -> None:
    metadata.state_dict_metadata["model.layers.0.w"].chunks.pop()


def _double_chunk(metadata: Metadata) -> None:
    chunks = metadata.state_dict_metadata["model.layers.0.w"].chunks
    chunks[1].offsets = torch.Size((2, 0))
    metadata.storage_data[MetadataIndex("model.layers.0.w", torch.Size((2, 0)))] = _entry(
        metadata, "model.layers.0.w", (3, 0)
    )


def _far_chunk(metadata: Metadata) -> None:
    metadata.state_dict_metadata["model.layers.0.w"].size = torch.Size((6, 7))


def _lost_place(metadata: Metadata) -> None:
    del metadata.storage_data[MetadataIndex("model.layers.0.w", torch.Size((3, 0)))]


def _wrong_dtype(metadata: Metadata) -> None:
    metadata.state_dict_metadata["model.layers.0.w"].properties.dtype = torch.int32


def _wrong_offset(metadata: Metadata) -> None:
    _entry(metadata, "model.layers.0.w", (0, 0)).offset += 1


def _beyond(metadata: Metadata) -> None:
    _entry(metadata, "model.layers.0.w", (0, 0)).offset += 1 << 40


def _negative(metadata: Metadata) -> None:
    _entry(metadata, "model.layers.0.w", (0, 0)).offset = -1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_drop_chunk, "24 of its 48 elements are in no piece"),
        (_double_chunk, "overlap"),
        (_far_chunk, "reaches outside"),
        (_lost_place, "does not say where it is"),
        (_wrong_dtype, "says int32"),
        (_wrong_offset, "damaged|directory|records|header"),
        (_beyond, "truncated"),
        (_negative, "impossible numbers"),
        (lambda metadata: setattr(metadata, "storage_data", None), "neither what there is nor where"),
        (_relocate("gone.distcp"), "gone.distcp is missing"),
    ],
)
def test_a_directory_that_contradicts_itself_is_refused(saved: Path, tmp_path: Path, change: Any, said: str) -> None:
    path = _copy(saved, tmp_path)
    _edit(path, change)
    with pytest.raises(UnreadableError, match=said):
        open_checkpoint(path)


@pytest.mark.parametrize("rest", [0, 1, 700, -1])
def test_a_truncated_file_is_refused(saved: Path, tmp_path: Path, rest: int) -> None:
    path = _copy(saved, tmp_path)
    data = (path / "__1_0.distcp").read_bytes()
    (path / "__1_0.distcp").write_bytes(data[:rest])
    with pytest.raises(UnreadableError, match="truncated"):
        open_checkpoint(path)


@pytest.mark.parametrize("rest", [0, 1, 100, -1])
def test_a_truncated_metadata_file_is_refused(saved: Path, tmp_path: Path, rest: int) -> None:
    path = _copy(saved, tmp_path)
    (path / ".metadata").write_bytes((path / ".metadata").read_bytes()[:rest])
    with pytest.raises(UnreadableError):
        open_checkpoint(path)


def test_chunks_that_an_extension_compressed_are_refused(saved: Path, tmp_path: Path) -> None:
    path = _copy(saved, tmp_path)
    _edit(
        path,
        lambda metadata: setattr(
            _entry(metadata, "model.layers.0.w", (0, 0)), "transform_descriptors", ["stream.zstd/1"]
        ),
    )
    with pytest.raises(UnsupportedError, match="extension"):
        open_checkpoint(path)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_metadata_file_never_does_more_than_raise(saved: Path, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "c"
    if not path.exists():
        _copy(saved, tmp_path)
    good = bytearray((saved / "dim 0" / "step-300" / ".metadata").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    (path / ".metadata").write_bytes(bytes(good))
    try:
        open_checkpoint(path)
    except CkpttoolError as error:
        assert str(path) in str(error)  # noqa: PT017  # that it raises is not the point


def test_flatten_is_torch_s_own(states: list[dict[str, Any]]) -> None:
    from torch.distributed.checkpoint._nested_dict import flatten_state_dict

    assert {".".join(path) for path in flatten(states[0])} == set(flatten_state_dict(states[0])[0])
