"""Safetensors files with slices of tensors: what torch's HuggingFaceStorageWriter saves is put together.

torch's own reader and its own consolidation of the same directory say what the tensors are.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

import ckpttool as ct
from ckpttool.errors import CkpttoolError, MismatchError, UnreadableError, UnsupportedError
from ckpttool.formats import format_of_directory, open_checkpoint
from ckpttool.reading.values import read_values
from ckpttool.selection.discovery import discover
from ckpttool.tensors import Checkpoint

INDEX = {"embed": 1, "layer.w": 1, "layer.half": 2, "norm": 2, "bias": 2, "scale": 2, "count": 2, "empty": 2}


@pytest.fixture(autouse=True)
def _one_process() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def seeded(seed: int) -> dict[str, torch.Tensor]:
    """Tensors in three dtypes, one smaller than the number of ranks, a scalar, an empty one."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "embed": random(5, 4),
        "layer.w": random(4, 7),
        "layer.half": random(6, 3).bfloat16(),
        "norm": random(4),
        "bias": random(1),
        "scale": torch.tensor(float(seed)),
        "count": torch.tensor(seed),
        "empty": torch.zeros(0, 3),
    }


def mean(*seeds: int) -> dict[str, torch.Tensor]:
    states = [seeded(seed) for seed in seeds]
    return {
        name: (sum(state[name].double() for state in states) / len(states)).float().to(like.dtype)
        if like.is_floating_point()
        else like
        for name, like in states[-1].items()
    }


def file(rank: int, index: int = 1, count: int = 1) -> str:
    return f"shard-{rank:05d}-model-{index:05d}-of-{count:05d}.safetensors"


def save_slices(path: Path, tensors: Mapping[str, torch.Tensor], offsets: Mapping[str, list[int]], name: str) -> None:
    """One rank's file, with the metadata that torch writes."""
    path.mkdir(parents=True, exist_ok=True)
    info = {key: {"saved_offsets": offsets.get(key, [0] * value.ndim)} for key, value in tensors.items()}
    metadata = {"DCP_SHARDING_INFO": json.dumps(info), "DCP_VERSION": "1.0", "format": "pt"}
    save_file({key: value.contiguous() for key, value in tensors.items()}, path / name, metadata=metadata)


def save_rows(path: Path, state: Mapping[str, torch.Tensor], ranks: int) -> None:
    """Every tensor with rows cut along them, as FSDP cuts; what has none is on the last rank."""
    for rank in range(ranks):
        mine, offsets = {}, {}
        for key, value in state.items():
            if value.ndim and len(value):
                size = math.ceil(len(value) / ranks)
                begin = min(rank * size, len(value))
                mine[key], offsets[key] = value[begin : begin + size], [begin, *[0] * (value.ndim - 1)]
            elif rank == ranks - 1:
                mine[key] = value
        save_slices(path, mine, offsets, file(rank + 1))


def values(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: read_values(spec).astype(np.float64) for name, spec in checkpoint.weights.items()}


