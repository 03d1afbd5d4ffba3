"""``ckpttool lr-plot-table``: parse, ask the library, show the rows, the picture or the answer."""

from __future__ import annotations

import sys
from typing import Any, TextIO

import click
from click.core import ParameterSource

from ckpttool.cli._options import diagnostics_options
from ckpttool.cli._output import Output, ascii_safe
from ckpttool.cli.lr_schedule.parsing import number, option_names, pairs, worded_errors
from ckpttool.errors import UsageError
from ckpttool.operations.learning_rates import LearningRates, check_reports, fit_learning_rates, learning_rates
from ckpttool.schedules.checks import MOST_STEPS
from ckpttool.schedules.kinds import find_kind
from ckpttool.schedules.table import FORMATS, Format, render
from ckpttool.text import parameter
from ckpttool.text import render as render_text

_QUESTIONS = {"framework": "--as", "compare_log": "--compare-log", "fit": "--fit"}

_OF_TABLES = ("dtype", "no_header", "plot", "width", "height", "log_x", "log_y", "force")
_UNUSED = {
    "framework": (*_OF_TABLES, "semantics"),
    "compare_log": (*_OF_TABLES, "steps"),
    "fit": (*_OF_TABLES, "steps", "max_step", "warmup_ratio"),
}
"""For each question the options that would have no effect on its answer."""

_SCHEDULE = (
    "learning_rate",
    "model_dim",
    "warmup_steps",
    "start_decay_steps",
    "decay_step_duration",
    "minimum_learning_rate",
)


