"""fastai: SaveModelCallback's files, with and without the optimizer, taken by Learner.load."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("fastai")
from fastai.basics import DataLoaders, Learner
from fastai.callback.tracker import SaveModelCallback
from fastai.data.load import DataLoader


def learner(directory):
    inputs = torch.randn(32, 3)
    items = list(zip(inputs, inputs.sum(1, keepdim=True), strict=True))
    loaders = DataLoaders(DataLoader(items, bs=8), DataLoader(items, bs=8))
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 1))
    made = Learner(loaders, model, loss_func=torch.nn.functional.mse_loss, path=directory, model_dir="models")
    made.remove_cbs([callback for callback in made.cbs if callback.name == "progress"])
    return made


@pytest.mark.parametrize("with_opt", [True, False])
def test_learner_loads_the_average(average, tmp_path, mean, same, with_opt):
    trained = learner(tmp_path)
    trained.fit(4, 0.05, cbs=SaveModelCallback(every_epoch=True, with_opt=with_opt))
    models = tmp_path / "models"
    names = [f"model_{epoch}.pth" for epoch in range(4)]
    said = average(models, "--last", 3, "-o", models / "averaged.pth")
    assert said.names == names[1:]
    states = [learner(tmp_path).load(name.removesuffix(".pth"), with_opt=False).model.state_dict() for name in names]
    averaged = learner(tmp_path)
    averaged.load("averaged", with_opt=False)
    same(averaged.model.state_dict(), mean(states[1:]))
    averaged.fit(1, 0.01)
