"""Ultralytics: the epochs that its trainer saves, pickled models with an EMA, loaded by YOLO() after averaging."""

from __future__ import annotations

import pytest
import torch
from absent import stand_in

stand_in("torchvision")
pytest.importorskip("ultralytics")
import copy

from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel


def save(path, model, ema, epoch):
    """As `BaseTrainer.save_model` does: the EMA in half precision, and no model of its own."""
    torch.save(
        {
            "epoch": epoch,
            "best_fitness": 0.1,
            "model": None,
            "ema": copy.deepcopy(ema).half(),
            "updates": epoch * 10,
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
            "train_args": {"task": "detect", "model": "yolov8n.yaml", "imgsz": 32},
            "train_metrics": {"fitness": 0.1},
            "date": "2026-01-01",
            "version": "8.3.0",
        },
        path,
    )


def test_yolo_loads_the_average(average, tmp_path, mean, same):
    model = DetectionModel("yolov8n.yaml", ch=3, nc=2, verbose=False)
    ema = copy.deepcopy(model)
    weights = tmp_path / "weights"
    weights.mkdir()
    for epoch in range(4):
        with torch.no_grad():
            for parameter in ema.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape))
        save(weights / f"epoch{epoch}.pt", model, ema, epoch)
    save(weights / "last.pt", model, ema, 3)
    said = average(weights, "--last", 3, "-o", tmp_path / "averaged.pt")
    assert said.names == [f"epoch{epoch}.pt" for epoch in (1, 2, 3)]
    members = [torch.load(weights / name, weights_only=False)["ema"].state_dict() for name in said.names]
    same(torch.load(said.output, weights_only=False)["ema"].state_dict(), mean(members))
    loaded = YOLO(str(said.output))
    # Loading widens to float32.
    expected = {name: value.float() if value.is_floating_point() else value for name, value in mean(members).items()}
    same(loaded.model.state_dict(), expected)
