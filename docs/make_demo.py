"""Draw docs/demo.svg: real commands on the digits run, as a terminal shows them.

    python docs/make_demo.py

The commands run in a pseudo-terminal, so that the picture shows what users see: tables with lines, and colours. A test
draws it again and compares.
"""

from __future__ import annotations

import io
import os
import pty
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
WIDTH = 92

COMMANDS = (
    "ckpttool average examples/digits/run --last 5 -o averaged.pt --dry-run",
    "ckpttool average examples/digits/run --last 5 -o averaged.pt --quiet",
    "python examples/digits/evaluate.py examples/digits/run/last.pt averaged.pt",
)


def on_a_terminal(command: str, directory: Path, width: int = WIDTH) -> str:
    """What a command prints on a terminal of so many columns, with its escape sequences."""
    words = shlex.split(command)
    program = [sys.executable, "-m", "ckpttool"] if words[0] == "ckpttool" else [sys.executable]
    environment = {**os.environ, "COLUMNS": str(width), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    environment["PYTHONPATH"] = str(ROOT)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*program, *words[1:]], cwd=directory, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    printed = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux says so where others say b""
            break
        if not piece:
            break
        printed += piece
    os.close(ours)
    if process.wait():
        raise SystemExit(f"{command}: {printed.decode()}")
    return printed.decode().replace("\r\n", "\n")


def draw() -> str:
    """The picture, as SVG."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "examples").symlink_to(ROOT / "examples")
        for command in COMMANDS:
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
            printed = on_a_terminal(command, directory)
            console.print(Text.from_ansi("\n".join(line.rstrip() for line in printed.splitlines()).strip("\n")))
            console.print()
    return console.export_svg(title="ckpttool", unique_id="ckpttool-demo")


if __name__ == "__main__":
    (ROOT / "docs" / "demo.svg").write_text(draw(), encoding="utf-8")
