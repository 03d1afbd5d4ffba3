"""Rows of learning rates, as numbers and as text in every format, a few at a time: a table may exceed the memory."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Literal, TypeVar

from ckpttool.schedules.checks import Schedule
from ckpttool.schedules.family import Dtype, Semantics
from ckpttool.schedules.request import Curve

__all__ = ["FORMATS", "SUFFIXES", "Format", "Rows", "render"]

Format = Literal["table", "csv", "tsv", "json", "jsonl", "markdown"]
FORMATS: tuple[Format, ...] = ("table", "csv", "tsv", "json", "jsonl", "markdown")

SUFFIXES: Mapping[str, Format] = MappingProxyType(
    {".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "jsonl", ".md": "markdown", ".txt": "table"}
)
"""Suffix of a file -> its format."""

Cell = TypeVar("Cell")

_CHUNK = 512  # rows that are made at once; their text stays in the processor's cache, measured best


@dataclass(frozen=True)
class Rows:
    """A table, not yet computed.

    Attributes:
        curves: One or more.
        semantics: One or both, in the order of the columns.
        dtype: In which the rates are computed.
        steps: Ascending; iterated once.
        last_step: The greatest of them, for the width of the column.
        notes: Step -> what happens there.
        caption: Lines above a table that people read.
    """

    curves: Sequence[Curve]
    semantics: Sequence[Semantics]
    dtype: Dtype
    steps: Iterable[int]
    last_step: int
    notes: Mapping[int, str] = field(default_factory=dict)
    caption: Sequence[str] = ()

    def columns(self) -> list[str]:
        """Names for machines: ``step``, ``applied``, ``logged``, or ``applied:learning_rate=6`` and so on."""
        names = [
            f"{semantics}:{curve.label}" if curve.label else semantics
            for curve in self.curves
            for semantics in self.semantics
        ]
        return ["step", *names]

    def short_columns(self) -> list[str]:
        """Names for people: ``step``, ``applied``, ``logged``, or ``A applied`` and so on."""
        return ["step", *(f"{c.letter} {s}".strip() for c in self.curves for s in self.semantics)]

    def numbers(self) -> Iterator[tuple[int, list[float | None]]]:
        """Each step with its rates in the order of `columns`; None where there is none: no update has the number 0."""
        for steps, columns in self._columns(_itself, None):
            for index, step in enumerate(steps):
                yield step, [column[index] for column in columns]

    def chunks(self, text: Callable[[float], str]) -> Iterator[Iterator[tuple[str, ...]]]:
        """Rows of cells, the step first. A cell is empty where there is no rate."""
        for steps, columns in self._columns(text, ""):
            yield zip(map(str, steps), *columns)  # noqa: B905 (strict costs a third of the row)

    def _columns(self, convert: Callable[[float], Cell], empty: Cell) -> Iterator[tuple[list[int], list[list[Cell]]]]:
        schedules = {
            (index, semantics): curve.spec.build(self.dtype, semantics)
            for index, curve in enumerate(self.curves)
            for semantics in self.semantics
        }
        iterator = iter(self.steps)
        while steps := list(islice(iterator, _CHUNK)):
            columns = [
                column
                for index in range(len(self.curves))
                for column in self._cells([schedules[index, each] for each in self.semantics], steps, convert, empty)
            ]
            yield steps, columns

    def _cells(
        self, schedules: list[Schedule], steps: list[int], convert: Callable[[float], Cell], empty: Cell
    ) -> list[list[Cell]]:
        if self.dtype == "float64" and len(schedules) == 2 and steps[-1] - steps[0] == len(steps) - 1:
            # What step k logs is what update k + 1 applies: in a run of steps each rate is computed and printed once.
            cells = list(map(convert, map(schedules[0], range(max(steps[0] - 1, 0), steps[-1] + 1))))
            cells = [empty, *cells] if steps[0] == 0 else cells
            by_name = {"applied": cells[:-1], "logged": cells[1:]}
            return [by_name[semantics] for semantics in self.semantics]
        columns = []
        for semantics, schedule in zip(self.semantics, schedules, strict=True):
            if semantics == "logged":
                columns.append(list(map(convert, map(schedule, steps))))
            else:
                columns.append([convert(schedule(step - 1)) if step else empty for step in steps])
        return columns


def _itself(rate: float) -> float | None:
    return rate


def render(rows: Rows, format_: Format, *, header: bool = True, width: int | None = None) -> Iterator[str]:
    """The table as pieces of text, ready to be written one after the other.

    Args:
        rows: What to compute.
        format_: csv, tsv, json and jsonl have numbers that read back as they were; table and markdown are rounded to
            seven digits and have a column of notes.
        header: Name the columns (not in JSON, where every record does).
        width: Columns of the terminal, for the notes of a table; None: as wide as it takes.
    """
    if format_ == "table":
        return _table(rows, header=header, width=width)
    if format_ == "markdown":
        return _markdown(rows, header=header)
    if format_ in ("json", "jsonl"):
        return _json(rows, lines=format_ == "jsonl")
    return _separated(rows, "," if format_ == "csv" else "\t", header=header)


def _separated(rows: Rows, separator: str, *, header: bool) -> Iterator[str]:
    if header:
        yield separator.join(_quoted(name, separator) for name in rows.columns()) + "\n"
    for chunk in rows.chunks(repr):
        yield "\n".join(map(separator.join, chunk)) + "\n"


def _quoted(name: str, separator: str) -> str:
    if separator in name or '"' in name:
        return '"' + name.replace('"', '""') + '"'
    return name


def _json(rows: Rows, *, lines: bool) -> Iterator[str]:
    names = [json.dumps(name) for name in rows.columns()]
    template = "{" + ", ".join(f"{name.replace('%', '%%')}: %s" for name in names) + "}"
    before, between, after = ("", "\n", "\n") if lines else ("[\n", ",\n", "\n]\n")
    yield before
    first = True
    for chunk in rows.chunks(repr):
        records = [template % (tuple(cell or "null" for cell in row) if "" in row else row) for row in chunk]
        yield ("" if first else between) + between.join(records)
        first = False
    yield after


_DIGITS = 6  # behind the point, in tables that people read


def _rounded(rate: float) -> str:
    return f"{rate:.{_DIGITS}e}"


def _markdown(rows: Rows, *, header: bool) -> Iterator[str]:
    names = [*rows.columns(), *(["note"] if rows.notes else [])]
    if header:
        rule = ["---:"] * (len(names) - bool(rows.notes)) + ["---"] * bool(rows.notes)
        yield f"| {' | '.join(name.replace('|', chr(92) + '|') for name in names)} |\n| {' | '.join(rule)} |\n"
    for chunk in rows.chunks(_rounded):
        for row in chunk:
            note = [rows.notes.get(int(row[0]), "")] if rows.notes else []
            yield f"| {' | '.join([*row, *note])} |\n"


def _table(rows: Rows, *, header: bool, width: int | None) -> Iterator[str]:
    names = rows.short_columns()
    # Many columns on a narrow terminal lose digits before they break into the next line.
    for digits in range(_DIGITS, 1, -1):
        rate_width = len(f"{0:.{digits}e}")
        widths = [max(len(names[0]), len(str(rows.last_step))), *(max(len(name), rate_width) for name in names[1:])]
        indent = sum(widths) + 2 * len(widths)
        if width is None or indent - 2 <= width:
            break
    # A note is wrapped in its own column if that is wide enough, and else follows on lines of its own.
    space = max(width - indent, 0) if width else 0
    noted = bool(rows.notes) and (width is None or indent + len("note") <= width)
    if header:
        for line in rows.caption:
            yield from (part + "\n" for part in _folded(line, width))
        titles = "  ".join(name.rjust(size) for name, size in zip(names, widths, strict=True))
        yield titles + ("  note" if noted else "") + "\n"
        yield "  ".join("-" * size for size in widths) + ("  ----" if noted else "") + "\n"
    for chunk in rows.chunks(f"{{:.{digits}e}}".format):
        lines = []
        for row in chunk:
            line = "  ".join(text.rjust(size) for text, size in zip(row, widths, strict=True))
            note = rows.notes.get(int(row[0]), "")
            if not note:
                lines.append(line)
            elif width is None or len(note) <= space:
                lines.append(f"{line}  {note}")
            elif space >= 20:
                first, *rest = textwrap.wrap(note, space)
                lines += [f"{line}  {first}", *(" " * indent + part for part in rest)]
            else:
                lines += [line, *textwrap.wrap(note, width - 1, initial_indent="    ", subsequent_indent="    ")]
        yield "\n".join(lines) + "\n"


def _folded(line: str, width: int | None) -> list[str]:
    if not line or not width or len(line) <= width:
        return [line]
    return textwrap.wrap(line, max(width, 20), subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
