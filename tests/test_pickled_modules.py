"""Files of torch with pickled modules in them, and with other things than tensors in their state dicts."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import ckpttool as ct
from ckpttool.formats import open_checkpoint


def pickled_run(directory: Path) -> list[dict[str, torch.Tensor]]:
    """Checkpoints as Ultralytics writes them: the moving average as a pickled module, and no model."""
    states = []
    for epoch in (1, 2):
        torch.manual_seed(epoch)
        module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)).half()
        module[2].register_buffer("scratch", torch.full((2,), float(epoch)), persistent=False)
        module.names = ["a", "b"]
        states.append(module.state_dict())
        whole = {"epoch": epoch, "model": None, "ema": module, "updates": 10 * epoch, "train_args": {"imgsz": 64}}
        torch.save(whole, directory / f"epoch{epoch}.pt")
    return states


def test_a_pickled_module_is_averaged_and_stays_one(tmp_path: Path) -> None:
    states = pickled_run(tmp_path)
    paths = [tmp_path / f"epoch{epoch}.pt" for epoch in (1, 2)]
    opened = open_checkpoint(paths[0])
    assert opened.section == "ema"
    assert list(opened.weights) == list(states[0])
    ct.average(paths, output=tmp_path / "avg.pt")
    written = torch.load(tmp_path / "avg.pt", weights_only=False)
    module = written["ema"]
    assert isinstance(module, torch.nn.Sequential)
    assert module.names == ["a", "b"]
    assert written["model"] is None
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, torch.stack([state[name].double() for state in states]).mean(0).half()), name
        else:
            assert torch.equal(value, states[1][name]), name
    assert torch.equal(module[2].scratch, torch.full((2,), 2.0).half())
    assert module(torch.zeros(2, 3).half()).shape == (2, 2)


def test_the_state_dict_of_a_pickled_module_is_written_as_safetensors(tmp_path: Path) -> None:
    states = pickled_run(tmp_path)
    ct.average([tmp_path / f"epoch{epoch}.pt" for epoch in (1, 2)], output=tmp_path / "avg.safetensors")
    assert set(load_file(tmp_path / "avg.safetensors")) == set(states[0])


def test_entries_of_a_state_dict_that_are_not_tensors_are_stated(tmp_path: Path) -> None:
    model = {"w": torch.ones(2), "block._extra_state": io.BytesIO(b"fp8"), "scale": 0.5, "mean": np.ones(3)}
    torch.save({"model": model, "epoch": 3}, tmp_path / "model.pt")
    opened = open_checkpoint(tmp_path / "model.pt")
    assert set(opened.weights) == {"w"}
    kinds = {name: entry.kind for name, entry in opened.other_entries.items()}
    assert kinds == {"block._extra_state": "bytes", "scale": "float", "mean": "a NumPy array"}


def test_what_is_written_without_fastais_optimizer_is_loaded_by_fastai(tmp_path: Path) -> None:
    """Its loader asks ``set(state) == {"model", "opt"}``, and takes any other file for the bare state dict."""
    for step in (1, 2):
        opt = {"state": [{"mom": torch.ones(2)}], "hypers": [{"lr": 0.1}]}
        torch.save({"model": {"w": torch.full((2,), float(step))}, "opt": opt}, tmp_path / f"model_{step}.pth")
    ct.average([tmp_path / "model_1.pth", tmp_path / "model_2.pth"], output=tmp_path / "avg.pth")
    state = torch.load(tmp_path / "avg.pth", weights_only=True)
    assert set(state) == {"model", "opt"}
    assert state["opt"] is None
    assert torch.equal(state["model"]["w"], torch.full((2,), 1.5))


def test_a_file_with_one_bare_tensor_is_averaged(tmp_path: Path) -> None:
    values = [torch.arange(6.0).view(2, 3), torch.ones(2, 3)]
    for step, value in enumerate(values):
        torch.save(value, tmp_path / f"embedding_{step}.pt")
    paths = [tmp_path / f"embedding_{step}.pt" for step in (0, 1)]
    assert list(open_checkpoint(paths[0]).weights) == ["tensor"]
    ct.average(paths, output=tmp_path / "avg.pt")
    assert torch.equal(torch.load(tmp_path / "avg.pt", weights_only=True), (values[0] + values[1]) / 2)
    ct.average(paths, output=tmp_path / "avg.safetensors")
    assert torch.equal(load_file(tmp_path / "avg.safetensors")["tensor"], (values[0] + values[1]) / 2)
