"""What the documents show is what the tool does."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ckpttool

ROOT = Path(__file__).parent.parent


def test_the_picture_is_what_the_commands_print() -> None:
    pytest.importorskip("pty", reason="there are no pseudo-terminals here")
    spec = importlib.util.spec_from_file_location("make_demo", ROOT / "docs" / "make_demo.py")
    assert spec is not None
    assert spec.loader is not None
    make_demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_demo)
    assert make_demo.draw() == (ROOT / "docs" / "demo.svg").read_text(encoding="utf-8"), "run: python docs/make_demo.py"


@pytest.fixture
def example_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the examples in Python name: a run in runs/a, and a checkpoint that holds an average."""
    (tmp_path / "runs" / "a").mkdir(parents=True)
    for step in range(200, 2001, 200):
        weights = {"encoder.weight": torch.full((4, 3), float(step)), "encoder.bias": torch.full((4,), 1.0 + step)}
        content = {"model": weights, "step": step, "valid_loss": 1 / step}
        torch.save(content, tmp_path / "runs" / "a" / f"checkpoint-{step}.pt")
    torch.save({"state_dict": weights, "state_dict_ema": weights, "arch": "net"}, tmp_path / "last.pth.tar")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python_examples() -> list[tuple[str, str]]:
    """Each page with examples in Python, as one script: later blocks use what the earlier ones have made."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]
    pattern = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    texts = {str(page.relative_to(ROOT)): pattern.findall(page.read_text(encoding="utf-8")) for page in pages}
    return [(page, "".join(blocks)) for page, blocks in texts.items() if blocks]


@pytest.mark.parametrize(("page", "script"), python_examples(), ids=lambda value: value if len(value) < 40 else "")
def test_the_python_examples_of_the_documents_run(page: str, script: str, example_files: Path) -> None:
    exec(compile(script, page, "exec"), {})


def test_the_documents_have_examples_in_python() -> None:
    assert {page for page, _ in python_examples()} >= {"README.md", "docs/python.md"}


MODULES_WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(Path(ckpttool.__file__).parent.rglob("*.py"))
    if re.search(r"^\s*>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize("name", MODULES_WITH_EXAMPLES)
def test_the_examples_in_docstrings_show_what_happens(name: str, example_files: Path) -> None:
    ran = doctest.testmod(importlib.import_module(name))
    assert ran.attempted > 0
    assert ran.failed == 0


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
