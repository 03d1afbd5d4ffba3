"""JoeyNMT: its trainer's files and links, training on, translating."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("joeynmt.training")
from joeynmt.config import load_config, parse_global_args
from joeynmt.helpers import load_checkpoint
from joeynmt.prediction import prepare
from joeynmt.prediction import test as joeynmt_test
from joeynmt.training import train

WORDS = [f"w{number}" for number in range(20)]


@pytest.fixture(autouse=True)
def whole_pickles(monkeypatch):
    """Its torch.load says nothing about weights_only, and its checkpoints hold a NumPy scalar."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


def configure(directory: Path, name: str, *, epochs: int, **training: object) -> Path:
    for part in ("train", "dev", "test"):
        lines = [" ".join(random.choices(WORDS, k=5)) for _ in range(40)]
        for side, turn in (("de", 1), ("en", -1)):
            text = "\n".join(" ".join(line.split()[::turn]) for line in lines) + "\n"
            (directory / f"{part}.{side}").write_text(text)
    block = {
        "type": "transformer",
        "num_layers": 1,
        "num_heads": 2,
        "hidden_size": 8,
        "ff_size": 16,
        "dropout": 0.0,
        "embeddings": {"embedding_dim": 8},
    }
    side = {"level": "word", "lowercase": False, "voc_min_freq": 1, "tokenizer_type": "none"}
    config = {
        "name": "tiny",
        "joeynmt_version": "2.3.0",
        "model_dir": str(directory / name),
        "use_cuda": False,
        "data": {
            **{part: str(directory / part) for part in ("train", "dev", "test")},
            "dataset_type": "plain",
            "src": {"lang": "de", **side},
            "trg": {"lang": "en", **side},
        },
        "testing": {"batch_size": 16, "max_output_length": 8, "beam_size": 1, "eval_metrics": ["bleu"]},
        "training": {
            "optimizer": "adamw",
            "scheduling": "noam",
            "learning_rate": 0.01,
            "learning_rate_warmup": 4,
            "batch_size": 10,
            "batch_type": "sentence",
            "epochs": epochs,
            "validation_freq": 4,
            "logging_freq": 4,
            "early_stopping_metric": "loss",
            "keep_best_ckpts": -1,
            **training,
        },
        "model": {"tied_softmax": True, "encoder": block, "decoder": block},
    }
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    (directory / name).mkdir()
    return path


def state(path):
    return load_checkpoint(path, map_location=torch.device("cpu"))


@pytest.fixture
def trained(tmp_path):
    train(0, 1, load_config(str(configure(tmp_path, "run", epochs=4))), skip_test=True)
    return tmp_path / "run"


def test_joeynmt_translates_with_the_average(average, trained, tmp_path, mean, same):
    said = average(trained, "--last", 3)
    assert said.names == ["8.ckpt", "12.ckpt", "16.ckpt"]
    assert said.steps == [8, 12, 16]
    assert said.output == trained / "avg-last-3" / "16.ckpt"
    assert {"latest.ckpt", "best.ckpt"} <= said.skipped.keys()
    wanted = mean([state(trained / name)["model_state"] for name in said.names])
    config = load_config(str(tmp_path / "run.yaml"))
    config["testing"]["load_model"] = str(said.output)
    model, *_ = prepare(parse_global_args(config, mode="test"), rank=0, mode="test")
    same(model.state_dict(), wanted)
    config = load_config(str(tmp_path / "run.yaml"))
    config["testing"]["load_model"] = str(said.output)
    joeynmt_test(config, output_path=str(tmp_path / "hyps"))
    assert len((tmp_path / "hyps.test").read_text().splitlines()) == 40
    assert average(trained, "--last", 3, "--force").names == said.names


@pytest.mark.parametrize("keep_state", [False, True])
def test_joeynmt_trains_on_from_the_average(average, trained, tmp_path, keep_state):
    output = average(trained, "--last", 2, *["--keep-state"] * keep_state).output
    afresh = {} if keep_state else {"reset_optimizer": True}
    path = configure(tmp_path, "more", epochs=6, load_model=str(output), **afresh)
    train(0, 1, load_config(str(path)), skip_test=True)
    newest = max(int(path.stem) for path in (tmp_path / "more").glob("[0-9]*.ckpt"))
    assert newest > 16