def load(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for each in sorted(path.glob("*.safetensors")):
        found.update(load_file(each))
    return found


def assert_same(got: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


def as_torch_reads(path: Path, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    target = {name: torch.full_like(value, 77) for name, value in like.items()}
    dcp.load(target, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    return target


# --- What torch saves -------------------------------------------------------------------------------------------

_RANK = """
import os
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

dist.init_process_group(
    "gloo", init_method=f"file://{sys.argv[1]}/rendezvous", rank=int(sys.argv[2]), world_size=2
)
mesh = init_device_mesh("cpu", (2,))
cuts = {"embed": 0, "layer.w": 1, "layer.half": 0, "bias": 0}
states, indices = torch.load(f"{sys.argv[1]}/states.pt", weights_only=True)
for seed, state in states.items():
    state = {n: distribute_tensor(t, mesh, [Shard(cuts[n])]) if n in cuts else t for n, t in state.items()}
    for folder, index in (("one-file", None), ("two-files", indices)):
        path = f"{sys.argv[1]}/{folder}/step-{seed}/sharded"
        dcp.save(state, storage_writer=HuggingFaceStorageWriter(path, index, save_distributed=True))
    state.pop("count")  # consolidating fails on integers
    path = f"{sys.argv[1]}/consolidated/step-{seed}"
    dcp.save(state, storage_writer=HuggingFaceStorageWriter(path, None, 1, True, True))
dist.destroy_process_group()
os._exit(0)  # gloo's threads, where they still run, end the process with SIGABRT on a busy machine
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three states of DTensors, saved by two processes: ``one-file/step-N/sharded``, ``two-files/...``."""
    root = tmp_path_factory.mktemp("two")
    (root / "rank.py").write_text(_RANK)
    torch.save(({seed: seeded(seed) for seed in (1, 2, 3)}, INDEX), root / "states.pt")
    command = [sys.executable, "-W", "ignore", str(root / "rank.py"), str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with ExitStack() as both:
        ranks = [
            both.enter_context(subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE))
            for rank in range(2)
        ]
        try:
            for each in ranks:
                _, said = each.communicate(timeout=120)
                assert each.returncode == 0, said.decode()[-2000:]
        finally:
            for each in ranks:
                each.kill()
    return root


@pytest.mark.parametrize("folder", ["one-file", "two-files"])
def test_what_two_processes_save_reads_as_torch_reads_it(two_ranks: Path, folder: str) -> None:
    path = two_ranks / folder / "step-3" / "sharded"
    assert len(list(path.iterdir())) == (2 if folder == "one-file" else 4)
    checkpoint = open_checkpoint(path)
    got = values(checkpoint)
    expected = as_torch_reads(path, seeded(3))
    assert_same(expected, seeded(3))
    for name, tensor in expected.items():
        assert np.array_equal(got[name], tensor.double().numpy()), name


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        ("one-file", ["model.safetensors"]),
        (
            "two-files",
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ),
    ],
)
def test_a_run_of_slices_becomes_an_ordinary_directory(
    two_ranks: Path, tmp_path: Path, folder: str, files: list[str]
) -> None:
    """torchtitan's `step-N/sharded`: the files are those that its tensors were meant for."""
    found = discover(two_ranks / folder)
    assert (found.layout, [entry.step for entry in found.entries]) == ("torchtitan", [1, 2, 3])
    ct.average(two_ranks / folder, tmp_path / "out", last=2)
    assert sorted(os.listdir(tmp_path / "out")) == files
    assert_same(load(tmp_path / "out"), mean(2, 3))
    assert_same(as_torch_reads(tmp_path / "out", seeded(3)), mean(2, 3))
    if folder == "two-files":
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert {name: int(home[6:11]) for name, home in index["weight_map"].items()} == INDEX


def test_slices_are_what_consolidating_them_gives(two_ranks: Path) -> None:
    """But for scalars, which torch's consolidation writes as zeros."""
    whole = open_checkpoint(two_ranks / "consolidated" / "step-2")
    sliced = open_checkpoint(two_ranks / "consolidated" / "step-2" / "sharded")
    assert any("sharded/shard-00001-model-00001-of-00001.safetensors" in note for note in whole.notes)
    assert {name: spec.shape for name, spec in whole.weights.items()} == {
        name: spec.shape for name, spec in sliced.weights.items()
    }
    one, other = values(whole), values(sliced)
    for name in set(whole.weights) - {"scale"}:
        assert np.array_equal(one[name], other[name]), name
    assert other["scale"] == 2


def test_members_may_be_cut_differently_or_not_at_all(two_ranks: Path, tmp_path: Path) -> None:
    save_rows(tmp_path / "three", seeded(2), 3)
    (tmp_path / "plain").mkdir()
    save_file(seeded(1), tmp_path / "plain" / "model.safetensors", metadata={"format": "pt"})
    members = [tmp_path / "plain", tmp_path / "three", two_ranks / "two-files" / "step-3" / "sharded"]
    ct.average(members, tmp_path / "out.safetensors")
    assert_same(load_file(tmp_path / "out.safetensors"), mean(1, 2, 3))
    assert_same(load_file(tmp_path / "out.safetensors"), load(ct_average(members, tmp_path / "out")))


def ct_average(members: list[Path], out: Path) -> Path:
    ct.average(members, out)
    return out


def test_configuration_and_tokenizer_go_along_and_shards_are_cut_as_asked(tmp_path: Path) -> None:
    for seed in (1, 2):
        save_rows(tmp_path / "run" / f"checkpoint-{seed}", seeded(seed), 2)
        for name in ("config.json", "tokenizer.json"):
            (tmp_path / "run" / f"checkpoint-{seed}" / name).write_text("{}")
    ct.average(tmp_path / "run", tmp_path / "out", last=2, max_shard_size=100)
    names = sorted(os.listdir(tmp_path / "out"))
    assert names[:2] == ["config.json", "model-00001-of-00003.safetensors"]
    assert names[-2:] == ["model.safetensors.index.json", "tokenizer.json"]
    assert_same(load(tmp_path / "out"), mean(1, 2))
    assert not any("DCP" in key for each in (tmp_path / "out").glob("*.safetensors") for key in _metadata(each))


def _metadata(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(header["__metadata__"])


@pytest.mark.parametrize("index", [None, {name: index for name, index in INDEX.items() if name != "count"}])
@pytest.mark.parametrize(
    "how", [{"save_distributed": True}, {}, {"save_distributed": True, "enable_consolidation": True}]
)
def test_what_one_process_saves(tmp_path: Path, index: dict[str, int] | None, how: dict[str, bool]) -> None:
    """Also without `save_distributed`: whole tensors in ordinary files, which say that they are slices."""
    for seed in (1, 2):
        state = {name: tensor for name, tensor in seeded(seed).items() if name != "count"}
        storage = HuggingFaceStorageWriter(str(tmp_path / f"step-{seed}"), index, **how)
        dcp.save(state, storage_writer=storage, no_dist=True)
    ct.average([tmp_path / "step-1", tmp_path / "step-2"], tmp_path / "out")
    expected = {name: tensor for name, tensor in mean(1, 2).items() if name != "count"}
    if "enable_consolidation" in how:
        expected["scale"] = torch.tensor(0.0)  # torch's consolidation writes zeros
    assert_same(load(tmp_path / "out"), expected)


# --- Any cut -----------------------------------------------------------------------------------------------------


@st.composite
def cuts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """A shape and the boxes of a grid over it, some of them empty."""
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=0, max_size=3)))
    ends = [sorted([0, size, *draw(st.lists(st.integers(0, size), max_size=2))]) for size in shape]
    boxes = product(*(list(pairwise(each)) for each in ends))
    return shape, [(tuple(a for a, _ in box), tuple(b - a for a, b in box)) for box in boxes]


