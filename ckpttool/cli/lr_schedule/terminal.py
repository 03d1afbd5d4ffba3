"""A picture of learning rates in the terminal: braille dots, or ASCII where braille cannot be shown."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from typing import TextIO

from ckpttool.schedules.picture import Line, Picture

__all__ = ["canvas_columns", "draw", "draws_braille", "has_colour", "terminal_width"]

_COLOURS = (36, 33, 35, 32, 31, 34)  # cyan, yellow, magenta, green, red, blue
_GUTTER = 10  # columns left of the plot: the longest label, a space and the axis
_SIGNS = "⣿│└─┤┬"


def draws_braille(stream: TextIO) -> bool:
    """Whether the stream's encoding has braille and line-drawing signs."""
    try:
        _SIGNS.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def has_colour(stream: TextIO) -> bool:
    """Whether colour is wanted there: on a terminal, unless NO_COLOR or TERM=dumb say otherwise."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def terminal_width(stream: TextIO) -> int:
    """Columns of the terminal, or 80. COLUMNS wins, as everywhere."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def canvas_columns(width: int, *, braille: bool) -> int:
    """How many columns of dots a picture `width` characters wide has."""
    return max(width - _GUTTER - 2, 10) * (2 if braille else 1)


def draw(picture: Picture, width: int, height: int, *, braille: bool, colour: bool) -> list[str]:
    """The picture as lines of text.

    Args:
        picture: Sampled in `canvas_columns` columns.
        width: Characters, at least 22.
        height: Lines of the plot itself, at least 4.
        braille: Dots of braille signs, or ASCII.
        colour: Colour the curves.
    """
    columns = len(picture.lines[0].columns)
    scale = _Vertical(picture, height * (4 if braille else 1))
    if braille:
        rows = _braille(picture, columns // 2, height, scale, colour=colour)
    else:
        rows = _ascii(picture, columns, height, scale)
    letters = _letters(picture, height, scale, 4 if braille else 1)
    vertical, tick, corner, line, under = ("│", "┤", "└", "─", "┬") if braille else ("|", "+", "+", "-", "+")
    labels = scale.labels(height)
    out = [*textwrap.wrap(picture.title, width), f"{picture.y_label}"]
    for index, row in enumerate(rows):
        label = labels.get(index, "")
        axis = tick if label else vertical
        out.append(f"{label:>{_GUTTER - 2}} {axis}{row} {letters.get(index, '')}".rstrip())
    across = columns // 2 if braille else columns
    out += _below(picture, across, corner, line, under)
    out += [f"{each.letter}  {each.label}" for each in picture.lines if each.letter]
    return out


class _Vertical:
    """From rates to rows of dots, counted from the bottom."""

    def __init__(self, picture: Picture, dots: int) -> None:
        self.log = picture.log_y
        self.dots = dots
        low = math.log10(picture.lowest) if self.log else min(picture.lowest, 0.0)
        high = math.log10(picture.highest) if self.log else picture.highest
        if high <= low:
            low, high = (low - 1, high + 1) if self.log else (low, low + (abs(high) or 1.0))
        self.low, self.high = low, high + (high - low) * 0.02

    def row(self, rate: float) -> int:
        if self.log:
            if rate <= 0:
                return -1
            rate = math.log10(rate)
        return min(int((rate - self.low) / (self.high - self.low) * self.dots), self.dots - 1)

    def labels(self, height: int) -> dict[int, str]:
        """Line from the top -> label, at round numbers."""
        found: dict[int, str] = {}
        for tick in self._ticks(max(height // 2, 2)):
            row = self.row(10**tick if self.log else tick)
            line = height - 1 - row * height // self.dots
            found.setdefault(line, f"{10**tick:.3g}" if self.log else f"{tick:.3g}")
        return found

    def _ticks(self, count: int) -> list[float]:
        if self.log and self.high - self.low < 2:
            whole = range(math.floor(self.low), math.ceil(self.high) + 1)
            ticks = [power + math.log10(digit) for power in whole for digit in (1, 2, 5)]
            return [tick for tick in ticks if self.low <= tick <= self.high]
        step = _round_step((self.high - self.low) / count)
        if self.log:
            step = max(step, 1.0)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _round_step(least: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least * (1 - 1e-9))


def _bars(line: Line, scale: _Vertical) -> list[tuple[int, int] | None]:
    """Lowest and highest dot of each column, joined to the column before, so that no riser is broken."""
    bars: list[tuple[int, int] | None] = []
    last = None
    for column in line.columns:
        rows = [scale.row(rate) for _step, rate in column]
        if not rows:
            rows = [last] if last is not None else []
        joined = [row for row in (*rows, last) if row is not None]
        low, high = (min(joined), max(joined)) if joined else (-1, -1)
        if last is not None and rows:
            # One dot short of the neighbour is joined enough.
            low = low + 1 if low == last and low < min(rows) else low
            high = high - 1 if high == last and high > max(rows) else high
        bars.append((max(low, 0), high) if high >= 0 else None)
        last = rows[-1] if rows else last
    return bars


_BRAILLE = 0x2800
_DOTS = ((0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08))
"""The bits of a braille sign's dots: left and right column, from the bottom."""


def _braille(picture: Picture, width: int, height: int, scale: _Vertical, *, colour: bool) -> list[str]:
    """Signs of 2 x 4 dots. Where curves share a sign, it has the colour of the last."""
    signs = [[_BRAILLE] * width for _row in range(height)]
    colours = [[0] * width for _row in range(height)]
    for index, line in enumerate(picture.lines):
        shade = _COLOURS[index % len(_COLOURS)]
        for column, bar in enumerate(_bars(line, scale)):
            for dot in range(bar[0], bar[1] + 1) if bar else ():
                row = height - 1 - dot // 4
                signs[row][column // 2] |= _DOTS[column % 2][dot % 4]
                colours[row][column // 2] = shade
    rows = []
    for codes, shades in zip(signs, colours, strict=True):
        cells = zip(map(chr, codes), shades, strict=True)
        rows.append("".join(f"\x1b[{shade}m{sign}\x1b[0m" if colour and shade else sign for sign, shade in cells))
    return rows


def _ascii(picture: Picture, width: int, height: int, scale: _Vertical) -> list[str]:
    grid = [[" "] * width for _row in range(height)]
    for line in picture.lines:
        for column, bar in enumerate(_bars(line, scale)):
            if bar:
                for dot in range(bar[0], bar[1] + 1):
                    grid[height - 1 - dot][column] = line.letter or "*"
    return ["".join(row) for row in grid]


def _letters(picture: Picture, height: int, scale: _Vertical, dots: int) -> dict[int, str]:
    """Line from the top -> letters of the curves that end there, for the right margin."""
    found: dict[int, str] = {}
    for line in picture.lines:
        if line.letter:
            row = max(scale.row(line.points[-1][1]), 0) // dots
            found[height - 1 - row] = found.get(height - 1 - row, "") + line.letter
    return found


def _below(picture: Picture, width: int, corner: str, line: str, under: str) -> list[str]:
    """The horizontal axis with labels at round steps."""
    axis = [line] * width
    labels = [" "] * (width + 8)
    free_from = 0
    for step in _step_ticks(picture, max(width // 10, 2)):
        share = (
            math.log(step / picture.first) / math.log(picture.last / picture.first)
            if picture.log_x
            else (step - picture.first) / (picture.last - picture.first)
        )
        column = min(int(share * width), width - 1)
        text = _short(step)
        begin = max(column - len(text) // 2, 0)
        if begin < free_from:
            continue
        axis[column] = under
        labels[begin : begin + len(text)] = text
        free_from = begin + len(text) + 2
    margin = " " * (_GUTTER - 1)
    return [
        margin + corner + "".join(axis),
        (margin + " " + "".join(labels)).rstrip(),
        margin + " " + picture.x_label.center(width).rstrip(),
    ]


def _step_ticks(picture: Picture, count: int) -> Sequence[int]:
    if picture.log_x:
        powers = range(math.floor(math.log10(picture.first)), math.ceil(math.log10(picture.last)) + 1)
        ticks = [10**power for power in powers]
        ticks = [tick for tick in ticks if picture.first <= tick <= picture.last]
        return ticks if len(ticks) > 1 else [picture.first, picture.last]
    step = max(int(_round_step((picture.last - picture.first) / count)), 1)
    first = -(-picture.first // step) * step
    return list(range(first, picture.last + 1, step))


def _short(step: int) -> str:
    if step and step % 1_000_000 == 0:
        return f"{step // 1_000_000}M"
    return f"{step // 1000}k" if step >= 10_000 and step % 1000 == 0 else str(step)
