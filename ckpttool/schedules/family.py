"""The schedules by name, with their parameters: what a command line or a config can ask for.

A `ScheduleSpec` is a schedule as data. It can be compared, changed and shown, and builds the function itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ckpttool.errors import UsageError
from ckpttool.schedules import rates as schedules
from ckpttool.schedules.float32 import noam_applied, noam_logged, to_float32
from ckpttool.schedules.rates import ParameterError, Schedule

__all__ = ["KINDS", "WRAPPER", "Dtype", "Kind", "ScheduleSpec", "Semantics", "Value", "find_kind", "suggest"]

Value = float | int | str | None
Values = Mapping[str, Value]
Dtype = Literal["float64", "float32"]
Semantics = Literal["applied", "logged"]

WRAPPER = {"start_decay_steps": "start", "decay_step_duration": "duration", "minimum_learning_rate": "minimum"}
"""OpenNMT-tf's names of the wrapper's parameters, and what `schedules.wrap` calls them."""

_COUNTS = ("_dim", "_steps", "_step", "_duration", "_replicas", "timescale")

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


@dataclass(frozen=True)
class ScheduleSpec:
    """A schedule as data: which one, its parameters, and the wrapper around it.

    Attributes:
        kind: Which schedule.
        values: Every parameter by its public name (`Kind.parameters`), defaults included.
        start_decay_steps: See `ckpttool.schedules.rates.wrap`.
        decay_step_duration: See `ckpttool.schedules.rates.wrap`.
        minimum_learning_rate: See `ckpttool.schedules.rates.wrap`.
    """

    kind: Kind
    values: Values = field(default_factory=dict)
    start_decay_steps: int = 0
    decay_step_duration: int = 1
    minimum_learning_rate: float = 0.0

    @classmethod
    def from_parameters(cls, kind: Kind, parameters: Values) -> ScheduleSpec:
        """A spec whose parameters are all there and in their ranges.

        Args:
            kind: Which schedule.
            parameters: By public name: the kind's and the wrapper's. What is missing gets its default.

        Raises:
            ParameterError: If one is missing, unknown or out of its range.
        """
        known = (*kind.parameters, *WRAPPER)
        for name in parameters:
            if name not in known:
                raise ParameterError(
                    name,
                    f"is not a parameter of the {kind.name} schedule",
                    hint=f"{suggest(name, known) or ''} Its parameters are {', '.join(known)}.".strip(),
                )
        missing = [name for name in ("learning_rate", *kind.required) if parameters.get(name) is None]
        if missing:
            raise ParameterError(missing[0], f"is missing: the {kind.name} schedule needs it")
        values = {name: _whole(name, parameters.get(name, kind.optional.get(name))) for name in kind.parameters}
        around = {name: _whole(name, value) for name, value in parameters.items() if name in WRAPPER}
        spec = cls(kind, values, **around)  # type: ignore[arg-type]
        spec.build()
        return spec

    def parameters(self) -> dict[str, Value]:
        """Every parameter by its public name, the wrapper's too; what `from_parameters` takes."""
        return {**self.values, **{name: getattr(self, name) for name in WRAPPER}}

    def unwrapped(self, dtype: Dtype = "float64", semantics: Semantics = "applied") -> Schedule:
        """The schedule without delay, stretching and floor.

        Raises:
            ParameterError: If a parameter is out of its range; it names the parameter as users do.
        """
        arguments = {self.kind.rate if name == "learning_rate" else name: v for name, v in self.values.items()}
        make = self.kind.make
        if dtype == "float32":
            if self.kind.name == "noam":
                make = noam_applied if semantics == "applied" else noam_logged
            else:
                make = _rounded(make)
        try:
            return make(**arguments)
        except ParameterError as error:
            raise ParameterError(self.kind.public(error.parameter), error.reason, hint=error.hint) from error

    def build(self, dtype: Dtype = "float64", semantics: Semantics = "applied") -> Schedule:
        """The schedule as a function of the number of updates done.

        Args:
            dtype: float32 is what OpenNMT-tf computes in. For the Noam schedule it is exact
                (`ckpttool.schedules.float32`); for the others the parameters and the result are rounded, and a
                framework may differ by a few units in the last place.
            semantics: Only for float32: whether the training graph computes it or the log line.

        Raises:
            ParameterError: If a parameter is out of its range.
        """
        inner = self.unwrapped(dtype, semantics)
        minimum = self.minimum_learning_rate
        try:
            wrapped = schedules.wrap(inner, self.start_decay_steps, self.decay_step_duration, minimum)
        except ParameterError as error:
            names = {inside: public for public, inside in WRAPPER.items()}
            raise ParameterError(names[error.parameter], error.reason, hint=error.hint) from error
        if (self.start_decay_steps, self.decay_step_duration, minimum) == (0, 1, 0):
            return inner  # the wrapper would change nothing, and a million rows pay for every call
        if dtype == "float32":
            return schedules.wrap(inner, self.start_decay_steps, self.decay_step_duration, to_float32(minimum))
        return wrapped

    def rate(self, semantics: Semantics, dtype: Dtype = "float64") -> Schedule:
        """The rate by update number k: applied at update k (k >= 1), or logged as "Step = k" (k >= 0)."""
        schedule = self.build(dtype, semantics)
        if semantics == "logged":
            return schedule
        return lambda update: schedule(update - 1)

    def argument_of(self, step: int) -> int:
        """The first number of updates done at which the wrapped schedule is called with `step`."""
        return 0 if step == 0 else self.start_decay_steps + step * self.decay_step_duration

    def turns(self) -> list[int]:
        """The schedule's own steps between which the curve is monotonic, ascending, 0 first."""
        return sorted({0, *self.kind.turns(self.values)})


def _whole(name: str, value: Value) -> Value:
    """8000.0 as 8000 where a count is asked for; anything else unchanged, for the checks to judge."""
    if isinstance(value, float) and value.is_integer() and name.endswith(_COUNTS):
        return int(value)
    return value


def _rounded(make: Callable[..., Schedule]) -> Callable[..., Schedule]:
    def rounded(**arguments: Value) -> Schedule:
        make(**arguments)  # for its checks, in the user's own numbers
        schedule = make(**{k: to_float32(v) if isinstance(v, float) else v for k, v in arguments.items()})
        return lambda step: to_float32(schedule(step))

    return rounded
