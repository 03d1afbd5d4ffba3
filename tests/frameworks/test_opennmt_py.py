"""OpenNMT-py: onmt_train's files, translating, its own average, training on."""

from __future__ import annotations

import random
import sys

import pytest
import torch
import yaml

pytest.importorskip("onmt")
from onmt.bin import average_models, build_vocab, train, translate
from onmt.model_builder import load_test_model
from onmt.opts import translate_opts
from onmt.utils.parse import ArgumentParser

WORDS = [f"w{number}" for number in range(12)]


@pytest.fixture(autouse=True)
def whole_pickles(monkeypatch):
    """Its torch.load says nothing about weights_only, and its checkpoints hold a Namespace."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


@pytest.fixture
def call(monkeypatch):
    def call(module, *args):
        monkeypatch.setattr(sys, "argv", ["onmt", *map(str, args)])
        module.main()

    return call


@pytest.fixture
def fit(call, tmp_path):
    lines = [random.choices(WORDS, k=5) for _ in range(40)]
    for side, turn in (("src", 1), ("tgt", -1)):
        (tmp_path / f"{side}.txt").write_text("".join(" ".join(line[::turn]) + "\n" for line in lines))
    corpus = {"path_src": str(tmp_path / "src.txt"), "path_tgt": str(tmp_path / "tgt.txt")}
    config = {
        "save_data": str(tmp_path / "data"),
        "src_vocab": str(tmp_path / "vocab"),
        "tgt_vocab": str(tmp_path / "vocab"),
        "share_vocab": True,
        "data": {"corpus": corpus, "valid": corpus},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    call(build_vocab, "-config", tmp_path / "config.yaml", "-n_sample", -1)

    def fit(directory, *options, steps=8):
        call(
            train,
            *("-config", tmp_path / "config.yaml", "-save_model", directory / "model", "-seed", 1),
            *("-encoder_type", "transformer", "-decoder_type", "transformer", "-position_encoding", "-heads", 2),
            *("-layers", 1, "-hidden_size", 8, "-word_vec_size", 8, "-transformer_ff", 8, "-dropout", 0),
            *("-share_embeddings", "-share_decoder_embeddings", "-optim", "adam", "-learning_rate", 0.01),
            *("-batch_size", 8, "-train_steps", steps, "-save_checkpoint_steps", 2, "-valid_steps", 100, *options),
        )
        return directory

    return fit


def loaded(path):
    """What its translator works with."""
    parser = ArgumentParser()
    translate_opts(parser)
    options = parser.parse_args(["-model", str(path), "-src", "-"])
    _, model, _ = load_test_model(options, str(path))
    return model.state_dict()


def test_onmt_loads_the_average_and_translates(average, fit, call, tmp_path, mean, same):
    directory = fit(tmp_path / "run")
    said = average(directory, "--last", 3)
    assert said.names == [f"model_step_{step}.pt" for step in (4, 6, 8)]
    assert said.steps == [4, 6, 8]
    assert said.output == directory / "avg-last-3" / "model_step_8.pt"
    same(loaded(said.output), mean([loaded(directory / name) for name in said.names]))
    stored = torch.load(said.output)
    assert stored["optim"] is None
    tied = [stored["model"]["decoder.embeddings.make_embedding.emb_luts.0.weight"], stored["generator"]["weight"]]
    assert tied[0].data_ptr() == tied[1].data_ptr()
    call(translate, "-model", said.output, "-src", tmp_path / "src.txt", "-output", tmp_path / "out.txt")
    assert len((tmp_path / "out.txt").read_text().splitlines()) == 40
    assert average(directory, "--last", 3, "--force").names == said.names


def test_the_average_of_two_is_its_own(average, fit, tmp_path):
    """Apart from what is tied: there its running mean, made in place, adds a tensor once for each of its names."""
    directory = fit(tmp_path / "run")
    said = average(directory, "--last", 2)
    ours = torch.load(said.output)
    theirs = average_models.average_models([str(directory / name) for name in said.names])
    assert ours.keys() == theirs.keys()
    assert ours["vocab"] == theirs["vocab"]
    for section in ("model", "generator"):
        assert list(ours[section]) == list(theirs[section])
        for name, tensor in theirs[section].items():
            if "emb_luts" not in name and (section, name) != ("generator", "weight"):
                assert torch.allclose(ours[section][name], tensor, rtol=1e-6, atol=1e-8), name


@pytest.mark.parametrize(("options", "reset"), [([], "all"), (["--keep-state"], "none")])
def test_onmt_trains_on_from_the_average(average, fit, tmp_path, options, reset):
    output = average(fit(tmp_path / "run"), "--last", 2, *options).output
    more = fit(tmp_path / "more", "-train_from", output, "-reset_optim", reset, steps=12)
    assert (more / "model_step_12.pt").exists()
