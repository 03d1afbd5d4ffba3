"""Texts of options as values, and the parameters that messages name as options."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

import click

from ckpttool.cli._wording import option_of
from ckpttool.errors import CkpttoolError, UsageError
from ckpttool.schedules.kinds import Kind, Value
from ckpttool.schedules.request import MissingParametersError
from ckpttool.text import render

__all__ = ["number", "option_names", "pairs", "worded_errors"]


def number(text: str) -> int | float:
    """A number, whole where it is written so; its range is checked where it is used."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)
    raise click.BadParameter(f"{text[:40]!r} is not a number.")


def pairs(option: str, text: str) -> dict[str, Value]:
    """``learning_rate=6,start_decay_steps=10000`` as a dictionary. ``scale`` is ``learning_rate``.

    Raises:
        UsageError: If an item is not NAME=VALUE; the message quotes it.
    """
    found: dict[str, Value] = {}
    for item in (part.strip() for part in text.split(",")):
        name, equals, value = (part.strip() for part in item.partition("="))
        name = name.replace("-", "_")
        name = "learning_rate" if name in {"scale", "lr"} else name
        if not (name and equals and value):
            raise UsageError(
                f"{option} {text!r}: {item!r} is not NAME=VALUE", hint=f'For example {option} "learning_rate=6".'
            )
        if name in found:
            raise UsageError(f"{option} {text!r}: {name} is there twice")
        found[name] = _value(value)
    return found


def _value(text: str) -> Value:
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)
    return text


def option_names(command: click.Command, params: Collection[str]) -> Callable[[str, str | None], str]:
    """What renders a parameter of the library as an option of the command.

    Args:
        command: The command; a parameter that is none of its options is one of the schedule's.
        params: Parameters that were given as ``--param NAME=VALUE``.
    """
    options = {option for each in command.params for option in each.opts}

    def name_of(name: str, value: str | None) -> str:
        if name in params or option_of(name) not in options:
            return f"--param {name}" if value is None else f"--param {name}={value}"
        return option_of(name, value)

    return name_of


@contextmanager
def worded_errors(name_of: Callable[[str, str | None], str]) -> Iterator[None]:
    """Errors of the library that name options, and say which command would do where a schedule lacks parameters."""
    try:
        yield
    except CkpttoolError as error:
        error.message = render(error.message, name_of)
        error.hint = render(error.hint, name_of) if error.hint else None
        if isinstance(error, MissingParametersError):
            error.hint = f"For example: {_example(error.kind, name_of)}"
        raise


def _example(kind: Kind, name_of: Callable[[str, str | None], str]) -> str:
    if kind.name == "noam":
        return "ckpttool lr-plot-table --learning-rate 2 --model-dim 512 --warmup-steps 8000"
    needed = " ".join(name_of(name, "N") for name in ("learning_rate", *kind.required))
    return f"ckpttool lr-plot-table --schedule {kind.name} {needed}"
