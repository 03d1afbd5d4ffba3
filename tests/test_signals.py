"""A command that is ended from outside leaves nothing behind, and says by its exit code how it was ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there are no such signals here")

SCRIPT = """
import contextlib, signal, sys, time
from ckpttool.cli import main
from ckpttool.cli._output import Output

# A shell lets the jobs in its background, and nohup its job, ignore some of these.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
{before}

@contextlib.contextmanager
def progress(self, total_bytes):
    def wait(_):
        print("reading", flush=True)
        time.sleep({seconds})
    yield wait

Output.progress = progress
main(sys.argv[1:])
"""


def start(directory: Path, *args: str, before: str = "", seconds: float = 30) -> subprocess.Popen[bytes]:
    """A run of ``average`` that has begun to read and waits there."""
    for step in (1, 2):
        torch.save({"w": torch.full((3,), float(step))}, directory / f"model_{step}.pt")
    script = textwrap.dedent(SCRIPT).format(before=before, seconds=seconds)
    process = subprocess.Popen(
        [sys.executable, "-c", script, "average", str(directory), "-o", str(directory / "out.pt"), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"reading\n"
    assert len(os.listdir(directory)) == 3, "there is a temporary file"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_no_temporary_file_and_has_its_exit_code(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with start(tmp_path) as process:
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in stderr
    assert sorted(os.listdir(tmp_path)) == ["model_1.pt", "model_2.pt"]


def test_a_hangup_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As nohup asks for."""
    before = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    with start(tmp_path, before=before, seconds=0.5) as process:
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "out.pt").exists()


def test_an_interrupt_while_the_command_line_is_imported_shows_no_traceback(tmp_path: Path) -> None:
    script = """
import importlib.abc, runpy, sys

class Interrupts(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "click":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
runpy.run_module("ckpttool", run_name="__main__")
"""
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        check=False,
    )
    assert ran.returncode == 130
    assert ran.stderr == b"Interrupted: nothing was written.\n"
