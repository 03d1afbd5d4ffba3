"""Schedules against those of ``transformers.get_scheduler``, stepped; logs of the Trainer and of Lightning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

from transformers import optimization as theirs

import ckpttool as ct
from ckpttool.schedules import rates, transformers_rates
from ckpttool.schedules.checks import Schedule

STEPS = 20_000
PEAK = 3e-4
W, T = 1500, 18_000

PAIRS: dict[str, tuple[Schedule, Callable[[torch.optim.Optimizer], object]]] = {
    "constant": (rates.constant(PEAK), theirs.get_constant_schedule),
    "constant_with_warmup": (
        transformers_rates.constant_with_warmup(PEAK, W),
        lambda o: theirs.get_scheduler("constant_with_warmup", o, W),
    ),
    "linear": (rates.linear(PEAK, W, T), lambda o: theirs.get_scheduler("linear", o, W, T)),
    "cosine": (rates.cosine(PEAK, W, T), lambda o: theirs.get_scheduler("cosine", o, W, T)),
    "cosine_with_restarts": (
        transformers_rates.cosine_with_restarts(PEAK, W, T, 3),
        lambda o: theirs.get_scheduler("cosine_with_restarts", o, W, T, {"num_cycles": 3}),
    ),
    "cosine_with_min_lr": (
        transformers_rates.cosine_with_min_lr(PEAK, W, T, 0.1),
        lambda o: theirs.get_scheduler("cosine_with_min_lr", o, W, T, {"min_lr_rate": 0.1}),
    ),
    "polynomial": (
        transformers_rates.polynomial(PEAK, W, T, 1e-6, 2.0),
        lambda o: theirs.get_scheduler("polynomial", o, W, T, {"lr_end": 1e-6, "power": 2.0}),
    ),
    "inverse_sqrt": (rates.inverse_sqrt(PEAK, W), lambda o: theirs.get_scheduler("inverse_sqrt", o, W)),
    **{
        f"warmup_stable_decay {decay}": (
            transformers_rates.warmup_stable_decay(PEAK, W, T, 4000, decay, 0.05),
            lambda o, decay=decay: theirs.get_scheduler(
                "warmup_stable_decay",
                o,
                W,
                T,
                {"num_decay_steps": 4000, "decay_type": decay, "min_lr_ratio": 0.05},
            ),
        )
        for decay in ("linear", "cosine", "1-sqrt")
    },
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_schedule_is_that_of_transformers(name: str) -> None:
    ours, make = PAIRS[name]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=PEAK)
    scheduler = make(optimizer)
    for step in range(STEPS):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=0, abs=1e-12 * PEAK)
        optimizer.step()
        scheduler.step()


def test_a_log_of_the_trainer_shows_the_rates_of_its_updates(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.weight - x).square().mean()}

    arguments = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=40,
        learning_rate=PEAK,
        lr_scheduler_type="cosine",
        warmup_steps=7,
        logging_steps=1,
        save_steps=40,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    transformers.Trainer(Model(), arguments, train_dataset=[{"x": torch.ones(())}] * 100).train()
    expected = ct.learning_rates(PEAK, schedule="cosine-warmup", warmup_steps=7, max_step=40)
    found = expected.compare_log(tmp_path / "checkpoint-40" / "trainer_state.json")
    assert (found.verdict.outcome, found.verdict.compared) == ("agrees", 40)


def test_a_log_of_lightning_shows_the_rates_of_the_next_updates(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import CSVLogger

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return (self.weight - batch).square().mean()

        def configure_optimizers(self) -> dict[str, object]:
            optimizer = torch.optim.SGD(self.parameters(), lr=PEAK)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    trainer = lightning.Trainer(
        max_steps=40,
        logger=CSVLogger(str(tmp_path), flush_logs_every_n_steps=1),
        callbacks=[LearningRateMonitor("step")],
        log_every_n_steps=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(100)))
    (metrics,) = tmp_path.rglob("metrics.csv")
    expected = ct.learning_rates(PEAK, schedule="step", parameters={"step_size": 10, "gamma": 0.5})
    found = expected.compare_log(metrics)
    assert (found.verdict.outcome, found.verdict.compared) == ("agrees", 40)
