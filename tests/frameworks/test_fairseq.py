"""fairseq: its trainer's files and copies, load_model_ensemble, generating, training on. Needs Python 3.10 or older."""

from __future__ import annotations

import random
import sys

import pytest
import torch

try:
    from fairseq import checkpoint_utils
except (ImportError, ValueError):  # a mutable default of a dataclass, which Python 3.11 refuses
    pytest.skip("fairseq is not installed, or not for this Python", allow_module_level=True)

from fairseq_cli import generate, preprocess, train

WORDS = [f"w{number}" for number in range(12)]


@pytest.fixture(autouse=True)
def whole_pickles(monkeypatch):
    """Its torch.load says nothing about weights_only, and its checkpoints hold a Namespace."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


@pytest.fixture
def call(monkeypatch):
    def call(module, *args):
        if hasattr(checkpoint_utils.save_checkpoint, "best"):
            del checkpoint_utils.save_checkpoint.best
        monkeypatch.setattr(sys, "argv", ["fairseq", *map(str, args)])
        module.cli_main()

    return call


@pytest.fixture
def data(call, tmp_path):
    for part in ("train", "valid"):
        lines = [random.choices(WORDS, k=5) for _ in range(40)]
        for side, turn in (("de", 1), ("en", -1)):
            (tmp_path / f"{part}.{side}").write_text("".join(" ".join(line[::turn]) + "\n" for line in lines))
    call(
        preprocess,
        *("--source-lang", "de", "--target-lang", "en", "--joined-dictionary", "--workers", 1),
        *("--trainpref", tmp_path / "train", "--validpref", tmp_path / "valid", "--destdir", tmp_path / "data"),
    )
    return tmp_path / "data"


@pytest.fixture
def fit(call, data):
    def fit(directory, *options, epochs=4):
        call(
            train,
            *(data, "--save-dir", directory, "--cpu", "--arch", "transformer_tiny", "--share-all-embeddings"),
            *("--optimizer", "adam", "--lr", 0.01, "--lr-scheduler", "inverse_sqrt", "--warmup-updates", 4),
            *("--criterion", "label_smoothed_cross_entropy", "--label-smoothing", 0.1, "--batch-size", 8),
            *("--encoder-embed-dim", 8, "--decoder-embed-dim", 8, "--dropout", 0, "--num-workers", 0),
            *("--encoder-ffn-embed-dim", 8, "--decoder-ffn-embed-dim", 8, "--max-epoch", epochs, *options),
        )
        return directory

    return fit


def model_state(path):
    (model,), *_ = checkpoint_utils.load_model_ensemble([str(path)])
    return model.state_dict()


def test_fairseq_loads_the_average(average, fit, tmp_path, mean, same):
    directory = fit(tmp_path / "run")
    said = average(directory, "--last", 3)
    assert said.names == ["checkpoint2.pt", "checkpoint3.pt", "checkpoint4.pt"]
    assert said.steps == [10, 15, 20]
    assert said.output == directory / "avg-last-3" / "checkpoint4.pt"
    assert {"checkpoint_last.pt", "checkpoint_best.pt"} <= said.skipped.keys()
    states = [model_state(path) for path in (said.output, *(directory / name for name in said.names))]
    for state in states:  # memory that was never written, and that the loader makes anew
        del state["encoder.embed_positions._float_tensor"], state["decoder.embed_positions._float_tensor"]
    same(states[0], mean(states[1:]))
    tied = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
    stored = torch.load(said.output)["model"]
    assert len({stored[name].data_ptr() for name in tied}) == 1
    assert average(directory, "--last", 3, "--force").names == said.names


def test_checkpoints_of_updates_and_the_best(average, fit, tmp_path):
    directory = fit(tmp_path / "run", "--save-interval-updates", 3, "--keep-best-checkpoints", 2)
    said = average(directory, "--include", "checkpoint_*_*.pt", "--last", 3)
    assert said.steps == [9, 12, 18]
    assert "checkpoint4.pt" not in said.names
    said = average(directory, "--include", "*.pt", "--last", 3, "--force")
    assert said.names == ["checkpoint3.pt", "checkpoint_4_18.pt", "checkpoint4.pt"]
    assert sum(name.startswith("checkpoint.best_") for name in said.skipped) == 2


@pytest.mark.parametrize("ema", [[], ["--ema-fp32"]])
def test_the_stored_moving_average_is_averaged_too(average, fit, tmp_path, mean, same, ema):
    directory = fit(tmp_path / "run", "--store-ema", "--ema-decay", 0.6, *ema)
    said = average(directory, "--last", 2)
    members = [torch.load(directory / name) for name in said.names]
    ours = torch.load(said.output)
    assert "ema" in ours["extra_state"]
    for key in ("ema", "ema_fp32_params"):
        if key in ours["extra_state"]:
            same(ours["extra_state"][key], mean([member["extra_state"][key] for member in members]))
    state = checkpoint_utils.load_checkpoint_to_cpu(str(said.output))
    assert state["extra_state"]["train_iterator"]["epoch"] == 5


def test_fairseq_generates_with_the_average(average, fit, call, data, tmp_path):
    output = average(fit(tmp_path / "run"), "--last", 3).output
    call(
        generate,
        *(data, "--path", output, "--cpu", "--gen-subset", "valid", "--batch-size", 20, "--beam", 2, "--max-len-b", 8),
        *("--results-path", tmp_path / "results"),
    )
    lines = (tmp_path / "results" / "generate-valid.txt").read_text().splitlines()
    assert sum(line.startswith("H-") for line in lines) == 40


@pytest.mark.parametrize(
    ("options", "way", "updates"),
    [
        ([], "--restore-file", 5),  # the epoch goes on; without an optimizer fairseq counts updates from 0
        ([], "--finetune-from-model", 25),
        (["--keep-state"], "--restore-file", 25),
    ],
)
def test_fairseq_trains_on_from_the_average(average, fit, tmp_path, options, way, updates):
    output = average(fit(tmp_path / "run"), "--last", 2, *options).output
    directory = fit(tmp_path / "more", way, output, epochs=5)
    state = checkpoint_utils.load_checkpoint_to_cpu(str(directory / "checkpoint_last.pt"))
    assert state["optimizer_history"][-1]["num_updates"] == updates
