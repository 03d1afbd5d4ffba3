"""Composer: its trainer's checkpoints, one with the EMA algorithm, taken by Trainer(load_path=)."""

from __future__ import annotations

import gc

import pytest
import torch
from absent import stand_in

stand_in("torchvision")
pytest.importorskip("composer")
from composer import ComposerModel, Trainer


class Model(ComposerModel):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))

    def forward(self, batch):
        return self.net(batch[0])

    def loss(self, outputs, batch):
        return torch.nn.functional.mse_loss(outputs, batch[1])


def loader():
    inputs = torch.randn(32, 3)
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=8
    )


def trainer(**options):
    model = Model()
    return Trainer(
        model=model,
        optimizers=torch.optim.AdamW(model.parameters(), lr=0.02),
        train_dataloader=loader(),
        device="cpu",
        progress_bar=False,
        **options,
    )


def test_load_path_takes_the_average(average, tmp_path, mean, same):
    run = tmp_path / "run"
    trained = trainer(
        max_duration="4ep", save_folder=str(run), save_interval="1ep", save_filename="ep{epoch}-ba{batch}-rank{rank}.pt"
    )
    trained.fit()
    trained.close()
    said = average(run, "--last", 3)
    assert said.names == [f"ep{epoch}-ba{4 * epoch}-rank0.pt" for epoch in (2, 3, 4)]
    assert said.steps == [8, 12, 16]
    states = [torch.load(run / name, weights_only=False)["state"]["model"] for name in said.names]
    loaded = trainer(max_duration="1ep", load_path=str(said.output), load_weights_only=True)
    same(loaded.state.model.state_dict(), mean(states))
    loaded.close()
    del trained, loaded
    gc.collect()  # they warn of a temporary directory when they go: here, where such warnings are ignored
