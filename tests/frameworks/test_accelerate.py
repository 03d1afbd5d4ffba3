"""accelerate: save_state's numbered directories, load_state, load_checkpoint_in_model."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("accelerate")
from accelerate import Accelerator, load_checkpoint_in_model
from accelerate.utils import ProjectConfiguration


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.output = torch.nn.Linear(4, 5, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens):
        return self.output(self.norm(self.embedding(tokens)))


def prepare(directory):
    configuration = ProjectConfiguration(str(directory), automatic_checkpoint_naming=True)
    accelerator = Accelerator(cpu=True, project_config=configuration)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return accelerator, *accelerator.prepare(model, optimizer, scheduler)


@pytest.fixture(params=[True, False], ids=["safetensors", "pickle"])
def trained(request, tmp_path):
    accelerator, model, optimizer, scheduler = prepare(tmp_path / "run")
    for _ in range(12):
        loss = model(torch.randint(0, 5, (8,))).square().mean()
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        accelerator.save_state(safe_serialization=request.param)
    return tmp_path / "run" / "checkpoints"


def members(directory, names):
    states = []
    for name in names:
        model = Model()
        load_checkpoint_in_model(model, str(directory / name))
        states.append(model.state_dict())
    return states


def test_accelerate_loads_the_average(average, trained, tmp_path, mean, same):
    said = average(trained, "--last", 3)
    assert said.names == ["checkpoint_9", "checkpoint_10", "checkpoint_11"]
    assert said.output == trained / "avg-last-3" / "checkpoint_11"
    wanted = mean(members(trained, said.names))
    (ours,) = members(said.output.parent, [said.output.name])
    same(ours, wanted)
    assert {path.name for path in said.output.iterdir()} <= {"model.safetensors", "pytorch_model.bin", "ckpttool.json"}
    assert average(trained, "--last", 3, "--force").names == said.names


def test_load_state_takes_the_average_where_the_state_is_kept(average, trained, tmp_path, mean, same):
    said = average(trained, "--last", 3, "--keep-state")
    accelerator, model, *_ = prepare(tmp_path / "more")
    accelerator.load_state(str(said.output))
    same(model.state_dict(), mean(members(trained, said.names)))
