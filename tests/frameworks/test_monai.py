"""MONAI: the files of its CheckpointSaver, taken by its CheckpointLoader."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("monai")
pytest.importorskip("ignite")
from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader, CheckpointSaver
from monai.networks.nets import FullyConnectedNet


def build():
    return FullyConnectedNet(in_channels=3, out_channels=1, hidden_channels=[4])


def test_checkpoint_loader_takes_the_average(average, tmp_path, mean, same):
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)

    def step(engine, batch):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()

    trainer = Engine(step)
    saver = CheckpointSaver(
        str(tmp_path), {"net": model, "optimizer": optimizer}, save_final=True, save_interval=1, epoch_level=True
    )
    saver.attach(trainer)
    states = {}
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda engine: states.__setitem__(
            engine.state.epoch, {name: value.clone() for name, value in model.state_dict().items()}
        ),
    )
    trainer.run([0] * 5, max_epochs=4)
    said = average(tmp_path, "--last", 3)
    assert said.names == [f"checkpoint_epoch={epoch}.pt" for epoch in (2, 3, 4)]
    assert "checkpoint_final_iteration=20.pt" in said.skipped
    averaged = build()
    CheckpointLoader(str(said.output), {"net": averaged})(Engine(lambda *_: None))
    same(averaged.state_dict(), mean([states[epoch] for epoch in (2, 3, 4)]))
