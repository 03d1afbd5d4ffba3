"""What the documentation of lr-plot-table shows is what the command prints, and its pictures are what it draws."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from ckpttool.cli import group
from ckpttool.schedules.kinds import KINDS
from ckpttool.schedules.rates import noam

ROOT = Path(__file__).parent.parent
PAGES = ["docs/lr-plot-table.md", "README.md"]
FIGURES = runpy.run_path(str(ROOT / "docs/make_figures.py"))["FIGURES"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


SHOWN = [
    (page, *block.removeprefix("$ ckpttool ").split("\n", 1))
    for page in PAGES
    for block in blocks(page, "console")
    if block.startswith("$ ckpttool lr-plot-table")
]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the page names: its own configuration, and a log of that training."""
    monkeypatch.chdir(tmp_path)
    (config,) = blocks(PAGES[0], "yaml")
    (tmp_path / "data.yml").write_text(config)
    logged = noam(2, 512, 8000)
    lines = [f"Step = {step} ; Learning rate = {logged(step):f} ; Loss = 5.0\n" for step in range(100, 50_001, 100)]
    (tmp_path / "train.log").write_text("".join(lines))


@pytest.mark.parametrize(("page", "command", "expected"), SHOWN)
def test_shown_output_is_what_the_command_prints(run, files, page, command, expected):
    ran = run(*shlex.split(command))
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout == expected


def test_the_python_examples_run(capsys):
    pytest.importorskip("torch")
    first, second = blocks(PAGES[0], "python")
    names: dict[str, object] = {}
    exec(first, names)
    assert names["optimizer"].param_groups[0]["lr"] == noam(2.0, 512, 8000)(0)
    exec(second, names)
    assert len(names["applied"]) == 100
    assert capsys.readouterr().out.startswith("8000 0.00098")


def test_every_option_and_schedule_is_in_the_page():
    page = (ROOT / PAGES[0]).read_text(encoding="utf-8")
    for kind in KINDS:
        assert f"| `{kind.name}` |" in page
        row = next(line for line in page.splitlines() if line.startswith(f"| `{kind.name}` |"))
        assert all(f"`{name}`" in row for name in kind.parameters)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page)) | {"--" + name.replace("_", "-") for name in _WORDS}
    for option in group.commands["lr-plot-table"].params:
        assert named & set(option.opts), option.opts


_WORDS = ("start_decay_steps", "decay_step_duration", "minimum_learning_rate", "quiet", "verbose", "help")
"""What the page says without hyphens, or leaves to --help."""


@pytest.mark.parametrize("name", FIGURES)
def test_the_readme_shows_the_command_of_each_figure(name):
    readme = (ROOT / PAGES[1]).read_text(encoding="utf-8")
    assert f"`ckpttool lr-plot-table {FIGURES[name]} -o {name}`" in readme
    assert (ROOT / "docs/figures" / name).is_file()


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def without_hashes(svg: str) -> str:
    """Identifiers are hashes of coordinates."""
    return re.sub(r'(?<=["#])[mp][0-9a-f]{10}(?=[")])', "", svg)


def numbers(svg: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(svg)]


def test_the_figures_are_what_the_commands_draw(run, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    drawn = f"Matplotlib v{matplotlib.__version__}"
    for name, options in FIGURES.items():
        assert run("lr-plot-table", *shlex.split(options), "-q", "-o", tmp_path / name).exit_code == 0
    for name in FIGURES:
        committed = without_hashes((ROOT / "docs/figures" / name).read_text(encoding="utf-8"))
        again = without_hashes((tmp_path / name).read_text(encoding="utf-8"))
        if drawn in committed:
            # Everything but the last digits of coordinates, which logarithms of another processor may change.
            assert _NUMBER.sub("0", again) == _NUMBER.sub("0", committed)
            assert numbers(again) == pytest.approx(numbers(committed), abs=1e-3)
        for svg in (again, committed):
            assert len(re.findall(r'<g id="curve\d+">', svg)) == (2 if "--compare" in FIGURES[name] else 1)
