"""From the options of ``lr-plot-table`` to schedules: what was asked for, and where each parameter came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from ckpttool.cli._lr_rows import Curve
from ckpttool.errors import CkpttoolError, UsageError
from ckpttool.schedules.family import WRAPPER, Kind, ScheduleSpec, Value, find_kind
from ckpttool.schedules.landmarks import default_last_step, landmarks
from ckpttool.schedules.rates import ParameterError

__all__ = ["Request", "make_request", "parse_pairs", "title"]

_DEFAULTS = {"start_decay_steps": "0", "decay_step_duration": "1", "minimum_learning_rate": "0"}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Request:
    """The schedules that were asked for.

    Attributes:
        curves: The schedule of the options first, then one for each ``--compare``.
        last_step: The end of the training: what ``all`` and the default rows go to.
        warnings: What may surprise.
    """

    curves: tuple[Curve, ...]
    last_step: int
    warnings: tuple[str, ...]

    @property
    def base(self) -> ScheduleSpec:
        """The schedule of the options."""
        return self.curves[0].spec


def make_request(
    options: Mapping[str, Value],
    *,
    params: Sequence[str] = (),
    compare: Sequence[str] = (),
    schedule: str | None = None,
    config: str | None = None,
    auto_config: str | None = None,
    max_step: int | None = None,
    defaults: Mapping[str, Value] | None = None,
) -> Request:
    """Put the schedules together.

    Args:
        options: Parameter -> value of the options that were given; None if not given.
        params: ``NAME=VALUE`` of each ``--param``.
        compare: Texts of ``--compare``.
        schedule: ``--schedule``.
        config: ``--config``.
        auto_config: ``--auto-config``.
        max_step: ``--max-step``.
        defaults: What stands in for parameters that nobody gave.

    Raises:
        UsageError: If an option makes no sense; it names the option.
        UnreadableError: If the configuration does; it names the line.
    """
    given: dict[str, Value] = {name: value for name, value in options.items() if value is not None}
    origin = {name: "--" + name.replace("_", "-") for name in given}
    for text in params:
        for name, value in parse_pairs("--param", text).items():
            given[name] = value
            origin[name] = f"--param {name}"

    kind = find_kind(schedule) if schedule else None
    parameters: dict[str, Value] = dict(defaults or {})
    warnings: list[str] = []
    complain: Callable[[Sequence[str]], CkpttoolError] | None = None
    if config is not None or auto_config is not None:
        from ckpttool.schedules import config as schedule_config

        if config is not None:
            read = schedule_config.read_config(config, auto_config)
        else:
            read = schedule_config.auto_config(auto_config or "")
        kind, replaced = kind or read.kind, kind is not None and kind is not read.kind
        # Another schedule than the file's takes over only what it has.
        parameters |= {k: v for k, v in read.parameters.items() if not replaced or k in (*kind.parameters, *WRAPPER)}
        warnings += read.warnings
        max_step = max_step or read.max_step
        if config is not None and not replaced:
            complain = partial(schedule_config.missing_error, read)

        def explain(error: ParameterError) -> CkpttoolError:
            if error.parameter in origin:
                return _named(error, origin)
            return schedule_config.parameter_error(read, error)

    else:

        def explain(error: ParameterError) -> CkpttoolError:
            return _named(error, origin)

    kind = kind or find_kind("noam")
    parameters |= given
    if max_step is not None and "max_step" in kind.required and "max_step" not in parameters:
        parameters["max_step"] = max_step
        origin["max_step"] = "--max-step"
    missing = [name for name in ("learning_rate", *kind.required) if parameters.get(name) is None]
    if missing:
        raise complain(missing) if complain else _missing(kind, missing)
    try:
        base = ScheduleSpec.from_parameters(kind, parameters)
    except ParameterError as error:
        raise explain(error) from error

    specs = [base, *(_compared(base, text) for text in compare)]
    curves = _labelled(specs, compare)
    warnings += _lint(curves, max_step)
    return Request(curves, max_step or max(map(default_last_step, specs)), tuple(warnings))


def parse_pairs(option: str, text: str) -> dict[str, Value]:
    """``learning_rate=6,start_decay_steps=10000`` as a dictionary. ``scale`` is ``learning_rate``.

    Raises:
        UsageError: If an item is no NAME=VALUE; the message quotes it.
    """
    found: dict[str, Value] = {}
    for item in (part.strip() for part in text.split(",")):
        name, equals, value = (part.strip() for part in item.partition("="))
        name = name.replace("-", "_")
        name = "learning_rate" if name == "scale" else name
        if not (name and equals and value):
            raise UsageError(
                f"{option} {text!r}: {item!r} is not NAME=VALUE", hint=f'For example {option} "learning_rate=6".'
            )
        if name in found:
            raise UsageError(f"{option} {text!r}: {name} stands there twice")
        found[name] = _number(value)
    return found


def _number(text: str) -> Value:
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)
    return text


def _named(error: ParameterError, origin: Mapping[str, str]) -> UsageError:
    name = origin.get(error.parameter, "--" + error.parameter.replace("_", "-"))
    return UsageError(f"{name} {error.reason}", hint=error.hint)


def _missing(kind: Kind, missing: Sequence[str]) -> UsageError:
    example = (
        "ckpttool lr-plot-table --learning-rate 2 --model-dim 512 --warmup-steps 8000"
        if kind.name == "noam"
        else f"ckpttool lr-plot-table --schedule {kind.name} "
        + " ".join(f"{_option(name)}N" for name in ("learning_rate", *kind.required))
    )
    needed = " and ".join(_option(name).rstrip("= ") for name in missing)
    return UsageError(f"the {kind.name} schedule needs {needed}", hint=f"For example: {example}")


def _option(name: str) -> str:
    if name in ("learning_rate", "model_dim", "warmup_steps", "max_step"):
        return "--" + name.replace("_", "-") + " "
    return f"--param {name}="


def _compared(base: ScheduleSpec, text: str) -> ScheduleSpec:
    option = f'--compare "{text}"'
    changes = parse_pairs("--compare", text)
    kind = base.kind
    parameters = base.parameters()
    if "schedule" in changes:
        kind = find_kind(str(changes.pop("schedule")))
        parameters = {name: value for name, value in parameters.items() if name in (*kind.parameters, *WRAPPER)}
    try:
        spec = ScheduleSpec.from_parameters(kind, {**parameters, **changes})
    except ParameterError as error:
        raise UsageError(f"{option}: {error.message}", hint=error.hint) from error
    if spec == base:
        raise UsageError(f"{option} changes nothing", hint="Name a parameter with another value than the options give.")
    return spec


def _labelled(specs: Sequence[ScheduleSpec], compare: Sequence[str]) -> tuple[Curve, ...]:
    if len(specs) == 1:
        return (Curve(specs[0]),)
    if len(specs) > len(_LETTERS):
        raise UsageError(f"--compare: {len(specs)} schedules are more than can be told apart; {len(_LETTERS)} can")
    for index, spec in enumerate(specs):
        if spec in specs[:index]:
            raise UsageError(f'--compare "{compare[index - 1]}" is there twice')
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
