"""Directories as trainers leave them, averaged from end to end, and what is answered where one is not meant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Ran
from safetensors.torch import load_file, save_file

import ckpttool
from ckpttool.errors import UsageError

Tensors = dict[str, torch.Tensor]


def weights(step: int, prefix: str = "net.", dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(step)
    return {
        f"{prefix}{name}": torch.randn(shape, generator=generator).to(dtype)
        for name, shape in (("w", (4, 3)), ("b", 5))
    }


def optimizer() -> dict[str, Any]:
    return {"state": {0: {"exp_avg": torch.randn(4, 3)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}


def mean(members: list[Tensors]) -> Tensors:
    return {
        name: (sum(member[name].double() for member in members) / len(members)).to(like.dtype)
        for name, like in members[-1].items()
    }


def equal(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def f5_tts(directory: Path) -> list[Tensors]:
    """Numbers of different lengths, of which the longer ones look like another trainer's padded ones."""
    members = []
    for update in (50_000, 100_000, 150_000):
        members.append(weights(update, ""))
        average = {f"ema_model.{name}": tensor + 1 for name, tensor in members[-1].items()}
        counters = {"initted": torch.tensor(True), "step": torch.tensor(update)}
        content = {
            "model_state_dict": members[-1],
            "optimizer_state_dict": optimizer(),
            "ema_model_state_dict": {**average, **counters},
            "update": update,
        }
        torch.save(content, directory / f"model_{update}.pt")
    torch.save({"model_state_dict": members[-1]}, directory / "model_last.pt")
    return members


def kohya(directory: Path) -> list[Tensors]:
    """Each checkpoint has a directory of training state next to it, which holds a copy of the weights."""
    members = []
    for step in (500, 1000, 1500):
        members.append(weights(step, "lora_unet.", torch.float16))
        save_file(members[-1], directory / f"at-step{step:08d}.safetensors", {"ss_network_alpha": "4"})
        state = directory / f"at-step{step:08d}-state"
        state.mkdir()
        save_file(members[-1], state / "model.safetensors")
        torch.save(optimizer(), state / "optimizer.bin")
    save_file(members[-1], directory / "last.safetensors")
    return members


def nerfstudio(directory: Path) -> list[Tensors]:
    """The optimizers of several groups of parameters, by name."""
    members = []
    for step in (0, 2000, 4000):
        members.append(weights(step, "_model."))
        content = {
            "step": step,
            "pipeline": members[-1],
            "optimizers": {"proposal_networks": optimizer(), "fields": optimizer()},
            "schedulers": {"fields": {"last_epoch": step, "_step_count": step}},
        }
        torch.save(content, directory / f"step-{step:09d}.ckpt")
    return members


def vits(directory: Path) -> list[Tensors]:
    """`iteration` is the epoch, and the number in the name the step."""
    members = []
    for step in (1000, 2000, 3000):
        members.append(weights(step))
        for network in "GD":
            content = {"model": members[-1], "iteration": step // 20, "optimizer": optimizer()}
            torch.save(content, directory / f"{network}_{step}.pth")
    return members


SECTIONS = {f5_tts: "model_state_dict", nerfstudio: "pipeline", vits: "model"}


@pytest.mark.parametrize("trainer", [f5_tts, kohya, nerfstudio, vits], ids=lambda trainer: trainer.__name__)
@pytest.mark.parametrize("name", ["run", "a run – with spaces/and folders"])
def test_the_average_is_the_mean_of_the_numbered_checkpoints(
    tmp_path: Path, run: Callable[..., Ran], trainer: Callable[[Path], list[Tensors]], name: str
) -> None:
    directory = tmp_path / name
    directory.mkdir(parents=True)
    members = trainer(directory)
    for count in (3, 2):
        ran = run("average", f"{directory}/", "--last", count, "-q")
        assert ran.exit_code == 0, ran.stderr
        path = Path(ran.stdout.rstrip("\n"))
        section = SECTIONS.get(trainer)
        loaded = load_file(path) if section is None else torch.load(path)[section]
        assert equal(loaded, mean(members[-count:]))
        again = tmp_path / f"again-{count}" / path.name
        ckpttool.average(directory, last=count, output=again)
        assert again.read_bytes() == path.read_bytes()


def test_an_average_with_counters_in_it_is_averaged_and_found(tmp_path: Path, run: Callable[..., Ran]) -> None:
    members = f5_tts(tmp_path)
    ran = run("average", tmp_path, "-o", tmp_path / "out.pt")
    assert "Note: averaged separately: the stored average in ema_model_state_dict." in ran.stderr
    stored = torch.load(tmp_path / "out.pt")["ema_model_state_dict"]
    expected = mean([{f"ema_model.{name}": tensor + 1 for name, tensor in member.items()} for member in members])
    assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())
    ran = run("ema-apply", tmp_path / "model_150000.pt", "-o", tmp_path / "ema.pt")
    assert ran.exit_code == 0, ran.stderr
    applied = torch.load(tmp_path / "ema.pt")["model_state_dict"]
    assert equal(applied, {name: tensor + 1 for name, tensor in members[-1].items()})


