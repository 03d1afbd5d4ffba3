"""The schedules that can be asked for by name, each with its parameters and its turning points."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ckpttool.errors import UsageError
from ckpttool.schedules import rates as schedules
from ckpttool.schedules import torch_rates, transformers_rates
from ckpttool.schedules.checks import MOST_STEPS, Schedule
from ckpttool.schedules.torch_rates import milestone_steps

__all__ = ["KINDS", "Kind", "Value", "Values", "find_kind", "suggest"]

Value = float | int | str | None
Values = Mapping[str, Value]

_MOST_PERIODS = 2048  # turning points of a cosine that are followed; beyond them any picture is a solid block


@dataclass(frozen=True)
class Kind:
    """A schedule that can be asked for by name.

    Attributes:
        name: As the command line calls it.
        aliases: Other names it answers to, OpenNMT-tf's class first where there is one.
        make: The function of `ckpttool.schedules.rates`.
        rate: What `make` calls the parameter that everybody calls ``learning_rate``.
        required: Parameters without a default, `rate` aside.
        optional: Parameters with their defaults.
        turns: Steps (schedule arguments, ascending) between which the curve only rises, only falls or is constant.
            The last entry is followed by one such piece up to infinity, or up to the bound given.
    """

    name: str
    aliases: tuple[str, ...]
    make: Callable[..., Schedule]
    rate: str
    required: tuple[str, ...]
    optional: Values
    turns: Callable[[Values], Iterable[int]]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Every parameter's public name, ``learning_rate`` first."""
        return ("learning_rate", *self.required, *self.optional)

    def public(self, parameter: str) -> str:
        """The name that users know for a parameter of `make`."""
        return "learning_rate" if parameter == self.rate else parameter


def _integer(values: Values, name: str) -> int:
    value = values.get(name)
    return int(value) if value is not None else 0


def _around_warmup(values: Values) -> Iterable[int]:
    warmup = _integer(values, "warmup_steps")
    return (max(warmup - 1, 0), warmup)


def _cosine_annealing_turns(values: Values) -> Iterable[int]:
    period = _integer(values, "max_step")
    return (*_around_warmup(values), *(period * n for n in range(1, _MOST_PERIODS)))


def _cosine_turns(values: Values) -> Iterable[int]:
    warmup = _integer(values, "warmup_steps")
    period = _integer(values, "max_step") - warmup
    return (warmup, *(warmup + period * n for n in range(1, _MOST_PERIODS)))


def _wsd_turns(values: Values) -> Iterable[int]:
    last = _integer(values, "max_step")
    ratio = values["decay_ratio"]
    warmup = _integer(values, "warmup_steps")
    decay = last - warmup if ratio is None else round(last * float(ratio))
    return (*_around_warmup(values), last - decay, last)


def _rnmt_plus_turns(values: Values) -> Iterable[int]:
    replicas, warmup = _integer(values, "num_replicas"), _integer(values, "warmup_steps")
    start, end = _integer(values, "start_step"), _integer(values, "end_step")
    plateau, decay = replicas * warmup, start // replicas
    turns = {plateau, plateau + 1, decay, decay + 1}

    # Where the decay begins before the rise is over, the peak is where they cross.
    def falls(step: int) -> bool:
        exponent = (start - replicas * step) / (end - start)
        return exponent < 0 and replicas * (2.0 * replicas) ** exponent < 1 + step * (replicas - 1) / plateau

    low, high = decay, plateau
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if falls(middle) else (middle + 1, high)
    turns |= {max(low - 1, 0), low}
    return sorted(turns)


def _steps(*names: str) -> Callable[[Values], Iterable[int]]:
    """The values of these parameters."""
    return lambda values: [_integer(values, name) for name in names]


def _restart_turns(values: Values) -> Iterable[int]:
    warmup, last, cycles = (_integer(values, name) for name in ("warmup_steps", "max_step", "num_cycles"))
    turns = {warmup, last}
    for cycle in range(1, min(cycles, _MOST_PERIODS)):
        restart = warmup + cycle * (last - warmup) // cycles
        # The share of a cycle is rounded: it may begin a step before or after.
        turns.update(step for step in range(restart - 1, restart + 3) if warmup < step < last)
    return sorted(turns)


def _stable_decay_turns(values: Values) -> Iterable[int]:
    last = _integer(values, "max_step")
    return sorted({_integer(values, "warmup_steps"), last - _integer(values, "decay_steps"), last})


def _one_cycle_turns(values: Values) -> Iterable[int]:
    last = _integer(values, "max_step") - 1
    top = min(max(math.floor(float(values["pct_start"] or 0) * (last + 1) - 1), 0), last)
    return (top, top + 1, last, last + 1)


def _warm_restart_turns(values: Values) -> Iterable[int]:
    restart, length = 0, _integer(values, "restart_steps")
    turns: list[int] = []
    while len(turns) < 2 * _MOST_PERIODS and restart + length < MOST_STEPS:
        restart += length
        turns += [restart - 1, restart]
        length *= _integer(values, "restart_factor")
    return turns


def _first_milestone(values: Values) -> Iterable[int]:
    return (milestone_steps(str(values["milestones"]))[0] - 1,)


