"""The command line: one group, one module for each command, and one place where errors become exit codes.

Nothing heavy is imported here or at the top of a command's module, and of the commands only the one that runs, so that
help and completion answer at once.

average          ``ckpttool average``
ema_apply        ``ckpttool ema-apply``
lr_schedule      ``ckpttool lr-plot-table``
_options         options that several commands share
_planned         prints a plan, or executes it
_report          plans and results as tables and as JSON
_average_facts   what ``average`` reports about a plan, as tables and as JSON
_ema_facts       the same of ``ema-apply``
_listing         the output of ``ema-apply --list``
_show            the output of ``--show``
_output          stdout and stderr, on a terminal and elsewhere
_signals         SIGTERM and SIGHUP
_streams         standard streams that are closed or full
_wording         parameters of the library as options
"""

from __future__ import annotations

import gc
import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from ckpttool._version import __version__
from ckpttool.cli._signals import exiting_on_signals
from ckpttool.cli._streams import sound_streams
from ckpttool.cli._wording import spoken
from ckpttool.errors import CkpttoolError, NotFoundError
from ckpttool.text import printable

__all__ = ["COMMANDS", "group", "main"]

INTERRUPTED = 130
BROKEN_PIPE = 128 + 13

_EPILOG = """\b
Exit codes: 0 done, 1 unexpected, 2 usage, 3 nothing found or too few
checkpoints, 4 checkpoints do not match or hold NaN, 5 output exists or is an
input, 6 unreadable file, 7 could not write, 130 interrupted.
"""


_VERBOSE = "ckpttool.verbose"


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    click.echo(f"ckpttool {__version__}")
    if context.meta.get(_VERBOSE):
        import platform

        import numpy as np

        from ckpttool.engine import kernels

        click.echo(f"kernel: {kernels.active().name}")
        click.echo(f"numpy {np.__version__}, Python {platform.python_version()}, {platform.machine()}")
    context.exit()


def _verbose(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    context.meta[_VERBOSE] = value


class _ReaderLeftError(Exception):
    """The reader of a pipe has seen enough (``| head``)."""


COMMANDS = {
    "average": ("ckpttool.cli.average:average", "Average the last checkpoints of a run."),
    "ema-apply": ("ckpttool.cli.ema_apply:ema_apply", "Put the moving average of the weights in their place."),
    "lr-plot-table": (
        "ckpttool.cli.lr_schedule.command:lr_plot_table",
        "Show a learning-rate schedule as a table and a picture.",
    ),
}
"""Each command's module and function, and its line in the group's help. Only the command that runs is imported."""


def _variable(command: str, option: click.Option) -> str | None:
    """The environment variable of an option: named by what is typed, and not by the parameter that it becomes."""
    long = next((name for name in option.opts if name.startswith("--")), None)
    return None if long is None else re.sub(r"\W", "_", f"CKPTTOOL_{command}_{long[2:]}").upper()


class _Group(click.Group):
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), function)
        for option in command.params:
            if isinstance(option, click.Option) and option.envvar is None and option.allow_from_autoenv:
                option.envvar = _variable(cmd_name, option)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderLeftError from error  # click itself would make exit code 1 of it, "unexpected"


@click.group(
    cls=_Group,
    commands=[
        click.Command(name, short_help=line) for name, (_, line) in COMMANDS.items()
    ],  # stand-ins, for their names
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "CKPTTOOL",
        "max_content_width": 100,
    },
    epilog=_EPILOG,
)
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    is_eager=True,  # before --version, wherever it is given
    expose_value=False,
    allow_from_autoenv=False,
    callback=_verbose,
    help="With --version: what it computes with, too.",
)
@click.option("--version", is_flag=True, expose_value=False, callback=_version, help="Show the version and exit.")
def group() -> None:
    """Average checkpoints, apply moving averages, and see learning-rate schedules.

    No model is loaded and nothing from a file is executed: checkpoints of any framework are read as bytes.
    Every option can be set by an environment variable: --last of average by CKPTTOOL_AVERAGE_LAST.

    \b
    Example:
      ckpttool average runs/a --last 5 -o averaged.safetensors
    """


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code that the outcome has."""
    # Of a hundred thousand tensors there are millions of records, which all live to the end: looking for cycles among
    # them again and again took two fifths of the time, and found none.
    gc.disable()
    sys.exit(_run(args))


def _run(args: Sequence[str] | None) -> int:
    with sound_streams():
        try:
            with exiting_on_signals():
                outcome = group.main(args=args, prog_name="ckpttool", standalone_mode=False)
                sys.stdout.flush()
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except (click.Abort, KeyboardInterrupt):
            click.echo("Interrupted: nothing was written.", err=True)
            return INTERRUPTED
        except (_ReaderLeftError, BrokenPipeError):
            return BROKEN_PIPE
        except CkpttoolError as error:
            if os.environ.get("CKPTTOOL_DEBUG"):
                traceback.print_exc()
            _print_error(error)
            return error.exit_code
        except FileNotFoundError:
            if _has_working_directory():
                raise
            _print_error(NotFoundError("the current directory was removed", hint="Change to another one."))
            return NotFoundError.exit_code
        return outcome if isinstance(outcome, int) else 0


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _print_error(error: CkpttoolError) -> None:
    from ckpttool.cli._output import ascii_safe

    for word, text in (("Error", error.message), ("Hint", error.hint)):
        if text:
            click.echo(
                f"{word}: {ascii_safe(printable(spoken(text)), getattr(sys.stderr, 'encoding', None))}", err=True
            )
