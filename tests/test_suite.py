"""The tests hold on every machine and in every shell."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MODULES = [path for path in TESTS.rglob("*.py") if "frameworks" not in path.relative_to(TESTS).parts]
CLOCKS = {"time", "perf_counter", "process_time", "monotonic", "perf_counter_ns", "process_time_ns", "monotonic_ns"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_no_test_reads_a_clock_or_imports_conftest(path: Path) -> None:
    """Work is counted (`counting.count_calls`), and what tests share is in modules of other names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
            assert node.attr not in CLOCKS
        if isinstance(node, ast.ImportFrom):
            assert node.module is None or node.module.split(".")[-1] != "conftest"
            assert node.module != "time" or CLOCKS.isdisjoint(alias.name for alias in node.names)


def test_the_variables_of_the_shell_change_nothing() -> None:
    variables = {
        "CKPTTOOL_LR_PLOT_TABLE_STEPS": "1",
        "CKPTTOOL_AVERAGE_LAST": "1",
        "COLUMNS": "31",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "PYTHONIOENCODING": "ascii",
        "WORLD_SIZE": "2",
    }
    tests = [
        "test_lr_docs.py::test_shown_output_is_what_the_command_prints",
        "test_lr_plot_table.py::test_on_a_terminal_curves_have_colours_unless_it_is_dumb",
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(TESTS / name) for name in tests)],
        cwd=TESTS.parent,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
