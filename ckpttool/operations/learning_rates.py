"""Learning rates of schedules: rows, landmarks, tables and pictures, training logs, other frameworks' options."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ckpttool.errors import UsageError
from ckpttool.operations.report_files import check_report, save_report, text_writer
from ckpttool.schedules.family import Dtype, ScheduleSpec, Semantics
from ckpttool.schedules.kinds import Value, Values
from ckpttool.schedules.landmarks import Landmark, landmarks
from ckpttool.schedules.marks import ChosenRows, caption, choose_rows, marked_rows
from ckpttool.schedules.picture import Picture, make_picture
from ckpttool.schedules.request import Curve, Request, make_request, title
from ckpttool.schedules.table import SUFFIXES, Rows, render
from ckpttool.text import parameter

if TYPE_CHECKING:
    from ckpttool.schedules.log_match import Fit, Verdict
    from ckpttool.schedules.train_log import TrainLog
    from ckpttool.schedules.translation import Translation

__all__ = [
    "PICTURES",
    "FittedSchedule",
    "LearningRates",
    "LogComparison",
    "RateRow",
    "Shown",
    "check_reports",
    "fit_learning_rates",
    "learning_rates",
]

Shown = Literal["applied", "logged", "both"]
"""applied: the rate of update k; logged: what OpenNMT-tf's line "Step = k" shows, which is the rate of update k + 1."""

_SHOWN: Mapping[str, tuple[Semantics, ...]] = {
    "applied": ("applied",),
    "logged": ("logged",),
    "both": ("applied", "logged"),
}

PICTURES: Mapping[str, Literal["svg", "png"]] = {".svg": "svg", ".png": "png"}
"""Suffix of a picture's file -> its format."""

_FIT_DEFAULTS: Values = {"learning_rate": 1.0, "model_dim": 1, "warmup_steps": 1}


@dataclass(frozen=True, slots=True)
class RateRow:
    """A row of the table.

    Attributes:
        step: The number k of the row: update k, or the log line "Step = k".
        rates: Column (`LearningRates.columns`) -> rate; None where there is none: no update has the number 0.
        note: What happens there: the landmarks of the schedules.
    """

    step: int
    rates: Mapping[str, float | None]
    note: str = ""

    @property
    def applied(self) -> float | None:
        """The rate that update k is applied with, of the first schedule; None without such a column."""
        return self._first("applied")

    @property
    def logged(self) -> float | None:
        """The rate that OpenNMT-tf logs as "Step = k", of the first schedule; None without such a column."""
        return self._first("logged")

    def _first(self, semantics: Semantics) -> float | None:
        return next((rate for name, rate in self.rates.items() if name.split(":")[0] == semantics), None)


@dataclass(frozen=True, repr=False)
class LogComparison:
    """Whether a training log agrees with a schedule.

    Attributes:
        log: The log.
        semantics: What its steps are taken to show.
        verdict: The answer.
    """

    log: TrainLog
    semantics: Semantics
    verdict: Verdict

    def __repr__(self) -> str:
        return f"<LogComparison {self.log.path}: {self.verdict.outcome}, {self.verdict.differing} lines differ>"


@dataclass(frozen=True, repr=False)
class FittedSchedule:
    """The Noam schedules that explain a training log.

    Attributes:
        log: The log.
        semantics: What its steps are taken to show.
        fit: The parameters, with their bounds.
        has_model_dim: Whether the size of the model was given. If not, ``learning_rate`` is the quotient
            ``learning_rate / sqrt(model_dim)``, which is all that a curve shows.
        floor: ``minimum_learning_rate``; lines at the floor take no part.
        better: The semantics with which a schedule explains the whole log, where this one does not; None if neither.
    """

    log: TrainLog
    semantics: Semantics
    fit: Fit
    has_model_dim: bool
    floor: float
    better: Semantics | None = None

    def __repr__(self) -> str:
        quotient = "" if self.has_model_dim else " / sqrt(model_dim)"
        found = f"learning_rate{quotient}={self.fit.scale}, warmup_steps={self.fit.warmup_steps}"
        return f"<FittedSchedule {self.log.path}: {found}, {self.fit.differing} lines differ>"