@given(given_cuts=st.lists(cuts(), min_size=1, max_size=3), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_any_cut_gives_the_tensor_back(tmp_path_factory: pytest.TempPathFactory, given_cuts: Any, seed: int) -> None:
    path = tmp_path_factory.mktemp("cut")
    generator = torch.Generator().manual_seed(seed)
    state = {f"t{i}": torch.randn(shape, generator=generator) for i, (shape, _) in enumerate(given_cuts)}
    for rank in range(max(len(boxes) for _, boxes in given_cuts)):
        mine, offsets = {}, {}
        for (name, value), (_, boxes) in zip(state.items(), given_cuts, strict=True):
            if rank < len(boxes):
                begin, size = boxes[rank]
                mine[name] = value[tuple(slice(a, a + n) for a, n in zip(begin, size, strict=True))]
                offsets[name] = list(begin)
        save_slices(path, mine, offsets, file(rank + 1))
    checkpoint = open_checkpoint(path)
    got = values(checkpoint)
    for name, value in state.items():
        assert np.array_equal(got[name], value.numpy()), name


# --- What is refused ---------------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> Path:
    save_rows(tmp_path / "c", seeded(1), 3)
    return tmp_path / "c"


def _rewrite(path: Path, change: Any) -> None:
    tensors, metadata = load_file(path), _metadata(path)
    info = json.loads(metadata["DCP_SHARDING_INFO"])
    change(tensors, info)
    metadata["DCP_SHARDING_INFO"] = json.dumps(info)
    save_file(tensors, path, metadata=metadata)


def _set(name: str, offsets: Any) -> Any:
    return lambda _, info: info.update({name: {"saved_offsets": offsets}})


def _to(name: str, tensor: torch.Tensor) -> Any:
    return lambda tensors, _: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("embed", [3, 0]), r"embed, in shard-00001.*: its pieces overlap|overlap"),
        (_set("embed", [7, 0]), r"embed, in shard-00001-.*, shard-00003-.*: .* are in no piece"),
        (_set("embed", [2]), r"embed: a slice of shape \[2, 4\] cannot begin at \[2\]"),
        (_set("embed", [-1, 0]), "does not say where this slice begins"),
        (_set("embed", [True, 0]), "does not say where this slice begins"),
        (_set("embed", [1 << 70, 0]), "does not say where this slice begins"),
        (_set("embed", "2"), "does not say where this slice begins"),
        (lambda _, info: info.pop("embed"), "does not say where this slice begins"),
        (lambda _, info: info.update(embed=[1]), "does not say where this slice begins"),
        (_to("embed", torch.zeros(2, 4).half()), r"embed is float32 .* shard-00001-.* and float16 .* shard-00002-"),
        (_to("embed", torch.zeros(2, 3)), "elements are in no piece|overlap"),
    ],
)
def test_slices_that_are_not_exactly_the_tensor_are_refused(three: Path, change: Any, said: str) -> None:
    _rewrite(three / file(2), change)
    with pytest.raises(UnreadableError, match=said) as caught:
        open_checkpoint(three)
    assert caught.value.tensor == "embed"
    assert str(three) in str(caught.value)


def test_a_file_that_is_missing_between_others_is_an_unfinished_checkpoint(three: Path) -> None:
    (three / file(2)).unlink()
    with pytest.raises(UnreadableError, match=f"unfinished checkpoint; there is no {file(2)}"):
        open_checkpoint(three)


