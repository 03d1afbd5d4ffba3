"""A schedule as data, with its parameters and the wrapper around it. It can be compared, changed and shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ckpttool.schedules import rates as schedules
from ckpttool.schedules.checks import ParameterError, Schedule
from ckpttool.schedules.float32 import noam_applied, noam_logged, to_float32
from ckpttool.schedules.kinds import Kind, Value, Values, suggest

__all__ = ["WRAPPER", "Dtype", "ScheduleSpec", "Semantics"]

Dtype = Literal["float64", "float32"]
Semantics = Literal["applied", "logged"]

WRAPPER = {"start_decay_steps": "start", "decay_step_duration": "duration", "minimum_learning_rate": "minimum"}
"""OpenNMT-tf's names of the wrapper's parameters, and what `schedules.wrap` calls them."""

_COUNTS = ("_dim", "_steps", "_step", "_duration", "_replicas", "_cycles", "timescale", "step_size")


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


def _rounded_parameter(name: str, value: Value) -> Value:
    # The rounding error of a base would grow with its power; torch keeps it in float64.
    return to_float32(value) if isinstance(value, float) and name != "gamma" else value


def _rounded(make: Callable[..., Schedule]) -> Callable[..., Schedule]:
    def rounded(**arguments: Value) -> Schedule:
        make(**arguments)  # for its checks, in the user's own numbers
        schedule = make(**{name: _rounded_parameter(name, value) for name, value in arguments.items()})
        return lambda step: to_float32(schedule(step))

    return rounded
