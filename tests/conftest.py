"""Fixtures that every test may use."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import pytest
from commands import Ran
from hypothesis import settings

from ckpttool.cli import main

# Where a change is judged, the same examples every time; where it is made, new ones.
settings.register_profile("judge", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("judge")


_OF_THE_SHELL = re.compile(
    "_?CKPTTOOL_.*|LC_.*|LANG|LANGUAGE|COLUMNS|LINES|TERM|COLORTERM|NO_COLOR|FORCE_COLOR|CLICOLOR.*|TTY_.*|JUPYTER_.*"
    "|PYTHON(IOENCODING|UTF8|WARNINGS|DEVMODE|INSPECT|VERBOSE|UNBUFFERED|OPTIMIZE|PROFILEIMPORTTIME)"
    "|RANK|WORLD_SIZE|LOCAL_.*|MASTER_.*|SLURM_.*|PMI_.*|OMPI_.*|TORCHELASTIC_.*|SOURCE_DATE_EPOCH|MPL.*|MATPLOTLIBRC"
)
"""Variables that change what commands print, how text is encoded, or how many processes a program believes in."""


@pytest.fixture(scope="session", autouse=True)
def plain_environment() -> Iterator[None]:
    """A test's outcome depends on no variable of the shell that runs it; commands in other processes inherit this."""
    with pytest.MonkeyPatch.context() as environment:
        for name in list(os.environ):
            if _OF_THE_SHELL.fullmatch(name):
                environment.delenv(name)
        environment.setenv("COLUMNS", "80")
        yield


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the command line in this process: ``run("average", path, "--last", 5)``."""

    def call(*args: object) -> Ran:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(arg) for arg in args])
        captured = capfd.readouterr()
        assert isinstance(left.value.code, int)
        return Ran(left.value.code, captured.out, captured.err)

    return call
