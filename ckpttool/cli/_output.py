"""What is printed, and where: the answer on stdout, diagnostics on stderr. The only user of rich.

On a terminal: tables with lines, colour, a progress bar. Anywhere else: plain text, one record a line, no colour,
no animation, nothing cut off. `NO_COLOR`, `FORCE_COLOR` and `TERM=dumb` are honoured (by rich).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ckpttool.text import printable

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

__all__ = ["Output", "ascii_safe", "format_bytes", "format_count"]


def format_bytes(count: float) -> str:
    """A size as people read it, in decimal units: ``1.14 GB``."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.3g} TB"


def format_count(count: int, noun: str) -> str:
    """``1 tensor``, ``2 tensors``, ``1,234 tensors``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def ascii_safe(text: str, encoding: str | None) -> str:
    """The text with the few signs that a narrow encoding cannot show spelled in ASCII."""
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        for sign, spelled in {"·": "-", "×": "x", "→": "->", "…": "...", "Σ": "sum", "≤": "<=", "−": "-"}.items():
            text = text.replace(sign, spelled)
        text = text.encode(encoding or "ascii", "backslashreplace").decode(encoding or "ascii")
    return text


@dataclass(frozen=True)
class Output:
    """The sink of a command. A command says what; this says how and where.

    Attributes:
        quiet: Print no diagnostics but warnings and errors.
        verbose: Say more.
    """

    quiet: bool = False
    verbose: bool = False

    def answer(self, text: str) -> None:
        """Print a line of the answer on stdout."""
        click.echo(ascii_safe(printable(text), getattr(sys.stdout, "encoding", None)))

    def path(self, path: Path) -> None:
        """Print a path on stdout: byte for byte for programs, with escapes on a terminal."""
        if self.is_terminal or not hasattr(sys.stdout, "buffer"):
            self.answer(str(path))
        else:
            click.echo(os.fsencode(path))

    def json(self, document: Mapping[str, Any]) -> None:
        """Print the answer as one JSON document."""
        import json

        click.echo(json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False))

    def say(self, text: str) -> None:
        """Tell the user something on stderr, unless --quiet."""
        if not self.quiet:
            self._stderr(text)

    def detail(self, text: str) -> None:
        """Tell the user something on stderr if --verbose."""
        if self.verbose and not self.quiet:
            self._stderr(text)

    def warn(self, text: str) -> None:
        """Warn on stderr, always."""
        self._stderr(f"Warning: {text}")

    def _stderr(self, text: str) -> None:
        click.echo(ascii_safe(printable(text), getattr(sys.stderr, "encoding", None)), err=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, err: bool = False) -> None:
        """Print a table: with lines on a terminal, tab-separated with a header anywhere else. Never cut off.

        Columns whose cells are all numbers are aligned to the right.
        """
        stream = sys.stderr if err else sys.stdout
        if not stream.isatty():
            for row in [columns, *rows]:
                line = "\t".join(map(printable, row))
                click.echo(ascii_safe(line, getattr(stream, "encoding", None)), err=err)
            return
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD if self._draws(stream) else box.ASCII, pad_edge=False, show_edge=False)
        for index, column in enumerate(columns):
            numeric = all(_is_number(row[index]) for row in rows)
            table.add_column(_plain(column), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_plain(cell) for cell in row))
        self._console(err=err).print(table)

    def gap(self) -> None:
        """An empty line between two tables on stdout."""
        click.echo()

    @property
    def is_terminal(self) -> bool:
        """Whether people read stdout, and not a program."""
        return sys.stdout.isatty()

    def size(self, nbytes: int) -> str:
        """A size for a table on stdout: as people read it on a terminal, as a number of bytes for programs."""
        return format_bytes(nbytes) if self.is_terminal else str(nbytes)

    @contextmanager
    def progress(self, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """A progress bar with bytes, rate and time left on a terminal; nothing anywhere else.

        Yields:
            A callback that takes the number of bytes done since the last call.
        """
        if self.quiet or not sys.stderr.isatty():
            yield lambda _count: None
            return
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console(err=True),
            transient=True,
        )
        with bar:
            task = bar.add_task("averaging", total=total_bytes)
            yield lambda count: bar.advance(task, count)

    def _console(self, *, err: bool) -> Console:
        from rich.console import Console

        return Console(stderr=err, highlight=False, soft_wrap=False)

    def _draws(self, stream: Any) -> bool:
        try:
            "─━".encode(getattr(stream, "encoding", None) or "ascii")
        except (UnicodeEncodeError, LookupError):
            return False
        return True


def _plain(cell: str) -> Any:
    from rich.text import Text

    return Text(printable(cell))  # never markup: a tensor may be called "[red]"


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] == "-"
