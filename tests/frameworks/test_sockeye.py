"""Sockeye 3: its trainer's params files and link, load_model, translating, sockeye-average's own result."""

from __future__ import annotations

import random
import shutil
import sys

import pytest
import torch

pytest.importorskip("sockeye.train")
import sockeye.average
import sockeye.translate
from sockeye import train
from sockeye.model import load_model

WORDS = [f"w{number}" for number in range(12)]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    for part in ("train", "valid"):
        lines = [random.choices(WORDS, k=5) for _ in range(40)]
        for side, turn in (("src", 1), ("tgt", -1)):
            (tmp_path / f"{part}.{side}").write_text("".join(" ".join(line[::turn]) + "\n" for line in lines))
    args = [
        *("--source", tmp_path / "train.src", "--target", tmp_path / "train.tgt"),
        *("--validation-source", tmp_path / "valid.src", "--validation-target", tmp_path / "valid.tgt"),
        *("--output", tmp_path / "run", "--use-cpu", "--shared-vocab", "--weight-tying-type", "src_trg_softmax"),
        *("--num-layers", "1:1", "--transformer-model-size", 8, "--transformer-attention-heads", 2),
        *("--transformer-feed-forward-num-hidden", 8, "--batch-type", "sentence", "--batch-size", 8),
        *("--checkpoint-interval", 3, "--max-updates", 15, "--decode-and-evaluate", 0, "--keep-last-params", 10),
        *("--initial-learning-rate", 0.01, "--no-bucketing", "--max-seq-len", 10, "--optimized-metric", "perplexity"),
        *("--quiet",),
    ]
    monkeypatch.setattr(sys, "argv", ["sockeye-train", *map(str, args)])
    train.main()
    return tmp_path / "run"


def loaded(directory, path):
    model, *_ = load_model(str(directory), device=torch.device("cpu"), set_grad_req_null=False)
    model.load_parameters(str(path))
    return dict(model.state_dict())


def test_sockeye_loads_the_average_and_translates(average, trained, tmp_path, mean, same, monkeypatch):
    said = average(trained, "--last", 3)
    assert said.names == [f"params.{number:05d}" for number in (3, 4, 5)]
    assert "params.best" in said.skipped
    assert said.output == trained / "avg-last-3" / "params.00005"
    wanted = mean([loaded(trained, trained / name) for name in said.names])
    same(loaded(trained, said.output), wanted)
    directory = shutil.copytree(trained, tmp_path / "averaged")
    (directory / "params.best").unlink()
    assert average(trained, "--last", 3, "-o", directory / "params.best").names == said.names
    args = ["--models", directory, "--input", tmp_path / "valid.src", "--output", tmp_path / "out", "--use-cpu"]
    monkeypatch.setattr(sys, "argv", ["sockeye-translate", *map(str, args), "--beam-size", "2"])
    sockeye.translate.main()
    assert len((tmp_path / "out").read_text().splitlines()) == 40


def test_it_is_sockeyes_own_average_but_for_rounding(average, trained):
    said = average(trained, "--last", 3)
    theirs = sockeye.average.average([str(trained / name) for name in said.names])
    ours = torch.load(said.output)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name].to(tensor.dtype), tensor, rtol=1e-6, atol=1e-8), name
