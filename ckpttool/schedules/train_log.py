"""The learning rates that a training wrote into its log.

Read are the lines of OpenNMT-tf (``Step = 100 ; ... ; Learning rate = 0.000013 ; Loss = 9.1``) and OpenNMT-py
(``Step 100/100000; acc: 3.2; ...; lr: 0.00001; ...``), and with a regular expression those of any other program.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from ckpttool.errors import UnreadableError, UsageError

__all__ = ["PATTERNS", "Record", "compile_pattern", "read_log"]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf"

PATTERNS = {
    "OpenNMT-tf": re.compile(rf"\bStep = (?P<step>\d+)\b.*?\bLearning rate = (?P<lr>{_NUMBER})"),
    "OpenNMT-py": re.compile(rf"\bStep\s+(?P<step>\d+)(?:/\s*\d+)?;.*?\blr:\s*(?P<lr>{_NUMBER})"),
}
"""The formats that are known: what lies between step and rate differs between their versions and does not matter."""


@dataclass(frozen=True, slots=True)
class Record:
    """A line of a log.

    Attributes:
        step: The step it names.
        rate: The learning rate it shows.
        half_unit: Half a unit of the last decimal shown: the true rate is at most this far away.
        line: Its line in the file, from 1.
    """

    step: int
    rate: float
    half_unit: float
    line: int


def compile_pattern(text: str) -> re.Pattern[str]:
    """The regular expression of a log line: groups named ``step`` and ``lr``, or two groups in that order.

    Raises:
        UsageError: If it is no regular expression or lacks the groups.
    """
    hint = r"For example --log-pattern 'num_updates=(?P<step>\d+), lr=(?P<lr>[\d.e+-]+)'"
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UsageError(f"--log-pattern {text!r} is no regular expression: {error}", hint=hint) from error
    if not {"step", "lr"} <= set(pattern.groupindex) and not (pattern.groups == 2 and not pattern.groupindex):
        raise UsageError(f"--log-pattern {text!r} must have the two groups (?P<step>...) and (?P<lr>...)", hint=hint)
    return pattern


def read_log(path: str, pattern: re.Pattern[str] | None = None) -> list[Record]:
    """Read the records of a log, in its order.

    Args:
        path: The file; ``-`` is standard input.
        pattern: See `compile_pattern`. None: the known format that more lines have.

    Raises:
        UnreadableError: If the file cannot be read, has no such line, or one whose step or rate is no number.
    """
    try:
        if path == "-":
            return _records(sys.stdin, "standard input", pattern)
        with open(path, encoding="utf-8", errors="replace") as file:
            return _records(file, path, pattern)
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror}", path=path) from error


def _records(lines: Iterable[str], path: str, pattern: re.Pattern[str] | None) -> list[Record]:
    patterns = {"--log-pattern": pattern} if pattern else PATTERNS
    found: dict[str, list[tuple[int, str, str]]] = {name: [] for name in patterns}
    count = 0
    for number, line in enumerate(lines, 1):
        count = number
        for name, each in patterns.items():
            match = each.search(line)
            if match:
                step, rate = match.group("step", "lr") if each.groupindex else match.group(1, 2)
                found[name].append((number, step or "", rate or ""))
    best = max(found, key=lambda name: len(found[name]))
    if not found[best]:
        looked_for = "that --log-pattern matches" if pattern else "like 'Step = 100 ; ... ; Learning rate = 0.000013'"
        raise UnreadableError(
            f"{path}: none of its {count} lines is one {looked_for}",
            hint=r"Describe its lines, for example --log-pattern 'step (?P<step>\d+) .* lr (?P<lr>[\d.e+-]+)'",
            path=path,
        )
    return _measured(found[best], path)


def _measured(found: list[tuple[int, str, str]], path: str) -> list[Record]:
    # A program prints all rates in one format, but a format may drop trailing zeros: the finest one shown counts.
    decimals = {True: 0, False: 0}
    for _line, _step, text in found:
        mantissa, e, _exponent = text.lower().partition("e")
        decimals[bool(e)] = max(decimals[bool(e)], len(mantissa.partition(".")[2]))
    records = []
    for line, step, text in found:
        mantissa, e, exponent = text.lower().partition("e")
        try:
            unit = 10.0 ** (int(exponent or 0) - decimals[bool(e)])
            records.append(Record(int(step), float(text), unit / 2, line))
        except (ValueError, OverflowError) as error:
            raise UnreadableError(
                f"{path}, line {line}: step {step!r} and rate {text!r} are not two numbers", path=path
            ) from error
    return records
