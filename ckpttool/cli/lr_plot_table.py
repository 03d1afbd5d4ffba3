"""``ckpttool lr-plot-table``: parse, make the schedules, choose the rows, show them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TextIO

import click

from ckpttool.cli._lr_marks import caption, marked_rows
from ckpttool.cli._lr_request import Request, make_request, title
from ckpttool.cli._lr_rows import FORMATS, Format, Rows, render
from ckpttool.cli._options import diagnostics_options
from ckpttool.cli._output import Output, ascii_safe
from ckpttool.cli._plot import canvas_columns, draw, draws_braille, has_colour, terminal_width
from ckpttool.cli._saving import check_output, save, save_text
from ckpttool.errors import UsageError
from ckpttool.schedules.family import Dtype, Semantics
from ckpttool.schedules.picture import Picture, make_picture
from ckpttool.schedules.steps import MARKERS, StepSelection, parse_steps, salient_steps

_TABLES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".md": "markdown",
    ".txt": "table",
}
_PICTURES = (".svg", ".png")
_SHOWS: dict[str, tuple[Semantics, ...]] = {
    "applied": ("applied",),
    "logged": ("logged",),
    "both": ("applied", "logged"),
}


def _number(text: str) -> float:
    """A number, whole where it is written so; its range is checked where it is used."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)
    raise click.BadParameter(f"{text!r} is not a number.")


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
    "--scale",
    "learning_rate",
    type=_number,
    metavar="N",
    help="Factor of the schedule (noam: its scale).",
)
@click.option("--model-dim", type=_number, metavar="N", help="Size of the model's layers.")
@click.option("--warmup-steps", type=_number, metavar="N", help="Updates until the peak.")
@click.option("--start-decay-steps", type=_number, metavar="N", help="Updates before it begins.  [default: 0]")
@click.option("--decay-step-duration", type=_number, metavar="N", help="Updates that make one step.  [default: 1]")
@click.option("--minimum-learning-rate", type=_number, metavar="N", help="Floor of the whole curve.  [default: 0]")
@click.option(
    "--schedule",
    metavar="NAME",
    help="noam (default), rsqrt, inv-sqrt, cosine, rnmt+ as in OpenNMT-tf; inverse-sqrt as in fairseq and "
    "transformers; linear, cosine-warmup, wsd; constant.",
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
    type=click.Path(exists=True, dir_okay=False),
    help="Read the schedule from an OpenNMT-tf YAML file; options win over it.",
)
@click.option("--auto-config", metavar="MODEL", help="Start from what --auto_config gives this model of OpenNMT-tf.")
@click.option(
    "--max-step",
    type=click.IntRange(min=1),
    metavar="N",
    help="Updates of the whole training.  [default: from the schedule, 100000 or more]",
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
@click.option("--width", type=click.IntRange(min=30), metavar="N", help="Columns of the drawing.")
@click.option("--height", type=click.IntRange(min=4), default=14, show_default=True, metavar="N", help="Its lines.")
@click.option("--logx", is_flag=True, help="Logarithmic steps in pictures.")
@click.option("--logy", is_flag=True, help="Logarithmic rates in pictures.")
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
    "peer",
    metavar="FRAMEWORK",
    help="Print the options that give this curve elsewhere: fairseq, hf, marian, opennmt-py, ... or all.",
)
@click.option(
    "--compare-log", metavar="LOG", help="Say whether a training log agrees (exit code 4 if not); - reads stdin."
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
    as_json = options["format_"] in ("json", "jsonl")
    _check_questions(options)
    outputs = [(path, os.path.splitext(path)[1].lower()) for path in options["outputs"]]
    _check_outputs(outputs, options)
    request = _request(options)
    for warning in request.warnings:
        out.warn(warning)

    spec = request.base
    logged: Semantics = "applied" if options["semantics"] == "applied" else "logged"
    if options["peer"] is not None:
        from ckpttool.cli._lr_answers import show_peer

        show_peer(out, options["peer"], spec, as_json=as_json)
    elif options["compare_log"] is not None:
        from ckpttool.cli._lr_answers import compare_with_log

        compare_with_log(out, options["compare_log"], options["log_pattern"], spec, logged, as_json=as_json)
    elif options["fit"] is not None:
        from ckpttool.cli._lr_answers import fit_log

        has_dim = spec.values["model_dim"] != 1 or options["model_dim"] is not None
        fit_log(out, options["fit"], options["log_pattern"], spec, logged, has_dim=has_dim, as_json=as_json)
    else:
        _Table(request, options).show(out, outputs)


def _check_questions(options: dict[str, Any]) -> None:
    questions = {"--as": "peer", "--compare-log": "compare_log", "--fit": "fit"}
    asked = [name for name, option in questions.items() if options[option] is not None]
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(asked)} are different questions", hint="Ask one at a time.")
    if asked and options["outputs"]:
        raise UsageError(f"-o writes tables and pictures, which {asked[0]} does not make", hint="Redirect its answer.")
    if asked and options["compare"]:
        raise UsageError(f"--compare puts schedules side by side, which {asked[0]} does not", hint="Leave it out.")
    if options["log_pattern"] is not None and not {"--compare-log", "--fit"} & set(asked):
        raise UsageError("--log-pattern is for --compare-log and --fit", hint="Add one of them.")
    if options["auto_config"] == "":
        raise UsageError("--auto-config needs the name of a model", hint="For example --auto-config TransformerBase.")


