"""Lightning: ModelCheckpoint's files and aliases, load_from_checkpoint, validate and fit with ckpt_path."""

from __future__ import annotations

import argparse

import pytest
import torch

pytest.importorskip("lightning")
import lightning
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, WeightAveraging


class Module(lightning.LightningModule):
    def __init__(self, width: int = 4, options: argparse.Namespace | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 1)
        )

    def training_step(self, batch, index):
        return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", torch.nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, 3, generator=generator)
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=8
    )


def trainer(directory, *callbacks, **options):
    return lightning.Trainer(
        default_root_dir=directory,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": bool(callbacks), **options},
    )


def saver(directory, **options):
    return ModelCheckpoint(directory, save_top_k=-1, **{"save_last": True, **options})


@pytest.fixture
def trained(tmp_path, loader):
    directory = tmp_path / "run"
    trainer(tmp_path, saver(directory), max_epochs=5).fit(Module(6, argparse.Namespace(lr=0.1)), loader, loader)
    assert len(list(directory.iterdir())) == 6
    return directory


def states(paths):
    return [Module.load_from_checkpoint(path, weights_only=False).state_dict() for path in paths]


def test_load_from_checkpoint_takes_the_average(average, trained, mean, same):
    said = average(trained, "--last", 3)
    assert said.names == [f"epoch={epoch}-step={4 * (epoch + 1)}.ckpt" for epoch in (2, 3, 4)]
    assert said.steps == [12, 16, 20]
    assert "last.ckpt" in said.skipped
    assert said.output == trained / "avg-last-3" / said.names[-1]
    model = Module.load_from_checkpoint(said.output, weights_only=False)
    assert model.hparams.width == 6
    assert model.hparams.options.lr == 0.1
    same(model.state_dict(), mean(states(trained / name for name in said.names)))
    assert average(trained, "--last", 3, "--force").names == said.names


@pytest.mark.parametrize("keep_state", [False, True])
def test_the_trainer_validates_and_trains_on(average, trained, loader, tmp_path, keep_state):
    output = average(trained, "--last", 3, *["--keep-state"] * keep_state).output
    model = Module(6)
    (result,) = trainer(tmp_path).validate(model, loader, ckpt_path=output, weights_only=False)
    assert result["val_loss"] > 0
    again = trainer(tmp_path, max_epochs=6)
    again.fit(Module(6), loader, loader, ckpt_path=output, weights_only=False)
    assert again.current_epoch == 6
    assert again.global_step == 24
    assert again.optimizers[0].state_dict()["state"][0]["step"] == (24 if keep_state else 4)


def test_names_with_metrics_and_links(average, tmp_path, loader, mean, same):
    directory = tmp_path / "run"
    checkpoints = saver(directory, filename="tiny-{epoch:02d}-{val_loss:.3f}", save_last="link")
    trainer(tmp_path, checkpoints, max_epochs=3).fit(Module(), loader, loader)
    said = average(directory, "--last", 2)
    assert said.steps == [8, 12]
    assert "last.ckpt" in said.skipped
    state = Module.load_from_checkpoint(said.output, weights_only=False).state_dict()
    same(state, mean(states(directory / name for name in said.names)))


def test_both_copies_of_a_moving_average_are_averaged(average, tmp_path, loader, mean, same):
    """While training, Lightning keeps the average as state_dict and the raw weights as current_model_state."""
    directory = tmp_path / "run"
    callbacks = [EMAWeightAveraging(decay=0.5), saver(directory, every_n_train_steps=4)]
    trainer(tmp_path, *callbacks, max_epochs=3).fit(Module(), loader)
    said = average(directory, "--last", 3)
    raw = torch.load(said.output, weights_only=False)
    members = [torch.load(directory / name, weights_only=False) for name in said.names]
    same(raw["state_dict"], mean([member["state_dict"] for member in members]))
    same(raw["current_model_state"], mean([member["current_model_state"] for member in members]))
    again = trainer(tmp_path, EMAWeightAveraging(decay=0.5), saver(tmp_path / "more"), max_epochs=4)
    model = Module()
    again.fit(model, loader, ckpt_path=said.output, weights_only=False)
    assert again.global_step == 16


class Recorder(Callback):
    """The weights after each step of training, as they went into the mean."""

    def __init__(self) -> None:
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.states.append({name: value.clone() for name, value in pl_module.state_dict().items()})


def test_a_window_of_its_running_mean_is_the_mean_of_the_steps_in_it(average, tmp_path, loader):
    """WeightAveraging keeps the plain mean of all steps so far; two checkpoints give the mean of those between them."""
    directory, recorder = tmp_path / "run", Recorder()
    callbacks = [recorder, WeightAveraging(), saver(directory, every_n_train_steps=4, save_last=False)]
    trainer(tmp_path, *callbacks, max_epochs=5).fit(Module(), loader)
    said = average(directory, "--last", 2, "--window-from-running-mean")
    assert said.steps == [12, 20]
    state = Module.load_from_checkpoint(said.output, weights_only=False).state_dict()
    for name in (name for name in state if name.endswith(("weight", "bias"))):
        wanted = torch.stack([seen[name].double() for seen in recorder.states[12:20]]).mean(0)
        torch.testing.assert_close(state[name].double(), wanted, rtol=0, atol=2e-6)
