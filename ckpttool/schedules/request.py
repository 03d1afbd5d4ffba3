"""From parameters, a configuration and comparisons to the schedules that are meant."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ckpttool.errors import CkpttoolError, UsageError
from ckpttool.schedules.checks import MOST_STEPS, ParameterError
from ckpttool.schedules.family import WRAPPER, ScheduleSpec
from ckpttool.schedules.kinds import Kind, Value, Values, find_kind
from ckpttool.schedules.landmarks import default_last_step, landmarks
from ckpttool.text import parameter

__all__ = ["Curve", "MissingParametersError", "Request", "make_request", "title"]

_DEFAULTS = {"start_decay_steps": "0", "decay_step_duration": "1", "minimum_learning_rate": "0"}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Curve:
    """A schedule of a table or a picture.

    Attributes:
        spec: The schedule.
        letter: A short name, empty if it is the only one.
        label: What sets it apart, empty if it is the only one.
    """

    spec: ScheduleSpec
    letter: str = ""
    label: str = ""


@dataclass(frozen=True)
class Request:
    """The schedules that were asked for.

    Attributes:
        curves: The first schedule, then one for each comparison.
        last_step: The end of the training: what ``all`` and the default rows go to.
        warnings: What may surprise.
    """

    curves: tuple[Curve, ...]
    last_step: int
    warnings: tuple[str, ...]

    @property
    def base(self) -> ScheduleSpec:
        """The first schedule."""
        return self.curves[0].spec


class MissingParametersError(UsageError):
    """Parameters that a schedule needs were not given.

    Attributes:
        kind: The schedule.
        missing: The names of the parameters.
    """

    def __init__(self, kind: Kind, missing: Sequence[str]) -> None:
        super().__init__(f"the {kind.name} schedule needs {' and '.join(map(parameter, missing))}")
        self.kind = kind
        self.missing = tuple(missing)


def make_request(
    parameters: Values,
    *,
    compare: Sequence[Values] = (),
    schedule: str | None = None,
    config: str | None = None,
    auto_config: str | None = None,
    max_step: int | None = None,
    warmup_ratio: float | None = None,
    defaults: Values | None = None,
) -> Request:
    """Put the schedules together.

    Args:
        parameters: Of the schedule and its wrapper, by name (`ScheduleSpec.from_parameters`); None where not given.
        compare: For each further schedule what differs from the first; ``schedule`` is its name.
        schedule: Its name. None: what the configuration says, or Noam's.
        config: A YAML file in OpenNMT-tf's format; `parameters` win over it.
        auto_config: The model whose ``--auto_config`` of OpenNMT-tf is the default of what the file does not say.
        max_step: Number of updates of the training, at least 1. A schedule that is asked for by name, or that cannot do
            without, takes it for its parameter of that name.
        warmup_ratio: Share of the training that is warm-up, from 0 to below 1; the number of updates is rounded up.
        defaults: Parameters that take the place of missing ones.

    Raises:
        UsageError: If a parameter makes no sense; the message names it.
        UnreadableError: If the configuration does not; the message names the line.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    if max_step is not None and not (isinstance(max_step, int) and 1 <= max_step <= MOST_STEPS):
        raise ParameterError("max_step", f"must be a whole number from 1 to {MOST_STEPS}, not {str(max_step)[:40]}")
    source = _Source.read(schedule, config, auto_config)
    kind = source.kind
    values = {**(defaults or {}), **source.parameters, **given}
    if "max_step" in kind.parameters and "max_step" not in values:
        # OpenNMT-tf's cosine has a period of its own, whatever the length of the training: a file that does not say it
        # means the default.
        end = max_step or source.max_step if "max_step" in kind.required else max_step if source.is_named else None
        if end is not None:
            values["max_step"] = end
            given["max_step"] = end
    if warmup_ratio is not None:
        given["warmup_steps"] = values["warmup_steps"] = _warmup_steps(
            warmup_ratio, kind, given, values.get("max_step") or max_step or source.max_step
        )
    missing = [name for name in ("learning_rate", *kind.required) if values.get(name) is None]
    if missing:
        raise source.missing_error(missing)
    try:
        base = ScheduleSpec.from_parameters(kind, values)
    except ParameterError as error:
        if source.parameter_error is None or error.parameter in given:
            raise
        raise source.parameter_error(error) from error

    specs = [base, *(_compared(base, changes) for changes in compare)]
    curves = _labelled(specs, compare)
    training = max_step or source.max_step
    warnings = (*source.warnings, *_lint(curves, training))
    return Request(curves, training or max(map(default_last_step, specs)), warnings)


