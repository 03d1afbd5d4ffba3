"""timm: CheckpointSaver's files and hard links, load_checkpoint with and without EMA, resume_checkpoint."""

from __future__ import annotations

import argparse

import pytest
import torch
from absent import stand_in

stand_in("torchvision")
pytest.importorskip("timm")
import timm
from timm.models import load_checkpoint, load_state_dict, resume_checkpoint
from timm.utils import CheckpointSaver, ModelEmaV3


def build():
    return timm.create_model("test_vit", img_size=32, num_classes=4)


def train(directory, *, epochs, ema=False, metrics=None):
    directory.mkdir()
    model = build()
    copy = ModelEmaV3(model, decay=0.6) if ema else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    saver = CheckpointSaver(
        model,
        optimizer,
        args=argparse.Namespace(model="test_vit", lr=0.01),
        model_ema=copy,
        checkpoint_dir=str(directory),
        recovery_dir=str(directory),
        max_history=epochs,
    )
    for epoch in range(epochs):
        for batch in range(2):
            loss = model(torch.randn(2, 3, 32, 32)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if copy is not None:
                copy.update(model)
            saver.save_recovery(epoch, batch)
        saver.save_checkpoint(epoch, metric=None if metrics is None else metrics[epoch])
    return directory


@pytest.mark.parametrize("use_ema", [False, True])
def test_load_checkpoint_takes_the_average_of_either_copy(average, tmp_path, mean, same, use_ema):
    directory = train(tmp_path / "run", epochs=5, ema=True, metrics=[0.1, 0.5, 0.3, 0.4, 0.2])
    said = average(directory, "--last", 3)
    assert said.names == [f"checkpoint-{epoch}.pth.tar" for epoch in (2, 3, 4)]
    assert said.output == directory / "avg-last-3" / "checkpoint-4.pth.tar"
    assert {"last.pth.tar", "model_best.pth.tar"} <= said.skipped.keys()
    assert any(name.startswith("recovery") for name in said.skipped)
    model = build()
    load_checkpoint(model, str(said.output), use_ema=use_ema)
    members = [load_state_dict(str(directory / name), use_ema=use_ema) for name in said.names]
    same(model.state_dict(), mean(members))
    assert average(directory, "--last", 3, "--force").names == said.names


def test_training_resumes_from_the_average(average, tmp_path):
    directory = train(tmp_path / "run", epochs=3)
    for options in ([], ["--keep-state"]):
        output = average(directory, "--last", 2, "--force", *options).output
        model = build()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
        assert resume_checkpoint(model, str(output), optimizer=optimizer) == 3
        assert optimizer.param_groups[0]["lr"] == (0.01 if options else 0.5)


def test_the_best_by_the_metric_in_the_files(average, tmp_path):
    directory = train(tmp_path / "run", epochs=4, metrics=[0.1, 0.5, 0.3, 0.4])
    said = average(directory, "--best", 2, "--metric", "metric", "--mode", "max")
    assert said.names == ["checkpoint-1.pth.tar", "checkpoint-3.pth.tar"]
