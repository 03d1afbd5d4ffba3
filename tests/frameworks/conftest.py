"""The frameworks' own savers and loaders judge what ckpttool writes: ``make test-frameworks``.

Each module trains a tiny model with one framework's own trainer, so that a real model directory comes to be, averages
it on the command line, and hands the result to that framework's own loader. A framework that is not installed is left
out, unless ``--expect`` names it: what is installed for the purpose and does not import must not look like success.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--expect", default="", help="no test of these modules may be skipped: lightning,timm")


class _Expected:
    """Fails the run where a test of an expected module was skipped."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._files = {f"test_{module}.py" for module in modules}
        self._skipped: set[str] = set()

    def _note(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if report.skipped and Path(report.nodeid.split("::")[0]).name in self._files:
            self._skipped.add(report.nodeid)

    pytest_collectreport = pytest_runtest_logreport = _note

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._skipped:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for nodeid in sorted(self._skipped):
            terminalreporter.write_line(f"EXPECTED, AND SKIPPED: {nodeid}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    # What frameworks warn about is their own affair.
    config.addinivalue_line("filterwarnings", "ignore")
    expected = [module for module in config.getoption("--expect", "").split(",") if module]
    if unknown := [module for module in expected if not (FOLDER / f"test_{module}.py").is_file()]:
        raise pytest.UsageError(f"--expect: there is no tests/frameworks/test_{unknown[0]}.py")
    config.pluginmanager.register(_Expected(expected))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.frameworks)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    random.seed(0)
    torch.manual_seed(0)


@dataclass(frozen=True)
class Average:
    """What ``ckpttool average --json`` said.

    Attributes:
        names: The members' names, as they are summed.
        steps: Their training steps.
        skipped: Name to reason of what was left out.
        output: The average.
        warnings: What the user was warned of.
    """

    names: list[str]
    steps: list[int | None]
    skipped: dict[str, str]
    output: Path
    warnings: list[str]


@pytest.fixture
def average(run) -> Callable[..., Average]:
    """Run ``ckpttool average``, which must succeed."""

    def call(*args: object) -> Average:
        ran = run("average", *args, "--json")
        assert ran.exit_code == 0, ran.stderr
        said = json.loads(ran.stdout)
        return Average(
            [Path(member["path"]).name for member in said["members"]],
            [member["step"] for member in said["members"]],
            {Path(entry["path"]).name: entry["reason"] for entry in said["skipped"]},
            Path(said["output"]["path"]),
            said["warnings"],
        )

    return call


@pytest.fixture
def mean() -> Callable[[Sequence[Mapping[str, torch.Tensor]]], dict[str, torch.Tensor]]:
    """The float64 mean of state dicts, rounded once; what is not floating comes from the last."""

    def call(states: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        means = {}
        for name, newest in states[-1].items():
            if newest.is_floating_point():
                total = sum(state[name].double() for state in states)
                means[name] = (total / len(states)).to(newest.dtype)
            else:
                means[name] = newest
        return means

    return call


@pytest.fixture
def same() -> Callable[[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], None]:
    """Assert that two state dicts are the same: names, dtypes and every bit."""

    def call(ours: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
        assert list(ours) == list(wanted)
        for name, tensor in wanted.items():
            assert ours[name].dtype == tensor.dtype, name
            assert torch.equal(ours[name], tensor), name

    return call