@dataclass(frozen=True, repr=False)
class LearningRates:
    """The learning rates of one schedule or more, row by row. Rows are computed while they are iterated over.

    Attributes:
        request: The schedules.
        semantics: The columns of each schedule, one or both.
        dtype: In which the rates are computed.
        chosen: The rows.
        inputs: The files that they come from.
    """

    request: Request
    semantics: tuple[Semantics, ...]
    dtype: Dtype
    chosen: ChosenRows
    inputs: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<LearningRates {title(self.curves)}: steps {self.first} to {self.last}>"

    def __iter__(self) -> Iterator[RateRow]:
        names = self.columns
        for step, rates in self.table().numbers():
            yield RateRow(step, dict(zip(names, rates, strict=True)), self.chosen.notes.get(step, ""))

    @property
    def curves(self) -> tuple[Curve, ...]:
        """The schedules, with a letter and a label each if there are more than one."""
        return self.request.curves

    @property
    def schedule(self) -> ScheduleSpec:
        """The first schedule."""
        return self.request.base

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may surprise."""
        return self.request.warnings

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of rates: ``applied`` and ``logged``, with ``:`` and the label if there are more schedules."""
        return tuple(self.table().columns()[1:])

    @property
    def first(self) -> int:
        """The first row."""
        return self.chosen.selection.first(self.chosen.marked)

    @property
    def last(self) -> int:
        """The last row."""
        return self.chosen.selection.last(self.request.last_step, self.chosen.marked)

    def landmarks(self, curve: int = 0) -> list[Landmark]:
        """Where a schedule turns: its start, its peak, where it leaves its floor and comes back.

        Args:
            curve: The index of the schedule, 0 for the first.
        """
        return landmarks(self.curves[curve].spec)

    def table(self, *, titled: bool = True) -> Rows:
        """The rows as a table that can be rendered.

        Args:
            titled: With the parameters above it.
        """
        steps = self.chosen.selection.iterate(self.request.last_step, self.chosen.marked)
        lines = caption(self.curves, self.semantics, titled=titled)
        return Rows(self.curves, self.semantics, self.dtype, steps, self.last, self.chosen.notes, lines)

    @property
    def pictured(self) -> tuple[int, int]:
        """The first and the last step of a picture: of the rows; of the training where only landmarks are asked for."""
        if self.chosen.only_landmarks:
            return (0 if self.semantics == ("logged",) else 1), max(self.request.last_step, self.last)
        return self.first, self.last

    def picture(self, columns: int, *, log_x: bool = False, log_y: bool = False) -> Picture:
        """The curves as points, from the first row to the last. Of landmarks alone, the whole curves with these marked.

        Args:
            columns: How many columns of points the picture has.
            log_x: Space the steps by their logarithm.
            log_y: Space the rates by their logarithm.

        Raises:
            UsageError: If there is one row only, or `log_y` with no rate above 0.
        """
        shows: Semantics = "logged" if self.semantics == ("logged",) else "applied"
        first, last = self.pictured
        markers = self.chosen.selection.markers if self.chosen.only_landmarks else ()
        return make_picture(
            [(curve.letter, curve.label, curve.spec) for curve in self.curves],
            title=title(self.curves),
            shows=shows,
            first=first,
            last=last,
            columns=columns,
            dtype=self.dtype,
            log_x=log_x,
            log_y=log_y,
            marked=[marked_rows([replace(curve, letter="")], [shows], markers) for curve in self.curves],
        )

    def save(
        self,
        output: str | Path,
        *,
        force: bool = False,
        header: bool = True,
        log_x: bool = False,
        log_y: bool = False,
    ) -> None:
        """Write a picture or the table into a file: whole or not at all.

        Args:
            output: The file. Its suffix says what is written: .svg or .png (which need matplotlib); .csv, .tsv, .json,
                .jsonl, .md or .txt. A missing directory is made.
            force: Overwrite an existing file.
            header: Name the columns of a table.
            log_x: Space the steps of a picture by their logarithm.
            log_y: Space its rates by their logarithm.

        Raises:
            OutputExistsError: If the file exists and `force` is false, or is the configuration.
            UsageError: If the suffix is not known, the file is a directory, or matplotlib is missing.
            WriteError: If the disk does not take it.
        """
        path = str(output)
        suffix = _checked_suffix(path, force=force, inputs=self.inputs)
        if suffix in SUFFIXES:
            save_report(path, text_writer(render(self.table(), SUFFIXES[suffix], header=header)))
            return
        from ckpttool.schedules.figures import COLUMNS, save_figure

        picture = self.picture(COLUMNS, log_x=log_x, log_y=log_y)
        save_report(path, lambda file: save_figure(picture, file, PICTURES[suffix]))

    def compare_log(self, log: str | Path, *, log_pattern: str | None = None) -> LogComparison:
        """Say whether a training log agrees with the first schedule.

        What its steps show is what `semantics` says; for both, what the program is known to write.

        Args:
            log: The file; ``-`` is standard input.
            log_pattern: A regular expression for its lines, with the groups ``step`` and ``lr``, or two groups.

        Raises:
            UnreadableError: If the log cannot be read or has no learning rates.
            UsageError: If the pattern is not one.
        """
        from ckpttool.schedules.log_match import compare_log

        read = _read(log, log_pattern)
        semantics = self.semantics[0] if len(self.semantics) == 1 else read.semantics
        return LogComparison(read, semantics, compare_log(read.records, self.schedule, semantics))

    def translate(self, framework: str) -> Translation:
        """The options of another framework that give the first schedule, and the rates that they give at the rows.

        Args:
            framework: Its name: fairseq, hf, marian, opennmt-py, ...

        Raises:
            UsageError: If the framework is unknown, or the schedule is not Noam's with a warm-up.
        """
        from ckpttool.schedules.translation import translate

        return translate(self.schedule, framework, self._updates())

    def translations(self) -> tuple[Translation, ...]:
        """`translate` for every framework that is known."""
        from ckpttool.schedules.translation import translate_to_all

        return translate_to_all(self.schedule, self._updates())

    def _updates(self) -> list[int] | None:
        if self.chosen.by_default:
            return None
        steps = self.chosen.selection.iterate(self.request.last_step, self.chosen.marked)
        return [step for step in steps if step > 0]


