"""Where an output may be written: a dry run and the run say the same, whatever is there already."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from commands import Ran
from safetensors.torch import save_file

import ckpttool as ct
from ckpttool.engine.output import StagedOutput
from ckpttool.errors import CkpttoolError, OutputExistsError, WriteError
from ckpttool.planning import destination as module
from ckpttool.planning.destination import check_destinations, destinations_of

Run = Callable[..., Ran]


def save_files(run: Path) -> None:
    """A model directory whose checkpoints are files."""
    for step in (1, 2, 3):
        save_file({"w": torch.full((3,), float(step))}, run / f"model_{step}.safetensors")


def save_directories(run: Path) -> None:
    """A model directory whose checkpoints are directories."""
    for step in (1, 2, 3):
        (run / f"checkpoint-{step}").mkdir()
        save_file({"w": torch.full((3,), float(step))}, run / f"checkpoint-{step}" / "model.safetensors")
        (run / f"checkpoint-{step}" / "config.json").write_text("{}")


class Kind(NamedTuple):
    """What checkpoints of a run are, with the name that the output of a test has."""

    save: Callable[[Path], None]
    output: str
    newest: str


KINDS = {
    "file": Kind(save_files, "out.safetensors", "model_3.safetensors"),
    "directory": Kind(save_directories, "out", "checkpoint-3/model.safetensors"),
}


@dataclass(frozen=True)
class Place:
    """A run, and a place for the output of a test."""

    kind: Kind
    run: Path
    output: Path

    def written(self) -> None:
        """An earlier output."""
        ct.average(self.run, self.output, last=2)


def nothing(place: Place) -> Path:
    return place.output


def below_missing_directories(place: Place) -> Path:
    return place.output.parent / "a" / "b" / place.output.name


def a_file(place: Place) -> Path:
    place.output.write_text("notes")
    return place.output


def an_earlier_output(place: Place) -> Path:
    place.written()
    return place.output


def an_earlier_output_with_a_file_of_the_user(place: Place) -> Path:
    place.written()
    if place.output.is_dir():
        (place.output / "thesis.tex").write_text("years of work")
    return place.output


def an_empty_directory(place: Place) -> Path:
    place.output.mkdir()
    return place.output


def a_directory_of_something_else(place: Place) -> Path:
    place.output.mkdir()
    (place.output / "thesis.tex").write_text("years of work")
    return place.output


def a_checkpoint_of_a_framework(place: Place) -> Path:
    source = place.run / place.kind.newest
    shutil.copytree(source.parent, place.output) if "/" in place.kind.newest else shutil.copy(source, place.output)
    return place.output


def an_input(place: Place) -> Path:
    return place.run / place.kind.newest.partition("/")[0]


def a_file_of_an_input(place: Place) -> Path:
    return place.run / place.kind.newest


def inside_an_input(place: Place) -> Path:
    return place.run / place.kind.newest.partition("/")[0] / place.output.name


def a_directory_with_the_inputs(place: Place) -> Path:
    return place.run


def a_link_to_an_input(place: Place) -> Path:
    place.output.symlink_to(place.run / place.kind.newest.partition("/")[0])
    return place.output


def a_hard_link_to_an_input(place: Place) -> Path:
    place.output.hardlink_to(place.run / place.kind.newest)
    return place.output


def a_dangling_link(place: Place) -> Path:
    place.output.symlink_to(place.output.parent / "gone" / place.output.name)
    return place.output


def a_link_to_itself(place: Place) -> Path:
    place.output.symlink_to(place.output)
    return place.output


def a_link_to_an_earlier_output(place: Place) -> Path:
    place.written()
    place.output.rename(place.output.with_name("real" + place.output.suffix))
    place.output.symlink_to("real" + place.output.suffix)
    return place.output


def a_pipe(place: Place) -> Path:
    os.mkfifo(place.output)
    return place.output


def below_a_file(place: Place) -> Path:
    (place.output.parent / "note").write_text("")
    return place.output.parent / "note" / place.output.name


def a_name_that_is_too_long(place: Place) -> Path:
    return place.output.with_name("x" * 300 + place.output.suffix)


EXPECTED: dict[Callable[[Place], Path], tuple[int, int, int, int]] = {
    # exit codes: a file without force, with force; a directory without force, with force
    nothing: (0, 0, 0, 0),
    below_missing_directories: (0, 0, 0, 0),
    a_file: (5, 0, 5, 5),
    an_earlier_output: (5, 0, 5, 0),
    an_earlier_output_with_a_file_of_the_user: (5, 0, 5, 5),
    an_empty_directory: (0, 0, 0, 0),  # a file goes into it
    a_directory_of_something_else: (0, 0, 5, 5),
    a_checkpoint_of_a_framework: (5, 0, 5, 5),
    an_input: (5, 5, 5, 5),
    a_file_of_an_input: (5, 5, 5, 5),
    inside_an_input: (7, 7, 5, 5),
    a_directory_with_the_inputs: (5, 5, 5, 5),
    a_link_to_an_input: (5, 5, 5, 5),
    a_hard_link_to_an_input: (5, 5, 5, 5),
    a_dangling_link: (5, 0, 5, 0),
    a_link_to_itself: (5, 5, 5, 5),
    a_link_to_an_earlier_output: (5, 0, 5, 0),
    a_pipe: (5, 5, 5, 5),
    below_a_file: (7, 7, 7, 7),
    a_name_that_is_too_long: (7, 7, 7, 7),
}


def tree(directory: Path) -> dict[str, bytes | str]:
    """All that is in a directory."""
    return {
        str(path.relative_to(directory)): (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "no file"
        )
        for path in sorted(directory.rglob("*"))
    }


CASES = list(itertools.product(EXPECTED, KINDS, (False, True)))


@pytest.mark.parametrize(("state", "kind", "force"), CASES, ids=[f"{s.__name__}-{k}-{f}" for s, k, f in CASES])
def test_a_dry_run_and_the_run_end_alike(
    state: Callable[[Place], Path], kind: str, force: bool, tmp_path: Path, run: Run
) -> None:
    place = Place(KINDS[kind], tmp_path / "run", tmp_path / KINDS[kind].output)
    place.run.mkdir()
    place.kind.save(place.run)
    output = state(place)
    before = tree(tmp_path)
    arguments = ["average", place.run, "-o", output, "--last", 2, *(["--force"] if force else [])]

    dry = run(*arguments, "--dry-run")
    assert tree(tmp_path) == before
    wet = run(*arguments)

    expected = EXPECTED[state][2 * (kind == "directory") + force]
    assert (dry.exit_code, wet.exit_code) == (expected, expected), (dry.stderr, wet.stderr)
    errors = [[line for line in ran.stderr.splitlines() if line.startswith(("Error", "Hint"))] for ran in (dry, wet)]
    assert errors[0] == errors[1]
    assert bool(errors[0]) == bool(expected)
    assert "model_3.safetensors" in dry.stdout or "checkpoint-3" in dry.stdout  # the plan, also where it is refused
    if expected:
        assert tree(tmp_path) == before
        assert wet.stdout == ""
    else:
        assert wet.stdout.strip()


@pytest.mark.parametrize("force", [False, True])
def test_no_space_and_no_permission_are_said_by_both(
    force: bool, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_files(tmp_path)
    arguments = ["average", tmp_path, "-o", tmp_path / "x" / "y.safetensors", *(["--force"] if force else [])]
    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(100, 99, 1))
        dry, wet = run(*arguments, "--dry-run"), run(*arguments)
    assert (dry.exit_code, wet.exit_code) == (7, 7)
    assert "and the disk has 1 free" in dry.stderr
    assert dry.stderr.splitlines()[-2:] == wet.stderr.splitlines()[-2:]
    with monkeypatch.context() as patched:  # root may write everywhere
        patched.setattr(module.os, "access", lambda path, _mode: path != tmp_path)
        dry, wet = run(*arguments, "--dry-run"), run(*arguments)
    assert (dry.exit_code, wet.exit_code) == (7, 7)
    assert f"no permission to write in {tmp_path}" in dry.stderr
    assert dry.stderr.splitlines()[-2:] == wet.stderr.splitlines()[-2:]


def test_outputs_that_are_written_together_need_space_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_files(tmp_path)
    found = ct.discover(tmp_path).last(2)
    plans = [ct.make_plan(found, tmp_path / f"{name}.safetensors") for name in "ab"]
    size = plans[0].bytes_to_write
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(size, 0, 2 * size - 1))
    check_destinations(destinations_of(plans[:1]))
    with pytest.raises(WriteError, match=f"needs {2 * size} bytes"):
        check_destinations(destinations_of(plans))


def test_an_output_may_not_be_an_input_of_another_one_written_with_it(tmp_path: Path) -> None:
    save_files(tmp_path)
    paths = [tmp_path / f"model_{step}.safetensors" for step in (1, 2, 3)]
    plans = [
        ct.make_plan(ct.from_paths(paths[:2]), tmp_path / "a.safetensors"),
        ct.make_plan(ct.from_paths(paths[1:]), paths[0], policy=ct.Policy(force=True)),
    ]
    check_destinations(destinations_of(plans[1:]))
    with pytest.raises(OutputExistsError, match="one of the inputs"):
        check_destinations(destinations_of(plans))


def test_in_json_the_plan_comes_before_the_refusal_as_well(tmp_path: Path, run: Run) -> None:
    save_files(tmp_path)
    assert run("average", tmp_path, "--last", 2).exit_code == 0
    dry = run("average", tmp_path, "--last", 2, "--dry-run", "--json")
    assert dry.exit_code == 5
    assert json.loads(dry.stdout)["dry_run"] is True


def test_the_library_says_the_same_of_a_dry_run(tmp_path: Path) -> None:
    save_files(tmp_path)
    ct.average(tmp_path, last=2)
    for dry_run in (True, False):
        with pytest.raises(OutputExistsError, match="exists already") as caught:
            ct.average(tmp_path, last=2, dry_run=dry_run)
        assert caught.value.hint is not None
        assert "force=True" in caught.value.hint


def test_what_appears_while_the_output_is_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_files(tmp_path)
    plan = ct.make_plan(ct.discover(tmp_path).last(2), tmp_path / "out.safetensors")
    publish = StagedOutput.publish

    def late(stage: StagedOutput, verify: Callable[[Path], None]) -> None:
        plan.output.write_text("someone else's")
        publish(stage, verify)

    monkeypatch.setattr(StagedOutput, "publish", late)
    with pytest.raises(CkpttoolError, match="exists already"):
        ct.execute(plan)
    assert plan.output.read_text() == "someone else's"
    assert not list(tmp_path.glob("*.tmp"))
