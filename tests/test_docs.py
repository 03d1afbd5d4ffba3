"""What the documents show is what the tool does."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_picture_is_what_the_commands_print() -> None:
    pytest.importorskip("pty", reason="there are no pseudo-terminals here")
    spec = importlib.util.spec_from_file_location("make_demo", ROOT / "docs" / "make_demo.py")
    assert spec is not None
    assert spec.loader is not None
    make_demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_demo)
    assert make_demo.draw() == (ROOT / "docs" / "demo.svg").read_text(encoding="utf-8"), "run: python docs/make_demo.py"


def test_links_inside_the_repository_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("command", [["average"], ["ema-apply"]])
def test_every_option_of_a_command_is_in_the_readme(command: list[str]) -> None:
    helped = subprocess.run(
        [sys.executable, "-m", "ckpttool", *command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", helped)) - {
        "--help",
        "--quiet",
        "--verbose",
        "--force",
        "--output",
    }
    missing = sorted(option for option in options if option not in readme)
    assert not missing


@pytest.mark.skipif(not (shutil.which("make") and shutil.which("awk")), reason="there is no make here")
def test_make_help_lists_every_target() -> None:
    helped = subprocess.run(["make", "help"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"^make (\S+)", helped, re.MULTILINE) == targets.split()
