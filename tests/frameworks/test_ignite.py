"""PyTorch-Ignite: the Checkpoint handler's files, load_objects."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("ignite")
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, EMAHandler, ModelCheckpoint, global_step_from_engine


def build():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))


class Run:
    def __init__(self, lr=0.02):
        self.model = build()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.trainer = Engine(self.step)

    def step(self, engine, batch):
        loss = self.model(batch).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def fit(self, epochs):
        self.trainer.run([torch.randn(4, 3) for _ in range(4)], max_epochs=epochs)

    @property
    def objects(self):
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "lr_scheduler": self.scheduler,
            "trainer": self.trainer,
        }


def inner(path):
    return torch.load(path, weights_only=False)["model"]


def test_load_objects_takes_the_average(average, tmp_path, mean, same):
    run = Run()
    directory = tmp_path / "run"
    handler = Checkpoint(run.objects, DiskSaver(str(directory)), n_saved=None)
    best = Checkpoint(
        {"model": run.model},
        DiskSaver(str(directory), require_empty=False),
        filename_prefix="best",
        score_name="loss",
        score_function=lambda engine: -engine.state.output,
        global_step_transform=global_step_from_engine(run.trainer),
    )
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, handler)
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, best)
    run.fit(4)
    said = average(directory, "--last", 3)
    assert said.names == ["checkpoint_8.pt", "checkpoint_12.pt", "checkpoint_16.pt"]
    assert said.steps == [8, 12, 16]
    assert any(name.startswith("best_model") for name in said.skipped)
    wanted = mean([inner(directory / name) for name in said.names])
    again = Run()
    state = torch.load(said.output, weights_only=False)
    Checkpoint.load_objects({"model": again.model, "trainer": again.trainer}, checkpoint=state)
    same(again.model.state_dict(), wanted)
    assert again.trainer.state.iteration == 16
    assert average(directory, "--last", 3, "--force").names == said.names
    kept = average(directory, "--last", 3, "--force", "--keep-state").output
    again = Run(lr=0.5)
    Checkpoint.load_objects(again.objects, checkpoint=kept)
    again.fit(5)
    assert again.trainer.state.iteration == 20


def test_bare_state_dicts(average, tmp_path, mean, same):
    run = Run()
    handler = ModelCheckpoint(str(tmp_path / "run"), "tiny", n_saved=4)
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, handler, {"model": run.model})
    run.fit(4)
    said = average(tmp_path / "run", "--last", 2)
    assert said.names == ["tiny_model_12.pt", "tiny_model_16.pt"]
    model = build()
    Checkpoint.load_objects({"model": model}, checkpoint=str(said.output))
    members = [torch.load(tmp_path / "run" / name) for name in said.names]
    same(model.state_dict(), mean(members))


def test_model_and_moving_average_are_averaged_each(average, tmp_path, mean, same):
    run = Run()
    ema = EMAHandler(run.model, momentum=0.3)
    ema.attach(run.trainer, event=Events.ITERATION_COMPLETED)
    objects = {"model": run.model, "ema_model": ema.ema_model, "optimizer": run.optimizer}
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, Checkpoint(objects, str(tmp_path / "run"), n_saved=3))
    run.fit(3)
    said = average(tmp_path / "run", "--last", 3)
    states = [torch.load(tmp_path / "run" / name) for name in said.names]
    model, copy = build(), build()
    Checkpoint.load_objects({"model": model, "ema_model": copy}, checkpoint=torch.load(said.output))
    same(model.state_dict(), mean([state["model"] for state in states]))
    same(copy.state_dict(), mean([state["ema_model"] for state in states]))
