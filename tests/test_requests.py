"""What is asked for in a way that cannot be: it is said what is wrong, and what to type. And the default outputs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from commands import Ran
from safetensors.torch import load_file, save_file

import ckpttool as ct
from ckpttool.cli import COMMANDS, group
from ckpttool.errors import NotFoundError, UnreadableError, UsageError

Run = Callable[..., Ran]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six checkpoints in run/, which the commands name as it is."""
    made = tmp_path / "run"
    made.mkdir()
    for step in range(100, 700, 100):
        content = {"model": {"w": torch.full((3,), float(step))}, "step": step, "loss": 1 / step}
        torch.save(content, made / f"model_{step}.pt")
    monkeypatch.chdir(tmp_path)
    return made


# --- Mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        (["average", "run", "--weights", "2,3"], 2, "sum to 5", "--normalize"),
        (["average", "run/model_100.pt", "run/model_200.pt", "--weights", "0.5"], 2, "1 weight is given for 2", "each"),
        (["average", "run", "--last", "3", "--weights", "0.5,0.5"], 2, "2 weights are given for 3 checkpoints", "each"),
        (["average", "run", "--normalize"], 2, "--normalize is about --weights", "Leave it out"),
        (
            ["average", "run", "--last", "3", "--every", "10"],
            3,
            "--every 10 leaves 1 of the 6",
            "--every 2 leaves enough",
        ),
        (["average", "run", "--every", "10"], 3, "--every 10 leaves 1 of the 6", "--every 5 leaves enough"),
        (["average", "run", "--every", "3", "--best", "3", "--metric", "loss"], 3, "leaves 2 of the 6", "--every 2"),
        (["average", "run", "--weights", "0.2,0.3,0.5", "--every", "3"], 3, "leaves 2 of the 6", "--every 2"),
        (["average", "run/model_*.pt"], 3, "run/model_*.pt: no such file", "or name run with --include 'model_*.pt'"),
        (["ema-apply", "run/model_?00.pt"], 3, "no such file", "6 names match this pattern, which is not expanded"),
        (["ema-apply", "run/model_*.pt", "--list"], 3, "no such file", "leave the quotes out"),
        (["average", "run/best_*.pt"], 3, "no such file", "As a pattern, it matches none of the"),
        (["average", "*.pt"], 3, "no such file", "As a pattern, it matches none of the"),
        (["average", "run/model_100.pt/x"], 3, "model_100.pt/x: no such file", ""),
        (["ema-apply", "run", "--update-every", "3"], 2, "--update-every is about snapshots", "--stored-profile"),
        (
            ["ema-apply", "run", "--stored-profile", "decay:0.9", "--half-life", "9", "--unit", "epochs"],
            2,
            "--unit has no effect on snapshots",
            "Leave it out",
        ),
        (
            ["ema-apply", "run", "--decay", "0.9", "--decay", "0.9"],
            2,
            "a length is asked for twice: decay 0.9",
            "Leave one",
        ),
        (["average", "x" * 300], 6, "cannot be read", ""),
        (["ema-apply", "x" * 300, "--list"], 6, "cannot be read", ""),
        (["average", "s3://bucket/run"], 6, "s3://bucket/run: only files", "Copy it here first"),
        (["ema-apply", "hf://org/model", "-o", "x.pt"], 6, "hf://org/model: only files", "hf download"),
        (["average", "run", "-o", "s3://bucket/x.pt"], 2, "s3://bucket/x.pt: only files", "copy it there"),
        (["average", "run", "-o", "-"], 2, "-o -: an output is written at many places", "./-"),
        (["average", "run", "-o", "-", "-n"], 2, "-o -: an output is written at many places", "./-"),
        (["ema-apply", "run", "-o", "-"], 2, "cannot be a stream", "/dev/shm"),
        (["average", "run", "--from-step", "5", "--to-step", "3"], 2, "--from-step 5 is after --to-step 3", "Exchange"),
        (["ema-apply", "run", "--last", "1", "--decay", "0.999"], 3, "two checkpoints or more", "--last 1"),
        (["average", "run", "--config", "no.yml"], 3, "no.yml: no such file", ""),
        (["average", "run", "--dtype", "bf61"], 2, "bf61", ""),
        (["average", "nowhere"], 3, "nowhere: no such file or directory", ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_answered_with_what_to_type(
    arguments: list[str], code: int, error: str, hint: str, directory: Path, run: Run, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    ran = run(*arguments)
    assert ran.exit_code == code, ran.stderr
    said, _, hinted = ran.stderr.partition("Hint: ")
    assert error in said
    assert hint in hinted
    assert ran.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_an_optimizer_is_called_one(directory: Path, run: Run, tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    ran = run("average", "optimizer.pt", "run/model_100.pt", "-o", "x.pt")
    assert ran.exit_code == 6
    assert "optimizer.pt: the state of an optimizer, and no weights" in ran.stderr


def test_a_file_that_is_called_like_a_pattern_is_read(directory: Path, run: Run, tmp_path: Path) -> None:
    for index, name in enumerate(("a[1].pt", "a[2].pt")):
        torch.save({"w": torch.tensor([float(index)])}, tmp_path / name)
    assert run("average", "a[1].pt", "a[2].pt", "-o", "./-").exit_code == 0
    assert torch.load(tmp_path / "-", weights_only=True)["w"].tolist() == [0.5]


def test_the_exit_code_of_an_error_is_the_same_with_its_traceback(
    directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKPTTOOL_DEBUG", "1")
    ran = run("average", "nowhere")
    assert ran.exit_code == 3
    assert "Traceback" in ran.stderr
    assert ran.stderr.endswith("Error: nowhere: no such file or directory\n")


def test_a_file_that_may_not_be_read_is_unreadable_and_not_a_wrong_option(
    directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Click would ask os.access and say that the argument is wrong, with exit code 2."""
    access = os.access

    def denied(path: Any, mode: int, **options: Any) -> bool:
        return mode != os.R_OK and access(path, mode, **options)

    monkeypatch.setattr(os, "access", denied)
    assert run("average", "run", "--config", "run/model_100.pt").exit_code == 6
    assert run("average", "run", "-o", "x.pt").exit_code == 0
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        (directory / "model_600.pt").chmod(0)
        assert run("average", "run", "-o", "y.pt").exit_code == 6


# --- stdout is the answer --------------------------------------------------------------------------------------


def test_shown_tensors_are_on_stdout_but_with_quiet_only_the_path_is(directory: Path, run: Run) -> None:
    loud = run("average", "run", "--last", "2", "--show", "w", "-o", "x.pt")
    assert loud.stdout.startswith("w\tmodel_500.pt\tmodel_600.pt\toutput\n")
    quiet = run("average", "run", "--last", "2", "--show", "w", "-q", "-o", "y.pt")
    assert quiet.stdout == "y.pt\n"
    assert quiet.stderr.startswith("w\tmodel_500.pt\tmodel_600.pt\toutput\n")


# --- Default outputs -------------------------------------------------------------------------------------------


def test_each_choice_has_a_default_output_of_its_own_that_is_no_checkpoint_of_the_run(
    directory: Path, run: Run
) -> None:
    commands = [
        (["average", "run"], "run/avg/model_600.pt"),
        (["average", "run", "--last", "5"], "run/avg-last-5/model_600.pt"),
        (["average", "run", "--last", "3"], "run/avg-last-3/model_600.pt"),
        (["average", "run", "--last", "3", "--anneal", "cosine"], "run/avg-last-3-anneal-cosine/model_600.pt"),
        (["average", "run", "--every", "2", "--to-step", "500"], "run/avg-every-2-to-500/model_500.pt"),
        (["average", "run", "--best", "2", "--metric", "loss", "--mode", "min"], "run/avg-best-2/model_600.pt"),
        (["ema-apply", "run"], "run/ema/model_600.pt"),
        (["ema-apply", "run", "--decay", "0.99"], "run/ema-decay-0.99/model_600.pt"),
        (["ema-apply", "run", "--decay", "0.99", "--no-warmup"], "run/ema-decay-0.99-constant/model_600.pt"),
        (["ema-apply", "run", "--window", "0.5", "--last", "4"], "run/ema-last-4-window-0.5/model_600.pt"),
    ]
    for command, output in commands:
        ran = run(*command)
        assert ran.exit_code == 0, ran.stderr
        assert ran.stdout == f"{output}\n"
        assert [entry.step for entry in ct.discover(directory).entries] == list(range(100, 700, 100))
    ran = run("ema-apply", "run", "--decay", "0.9", "--half-life", "100")
    assert ran.stdout.splitlines() == ["run/ema-decay-0.9/model_600.pt", "run/ema-half-life-100/model_600.pt"]
    again = run("average", "run", "--last", "5")
    assert (again.exit_code, "exists already" in again.stderr) == (5, True)


def test_default_outputs_of_directories_are_no_checkpoints_of_the_run(tmp_path: Path, run: Run) -> None:
    for name in [f"checkpoint-{step}" for step in (10, 20, 30, 40)]:
        (tmp_path / name).mkdir()
        save_file({"a": torch.full((3,), float(name[-2:]))}, tmp_path / name / "model.safetensors", {"format": "pt"})
        (tmp_path / name / "config.json").write_text("{}")
    for options in (["--last", "2"], ["--last", "3"], ["--last", "4"], []):
        assert run("average", tmp_path, *options).exit_code == 0
        assert run("ema-apply", tmp_path, *options).exit_code == 0
        assert [entry.step for entry in ct.discover(tmp_path).entries] == [10, 20, 30, 40]
    assert load_file(tmp_path / "avg-last-2" / "checkpoint-40" / "model.safetensors")["a"].tolist() == [35.0] * 3


# --- A segment -------------------------------------------------------------------------------------------------


def test_the_plan_of_a_segment_needs_no_output(directory: Path, run: Run) -> None:
    ran = run("ema-apply", "run", "--stored-profile", "decay:0.99", "--segment", "100:300", "-n")
    assert ran.exit_code == 0, ran.stderr
    assert "run/ema-segment-100-300/model_300.pt" in ran.stdout


# --- OpenNMT-tf's configuration --------------------------------------------------------------------------------


def configuration(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "data.yml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_configuration_says_how_many_are_averaged(directory: Path, run: Run, tmp_path: Path) -> None:
    configuration(tmp_path, "train:\n  average_last_checkpoints: 4\n")
    ran = run("average", "run", "--config", "data.yml")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout == "run/avg/model_600.pt\n"
    assert "average_last_checkpoints in data.yml asks for --last 4" in ran.stderr
    assert torch.load("run/avg/model_600.pt", weights_only=True)["model"]["w"].tolist() == [450.0] * 3
    plan = ct.average("run", config="data.yml", last=2, output="x.pt", dry_run=True)
    assert [member.step for member in plan.members] == [500, 600]
    assert not any("average_last_checkpoints" in note for note in plan.notes)


@pytest.mark.parametrize("given", [{"weights": [0.5, 0.5]}, {"every": 3}, {"from_step": 500}])
def test_any_choice_comes_before_the_configurations(given: dict[str, Any], directory: Path, tmp_path: Path) -> None:
    config = configuration(tmp_path, "train:\n  average_last_checkpoints: 4\n")
    plan = ct.average("run", output="x.pt", config=config, dry_run=True, **given)
    assert len(plan.members) == 2


def test_an_average_of_checkpoints_that_are_averages_is_said_to_be_one(
    directory: Path, run: Run, tmp_path: Path
) -> None:
    configuration(tmp_path, "train:\n  moving_average_decay: 0.9999\n")
    for command in ("average", "ema-apply"):
        ran = run(command, "run", "--config", "data.yml", "-o", f"{command}.pt")
        assert ran.exit_code == 0, ran.stderr
        assert "saved with moving_average_decay 0.9999 (data.yml)" in ran.stderr
        assert "average of averages" in ran.stderr
        assert "average of averages" not in run(command, "run", "-o", f"{command}-2.pt").stderr


def test_a_checkpoint_that_its_configuration_calls_an_average_is_applied_as_it_is(
    directory: Path, run: Run, tmp_path: Path
) -> None:
    configuration(tmp_path, "train:\n  moving_average_decay: 0.9999\n")
    shutil.copyfile(directory / "model_600.pt", tmp_path / "one.pt")
    assert run("ema-apply", "one.pt", "-o", "x.pt").exit_code == 3
    ran = run("ema-apply", "one.pt", "--config", "data.yml", "-o", "x.pt")
    assert ran.exit_code == 0, ran.stderr
    assert "moving_average_decay 0.9999" in ran.stderr
    assert torch.load("x.pt", weights_only=True)["model"]["w"].tolist() == [600.0] * 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: [1, 2", "not a YAML file"),
        ("- a\n- b\n", "no keys"),
        ("train: 3\n", "train must hold keys"),
        ("train: !!bool maybe\n", "not a YAML file"),
        ("train: {moving_average_decay: often}\n", "moving_average_decay must be between 0 and 1, not 'often'"),
        ("train: {moving_average_decay: 1.5}\n", "moving_average_decay must be between 0 and 1"),
        ("train: {average_last_checkpoints: -1}\n", "average_last_checkpoints must be a whole number"),
        ("\x00", "not a YAML file"),
    ],
)
def test_a_configuration_that_cannot_be_is_an_error(text: str, said: str, directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=said):
        ct.average("run", output="x.pt", config=configuration(tmp_path, text))


@pytest.mark.parametrize("text", ["", "train:\n", "train: {average_last_checkpoints: 0}\n", "model_dir: run\n"])
def test_a_configuration_that_says_nothing_of_averages_changes_nothing(
    text: str, directory: Path, tmp_path: Path
) -> None:
    plan = ct.average("run", output="x.pt", config=configuration(tmp_path, text), dry_run=True)
    assert len(plan.members) == 6


def test_a_missing_configuration_is_not_found(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        ct.average("run", output="x.pt", config=tmp_path / "no.yml")


def test_nothing_to_read_is_a_usage_error(directory: Path) -> None:
    with pytest.raises(UsageError):
        ct.average([], "x.pt")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_environment_variable_of_an_option_is_named_by_the_option(command: str) -> None:
    with click.Context(group, info_name="ckpttool") as context:
        found = group.get_command(context, command)
        assert found is not None
        options = [each for each in found.params if isinstance(each, click.Option) and each.name != "help"]
        assert len(options) > 10
        for option in options:
            typed = [name[2:] for name in option.opts if name.startswith("--")]
            names = [f"CKPTTOOL_{command}_{name}".replace("-", "_").upper() for name in typed]
            assert option.envvar in names


def test_an_option_of_another_name_than_its_parameter_is_read_from_the_environment(
    tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        torch.save({"w": torch.ones(2)}, tmp_path / f"model_{step}.pt")
    monkeypatch.setenv("CKPTTOOL_AVERAGE_JSON", "1")
    assert json.loads(run("average", tmp_path, "-n").stdout)["command"] == "average"
    monkeypatch.setenv("CKPTTOOL_AVERAGE_JSON", "0")
    assert run("average", tmp_path, "-n").stdout.startswith("number\t")
    monkeypatch.setenv("CKPTTOOL_AVERAGE_JSON", "maybe")
    assert run("average", tmp_path, "-n").exit_code == 2
