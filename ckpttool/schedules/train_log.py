r"""The learning rates that a training wrote into its log.

Read are the lines of OpenNMT-tf (``Step = 100 ; ... ; Learning rate = 0.000013 ; Loss = 9.1``), OpenNMT-py
(``Step 100/100000; acc: 3.2; ...; lr: 0.00001; ...``) and Eole (``Step 100/100000; ...; lr: 1.25e-05; ...``), and with
a regular expression those of any other program; also ``trainer_state.json`` of transformers' Trainer, and
``metrics.csv`` of Lightning's CSVLogger with its LearningRateMonitor. Reading takes time proportional to the log, and
memory for one line, or for one JSON file.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TextIO

from ckpttool.errors import UnreadableError, UsageError
from ckpttool.schedules.checks import MOST_STEPS
from ckpttool.schedules.family import Semantics
from ckpttool.text import parameter

__all__ = ["FORMATS", "LogFormat", "Record", "TrainLog", "compile_pattern", "read_log"]

_LINE = 1 << 16  # characters of a line that are looked at
_PATTERN_LINE = 1 << 12  # the same for a pattern of the user's, which may take quadratic time or worse

_MOST_SHOWN = 40

_LONGEST_JSON = 1 << 26  # characters
_RATES = ("lr", "learning_rate")

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf"
_SCIENTIFIC = r"[-+]?\d+\.\d+[eE][-+]?\d+"

_EXAMPLE = r"(?P<step>\d+) .* lr (?P<lr>[\d.e+-]+)"


@dataclass(frozen=True)
class LogFormat:
    """How a program writes its learning rates.

    Attributes:
        name: The program.
        step: A regular expression for the step.
        rate: A regular expression for the rate, which follows the step in the same line.
        semantics: What is shown at step k: the rate that update k was applied with, or the next update's (logged).
    """

    name: str
    step: re.Pattern[str]
    rate: re.Pattern[str]
    semantics: Semantics

    def search(self, line: str) -> tuple[str, str] | None:
        """Step and rate of a line, as they are written; None if it has none."""
        # Two searches, each linear: one expression for both would look for a rate after every step of a long line.
        step = self.step.search(line)
        rate = self.rate.search(line, step.end()) if step else None
        return (step[1], rate[1]) if step and rate else None


_OPENNMT_PY_STEP = re.compile(r"\bStep\s+(\d+)(?:/\s*\d+)?;")

FORMATS = (
    LogFormat("OpenNMT-tf", re.compile(r"\bStep = (\d+)\b"), re.compile(rf"\bLearning rate = ({_NUMBER})"), "logged"),
    # Its rates have an exponent, OpenNMT-py's never have. It computes the rate of the step that it names.
    LogFormat("Eole", _OPENNMT_PY_STEP, re.compile(rf"\blr: *({_SCIENTIFIC})"), "applied"),
    LogFormat("OpenNMT-py", _OPENNMT_PY_STEP, re.compile(rf"\blr: *({_NUMBER})"), "logged"),
)
"""The known formats. Of two that find as many lines in a log, the first is meant.

