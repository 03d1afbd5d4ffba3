"""Standard streams that are closed or full, and names that a terminal or an encoding would stumble over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Ran
from hypothesis import given
from hypothesis import strategies as st

from ckpttool.text import printable, unicode_only

posix = pytest.mark.skipif(os.name != "posix", reason="redirections of a POSIX shell")
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def save(directory: Path, *names: str | bytes, tensor: str = "w") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        with open(os.path.join(os.fsencode(directory), os.fsencode(name)), "wb") as file:
            torch.save({tensor: torch.full((2,), float(number))}, file)


def shell(directory: Path, redirections: str, *args: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command line in a directory, with redirections that a shell makes; PYTHON* as by default."""
    command = f'exec "$0" -m ckpttool "$@" {redirections}'
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        ["/bin/sh", "-c", command, sys.executable, *args],
        cwd=directory,
        capture_output=True,
        check=False,
        env={**environment, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )


@posix
@pytest.mark.parametrize(
    "redirections",
    [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", pytest.param("2>/dev/full", marks=full)],
)
def test_a_run_does_its_work_whatever_becomes_of_its_streams(tmp_path: Path, redirections: str) -> None:
    save(tmp_path, "model_1.pt", "model_2.pt")
    ran = shell(tmp_path, redirections, "average", ".", "-o", "out.pt")
    assert ran.returncode == 0, ran.stderr
    assert b"Traceback" not in ran.stderr
    assert torch.load(tmp_path / "out.pt")["w"].tolist() == [0.5, 0.5]


@posix
@pytest.mark.parametrize("redirections", ["2>&-", pytest.param("2>/dev/full", marks=full)])
@pytest.mark.parametrize(("args", "code"), [(["average", "nowhere"], 3), (["average", ".", "--lost"], 2)])
def test_an_error_that_nobody_hears_keeps_its_exit_code(
    tmp_path: Path, redirections: str, args: list[str], code: int
) -> None:
    assert shell(tmp_path, redirections, *args).returncode == code


@full
@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["average", ".", "-n"],
        ["average", ".", "-n", "--json"],
        ["average", ".", "-o", "out.pt"],
        ["lr-plot-table", "--learning-rate", "2", "--model-dim", "512", "--warmup-steps", "8000"],
    ],
    ids=" ".join,
)
def test_an_answer_that_cannot_be_written_is_an_error(tmp_path: Path, args: list[str]) -> None:
    save(tmp_path, "model_1.pt", "model_2.pt")
    ran = shell(tmp_path, ">/dev/full", *args)
    assert ran.returncode == 7
    assert b"Error: standard output: cannot be written (" in ran.stderr
    assert b"Traceback" not in ran.stderr
    assert b"Exception ignored" not in ran.stderr
    assert (tmp_path / "out.pt").exists() == ("out.pt" in args)


# --- Names -----------------------------------------------------------------------------------------------------

ODD = [b"caf\xe9_1.pt", b"\x1b[31mred_1.pt", b"two\nlines_1.pt", b"a\tb_1.pt", "rtl\u202e_1.pt".encode()]


@posix
@pytest.mark.parametrize("name", ODD, ids=repr)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
def test_names_are_shown_in_one_line_of_printable_characters(
    run: Callable[..., Ran], tmp_path: Path, name: bytes, suffix: str
) -> None:
    try:
        save(tmp_path / "run", name, name.replace(b"_1", b"_2"))
    except OSError:
        pytest.skip("this file system takes no such name")
    output = tmp_path / f"out{suffix}"
    ran = run("average", tmp_path / "run", "-o", output, "-v")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout == f"{output}\n"
    plan = run("average", tmp_path / "run", "-o", output, "-f", "-n")
    assert plan.exit_code == 0
    shown = printable(os.fsdecode(name))
    for text in (ran.stderr, plan.stdout):
        assert shown in text
        assert not set(text) & {"\x1b", "\r", "\u202e", "\udce9"}
    rows = plan.stdout.splitlines()
    assert [len(row.split("\t")) for row in rows[:3]] == [4, 4, 4]
    members = json.loads(run("average", tmp_path / "run", "-o", output, "-f", "-n", "--json").stdout)["members"]
    assert {os.fsencode(Path(member["path"]).name) for member in members} == {name, name.replace(b"_1", b"_2")}


@posix
def test_the_path_of_an_output_is_written_byte_for_byte(tmp_path: Path) -> None:
    save(tmp_path, "model_1.pt", "model_2.pt")
    name = b"caf\xe9 \x1b[31m.pt"
    ran = shell(tmp_path, "", "average", ".", "-q", "-o", os.fsdecode(name))
    if ran.returncode == 7:
        pytest.skip("this file system takes no such name")
    assert ran.stdout == name + b"\n"
    assert name in os.listdir(os.fsencode(tmp_path))


def test_tensors_with_escapes_in_their_names_do_not_reach_the_terminal(run: Callable[..., Ran], tmp_path: Path) -> None:
    save(tmp_path, "model_1.pt", tensor="\x1b]0;title\x07w")
    save(tmp_path, "model_2.pt", tensor="other\n")
    ran = run("average", tmp_path, "-o", tmp_path / "out.pt")
    assert ran.exit_code == 4
    assert r"\x1b]0;title\x07w" in ran.stderr
    assert r"other\n" in ran.stderr
    assert "\x1b" not in ran.stderr
    assert len(ran.stderr.splitlines()) == 2, "the error and its hint"


@given(st.text(st.characters()))
def test_printable_text_can_be_encoded_and_has_one_line(text: str) -> None:
    shown = printable(text)
    assert len(shown.encode().decode().splitlines()) <= 1
    assert printable(shown) == shown
    assert unicode_only(text).encode().decode() == unicode_only(text)


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_text_without_control_characters_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == unicode_only(text) == text
