"""Schedules against those of ``transformers.get_scheduler``, stepped 20,000 times."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

transformers = pytest.importorskip("transformers")

from transformers import optimization as theirs

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
