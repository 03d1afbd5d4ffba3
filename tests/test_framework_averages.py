"""Averages written by the frameworks themselves are what the frameworks' own loaders call the average.

``tests/data/ema/make.py`` made the fixtures, with the versions in ``versions.json``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.test_ema_apply import Run

DATA = Path(__file__).parent / "data" / "ema"


@pytest.mark.parametrize(
    ("name", "framework", "in_place"),
    [
        ("timm.pth.tar", "timm", False),
        ("averaged_model.pt", "torch AveragedModel", True),
        ("torchvision.pt", "torchvision", False),
        ("ema_pytorch.pt", "ema-pytorch", True),
        ("torch_ema.pt", "torch_ema", False),
        ("diffusers.pt", "diffusers", False),
        ("lightning.ckpt", "Lightning WeightAveraging", True),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_the_result_is_what_the_frameworks_own_loader_calls_the_average(
    name: str, framework: str, in_place: bool, suffix: str, tmp_path: Path, run: Run
) -> None:
    ran = run("ema-apply", DATA / name, "-o", tmp_path / f"out.{suffix}")
    assert ran.exit_code == 0, ran.stderr
    assert framework in ran.stderr
    assert ("nothing has to be applied" in ran.stderr) == in_place
    got = load_file(tmp_path / "out.safetensors") if suffix == "safetensors" else None
    if got is None:
        tree = torch.load(tmp_path / "out.pt", weights_only=True)
        got = next((tree[key] for key in ("state_dict", "model") if key in tree), tree)
    expected = load_file(DATA / f"{name.split('.', maxsplit=1)[0]}.expected.safetensors")
    assert set(got) == set(expected)
    for key, value in expected.items():
        if value.is_floating_point():
            assert torch.equal(got[key], value), key


def test_lightning_loads_the_output_as_the_average(tmp_path: Path, run: Run) -> None:
    """The trained weights and the averaging state are gone, so that no loader can put them back."""
    assert run("ema-apply", DATA / "lightning.ckpt", "-o", tmp_path / "out.ckpt").exit_code == 0
    kept = torch.load(tmp_path / "out.ckpt", weights_only=True)
    before = torch.load(DATA / "lightning.ckpt", weights_only=True)
    assert set(before) - set(kept) == {"current_model_state", "averaging_state"}
    assert kept["optimizer_states"] == []


def test_a_synthesised_average_is_near_the_frameworks_own(tmp_path: Path, run: Run) -> None:
    """ema-pytorch solves without the condition that shares sum to 1, so the two are near and not equal."""
    options = ("--stored-profile", "sigma-rel:0.05", "--stored-profile", "sigma-rel:0.28", "--update-every", "1")
    ran = run("ema-apply", DATA / "post_hoc", *options, "--sigma-rel", "0.15", "-o", tmp_path / "out.safetensors")
    assert ran.exit_code == 0, ran.stderr
    got = load_file(tmp_path / "out.safetensors")
    expected = load_file(DATA / "post_hoc.expected.safetensors")
    newest = torch.load(DATA / "post_hoc" / "0.400.pt", weights_only=True)
    assert set(got) == set(expected)
    for name, value in expected.items():
        scale = float(np.linalg.norm(newest[f"ema_model.{name}"] - value))
        assert float(np.linalg.norm(got[name] - value)) < 0.05 * scale