@click.command(
    "lr-plot-table",
    short_help="Show a learning-rate schedule as a table and a picture.",
    epilog="""\b
Examples:
  ckpttool lr-plot-table --learning-rate 2 --model-dim 768 --warmup-steps 8000
  ckpttool lr-plot-table --config data.yml --steps 1:100000:1000 --format csv
  ckpttool lr-plot-table --config data.yml --compare "learning_rate=6" -o lr.svg
  ckpttool lr-plot-table --config data.yml --compare-log train.log
""",
)
@click.option(
    "--learning-rate",
    "--lr",
    "--scale",
    "learning_rate",
    type=number,
    metavar="N",
    help="Factor of the schedule (noam: its scale).",
)
@click.option("--model-dim", type=number, metavar="N", help="Size of the model's layers.")
@click.option("--warmup-steps", type=number, metavar="N", help="Updates until the peak.")
@click.option("--start-decay-steps", type=number, metavar="N", help="Updates before it begins.  [default: 0]")
@click.option("--decay-step-duration", type=number, metavar="N", help="Updates that make one step.  [default: 1]")
@click.option("--minimum-learning-rate", type=number, metavar="N", help="Floor of the whole curve.  [default: 0]")
@click.option(
    "--schedule",
    metavar="NAME",
    help="noam (default), rsqrt, inv-sqrt, cosine, rnmt+ as in OpenNMT-tf; inverse-sqrt as in fairseq and "
    "transformers; constant, constant-warmup, linear, cosine-warmup, cosine-restarts, cosine-min-lr, polynomial, "
    "hf-wsd as in transformers; one-cycle, warm-restarts, step, multi-step, exponential as in torch; wsd as in "
    "torchtitan.",
)
@click.option(
    "--param",
    "params",
    metavar="NAME=VALUE",
    multiple=True,
    help="Another parameter of the schedule, as in decay_params. Repeatable.",
)
@click.option(
    "--config",
    type=click.Path(),
    help="Read the schedule from an OpenNMT-tf YAML file; options win over it.",
)
@click.option("--auto-config", metavar="MODEL", help="Start from what --auto_config gives this model of OpenNMT-tf.")
@click.option(
    "--max-step",
    type=click.IntRange(1, MOST_STEPS),
    metavar="N",
    help="Updates of the whole training; the max_step of a --schedule that has one.  "
    "[default: from the schedule, 100000 or more]",
)
@click.option(
    "--warmup-ratio", type=number, metavar="R", help="Share of --max-step that is warm-up, instead of --warmup-steps."
)
@click.option(
    "--compare",
    metavar="NAME=VALUE,...",
    multiple=True,
    help="A second schedule that differs in these parameters, side by side. Repeatable.",
)
@click.option(
    "--steps",
    metavar="LIST",
    help="Rows: 1,2,100 or first:last:stride (the end is included where the stride meets it) or "
    "log:first:last:count or all, or the landmarks @peak @start @floor, joined by commas.  "
    "[default: 1, 2, 5, 10, ... and the landmarks]",
)
@click.option(
    "--semantics",
    type=click.Choice(["applied", "logged", "both"]),
    default="both",
    show_default=True,
    help='applied: the rate of update k. logged: what OpenNMT-tf\'s line "Step = k" shows, which is the rate of '
    "update k + 1.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float64", "float32"]),
    default="float64",
    show_default=True,
    help="float32 is what OpenNMT-tf computes in.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["auto", *FORMATS]),
    default=None,
    help="auto: a table on a terminal, TSV anywhere else. Numbers of csv, tsv, json and jsonl read back exactly.  "
    "[default: auto]",
)
@click.option("--no-header", is_flag=True, help="Leave out the names of the columns.")
@click.option("--plot/--no-plot", default=None, help="Draw the curve in the terminal.  [default: on a terminal]")
@click.option("--width", type=click.IntRange(30, 1000), metavar="N", help="Columns of the drawing.")
@click.option("--height", type=click.IntRange(4, 1000), default=14, show_default=True, metavar="N", help="Its lines.")
@click.option("--logx", "log_x", is_flag=True, help="Logarithmic steps in pictures.")
@click.option("--logy", "log_y", is_flag=True, help="Logarithmic rates in pictures.")
@click.option(
    "-o",
    "--output",
    "outputs",
    metavar="FILE",
    multiple=True,
    help="Write a picture (.svg, .png) or the table (.csv, .tsv, .json, .jsonl, .md, .txt) instead. Repeatable.",
)
@click.option("-f", "--force", is_flag=True, help="Overwrite the output.")
@click.option(
    "--as",
    "framework",
    metavar="FRAMEWORK",
    help="Print the options that give this curve elsewhere: fairseq, hf, marian, opennmt-py, ... or all.",
)
@click.option(
    "--compare-log",
    metavar="LOG",
    help="Say whether a training log agrees (exit code 4 if not): of OpenNMT, Eole, a trainer_state.json or a "
    "metrics.csv; - reads stdin.",
)
@click.option("--fit", metavar="LOG", help="Find learning_rate and warmup_steps of a Noam schedule from a log.")
@click.option(
    "--log-pattern",
    metavar="REGEX",
    help="How a line of another program's log looks: (?P<step>...) and (?P<lr>...).",
)
@diagnostics_options
def lr_plot_table(out: Output, **options: Any) -> None:
    """Show what the learning rate will be, step by step, as a table and as a picture.

    \b
    The Noam schedule with OpenNMT-tf's wrapper:
      step = max(step - start_decay_steps, 0) // decay_step_duration
      n = step + 1
      lr = learning_rate * model_dim^-0.5 * min(n^-0.5, n * warmup_steps^-1.5)
      lr = max(lr, minimum_learning_rate)
    """
    params = {name: value for text in options["params"] for name, value in pairs("--param", text).items()}
    context = click.get_current_context()
    name_of = option_names(context.command, params)
    with worded_errors(name_of):
        question = _question(context, options)
        check_reports(
            options["outputs"],
            force=options["force"],
            inputs=[options["config"]] if options["config"] else [],
        )
        if question == "fit":
            _fit(out, options, params)
            return
        rates = learning_rates(
            **{name: options[name] for name in _SCHEDULE},
            parameters=params,
            schedule=options["schedule"],
            config=options["config"],
            auto_config=options["auto_config"],
            max_step=options["max_step"],
            warmup_ratio=options["warmup_ratio"],
            compare=[pairs("--compare", text) for text in options["compare"]],
            steps=options["steps"],
            semantics=options["semantics"],
            dtype=options["dtype"],
        )
        for warning in rates.warnings:
            out.warn(render_text(warning, name_of))
        if question == "framework":
            from ckpttool.cli.lr_schedule.answers import show_translations

            show_translations(out, rates, options["framework"], as_json=_as_json(options))
        elif question == "compare_log":
            from ckpttool.cli.lr_schedule.answers import show_comparison

            found = rates.compare_log(options["compare_log"], log_pattern=options["log_pattern"])
            show_comparison(out, options["compare_log"], found, rates, as_json=_as_json(options))
        else:
            _show(out, rates, options)


def _as_json(options: dict[str, Any]) -> bool:
    return options["format_"] in ("json", "jsonl")


