"""Options that several commands share, with their help.

Each decorator adds a group of options and hands them to the command as one frozen value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpttool.cli._output import Output

if TYPE_CHECKING:
    from ckpttool.operations.records import Selection
    from ckpttool.planning.request import Policy

__all__ = [
    "RunOptions",
    "checkpoints_argument",
    "config_option",
    "diagnostics_options",
    "policy_options",
    "run_options",
    "selection_options",
]

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


def _grouped(keyword: str, group: Callable[..., object], options: Mapping[str, Decorator]) -> Decorator:
    """A decorator that adds options and passes their values to the command as ``keyword=group(...)``.

    Args:
        keyword: Name of the command's parameter.
        group: What makes its value of those of the options.
        options: The options by the names of their values, in the order of the help.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_group(**kwargs: Any) -> Any:
            kwargs[keyword] = group(**{name: kwargs.pop(name) for name in options})
            return command(**kwargs)

        call: Command = with_group
        for option in reversed(tuple(options.values())):
            call = option(call)
        return call

    return decorate


diagnostics_options: Decorator = _grouped(
    "out",
    Output,
    {
        "quiet": click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors."),
        "verbose": click.option("-v", "--verbose", is_flag=True, help="Say more: why each choice was made."),
    },
)


class _CheckpointPath(click.Path):
    """A path that is not empty: an empty one is the current directory for `Path`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("a path is empty. Is a variable of the shell unset?", param, ctx)
        return super().convert(value, param, ctx)


checkpoints_argument: Decorator = click.argument(
    "checkpoints",
    nargs=-1,
    required=True,
    type=_CheckpointPath(path_type=Path, readable=False),  # what cannot be read has an exit code of its own
    metavar="CHECKPOINT...",
)


def _selection(**values: Any) -> Selection:
    from ckpttool.operations.records import Selection

    return Selection(**values)


selection_options: Decorator = _grouped(
    "selection",
    _selection,
    {
        "last": click.option(
            "--last", type=click.IntRange(min=1), metavar="N", help="The N newest checkpoints, by step."
        ),
        "every": click.option(
            "--every", type=click.IntRange(min=1), metavar="K", help="Each K-th, counted back from the newest."
        ),
        "from_step": click.option("--from-step", type=click.IntRange(min=0), metavar="S", help="None before step S."),
        "to_step": click.option("--to-step", type=click.IntRange(min=0), metavar="S", help="None after step S."),
        "include": click.option(
            "--include", multiple=True, metavar="GLOB", help="Only file names like this. Repeatable."
        ),
        "exclude": click.option(
            "--exclude", multiple=True, metavar="GLOB", help="No file names like this. Repeatable."
        ),
        "best": click.option("--best", type=click.IntRange(min=1), metavar="N", help="The N best by --metric."),
        "metric": click.option(
            "--metric", metavar="NAME", help="A metric that the run kept: valid_loss, metrics.bleu."
        ),
        "mode": click.option(
            "--mode", type=click.Choice(["min", "max"]), help="Whether a small or a large metric is good."
        ),
        "layout": click.option(
            "--layout", metavar="NAME", help="The framework whose files these are, if not recognised."
        ),
        "section": click.option(
            "--section", metavar="KEY.PATH", help="Where the weights are in a file, if not recognised."
        ),
    },
)


class _DType(click.Choice[str]):
    """Names of element types; their short names, such as bf16, are accepted as well."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from ckpttool.operations.records import DTYPE_ALIASES

        return super().convert(DTYPE_ALIASES.get(value, value), param, ctx)


def _size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    from ckpttool.operations.records import byte_count

    return byte_count(value)


def _policy(**values: Any) -> Policy:
    from ckpttool.planning.request import Policy

    return Policy(**values)


policy_options: Decorator = _grouped(
    "policy",
    _policy,
    {
        "dtype": click.option(
            "--dtype",
            type=_DType(["same", "float32", "bfloat16", "float16", "float64"]),
            default="same",
            show_default=True,
            help="Type of the averaged tensors in the output.",
        ),
        "keys": click.option(
            "--keys",
            type=click.Choice(["strict", "intersection", "newest"]),
            default="strict",
            show_default=True,
            help="Tensors that not all have: an error, left out, or as in the newest.",
        ),
        "integers": click.option(
            "--integers",
            type=click.Choice(["newest", "error"]),
            default="newest",
            show_default=True,
            help="Integer and bool tensors that differ: the newest's, or an error. They are never averaged.",
        ),
        "keep_state": click.option(
            "--keep-state", is_flag=True, help="Keep the newest's optimizer, scaler and scheduler state."
        ),
        "allow_nonfinite": click.option("--allow-nonfinite", is_flag=True, help="Let NaN and infinity pass."),
        "max_shard_size": click.option(
            "--max-shard-size",
            callback=_size,
            metavar="SIZE",
            help="Split a Hugging Face directory anew, e.g. 5GB.  [default: as the newest]",
        ),
        "force": click.option("-f", "--force", is_flag=True, help="Replace an existing output."),
    },
)


config_option: Decorator = click.option(
    "--config",
    type=click.Path(path_type=Path, readable=False),
    metavar="FILE",
    help="OpenNMT-tf's configuration: how many it averages, and whether they are averages.",
)


@dataclass(frozen=True)
class RunOptions:
    """How the work is done and reported."""

    dry_run: bool
    as_json: bool
    jobs: int | None


run_options: Decorator = _grouped(
    "run",
    RunOptions,
    {
        "dry_run": click.option(
            "-n", "--dry-run", is_flag=True, help="Print the plan; read no weights, write nothing."
        ),
        "as_json": click.option("--json", "as_json", is_flag=True, help="Print the plan or the result as JSON."),
        "jobs": click.option(
            "--jobs", type=click.IntRange(min=1), metavar="N", help="Threads.  [default: one a core, up to 4]"
        ),
    },
)
