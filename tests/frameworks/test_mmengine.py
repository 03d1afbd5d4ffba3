"""mmengine: the Runner's files, aliases and EMA hook; load_checkpoint, load_from and resume."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmengine")
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner, load_checkpoint


@pytest.fixture(autouse=True)
def whole_pickles(monkeypatch):
    """Its torch.load says nothing about weights_only, and its checkpoints hold objects of its own."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))

    def forward(self, inputs, wanted, mode):
        predicted = self.net(inputs)
        if mode == "loss":
            return {"loss": torch.nn.functional.mse_loss(predicted, wanted)}
        return [predicted]


class Score(BaseMetric):
    count = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        Score.count += 1
        return {"score": Score.count % 3}


def runner(directory, *, epochs, ema=False, **options):
    inputs = torch.randn(16, 3)
    dataset = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
    return Runner(
        Model(),
        str(directory),
        train_dataloader={
            "batch_size": 4,
            "dataset": dataset,
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "collate_fn": {"type": "default_collate"},
        },
        val_dataloader={
            "batch_size": 4,
            "dataset": dataset,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": {"type": "default_collate"},
        },
        val_evaluator=Evaluator(Score()),
        val_cfg={},
        train_cfg={"by_epoch": True, "max_epochs": epochs},
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 0.02}},
        param_scheduler={"type": "StepLR", "step_size": 2},
        default_hooks={
            "checkpoint": {"type": "CheckpointHook", "interval": 1, "save_best": "score", "rule": "greater"}
        },
        custom_hooks=[{"type": "EMAHook", "momentum": 0.4}] if ema else None,
        log_level="ERROR",
        experiment_name=f"{directory.name}-{epochs}-{ema}-{len(options)}-{id(options)}",
        **options,
    )


def inner(path, section="state_dict"):
    return torch.load(path, weights_only=False)[section]


def test_the_runner_loads_the_average(average, tmp_path, mean, same):
    directory = tmp_path / "run"
    runner(directory, epochs=4).train()
    said = average(directory, "--last", 3)
    assert said.names == ["epoch_2.pth", "epoch_3.pth", "epoch_4.pth"]
    assert said.steps == [8, 12, 16]
    assert said.output == directory / "avg-last-3" / "epoch_4.pth"
    assert any(name.startswith("best_score") for name in said.skipped)
    wanted = mean([inner(directory / name) for name in said.names])
    model = Model()
    load_checkpoint(model, str(said.output))
    same(model.state_dict(), wanted)
    loaded = runner(tmp_path / "finetune", epochs=1, load_from=str(said.output))
    loaded.load_or_resume()
    same(loaded.model.state_dict(), wanted)
    assert average(directory, "--last", 3, "--force").names == said.names


def test_training_resumes_where_the_state_is_kept(average, tmp_path):
    directory = tmp_path / "run"
    runner(directory, epochs=3).train()
    output = average(directory, "--last", 2, "--keep-state").output
    again = runner(tmp_path / "more", epochs=4, load_from=str(output), resume=True)
    again.train()
    assert again.iter == 16


def test_the_copies_that_the_ema_hook_swaps_are_averaged_each(average, tmp_path, mean, same):
    """state_dict holds the moving average, ema_state_dict the raw weights."""
    directory = tmp_path / "run"
    runner(directory, epochs=3, ema=True).train()
    said = average(directory, "--last", 2)
    same(inner(said.output), mean([inner(directory / name) for name in said.names]))
    ours = inner(said.output, "ema_state_dict")
    same(ours, mean([inner(directory / name, "ema_state_dict") for name in said.names]))
    assert any(name.startswith("module.") for name in ours)
    model = Model()
    load_checkpoint(model, str(said.output))
    same(model.state_dict(), inner(said.output))