def _check_outputs(outputs: Sequence[tuple[str, str]], options: dict[str, Any]) -> None:
    inputs = [path for path in (options["config"],) if path]
    for path, extension in outputs:
        if extension not in (*_TABLES, *_PICTURES):
            raise UsageError(
                f"-o {path}: what to write is told by the extension, and {extension or 'none'} is not known",
                hint=f"Known are {', '.join((*_PICTURES, *_TABLES))}.",
            )
        if options["outputs"].count(path) > 1:
            raise UsageError(f"-o {path} is there twice", hint="Name another file.")
        check_output(path, force=options["force"], inputs=inputs)
        if extension in _PICTURES:
            from ckpttool.schedules.figures import check_matplotlib

            check_matplotlib()


def _request(options: dict[str, Any]) -> Request:
    names = (
        "learning_rate",
        "model_dim",
        "warmup_steps",
        "start_decay_steps",
        "decay_step_duration",
        "minimum_learning_rate",
    )
    # What --fit looks for need not be given.
    defaults = {"learning_rate": 1.0, "model_dim": 1, "warmup_steps": 1} if options["fit"] is not None else None
    request = make_request(
        {name: options[name] for name in names},
        params=options["params"],
        compare=options["compare"],
        schedule=options["schedule"],
        config=options["config"],
        auto_config=options["auto_config"],
        max_step=options["max_step"],
        defaults=defaults,
    )
    if options["fit"] is not None and request.base.kind.name != "noam":
        raise UsageError(f"--fit finds Noam schedules, not {request.base.kind.name}")
    return request


@dataclass(frozen=True)
class _Chosen:
    """The rows that were chosen.

    Attributes:
        selection: What ``--steps`` says, or the salient steps.
        marked: The rows of the landmarks that it asks for.
        notes: Row -> what happens there.
    """

    selection: StepSelection
    marked: tuple[int, ...]
    notes: Mapping[int, str]