def learning_rates(
    learning_rate: float | None = None,
    model_dim: int | None = None,
    warmup_steps: int | None = None,
    *,
    start_decay_steps: int | None = None,
    decay_step_duration: int | None = None,
    minimum_learning_rate: float | None = None,
    schedule: str | None = None,
    parameters: Mapping[str, Value] | None = None,
    config: str | Path | None = None,
    auto_config: str | None = None,
    max_step: int | None = None,
    warmup_ratio: float | None = None,
    compare: Sequence[Mapping[str, Value]] = (),
    steps: str | Iterable[int] | None = None,
    semantics: Shown = "both",
    dtype: Dtype = "float64",
) -> LearningRates:
    """The learning rates of a schedule, as ``ckpttool lr-plot-table`` shows them.

    >>> rates = learning_rates(2, 512, 8000, steps="1,8000")
    >>> rates
    <LearningRates noam: learning_rate=2, model_dim=512, warmup_steps=8000: steps 1 to 8000>
    >>> [f"{row.applied:.3e}" for row in rates]
    ['1.235e-07', '9.882e-04']

    Args:
        learning_rate: Factor of the schedule, above 0 (Noam: its scale).
        model_dim: Size of the model's layers.
        warmup_steps: Updates until the peak.
        start_decay_steps: Updates before the schedule begins. Default 0.
        decay_step_duration: Updates that make one step of the schedule. Default 1.
        minimum_learning_rate: Lower bound of the whole curve. Default 0.
        schedule: Name of the schedule (`ckpttool.schedules.family.KINDS`). Default: Noam's, or the configuration's.
        parameters: Further parameters of the schedule by name.
        config: A YAML file in OpenNMT-tf's format to read the schedule from. The parameters given win over it.
        auto_config: The model whose ``--auto_config`` of OpenNMT-tf is the default of what nothing else says.
        max_step: Updates of the whole training. A schedule that is given by name takes it for its parameter
            ``max_step``. Default: from the schedule, 100,000 or more.
        warmup_ratio: Share of `max_step` that is warm-up, from 0 to below 1, instead of `warmup_steps`; the number of
            updates is rounded up, as transformers does.
        compare: Further schedules, each by what differs from the first: ``{"learning_rate": 6}``.
        steps: The rows: numbers, or a text such as ``1,2,100``, ``first:last:stride``, ``log:first:last:count``,
            ``all`` and the landmarks ``@peak``, ``@start``, ``@floor``, joined by commas. Default: 1, 2, 5, 10, ... and
            the landmarks.
        semantics: The columns of each schedule.
        dtype: In which the rates are computed; float32 is what OpenNMT-tf computes in.

    Returns:
        The rows, to be iterated over, saved, drawn, or compared with a log.

    Raises:
        UsageError: If a parameter makes no sense.
        UnreadableError: If the configuration cannot be read or does not make sense.
    """
    if semantics not in _SHOWN:
        raise UsageError(f"{parameter('semantics')} must be one of {', '.join(_SHOWN)}, not {semantics!r}")
    if dtype not in ("float64", "float32"):
        raise UsageError(f"{parameter('dtype')} must be float64 or float32, not {dtype!r}")
    given: dict[str, Value] = {
        "learning_rate": learning_rate,
        "model_dim": model_dim,
        "warmup_steps": warmup_steps,
        "start_decay_steps": start_decay_steps,
        "decay_step_duration": decay_step_duration,
        "minimum_learning_rate": minimum_learning_rate,
        **(parameters or {}),
    }
    request = make_request(
        given,
        compare=compare,
        schedule=schedule,
        config=None if config is None else str(config),
        auto_config=auto_config,
        max_step=max_step,
        warmup_ratio=warmup_ratio,
    )
    shown = _SHOWN[semantics]
    inputs = () if config is None else (str(config),)
    return LearningRates(request, shown, dtype, choose_rows(request, shown, steps), inputs)