def _fit(out: Output, options: dict[str, Any], params: dict[str, Any]) -> None:
    from ckpttool.cli.lr_schedule.answers import show_fit

    if options["schedule"] is not None and find_kind(options["schedule"]).name != "noam":
        raise UsageError(f"--fit finds Noam schedules, not {find_kind(options['schedule']).name}")
    known = [name for name in _SCHEDULE if name not in ("learning_rate", "warmup_steps")]
    found = fit_learning_rates(
        options["fit"],
        **{name: options[name] for name in known},
        parameters=params,
        config=options["config"],
        auto_config=options["auto_config"],
        log_pattern=options["log_pattern"],
        semantics=options["semantics"],
    )
    show_fit(out, options["fit"], found, as_json=_as_json(options))


def _question(context: click.Context, options: dict[str, Any]) -> str | None:
    """The one question that is asked, None for the table; refuses what would have no effect on its answer."""
    asked = [name for name in _QUESTIONS if options[name] is not None]
    if len(asked) > 1:
        names = " and ".join(_QUESTIONS[name] for name in asked)
        raise UsageError(f"{names} are different questions", hint="Ask one at a time.")
    if options["log_pattern"] is not None and not {"compare_log", "fit"} & set(asked):
        raise UsageError("--log-pattern is for --compare-log and --fit", hint="Add one of them.")
    if options["auto_config"] == "":
        raise UsageError("--auto-config needs the name of a model", hint="For example --auto-config TransformerBase.")
    if not asked:
        return None
    question, name = asked[0], _QUESTIONS[asked[0]]
    if options["outputs"]:
        raise UsageError(f"-o writes tables and pictures, which {name} does not make", hint="Redirect its answer.")
    if options["compare"]:
        raise UsageError(f"--compare puts schedules side by side, which {name} does not", hint="Leave it out.")
    if options["format_"] in ("csv", "tsv", "markdown"):
        raise UsageError(
            f"--format {options['format_']} is for tables, and {name} prints an answer",
            hint="Leave it out, or take --format json.",
        )
    unused = [*_UNUSED[question]]
    if question == "framework" and options["warmup_ratio"] is None and "all" not in (options["steps"] or ""):
        unused.append("max_step")
    for each in unused:
        # What an environment variable sets is meant for all commands, not for this one.
        if context.get_parameter_source(each) == ParameterSource.COMMANDLINE:
            raise UsageError(f"{parameter(each)} has no effect on {name}", hint="Leave it out.")
    return question


def _show(out: Output, rates: LearningRates, options: dict[str, Any]) -> None:
    """The table and the picture, in files and on the terminal."""
    header = not options["no_header"]
    for path in options["outputs"]:
        rates.save(path, force=options["force"], header=header, log_x=options["log_x"], log_y=options["log_y"])
        out.say(f"Wrote {path}")
    wanted = options["format_"]
    if options["outputs"] and wanted is None:
        if options["plot"]:
            _draw(sys.stdout if sys.stdout.isatty() else sys.stderr, rates, options)
        return

    to_terminal = sys.stdout.isatty()
    format_: Format = ("table" if to_terminal else "tsv") if wanted in (None, "auto") else wanted
    # Above a table for people, else on stderr, so that data stays data.
    stream = sys.stdout if to_terminal and format_ == "table" else sys.stderr
    drawn = options["plot"]
    if drawn is None:
        drawn = stream.isatty() and not out.quiet and _has_picture(rates)
    if drawn:
        _draw(stream, rates, options)
    titled = not (drawn and stream is sys.stdout)
    width = None
    if to_terminal:
        from ckpttool.cli.lr_schedule.terminal import terminal_width

        width = terminal_width(sys.stdout)
    for piece in render(rates.table(titled=titled), format_, header=header, width=width):
        sys.stdout.write(ascii_safe(piece, sys.stdout.encoding))
    sys.stdout.flush()


def _has_picture(rates: LearningRates) -> bool:
    first, last = rates.pictured
    return last > max(first, 1)


def _draw(stream: TextIO, rates: LearningRates, options: dict[str, Any]) -> None:
    if not _has_picture(rates):
        raise UsageError("one step alone makes no picture", hint="Give --steps a range, or --no-plot.")
    from ckpttool.cli.lr_schedule.terminal import canvas_columns, draw, draws_braille, has_colour, terminal_width

    width = options["width"] or min(terminal_width(stream), 100)
    braille = draws_braille(stream)
    picture = rates.picture(canvas_columns(width, braille=braille), log_x=options["log_x"], log_y=options["log_y"])
    lines = draw(picture, width, options["height"], braille=braille, colour=has_colour(stream))
    stream.write("".join(ascii_safe(line, stream.encoding) + "\n" for line in [*lines, ""]))
    stream.flush()
