"""Options that several commands share, with their help beside them.

Each decorator adds a group of options and hands them to the command as one frozen value.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from ckpttool.cli._output import Output

if TYPE_CHECKING:
    from ckpttool.planning.request import IntegerPolicy, KeyPolicy, OutputDType

__all__ = [
    "PolicyOptions",
    "RunOptions",
    "SelectionOptions",
    "checkpoints_argument",
    "conversation_options",
    "policy_options",
    "run_options",
    "selection_options",
]

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]
Group = TypeVar("Group")


def _grouped(keyword: str, group: Callable[..., Group], names: list[str], options: list[Decorator]) -> Decorator:
    """A decorator that adds options and passes their values to the command as ``keyword=group(...)``."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_group(**kwargs: Any) -> Any:
            kwargs[keyword] = group(**{name: kwargs.pop(name) for name in names})
            return command(**kwargs)

        call: Command = with_group
        for option in reversed(options):
            call = option(call)
        return call

    return decorate


def _names(group: type) -> list[str]:
    return [field.name for field in fields(group)]


conversation_options: Decorator = _grouped(
    "out",
    Output,
    ["quiet", "verbose"],
    [
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors."),
        click.option("-v", "--verbose", is_flag=True, help="Say more: why each choice was made."),
    ],
)

checkpoints_argument: Decorator = click.argument(
    "checkpoints",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT...",
)


@dataclass(frozen=True)
class SelectionOptions:
    """Which checkpoints of a model directory take part."""

    last: int | None
    every: int | None
    from_step: int | None
    to_step: int | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    best: int | None
    metric: str | None
    mode: Literal["min", "max"] | None
    layout: str | None
    section: str | None


selection_options: Decorator = _grouped(
    "selection",
    SelectionOptions,
    _names(SelectionOptions),
    [
        click.option("--last", type=click.IntRange(min=1), metavar="N", help="The N newest checkpoints, by step."),
        click.option(
            "--every", type=click.IntRange(min=1), metavar="K", help="Each K-th, counted back from the newest."
        ),
        click.option("--from-step", type=click.IntRange(min=0), metavar="S", help="None before step S."),
        click.option("--to-step", type=click.IntRange(min=0), metavar="S", help="None after step S."),
        click.option("--include", multiple=True, metavar="GLOB", help="Only file names like this. Repeatable."),
        click.option("--exclude", multiple=True, metavar="GLOB", help="No file names like this. Repeatable."),
        click.option("--best", type=click.IntRange(min=1), metavar="N", help="The N best by --metric."),
        click.option("--metric", metavar="NAME", help="A metric that the run kept: valid_loss, metrics.bleu."),
        click.option("--mode", type=click.Choice(["min", "max"]), help="Whether a small or a large metric is good."),
        click.option("--layout", metavar="NAME", help="The framework whose files these are, if not recognised."),
        click.option("--section", metavar="KEY.PATH", help="Where the weights are in a file, if not recognised."),
    ],
)


@dataclass(frozen=True)
class PolicyOptions:
    """What to do where checkpoints differ, and what the output keeps."""

    dtype: OutputDType
    keys: KeyPolicy
    integers: IntegerPolicy
    keep_state: bool
    allow_nonfinite: bool
    max_shard_size: int | None


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A number of bytes. Units are decimal, as everywhere in Hugging Face's libraries; with an i, binary."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i)?B?", value, re.IGNORECASE)
    if match is None or (match[3] and not match[2]):
        raise click.BadParameter(f"{value!r} is not a size such as 5GB or 500MB", ctx, param)
    unit = 1 << (10 * "KMGT".index(match[2].upper()) + 10) if match[3] else _UNITS[match[2].upper()]
    size = int(Fraction(match[1]) * unit)
    if size < 1:
        raise click.BadParameter(f"{value!r}: must be at least one byte", ctx, param)
    return size


policy_options: Decorator = _grouped(
    "policy",
    PolicyOptions,
    _names(PolicyOptions),
    [
        click.option(
            "--dtype",
            type=click.Choice(["same", "float32", "bfloat16", "float16", "float64"]),
            default="same",
            show_default=True,
            help="Type of the averaged tensors in the output.",
        ),
        click.option(
            "--keys",
            type=click.Choice(["strict", "intersection", "newest"]),
            default="strict",
            show_default=True,
            help="Tensors that not all have: an error, left out, or as in the newest.",
        ),
        click.option(
            "--integers",
            type=click.Choice(["newest", "error"]),
            default="newest",
            show_default=True,
            help="Integer and bool tensors that differ: the newest's, or an error. They are never averaged.",
        ),
        click.option("--keep-state", is_flag=True, help="Keep the newest's optimizer, scaler and scheduler state."),
        click.option("--allow-nonfinite", is_flag=True, help="Let NaN and infinity pass."),
        click.option(
            "--max-shard-size",
            callback=_size,
            metavar="SIZE",
            help="Split a Hugging Face directory anew, e.g. 5GB.  [default: as the newest]",
        ),
    ],
)


@dataclass(frozen=True)
class RunOptions:
    """Where the output goes, and how the work is done and reported."""

    force: bool
    dry_run: bool
    as_json: bool
    jobs: int | None


run_options: Decorator = _grouped(
    "run",
    RunOptions,
    _names(RunOptions),
    [
        click.option("-f", "--force", is_flag=True, help="Replace an existing output."),
        click.option("-n", "--dry-run", is_flag=True, help="Print the plan; read no weights, write nothing."),
        click.option("--json", "as_json", is_flag=True, help="Print the plan or the result as JSON."),
        click.option(
            "--jobs", type=click.IntRange(min=1), metavar="N", help="Threads.  [default: one a core, up to 4]"
        ),
    ],
)