KINDS: tuple[Kind, ...] = (
    Kind("noam", ("NoamDecay",), schedules.noam, "scale", ("model_dim", "warmup_steps"), {}, _around_warmup),
    Kind("rsqrt", ("RsqrtDecay",), schedules.rsqrt, "scale", ("warmup_steps",), {}, _around_warmup),
    Kind(
        "inv-sqrt",
        ("InvSqrtDecay",),
        schedules.inv_sqrt,
        "learning_rate",
        ("warmup_steps",),
        {"initial_learning_rate": 0.0},
        _around_warmup,
    ),
    Kind(
        "cosine",
        ("CosineAnnealing",),
        schedules.cosine_annealing,
        "eta_max",
        (),
        {"eta_min": 0.0, "max_step": 1_000_000, "warmup_steps": None},
        _cosine_annealing_turns,
    ),
    Kind(
        "rnmt+",
        ("RNMTPlusDecay", "rnmtplus"),
        schedules.rnmt_plus,
        "scale",
        ("num_replicas",),
        {"warmup_steps": 500, "start_step": 600_000, "end_step": 1_200_000},
        _rnmt_plus_turns,
    ),
    Kind("constant", (), schedules.constant, "learning_rate", (), {}, lambda _values: ()),
    Kind(
        "inverse-sqrt",
        ("fairseq-inverse-sqrt", "hf-inverse-sqrt"),
        schedules.inverse_sqrt,
        "learning_rate",
        ("warmup_steps",),
        {"initial_learning_rate": 0.0, "timescale": None},
        _around_warmup,
    ),
    Kind(
        "linear",
        ("linear-warmup",),
        schedules.linear,
        "learning_rate",
        ("warmup_steps", "max_step"),
        {},
        lambda values: (_integer(values, "warmup_steps"), _integer(values, "max_step")),
    ),
    Kind(
        "cosine-warmup",
        ("hf-cosine",),
        schedules.cosine,
        "learning_rate",
        ("warmup_steps", "max_step"),
        {},
        _cosine_turns,
    ),
    Kind(
        "wsd",
        ("warmup-stable-decay",),
        schedules.wsd,
        "learning_rate",
        ("warmup_steps", "max_step"),
        {"decay_ratio": None, "decay_type": "linear", "min_lr_factor": 0.0},
        _wsd_turns,
    ),
    Kind(
        "constant-warmup",
        ("constant-with-warmup",),
        transformers_rates.constant_with_warmup,
        "learning_rate",
        ("warmup_steps",),
        {},
        _steps("warmup_steps"),
    ),
    Kind(
        "cosine-restarts",
        ("cosine-with-restarts",),
        transformers_rates.cosine_with_restarts,
        "learning_rate",
        ("warmup_steps", "max_step"),
        {"num_cycles": 1},
        _restart_turns,
    ),
    Kind(
        "cosine-min-lr",
        ("cosine-with-min-lr",),
        transformers_rates.cosine_with_min_lr,
        "learning_rate",
        ("warmup_steps", "max_step"),
        {"min_lr_factor": 0.0},
        _cosine_turns,
    ),
    Kind(
        "polynomial",
        ("polynomial-lr",),
        transformers_rates.polynomial,
        "learning_rate",
        ("warmup_steps", "max_step"),
        {"end_learning_rate": 1e-7, "power": 1.0},
        _steps("warmup_steps", "max_step"),
    ),
    Kind(
        "hf-wsd",
        ("hf-warmup-stable-decay",),
        transformers_rates.warmup_stable_decay,
        "learning_rate",
        ("warmup_steps", "max_step", "decay_steps"),
        {"decay_type": "cosine", "min_lr_factor": 0.0},
        _stable_decay_turns,
    ),
    Kind(
        "one-cycle",
        ("one-cycle-lr",),
        torch_rates.one_cycle,
        "learning_rate",
        ("max_step",),
        {"pct_start": 0.3, "div_factor": 25.0, "final_div_factor": 1e4, "anneal_strategy": "cos"},
        _one_cycle_turns,
    ),
    Kind(
        "warm-restarts",
        ("cosine-annealing-warm-restarts",),
        torch_rates.cosine_with_warm_restarts,
        "learning_rate",
        ("restart_steps",),
        {"restart_factor": 1, "eta_min": 0.0},
        _warm_restart_turns,
    ),
    Kind(
        "step",
        ("step-lr",),
        torch_rates.step_decay,
        "learning_rate",
        ("step_size",),
        {"gamma": 0.1},
        lambda values: (_integer(values, "step_size") - 1,),
    ),
    Kind(
        "multi-step",
        ("multi-step-lr",),
        torch_rates.multi_step,
        "learning_rate",
        ("milestones",),
        {"gamma": 0.1},
        _first_milestone,
    ),
    Kind("exponential", ("exponential-lr",), torch_rates.exponential, "learning_rate", ("gamma",), {}, lambda _v: ()),
)


def suggest(word: str, known: Iterable[str]) -> str | None:
    """A hint with the known word that is nearest, if one is near: ``Did you mean 'noam'?``."""
    plain = {_plain(name): name for name in known}
    near = difflib.get_close_matches(_plain(word), plain, n=1, cutoff=0.6)
    return f"Did you mean {plain[near[0]]!r}?" if near else None


def find_kind(name: str) -> Kind:
    """The schedule of this name, whatever its case, hyphens and underscores.

    Raises:
        UsageError: If there is none.
    """
    for kind in KINDS:
        if _plain(name) in {_plain(known) for known in (kind.name, *kind.aliases)}:
            return kind
    known = [each for kind in KINDS for each in (kind.name, *kind.aliases[:1])]
    near = suggest(name, known)
    raise UsageError(
        f"there is no schedule {name!r}",
        hint=f"{near + ' ' if near else ''}The schedules are {', '.join(kind.name for kind in KINDS)}.",
    )


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")
