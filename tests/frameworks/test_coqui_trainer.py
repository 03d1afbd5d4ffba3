"""Coqui's trainer: its checkpoint and best-model files, taken by its own load_checkpoint."""

from __future__ import annotations

import os

import pytest
import torch

os.environ["TRAINER_TELEMETRY"] = "0"  # it reports each run to a server otherwise
pytest.importorskip("trainer")
from coqpit import Coqpit
from trainer import Trainer, TrainerArgs, TrainerConfig, TrainerModel
from trainer.io import load_checkpoint


class Model(TrainerModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def forward(self, inputs):
        return self.layer(inputs)

    def train_step(self, batch, criterion):
        outputs = self(batch)
        return {"model_outputs": outputs}, {"loss": criterion(outputs, batch.sum(1, keepdim=True))}

    def eval_step(self, batch, criterion):
        return self.train_step(batch, criterion)

    @staticmethod
    def init_from_config(_config):
        return Model()

    def get_optimizer(self):
        return torch.optim.SGD(self.parameters(), lr=0.02)

    def get_criterion(self):
        return torch.nn.MSELoss()

    def get_data_loader(self, config, assets, is_eval, samples, verbose, num_gpus, rank=0):
        return torch.utils.data.DataLoader(torch.randn(32, 3), batch_size=8)

    def load_checkpoint(self, config: Coqpit, checkpoint_path, **_):
        load_checkpoint(self, checkpoint_path)


def test_load_checkpoint_takes_the_average(average, tmp_path, mean, same):
    config = TrainerConfig(epochs=4, save_step=4, print_step=100, save_n_checkpoints=10, save_all_best=True)
    config.output_path = str(tmp_path)
    config.lr = 0.02
    config.optimizer = "SGD"
    trainer = Trainer(TrainerArgs(), config, output_path=str(tmp_path), model=Model(), gpu=None)
    trainer.fit()
    run = next(path for path in tmp_path.iterdir() if path.is_dir())
    steps = sorted(int(path.stem.split("_")[1]) for path in run.glob("checkpoint_*.pth"))
    assert len(steps) >= 3
    said = average(run, "--last", 3, "--include", "checkpoint_*.pth")
    assert said.steps == steps[-3:]
    members = [load_checkpoint(Model(), str(run / name))[0].state_dict() for name in said.names]
    averaged, content = load_checkpoint(Model(), str(said.output))
    same(averaged.state_dict(), mean(members))
    assert content["step"] == steps[-1]