Sources: OpenNMT-py's and Eole's utils/statistics.py and trainer.py; OpenNMT-tf's training.py.
"""


@dataclass(frozen=True, slots=True)
class Record:
    """A line of a log.

    Attributes:
        step: The step it names, at least 0.
        rate: The learning rate it shows.
        half_unit: Half a unit of the last decimal shown: the true rate is at most this far away.
        line: Its line in the file, or its entry in ``trainer_state.json``, from 1.
    """

    step: int
    rate: float
    half_unit: float
    line: int


@dataclass(frozen=True, repr=False)
class TrainLog:
    """The learning rates of a log.

    Attributes:
        path: The file, or ``standard input``.
        records: Its lines with a rate, at least one, in the order of the file.
        format: The program that writes this format; None if a pattern was given.
        semantics: What such a program shows at step k (`LogFormat`); ``logged``, as OpenNMT-tf, for a pattern.
    """

    path: str
    records: tuple[Record, ...]
    format: str | None
    semantics: Semantics

    def __repr__(self) -> str:
        first, last = self.records[0], self.records[-1]
        return f"<TrainLog {self.path}: {len(self.records)} records, steps {first.step} to {last.step}>"


def compile_pattern(text: str) -> re.Pattern[str]:
    """The regular expression of a log line: groups named ``step`` and ``lr``, or two groups in that order.

    Raises:
        UsageError: If it is not a regular expression or lacks the groups.
    """
    name = parameter("log_pattern")
    shown = repr(text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}...")
    hint = f"For example: num_updates={_EXAMPLE}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pattern = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UsageError(f"{name} {shown} is not a regular expression: {reason}", hint=hint) from error
    if not {"step", "lr"} <= set(pattern.groupindex) and not (pattern.groups == 2 and not pattern.groupindex):
        raise UsageError(f"{name} {shown} must have the two groups (?P<step>...) and (?P<lr>...)", hint=hint)
    return pattern


def read_log(path: str, pattern: re.Pattern[str] | None = None) -> TrainLog:
    """Read a log.

    Args:
        path: The file; ``-`` is standard input.
        pattern: See `compile_pattern`. None: the format that the suffix says (.json, .csv), or else the known format
            that more lines have.

    Raises:
        UnreadableError: If the file cannot be read, has no such line, or one whose step or rate is not a number.
    """
    try:
        if path == "-":
            return _read(sys.stdin, "standard input", pattern)
        with open(path, encoding="utf-8", errors="replace") as file:
            if pattern is None and path.lower().endswith(".json"):
                return _read_trainer_state(file, path)
            if pattern is None and path.lower().endswith(".csv"):
                return _read_metrics(file, path)
            return _read(file, path, pattern)
    except (OSError, ValueError) as error:
        if isinstance(error, UnreadableError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise UnreadableError(f"{path}: {reason}", path=path) from error


@dataclass(frozen=True, slots=True)
class _Found:
    line: int
    step: str
    rate: str


def _lines(file: TextIO, longest: int) -> Iterator[str]:
    """The lines of a file, cut off where they are longer than `longest`."""
    while line := file.readline(longest):
        rest = line
        while rest and not rest.endswith("\n"):
            rest = file.readline(longest)
        yield line


def _read(file: TextIO, path: str, pattern: re.Pattern[str] | None) -> TrainLog:
    found: dict[LogFormat | None, list[_Found]] = {None: []} if pattern else {each: [] for each in FORMATS}
    number = 0
    for number, line in enumerate(_lines(file, _PATTERN_LINE if pattern else _LINE), 1):
        for format_, lines in found.items():
            pair = format_.search(line) if format_ else _match(pattern, line)
            if pair:
                lines.append(_Found(number, *pair))
    best = max(found, key=lambda format_: len(found[format_]))
    if not found[best]:
        looked_for = (
            f"that {parameter('log_pattern')} matches"
            if pattern
            else "like 'Step = 100 ; ... ; Learning rate = 0.000013'"
        )
        raise UnreadableError(
            f"{path}: none of its {number} lines is one {looked_for}",
            hint=f"Describe its lines by {parameter('log_pattern')}, for example: step {_EXAMPLE}",
            path=path,
        )
    records = tuple(_records(found[best], path))
    return TrainLog(path, records, best.name if best else None, best.semantics if best else "logged")


def _read_trainer_state(file: TextIO, path: str) -> TrainLog:
    text = file.read(_LONGEST_JSON + 1)
    if len(text) > _LONGEST_JSON:
        raise UnreadableError(f"{path}: longer than {_LONGEST_JSON:,} characters", path=path)
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:100]
        raise UnreadableError(f"{path}: not JSON: {reason}", path=path) from error
    history = state.get("log_history") if isinstance(state, dict) else None
    found = [
        _Found(number, str(entry["step"]), repr(entry["learning_rate"]))
        for number, entry in enumerate(history if isinstance(history, list) else (), 1)
        if isinstance(entry, dict) and {"step", "learning_rate"} <= set(entry)
    ]
    if not found:
        raise UnreadableError(
            f"{path}: no learning rates in it",
            hint="A trainer_state.json has them in log_history, each with its step.",
            path=path,
        )
    # Since March 2025 (pull request 36973); before, it showed the rate of the next update.
    return TrainLog(path, tuple(_records(found, path)), "transformers' Trainer", "applied")


def _read_metrics(file: TextIO, path: str) -> TrainLog:
    rows = csv.reader(_lines(file, _LINE))
    try:
        columns = next(rows, [])
        rates = [index for index, name in enumerate(columns) if name in _RATES or name.startswith("lr-")]
        if "step" not in columns or not rates:
            raise UnreadableError(
                f"{path}: it needs a column step, and one of learning rates: lr, learning_rate or lr-OPTIMIZER",
                hint="Lightning's LearningRateMonitor writes it.",
                path=path,
            )
        step, rate = columns.index("step"), rates[0]
        # A row may be of another metric, and short where it is the last one of a run that was killed.
        found = [
            _Found(number, row[step], row[rate])
            for number, row in enumerate(rows, 2)
            if len(row) > max(step, rate) and row[rate]
        ]
    except csv.Error as error:
        raise UnreadableError(f"{path}: not CSV: {error}", path=path) from error
    if not found:
        raise UnreadableError(f"{path}: the column {columns[rate]} is empty", path=path)
    return TrainLog(path, tuple(_records(found, path)), "Lightning", "logged")


def _match(pattern: re.Pattern[str] | None, line: str) -> tuple[str, str] | None:
    match = pattern.search(line) if pattern else None
    if match is None:
        return None
    step, rate = match.group("step", "lr") if match.re.groupindex else match.group(1, 2)
    return step or "", rate or ""


def _records(found: Iterable[_Found], path: str) -> Iterator[Record]:
    # A program prints all rates in one format, but a format may drop trailing zeros: the finest one shown counts.
    decimals = {True: 0, False: 0}
    for each in found:
        mantissa, e, _exponent = each.rate.lower().partition("e")
        decimals[bool(e)] = max(decimals[bool(e)], len(mantissa.partition(".")[2]))
    for each in found:
        _mantissa, e, exponent = each.rate.lower().partition("e")
        try:
            unit = 10.0 ** (int(exponent or 0) - decimals[bool(e)])
            record = Record(int(each.step), float(each.rate), unit / 2, each.line)
        except (ValueError, OverflowError) as error:
            step, rate = each.step[:_MOST_SHOWN], each.rate[:_MOST_SHOWN]
            raise UnreadableError(
                f"{path}, line {each.line}: step {step!r} and rate {rate!r} are not two numbers", path=path
            ) from error
        if not 0 <= record.step <= MOST_STEPS:
            raise UnreadableError(
                f"{path}, line {each.line}: step {each.step[:_MOST_SHOWN]} is not a number of updates", path=path
            )
        yield record
