"""Schedules against the schedulers of ``torch.optim.lr_scheduler``, stepped."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from ckpttool.schedules import rates, torch_rates, transformers_rates
from ckpttool.schedules.checks import ParameterError, Schedule

torch = pytest.importorskip("torch")
schedulers = torch.optim.lr_scheduler

STEPS = 20_000
PEAK = 0.3

PAIRS: dict[str, tuple[Schedule, Callable[[object], object]]] = {
    "constant": (rates.constant(PEAK), lambda o: schedulers.ConstantLR(o, 1.0)),
    "step": (torch_rates.step_decay(PEAK, 3000, 0.5), lambda o: schedulers.StepLR(o, 3000, 0.5)),
    "multi-step": (
        torch_rates.multi_step(PEAK, "500:500:7000:19999", 0.2),
        lambda o: schedulers.MultiStepLR(o, [500, 500, 7000, 19_999], 0.2),
    ),
    "exponential": (torch_rates.exponential(PEAK, 0.9997), lambda o: schedulers.ExponentialLR(o, 0.9997)),
    "cosine": (
        rates.cosine_annealing(PEAK, 0.01, STEPS),
        lambda o: schedulers.CosineAnnealingLR(o, T_max=STEPS, eta_min=0.01),
    ),
    "warm restarts": (
        torch_rates.cosine_with_warm_restarts(PEAK, 700, 1, 0.01),
        lambda o: schedulers.CosineAnnealingWarmRestarts(o, 700, 1, 0.01),
    ),
    "longer warm restarts": (
        torch_rates.cosine_with_warm_restarts(PEAK, 300, 2),
        lambda o: schedulers.CosineAnnealingWarmRestarts(o, 300, 2),
    ),
    "one cycle": (torch_rates.one_cycle(PEAK, STEPS), lambda o: schedulers.OneCycleLR(o, PEAK, STEPS)),
    "one linear cycle": (
        torch_rates.one_cycle(PEAK, STEPS, 0.1234, 10.0, 100.0, "linear"),
        lambda o: schedulers.OneCycleLR(
            o, PEAK, STEPS, pct_start=0.1234, div_factor=10.0, final_div_factor=100.0, anneal_strategy="linear"
        ),
    ),
    "short rise": (
        torch_rates.one_cycle(PEAK, 10, 0.05),
        lambda o: schedulers.OneCycleLR(o, PEAK, 10, pct_start=0.05),
    ),
    "polynomial": (
        transformers_rates.polynomial(PEAK, 0, 15_000, 0.0, 2.0),
        lambda o: schedulers.PolynomialLR(o, 15_000, 2.0),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_schedule_is_torchs(name):
    ours, make = PAIRS[name]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=PEAK)
    theirs = make(optimizer)
    for step in range(getattr(theirs, "total_steps", STEPS)):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=0, abs=1e-12 * PEAK)
        optimizer.step()
        if step + 1 < getattr(theirs, "total_steps", STEPS):
            theirs.step()


def test_past_its_end_one_cycle_keeps_its_last_rate():
    schedule = torch_rates.one_cycle(PEAK, 100)
    assert schedule(99) == schedule(1000) == PEAK / 25 / 1e4


BAD = [
    (lambda: torch_rates.step_decay(1, 0), "step_size"),
    (lambda: torch_rates.step_decay(1, 5, 1.5), "gamma"),
    (lambda: torch_rates.exponential(1, 0), "gamma"),
    (lambda: torch_rates.multi_step(1, "5:x"), "milestones"),
    (lambda: torch_rates.multi_step(1, "9:5"), "milestones"),
    (lambda: torch_rates.multi_step(1, "9" * 5000), "milestones"),
    (lambda: torch_rates.one_cycle(1, 1), "max_step"),
    (lambda: torch_rates.one_cycle(1, 9, 1.5), "pct_start"),
    (lambda: torch_rates.one_cycle(1, 9, 0.5, 0), "div_factor"),
    (lambda: torch_rates.one_cycle(1, 9, 0.5, 1, math.inf), "final_div_factor"),
    (lambda: torch_rates.one_cycle(1, 9, anneal_strategy="sine"), "anneal_strategy"),
    (lambda: torch_rates.cosine_with_warm_restarts(1, 0), "restart_steps"),
    (lambda: torch_rates.cosine_with_warm_restarts(1, 5, 0), "restart_factor"),
    (lambda: torch_rates.cosine_with_warm_restarts(1, 5, 1, 1), "eta_min"),
    (lambda: transformers_rates.polynomial(1, 0, 9, 1.0), "end_learning_rate"),
    (lambda: transformers_rates.polynomial(1, 0, 9, power=0), "power"),
    (lambda: transformers_rates.cosine_with_restarts(1, 0, 9, 0), "num_cycles"),
    (lambda: transformers_rates.cosine_with_min_lr(1, 0, 9, 2), "min_lr_factor"),
    (lambda: transformers_rates.warmup_stable_decay(1, 5, 9, 5), "decay_steps"),
    (lambda: transformers_rates.warmup_stable_decay(1, 5, 9, 2, "cubic"), "decay_type"),
    (lambda: transformers_rates.constant_with_warmup(1, -1), "warmup_steps"),
]


@pytest.mark.parametrize(("make", "parameter"), BAD)
def test_a_value_that_cannot_be_names_its_parameter(make, parameter):
    with pytest.raises(ParameterError) as caught:
        make()
    assert caught.value.parameter == parameter