def test_the_optimizers_of_several_groups_are_training_state(tmp_path: Path, run: Callable[..., Ran]) -> None:
    nerfstudio(tmp_path)
    ran = run("average", tmp_path, "-o", tmp_path / "out.pt")
    assert "Note: training state left out: optimizers, schedulers (--keep-state keeps it)." in ran.stderr
    assert set(torch.load(tmp_path / "out.pt")) == {"step", "pipeline"}


def test_names_that_always_contradict_their_contents_are_said_once(tmp_path: Path, run: Callable[..., Ran]) -> None:
    vits(tmp_path)
    ran = run("average", tmp_path, "-o", tmp_path / "out.pth")
    assert ran.stderr.count("Warning: ") == 1
    assert "its name says step 3000, its content step 150; the steps in the names count" in ran.stderr


# --- Checkpoints in directories further down -------------------------------------------------------------------


def lerobot(directory: Path) -> list[Tensors]:
    members = []
    for step in (20_000, 40_000, 60_000):
        members.append(weights(step))
        folder = directory / "checkpoints" / f"{step:06d}" / "pretrained_model"
        folder.mkdir(parents=True)
        save_file(members[-1], folder / "model.safetensors")
        (folder / "config.json").write_text('{"type": "act"}')
        for name in ("preprocessor_step_3_normalizer", "postprocessor_step_0_unnormalizer"):
            save_file({"mean": torch.ones(2)}, folder / f"policy_{name}_processor.safetensors")
        (folder.parent / "training_state").mkdir()
        save_file({"exp_avg": torch.ones(2)}, folder.parent / "training_state" / "optimizer_state.safetensors")
    (directory / "checkpoints" / "last").symlink_to("060000")
    return members


