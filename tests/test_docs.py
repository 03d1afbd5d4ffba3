"""The examples of the documents run, and print what the documents show."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from commands import Ran
from documents import PAGES, ROOT, Example, blocks, blocks_of_commands, examples, write_files

import ckpttool

Run = Callable[..., Ran]


def make_demo() -> ModuleType:
    pytest.importorskip("pty", reason="there are no pseudo-terminals here")
    spec = importlib.util.spec_from_file_location("make_demo", ROOT / "docs" / "make_demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_what_the_commands_print() -> None:
    assert make_demo().draw() == (ROOT / "docs" / "demo.svg").read_text(encoding="utf-8"), (
        "run: python docs/make_demo.py"
    )


# --- Commands --------------------------------------------------------------------------------------------------

TIMES = re.compile(r"in \d+\.\d\d s \(read (.*), [\d.]+ \w+/s\)")
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
EXAMPLES = list(blocks_of_commands())


def output_of(example: Example, directory: Path, run: Run) -> str:
    """What a command prints: tables as on a terminal of 80 columns, anything else as in a file."""
    program, *words = example.words
    if program != "ckpttool":
        assert program == "python"
        ran = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, cwd=directory)
        return ran.stdout
    if example.shown and {"--dry-run", "--list"} & set(words):
        printed: str = make_demo().on_a_terminal(shlex.join(example.words), directory, 80)
        return ESCAPES.sub("", printed)
    result = run(*words)
    assert result.exit_code == 0, f"{shlex.join(example.words)}: {result.stderr}"
    return result.stderr + result.stdout


def compared(text: str) -> str:
    """The text without what differs from run to run, and without empty lines and spaces at the ends of lines."""
    lines = TIMES.sub(r"in ... s (read \1)", text).splitlines()
    return "\n".join(line.rstrip() for line in lines if line.strip() and set(line.strip()) != {"─"})


def shows(example: Example, printed: str) -> bool:
    """Whether the output is what the page shows. A line of three dots matches any lines."""
    parts = [re.escape(compared(part)) for part in re.split(r"^\.\.\.$", "\n".join(example.shown), flags=re.MULTILINE)]
    return re.fullmatch(r"\n(?:.*\n)*?".join(parts), compared(printed)) is not None


@pytest.mark.parametrize(
    ("page", "block"), EXAMPLES, ids=[f"{page.name}-{index}" for index, (page, _) in enumerate(EXAMPLES)]
)
def test_the_commands_of_the_documents_print_what_is_shown(
    page: Path, block: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    write_files(tmp_path, str(page.relative_to(ROOT)))
    monkeypatch.chdir(tmp_path)
    for example in block:
        if example.is_run:
            printed = output_of(example, tmp_path, run)
            assert not example.shown or shows(example, printed), compared(printed)


def test_most_commands_of_the_documents_are_run_and_compared() -> None:
    run = [example for _, block in EXAMPLES for example in block if example.is_run]
    assert len(run) > 25
    assert sum(bool(example.shown) for example in run) > 7


@pytest.mark.parametrize("command", [[], ["average"], ["ema-apply"]], ids=lambda words: " ".join(words) or "ckpttool")
def test_the_examples_of_the_help_run(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Each in a directory of its own, since one of them may write what another one does."""
    lines = re.findall(r"^    (ckpttool .*)$", run(*command, "--help").stdout, re.MULTILINE)
    assert lines
    for number, line in enumerate(lines):
        directory = tmp_path / str(number)
        write_files(directory)
        monkeypatch.chdir(directory)
        (example,) = examples(line)
        output_of(example, directory, run)


# --- JSON ------------------------------------------------------------------------------------------------------

DOCUMENTS = [
    "average a.pt b.pt -o x.pt --show encoder.bias",
    "average runs/a --last 3 --dry-run --anneal cosine",
    "average hf --dry-run",
    "average exp --last 9 --window-from-running-mean --dry-run",
    "ema-apply last.ckpt --dry-run -o y.pt",
    "ema-apply last.ckpt --list",
    "ema-apply runs/a --decay 0.9997 --dry-run",
    "ema-apply runs/a --decay 0.999 --decay 0.9997 --dry-run",
    "ema-apply snapshots --sigma-rel 0.12 --dry-run",
    "ema-apply runs/a --stored-profile decay:0.999 --segment 30000:50000 --dry-run",
]


def fields(node: object, prefix: str = "") -> Iterator[str]:
    """The dotted names of the fields of a document. The names below `shown` are those of tensors."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            if key != "shown":
                yield from fields(value, f"{prefix}{key}.")
    elif isinstance(node, list) and node:
        yield from fields(node[0], f"{prefix.removesuffix('.')}[].")


def test_the_fields_of_the_json_are_those_of_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    write_files(tmp_path, "docs/ema-apply.md")
    monkeypatch.chdir(tmp_path)
    printed = set()
    for command in DOCUMENTS:
        ran = run(*shlex.split(command), "--json")
        assert ran.exit_code == 0, ran.stderr
        printed |= {name.removeprefix("outputs[].") for name in fields(json.loads(ran.stdout))}
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "json.md").read_text(encoding="utf-8"), re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    # Objects whose fields have rows of their own; the fields that --list shares with stored averages.
    parents = {name.rpartition(".")[0].removesuffix("[]") for name in documented}
    shared = {name.replace("stored_average", "checkpoints[]") for name in documented}
    assert printed - documented - parents - shared == {"outputs", "anneal"}
    assert documented - printed == set()


# --- Python ----------------------------------------------------------------------------------------------------


@pytest.fixture
def example_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory with the files that the examples in Python name, which is the working directory."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python_examples() -> list[tuple[str, str]]:
    """Each page with examples in Python, as one script: later blocks use what the earlier ones have made."""
    texts = {str(page.relative_to(ROOT)): blocks(page, "python") for page in PAGES}
    return [(page, "".join(found)) for page, found in texts.items() if found]


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
    for document in PAGES:
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