@dataclass(frozen=True)
class _Source:
    """Where a schedule comes from, in addition to the parameters given.

    Attributes:
        kind: The schedule.
        is_named: It was asked for by name.
        parameters: What the configuration says.
        max_step: The length of the training there.
        warnings: Of the configuration.
        missing_error: Makes the error for parameters that are nowhere.
        parameter_error: Makes the error for a parameter of the configuration; None if there is none.
    """

    kind: Kind
    is_named: bool
    parameters: Values
    max_step: int | None
    warnings: tuple[str, ...]
    missing_error: Callable[[Sequence[str]], CkpttoolError]
    parameter_error: Callable[[ParameterError], CkpttoolError] | None

    @classmethod
    def read(cls, schedule: str | None, config: str | None, auto_config: str | None) -> _Source:
        named = find_kind(schedule) if schedule else None
        if config is None and auto_config is None:
            kind = named or find_kind("noam")
            missing = partial(MissingParametersError, kind)
            return cls(kind, named is not None, {}, None, (), missing, None)
        from ckpttool.schedules import config as schedule_config

        if config is not None:
            read = schedule_config.read_config(config, auto_config)
        else:
            read = schedule_config.auto_config(auto_config or "")
        kind = named or read.kind
        replaced = kind is not read.kind
        # Another schedule than the file's takes over only what it has.
        known = {k: v for k, v in read.parameters.items() if not replaced or k in (*kind.parameters, *WRAPPER)}
        of_the_file = config is not None and not replaced
        return cls(
            kind,
            replaced,
            known,
            read.max_step,
            read.warnings,
            partial(schedule_config.missing_error, read) if of_the_file else partial(MissingParametersError, kind),
            partial(schedule_config.parameter_error, read),
        )


def _warmup_steps(ratio: float, kind: Kind, given: Values, max_step: Value) -> int:
    """The number of updates as transformers' ``get_warmup_steps`` computes it: rounded up."""
    if not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise ParameterError("warmup_ratio", f"must be at least 0 and below 1, not {str(ratio)[:40]}")
    if "warmup_steps" not in kind.parameters:
        raise ParameterError("warmup_ratio", f"is of no use to the {kind.name} schedule, which has no warm-up")
    if "warmup_steps" in given:
        raise ParameterError("warmup_ratio", f"and {parameter('warmup_steps')} say the same; give one of them")
    if not isinstance(max_step, int):
        raise ParameterError("warmup_ratio", f"needs {parameter('max_step')}, of which it is a share")
    return math.ceil(max_step * ratio)


def _compared(base: ScheduleSpec, changes: Values) -> ScheduleSpec:
    changes = dict(changes)
    option = f'{parameter("compare")} "{_pairs(changes)}"'
    kind = base.kind
    parameters = base.parameters()
    if "schedule" in changes:
        kind = find_kind(str(changes.pop("schedule")))
        parameters = {name: value for name, value in parameters.items() if name in (*kind.parameters, *WRAPPER)}
    try:
        spec = ScheduleSpec.from_parameters(kind, {**parameters, **changes})
    except ParameterError as error:
        raise UsageError(f"{option}: {error.parameter} {error.reason}", hint=error.hint) from error
    if spec == base:
        raise UsageError(f"{option} changes nothing", hint="Name a parameter whose value differs from the first's.")
    return spec


def _pairs(changes: Values) -> str:
    return ",".join(f"{name}={value}" for name, value in changes.items())


def _labelled(specs: Sequence[ScheduleSpec], compare: Sequence[Values]) -> tuple[Curve, ...]:
    if len(specs) == 1:
        return (Curve(specs[0]),)
    if len(specs) > len(_LETTERS):
        raise UsageError(
            f"{parameter('compare')}: {len(specs)} schedules are more than can be told apart; {len(_LETTERS)} can"
        )
    for index, spec in enumerate(specs):
        if spec in specs[:index]:
            raise UsageError(f'{parameter("compare")} "{_pairs(compare[index - 1])}" is there twice')
    base, *others = [_described(spec) for spec in specs]
    changes = [{k: v for k, v in other.items() if base.get(k) != v} for other in others]
    # The first schedule is told apart by its own values of what the others change.
    changed = {
        name: value
        for name, value in base.items()
        if any(name in each for each in changes) or any(name not in other for other in others)
    }
    plain = {name: value for name, value in changed.items() if _DEFAULTS.get(name) != value}
    labels = [" ".join(f"{k}={v}" for k, v in each.items()) for each in (plain or changed, *changes)]
    return tuple(Curve(spec, *pair) for spec, pair in zip(specs, zip(_LETTERS, labels, strict=False), strict=True))


def _described(spec: ScheduleSpec) -> dict[str, str]:
    values = {name: _text(value) for name, value in spec.parameters().items() if value is not None}
    return {"schedule": spec.kind.name, **values}


def title(curves: Sequence[Curve]) -> str:
    """What all schedules share: ``noam: learning_rate=2, model_dim=768, warmup_steps=8000``, defaults left out."""
    shown = [_described(curve.spec) for curve in curves]
    common = {name: value for name, value in shown[0].items() if all(each.get(name) == value for each in shown)}
    defaults = _DEFAULTS | {name: _text(value) for name, value in curves[0].spec.kind.optional.items()}
    kind = common.pop("schedule", "")
    rest = ", ".join(f"{name}={value}" for name, value in common.items() if defaults.get(name) != value)
    return f"{kind}: {rest}" if kind and rest else kind or rest


def _text(value: Value) -> str:
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _lint(curves: Sequence[Curve], max_step: int | None) -> list[str]:
    found = []
    for curve in curves:
        spec = curve.spec
        who = f"{curve.letter}: " if curve.letter else ""
        peak = next((mark for mark in landmarks(spec) if mark.mark == "peak"), None)
        if peak is None:
            floor = spec.minimum_learning_rate
            found.append(f"{who}the rate is constant: the floor {floor:g} is not below the schedule's peak")
        elif max_step is not None and peak.first + 1 > max_step:
            found.append(f"{who}the peak is at update {peak.first + 1}, after the end of the training at {max_step}")
    return found