def fit_learning_rates(
    log: str | Path,
    model_dim: int | None = None,
    *,
    start_decay_steps: int | None = None,
    decay_step_duration: int | None = None,
    minimum_learning_rate: float | None = None,
    config: str | Path | None = None,
    auto_config: str | None = None,
    parameters: Mapping[str, Value] | None = None,
    log_pattern: str | None = None,
    semantics: Shown = "both",
) -> FittedSchedule:
    """Find ``learning_rate`` and ``warmup_steps`` of a Noam schedule from a training log.

    Args:
        log: The file; ``-`` is standard input.
        model_dim: Size of the model's layers. None: the quotient ``learning_rate / sqrt(model_dim)`` is found.
        start_decay_steps: As the training had it.
        decay_step_duration: As the training had it.
        minimum_learning_rate: As the training had it.
        config: A YAML file in OpenNMT-tf's format that has these.
        auto_config: A model of OpenNMT-tf whose ``--auto_config`` has these.
        parameters: Further parameters by name.
        log_pattern: A regular expression for the log's lines, with the groups ``step`` and ``lr``, or two groups.
        semantics: What its steps show; ``both``: what the program is known to write, or, where no schedule explains
            the log so, the other one.

    Returns:
        The parameters with their bounds. Its `fit` says how many lines of the log they do not
        explain.

    Raises:
        UnreadableError: If the log or the configuration cannot be read.
        UsageError: If the configuration has another schedule, a parameter makes no sense, or no line is above the
            floor.
    """
    from ckpttool.schedules.log_match import fit_noam

    given: dict[str, Value] = {
        "model_dim": model_dim,
        "start_decay_steps": start_decay_steps,
        "decay_step_duration": decay_step_duration,
        "minimum_learning_rate": minimum_learning_rate,
        **(parameters or {}),
    }
    request = make_request(
        given, config=None if config is None else str(config), auto_config=auto_config, defaults=_FIT_DEFAULTS
    )
    spec = request.base
    if spec.kind.name != "noam":
        raise UsageError(f"{parameter('fit')} finds Noam schedules, not {spec.kind.name}")
    has_model_dim = spec.values["model_dim"] != 1 or given.get("model_dim") is not None
    read = _read(log, log_pattern)
    asked: Semantics = read.semantics if semantics == "both" else semantics
    other: Semantics = "applied" if asked == "logged" else "logged"
    fit, better = fit_noam(read.records, spec, asked), None
    if fit.differing and not (again := fit_noam(read.records, spec, other)).differing:
        better = other
        if semantics == "both":
            fit, asked, better = again, other, None
    return FittedSchedule(read, asked, fit, has_model_dim, spec.minimum_learning_rate, better)


def check_reports(outputs: Sequence[str], *, force: bool, inputs: Sequence[str] = ()) -> None:
    """Refuse outputs of `LearningRates.save` before any work is done; its errors."""
    for path in outputs:
        _checked_suffix(path, force=force, inputs=inputs)
        if outputs.count(path) > 1:
            raise UsageError(f"{parameter('output')} {path} is there twice", hint="Name another file.")


def _checked_suffix(path: str, *, force: bool, inputs: Sequence[str]) -> str:
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in SUFFIXES and suffix not in PICTURES:
        raise UsageError(
            f"{parameter('output')} {path}: what to write is told by the suffix, and {suffix or 'none'} is not known",
            hint=f"Known are {', '.join((*PICTURES, *SUFFIXES))}.",
        )
    check_report(path, force=force, inputs=inputs)
    if suffix in PICTURES:
        from ckpttool.schedules.figures import check_matplotlib

        check_matplotlib()
    return suffix


def _read(log: str | Path, log_pattern: str | None) -> TrainLog:
    from ckpttool.schedules.train_log import compile_pattern, read_log

    return read_log(str(log), None if log_pattern is None else compile_pattern(log_pattern))