def _choose(request: Request, semantics: Sequence[Semantics], text: str | None) -> _Chosen:
    if text is None:
        notes = marked_rows(request.curves, semantics, MARKERS, undelayed=False)
        return _Chosen(salient_steps(request.last_step, notes), (), notes)
    selection = parse_steps(text)
    why = {
        "@floor": ("the schedule never meets its floor", "Give --minimum-learning-rate, or leave @floor out."),
        "@peak": ("the floor hides it", "Leave @peak out."),
    }
    for marker, (reason, hint) in why.items():
        if marker in selection.markers and not marked_rows(request.curves, semantics, [marker]):
            raise UsageError(f"--steps: {marker!r} marks no row: {reason}", hint=hint)
    notes = marked_rows(request.curves, semantics, selection.markers)
    # An undelayed schedule starts before there is a row for it: "Step = 0" is never logged.
    marked = tuple(step for step in notes if step > 0 or semantics == ("logged",))
    if semantics == ("applied",) and selection.first(marked) == 0:
        raise UsageError(
            "--steps: there is no update 0: updates are counted from 1",
            hint="Begin at 1, or show --semantics logged, which begins at 0.",
        )
    return _Chosen(selection, marked, notes)


class _Table:
    """The rows and the picture of a request, to be shown in one or more places."""

    def __init__(self, request: Request, options: dict[str, Any]) -> None:
        self.request = request
        self.options = options
        self.semantics = _SHOWS[options["semantics"]]
        self.dtype: Dtype = options["dtype"]
        self.chosen = _choose(request, self.semantics, options["steps"])
        self.first = self.chosen.selection.first(self.chosen.marked)
        self.last = self.chosen.selection.last(request.last_step, self.chosen.marked)

    def rows(self, *, titled: bool = True) -> Rows:
        curves, chosen = self.request.curves, self.chosen
        steps = chosen.selection.iterate(self.request.last_step, chosen.marked)
        lines = caption(curves, self.semantics, titled=titled)
        return Rows(curves, self.semantics, self.dtype, steps, self.last, chosen.notes, lines)

    def picture(self, columns: int) -> Picture:
        return make_picture(
            [(curve.letter, curve.label, curve.spec) for curve in self.request.curves],
            title=title(self.request.curves),
            shows="logged" if self.semantics == ("logged",) else "applied",
            first=self.first,
            last=self.last,
            columns=columns,
            dtype=self.dtype,
            log_x=self.options["logx"],
            log_y=self.options["logy"],
        )

    def show(self, out: Output, outputs: Sequence[tuple[str, str]]) -> None:
        header = not self.options["no_header"]
        for path, extension in outputs:
            if extension in _TABLES:
                save_text(path, render(self.rows(), _TABLES[extension], header=header))
            else:
                self._save_picture(path, extension)
            out.say(f"Wrote {path}")
        wanted = self.options["format_"]
        if outputs and wanted is None:
            if self.options["plot"]:
                self._draw(sys.stdout if sys.stdout.isatty() else sys.stderr)
            return

        to_terminal = sys.stdout.isatty()
        format_: Format = ("table" if to_terminal else "tsv") if wanted in (None, "auto") else wanted
        # Above a table for people, else on stderr, so that data stays data.
        stream = sys.stdout if to_terminal and format_ == "table" else sys.stderr
        drawn = self.options["plot"]
        if drawn is None:
            drawn = stream.isatty() and not out.quiet and self.last > max(self.first, 1)
        if drawn:
            self._draw(stream)
        titled = not (drawn and stream is sys.stdout)
        width = terminal_width(sys.stdout) if to_terminal else None
        for piece in render(self.rows(titled=titled), format_, header=header, width=width):
            sys.stdout.write(ascii_safe(piece, sys.stdout.encoding))
        sys.stdout.flush()

    def _save_picture(self, path: str, extension: str) -> None:
        from ckpttool.schedules.figures import COLUMNS, save_figure

        picture = self.picture(COLUMNS)
        save(path, lambda file: save_figure(picture, file, "svg" if extension == ".svg" else "png"))

    def _draw(self, stream: TextIO) -> None:
        width = self.options["width"] or min(terminal_width(stream), 100)
        braille = draws_braille(stream)
        picture = self.picture(canvas_columns(width, braille=braille))
        lines = draw(picture, width, self.options["height"], braille=braille, colour=has_colour(stream))
        stream.write("".join(ascii_safe(line, stream.encoding) + "\n" for line in [*lines, ""]))
        stream.flush()
