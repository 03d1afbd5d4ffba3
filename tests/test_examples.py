"""The digits run is what its README says, and averaging helps it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ckpttool as ct

DIGITS = Path(__file__).parent.parent / "examples" / "digits"
RUN = DIGITS / "run"
HELD_OUT = DIGITS / "held-out.npz"
STEPS = range(900, 2001, 100)
NEWEST = RUN / "checkpoint-2000.pt"


def script(name: str) -> ModuleType:
    """A script of the example as a module."""
    spec = importlib.util.spec_from_file_location(f"digits_{name}", DIGITS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


evaluate = script("evaluate")
train = script("train")


def saved(step: int) -> dict[str, Any]:
    loaded = torch.load(RUN / f"checkpoint-{step}.pt", weights_only=True)
    assert isinstance(loaded, dict)
    return loaded


def torch_model(weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = train.DigitTransformer(**train.CONFIG["model"], mean_image=weights["mean_image"])
    model.load_state_dict(weights)
    return model


def held_out() -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(HELD_OUT) as digits:
        return torch.tensor(digits["images"] / 16, dtype=torch.float32), torch.tensor(digits["labels"].astype(np.int64))


def shown_table() -> dict[str, tuple[float, float]]:
    """The rows of evaluate.py's output in the example's README: file name to loss and accuracy in percent."""
    rows = re.findall(
        r"^(\S+)\s+(\d\.\d{4})\s+(\d+\.\d)%$", (DIGITS / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    return {Path(name).name: (float(loss), float(accuracy)) for name, loss, accuracy in rows}


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The average of the last 5, made as `make demo` makes it."""
    output = tmp_path_factory.mktemp("digits") / "averaged.safetensors"
    ct.average(RUN, output, last=5)
    return output


def test_the_run_has_its_last_twelve_checkpoints_and_a_copy_of_the_newest() -> None:
    names = {f"checkpoint-{step}.pt" for step in STEPS} | {"last.pt"}
    assert {path.name for path in RUN.iterdir()} == names
    assert (RUN / "last.pt").read_bytes() == NEWEST.read_bytes()
    assert sum(path.stat().st_size for path in DIGITS.rglob("*") if path.suffix in {".pt", ".npz"}) < 1_000_000


@pytest.mark.parametrize("step", STEPS)
def test_a_checkpoint_is_what_a_training_loop_saves(step: int) -> None:
    checkpoint = saved(step)
    assert set(checkpoint) == {"model", "ema", "optimizer", "step", "epoch", "config", "metrics"}
    assert checkpoint["step"] == step
    assert checkpoint["config"] == {**train.CONFIG, "seed": 0}
    weights = checkpoint["model"]
    assert sum(weight.numel() for name, weight in weights.items() if "layers.1." not in name) == 2512 + 64 + 8
    assert weights["position_ids"].dtype == torch.int64
    first = weights["layers.0.attention_out.weight"]
    assert weights["layers.1.attention_out.weight"].data_ptr() == first.data_ptr()  # tied


@pytest.mark.parametrize("step", STEPS)
def test_numpy_evaluates_a_checkpoint_as_torch_did_while_training(step: int) -> None:
    loss, accuracy = evaluate.evaluate(RUN / f"checkpoint-{step}.pt", HELD_OUT)
    metrics = saved(step)["metrics"]
    assert loss == pytest.approx(metrics["valid_loss"], abs=1e-5)
    assert accuracy == pytest.approx(metrics["valid_accuracy"], abs=1e-12)


def test_numpy_computes_the_scores_that_torch_computes() -> None:
    images, _ = held_out()
    with torch.no_grad():
        expected = torch_model(saved(2000)["model"])(images).numpy()
    computed = evaluate.forward(evaluate.load(NEWEST), images.numpy().astype(np.float64))
    np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-5)


def test_the_average_of_the_last_five_predicts_better_than_each_of_them(averaged: Path) -> None:
    loss, accuracy = evaluate.evaluate(averaged, HELD_OUT)
    members = [evaluate.evaluate(RUN / f"checkpoint-{step}.pt", HELD_OUT) for step in STEPS[-5:]]
    assert loss < min(member[0] for member in members)
    assert accuracy > members[-1][1]


def test_torch_loads_the_average_with_its_ties(averaged: Path) -> None:
    """safetensors holds the tied layer once; the model's other name for it is missing, and nothing else is."""
    weights = load_file(averaged)
    model = train.DigitTransformer(**train.CONFIG["model"], mean_image=weights["mean_image"])
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert all(name.startswith("layers.1.") for name in missing)
    images, labels = held_out()
    result = train.evaluate(model, images, labels)
    assert result["valid_loss"] == pytest.approx(evaluate.evaluate(averaged, HELD_OUT)[0], abs=1e-5)


def test_the_readme_shows_what_the_demo_prints(averaged: Path) -> None:
    shown = shown_table()
    for path in (NEWEST, averaged):
        loss, accuracy = evaluate.evaluate(path, HELD_OUT)
        assert shown[path.name] == (round(loss, 4), round(100 * accuracy, 1))
