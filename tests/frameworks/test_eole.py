"""Eole: `eole train`'s directories with their subword model, translated with by `eole predict`."""

from __future__ import annotations

import random
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytest.importorskip("eole")
spm = pytest.importorskip("sentencepiece")
from eole.bin.main import main

WORDS = [f"w{number}" for number in range(12)]


@pytest.fixture
def call(monkeypatch):
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["eole", *map(str, args)])
        main()

    return call


@pytest.fixture
def trained(call, tmp_path):
    lines = [random.choices(WORDS, k=5) for _ in range(40)]
    for side, turn in (("src", 1), ("tgt", -1)):
        (tmp_path / f"{side}.txt").write_text("".join(" ".join(line[::turn]) + "\n" for line in lines))
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "src.txt"), model_prefix=str(tmp_path / "joint"), vocab_size=17, minloglevel=2
    )
    corpus = {
        "path_src": str(tmp_path / "src.txt"),
        "path_tgt": str(tmp_path / "tgt.txt"),
        "transforms": ["sentencepiece"],
    }
    subwords = str(tmp_path / "joint.model")
    config = {
        "save_data": str(tmp_path / "data"),
        "src_vocab": str(tmp_path / "vocab"),
        "tgt_vocab": str(tmp_path / "vocab"),
        "share_vocab": True,
        "overwrite": True,
        "seed": 1,
        "transforms": ["sentencepiece"],
        "transforms_configs": {"sentencepiece": {"src_subword_model": subwords, "tgt_subword_model": subwords}},
        "data": {"corpus": corpus, "valid": corpus},
        "training": {
            "model_path": str(tmp_path / "run"),
            "world_size": 0,
            "gpu_ranks": [],
            "num_workers": 0,
            "batch_type": "sents",
            "batch_size": 8,
            "optim": "adam",
            "learning_rate": 0.01,
            "train_steps": 8,
            "valid_steps": 100,
            "save_checkpoint_steps": 2,
            "keep_checkpoint": 10,
            "dropout": [0.0],
            "dropout_steps": [0],
            "attention_dropout": [0.0],
        },
        "model": {
            "architecture": "transformer",
            "hidden_size": 8,
            "layers": 1,
            "heads": 2,
            "transformer_ff": 8,
            "share_decoder_embeddings": True,
            "share_embeddings": True,
            "embeddings": {"word_vec_size": 8, "position_encoding_type": "SinusoidalInterleaved"},
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    call("build_vocab", "-config", tmp_path / "config.yaml", "-n_sample", -1)
    call("train", "-config", tmp_path / "config.yaml")
    return tmp_path / "run"


def weights(folder):
    found = {}
    for file in sorted(folder.glob("model.*.safetensors")):
        found.update(load_file(file))
    return found


def test_eole_predicts_with_the_average(average, call, trained, tmp_path, mean, same):
    said = average(trained, "--last", 3)
    assert said.names == ["step_4", "step_6", "step_8"]
    assert said.steps == [4, 6, 8]
    same(weights(said.output), mean([weights(trained / name) for name in said.names]))
    own = {path.name for path in (trained / "step_8").iterdir()} - {"optimizer.pt"}
    assert {path.name for path in said.output.iterdir()} == own
    call(
        "predict",
        *("-model_path", said.output, "-src", tmp_path / "src.txt", "-output", tmp_path / "out.txt"),
        *("-world_size", 0),
    )
    assert len((tmp_path / "out.txt").read_text().splitlines()) == 40
    assert torch.isfinite(next(iter(weights(said.output).values()))).all()