@pytest.mark.skipif(os.name != "posix", reason="symbolic links, and the globs of a shell")
@pytest.mark.parametrize("inside", ["", "checkpoints"])
def test_checkpoints_further_down_are_named_as_they_are_to_be_typed(
    tmp_path: Path, run: Callable[..., Ran], inside: str
) -> None:
    members = lerobot(tmp_path)
    ran = run("average", tmp_path / inside)
    assert ran.exit_code == 2
    assert "each in a directory of its own" in ran.stderr
    hint = ran.stderr.splitlines()[-1]
    pattern = tmp_path / "checkpoints" / "[0-9]*" / "pretrained_model"
    assert hint == f"Hint: List them, and name an output: {pattern}."
    listed = sorted(tmp_path.glob("checkpoints/[0-9]*/pretrained_model"))
    ran = run("average", *listed, "-o", tmp_path / "out")
    assert ran.exit_code == 0, ran.stderr
    assert equal(load_file(tmp_path / "out" / "model.safetensors"), mean(members))
    assert {path.name for path in (tmp_path / "out").glob("policy_*.safetensors")} == {
        "policy_preprocessor_step_3_normalizer_processor.safetensors",
        "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
    }


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_a_numbered_file_next_to_a_model_is_no_run(tmp_path: Path, run: Callable[..., Ran]) -> None:
    lerobot(tmp_path)
    folder = tmp_path / "checkpoints" / "020000" / "pretrained_model"
    ran = run("average", folder)
    assert ran.exit_code == 3
    assert "only one checkpoint, pretrained_model" in ran.stderr
    ran = run("average", folder, "--last", 1, "-o", tmp_path / "out.safetensors")
    assert ran.exit_code == 0, ran.stderr
    assert load_file(tmp_path / "out.safetensors").keys() == weights(1).keys()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_training_state_next_to_distributed_checkpoints_is_said(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """Megatron-Bridge's."""
    import torch.distributed.checkpoint as dcp

    for step in (100, 200):
        folder = tmp_path / f"iter_{step:07d}"
        dcp.save(weights(step, "decoder."), checkpoint_id=folder, no_dist=True)
        torch.save({"step": step}, folder / "train_state.pt")
        (folder / "run_config.yaml").write_text("model: {}")
    ran = run("average", tmp_path, "-o", tmp_path / "out")
    assert ran.exit_code == 0, ran.stderr
    assert "training state left out: train_state.pt (--keep-state keeps it)" in ran.stderr
    assert (tmp_path / "out" / "run_config.yaml").exists()
    assert not (tmp_path / "out" / "train_state.pt").exists()
    run("average", tmp_path, "-o", tmp_path / "kept", "--keep-state")
    assert (tmp_path / "kept" / "train_state.pt").exists()


# --- Mistakes --------------------------------------------------------------------------------------------------


def test_an_empty_path_is_not_the_current_directory(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """As of a variable of the shell that is not set."""
    vits(tmp_path)
    ran = run("average", "")
    assert ran.exit_code == 2
    assert "a path is empty" in ran.stderr
    for source in ("", ["", str(tmp_path / "G_1000.pth")]):
        with pytest.raises(UsageError, match="a path is empty"):
            ckpttool.average(source, output=tmp_path / "out.pth")


def test_weights_for_more_checkpoints_than_there_are_name_the_weights(tmp_path: Path, run: Callable[..., Ran]) -> None:
    vits(tmp_path)
    ran = run("average", tmp_path, "--weights", "0.2,0.2,0.2,0.4")
    assert ran.exit_code == 3
    assert "--weights has 4 numbers, and there are 3 checkpoints, steps 1000 to 3000" in ran.stderr
    assert "--last" not in ran.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="the current directory cannot be removed here")
def test_a_current_directory_that_was_removed_is_an_error_of_ours(tmp_path: Path) -> None:
    vits(tmp_path)
    (tmp_path / "gone").mkdir()
    script = "import os, sys; from ckpttool.cli import main; os.rmdir(os.getcwd()); main(sys.argv[1:])"
    ran = subprocess.run(
        [sys.executable, "-c", script, "average", tmp_path / "G_1000.pth", tmp_path / "G_2000.pth", "-o", "out.pth"],
        cwd=tmp_path / "gone",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert ran.returncode == 3
    assert ran.stderr.startswith("Error: the current directory was removed\n")


def test_the_plan_calls_names_of_no_framework_by_what_they_are(tmp_path: Path, run: Callable[..., Ran]) -> None:
    for epoch in (1, 2):
        torch.save({"model": weights(epoch), "epoch": epoch}, tmp_path / f"checkpoint_{epoch}.pt")
    torch.save({"model": weights(3), "epoch": 3}, tmp_path / "checkpoint.pt")
    skipped = json.loads(run("average", tmp_path, "-n", "--json").stdout)["skipped"]
    assert [each["reason"] for each in skipped] == ["not named as the other checkpoints are"]