def test_an_absurd_rank_in_a_name_is_not_counted_up_to(three: Path) -> None:
    os.rename(three / file(3), three / file(10**12))
    (three / file(2)).unlink()
    with pytest.raises(UnreadableError, match=r"an unfinished checkpoint$"):
        open_checkpoint(three)


def test_a_file_that_is_missing_at_the_end_shows_against_the_other_members(three: Path, tmp_path: Path) -> None:
    """Nothing in a directory says how many ranks there were; torch's reader takes the rest for the whole, too."""
    save_rows(tmp_path / "d", seeded(2), 3)
    (three / file(3)).unlink()
    with pytest.raises(MismatchError) as caught:
        ct.average([three, tmp_path / "d"], tmp_path / "out")
    assert "c is in 2 files and d in 3: it may be unfinished, and exclude='c'" in (caught.value.hint or "")


@pytest.mark.parametrize("rest", [0, 3, 100, -1])
def test_a_truncated_file_is_refused(three: Path, rest: int) -> None:
    data = (three / file(2)).read_bytes()
    (three / file(2)).write_bytes(data[:rest])
    with pytest.raises(UnreadableError, match=r"truncated|empty"):
        open_checkpoint(three)


def test_files_of_two_saves_are_told_apart(three: Path) -> None:
    shutil.copy(three / file(3), three / file(4))
    with pytest.raises(UnreadableError, match="overlap") as caught:
        open_checkpoint(three)
    assert "another number of processes" in (caught.value.hint or "")
    os.rename(three / file(4), three / file(4, 2, 2))
    with pytest.raises(UnreadableError, match="files of two checkpoints"):
        open_checkpoint(three)


def test_a_tensor_belongs_into_one_file(tmp_path: Path) -> None:
    save_slices(tmp_path / "c", {"w": torch.ones(2)}, {}, file(1, 1, 2))
    save_slices(tmp_path / "c", {"w": torch.ones(2)}, {"w": [2]}, file(1, 2, 2))
    with pytest.raises(UnreadableError, match="the tensor w is to go into two files"):
        open_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("info", [None, "{", "[]", "[" * 100_000, "null"])
def test_a_file_that_does_not_say_where_its_slices_begin_is_refused(three: Path, info: str | None) -> None:
    metadata = {} if info is None else {"DCP_SHARDING_INFO": info}
    save_file({"embed": torch.ones(2, 4)}, three / file(2), metadata={"format": "pt", **metadata})
    with pytest.raises(UnreadableError, match="DCP_SHARDING_INFO"):
        open_checkpoint(three)


def test_files_of_an_index_may_say_that_they_are_slices_or_not(tmp_path: Path) -> None:
    save_slices(tmp_path / "c", {"a": torch.ones(2)}, {}, "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(3)}, tmp_path / "c" / "model-00002-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "c" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert {name: spec.shape for name, spec in open_checkpoint(tmp_path / "c").weights.items()} == {
        "a": (2,),
        "b": (3,),
    }
    save_slices(tmp_path / "c", {"a": torch.ones(2)}, {"a": [2]}, "model-00001-of-00002.safetensors")
    with pytest.raises(UnreadableError, match="2 of its 4 elements are in no piece"):
        open_checkpoint(tmp_path / "c")


def test_a_slice_is_told_from_a_checkpoint(three: Path, tmp_path: Path) -> None:
    """Files of two ranks have the same names and often the same shapes: their average would be nonsense."""
    with pytest.raises(UnsupportedError, match="a piece of a checkpoint") as caught:
        open_checkpoint(three / file(1))
    assert (caught.value.hint or "").endswith(str(three))
    os.rename(three, tmp_path / "sharded")
    with pytest.raises(UnsupportedError) as caught:
        open_checkpoint(tmp_path / "sharded" / file(1))
    assert (caught.value.hint or "").endswith(str(tmp_path))


def test_an_unfinished_consolidation_leaves_the_slices(tmp_path: Path) -> None:
    """The index is written last; before it, the files are full of zeros."""
    save_rows(tmp_path / "step-1" / "sharded", seeded(1), 2)
    save_file({"embed": torch.zeros(5, 4)}, tmp_path / "step-1" / "model-00001-of-00002.safetensors")
    checkpoint = open_checkpoint(tmp_path / "step-1")
    assert any("consolidating the slices was not finished" in note for note in checkpoint.notes)
    assert np.array_equal(values(checkpoint)["embed"], seeded(1)["embed"].numpy())
    ct.average(tmp_path / "step-1", tmp_path / "out", last=1)
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]


def test_a_directory_without_slices_is_none(tmp_path: Path) -> None:
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded" / "model.safetensors").write_bytes(b"")
    assert format_of_directory(tmp_path) is None
    with pytest.raises(CkpttoolError):
        open_checkpoint(tmp_path)
