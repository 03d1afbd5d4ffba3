"""What a plan says of members that fit together by name and shape only, and of what is not a tensor."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Ran
from safetensors.torch import load_file, load_model, save_file

import ckpttool as ct
from ckpttool.errors import MismatchError

Run = Callable[..., Ran]


def directories(run: Path, configurations: list[dict[str, Any]], name: str = "config.json") -> Path:
    weights = "adapter_model" if name == "adapter_config.json" else "model"
    for step, content in enumerate(configurations, start=1):
        folder = run / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({"w.lora_A.weight": torch.full((2, 2), float(step))}, folder / f"{weights}.safetensors")
        (folder / name).write_text(json.dumps(content))
    return run


def planned(run: Path, output: Path | None = None) -> ct.Plan:
    return ct.make_plan(ct.discover(run).last(2), output or run / "x")


# --- Configurations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"num_attention_heads": 8}, {"num_attention_heads": 4}, "num_attention_heads is 8 in checkpoint-1 and 4 in"),
        ({"rope_theta": 1e4}, {"rope_theta": 1e6}, "rope_theta is 10000.0 in checkpoint-1 and 1000000.0 in"),
        ({"rope_scaling": None}, {"rope_scaling": {"factor": 2}}, "rope_scaling is None"),
        ({"rope_scaling": {"factor": 4}}, {"rope_scaling": {"factor": 2}}, "rope_scaling.factor is 4"),
        ({"text_config": {"hidden_act": "silu"}}, {"text_config": {"hidden_act": "gelu"}}, "text_config.hidden_act"),
    ],
)
def test_configurations_that_differ_are_a_warning_with_both_values(
    one: dict[str, Any], other: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (warning,) = planned(directories(tmp_path, [one, other])).warnings
    assert said in warning
    assert "config.json" in warning
    assert "checkpoint-2" in warning


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"transformers_version": "4.40"}, {"transformers_version": "5.0"}),
        ({"_name_or_path": "a"}, {"_name_or_path": "b"}),
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"use_cache": False}, {"use_cache": True}),
        ({"attention_dropout": 0.1}, {"attention_dropout": 0.0}),
        ({"num_attention_heads": 8}, {}),  # another version of the library may not write it
        ({"architectures": ["A", "B"]}, {"architectures": ["B", "A"]}),
    ],
)
def test_differences_that_mean_nothing_are_not_said(one: dict[str, Any], other: dict[str, Any], tmp_path: Path) -> None:
    assert planned(directories(tmp_path, [one, other])).warnings == ()


@pytest.mark.parametrize("key", ["lora_alpha", "use_rslora"])
def test_adapters_of_different_scales_are_refused(key: str, tmp_path: Path, run: Run) -> None:
    directories(
        tmp_path, [{"peft_type": "LORA", "r": 2, key: 8}, {"peft_type": "LORA", "r": 2, key: 32}], "adapter_config.json"
    )
    for more in (["--dry-run"], []):
        ran = run("average", tmp_path, "--last", 2, *more)
        assert ran.exit_code == 4
        assert f"{key} is 8 in checkpoint-1 and 32 in checkpoint-2" in ran.stderr
        assert "Merge each adapter" in ran.stderr
        assert "--exclude" in ran.stderr


def test_adapters_whose_sets_are_in_another_order_and_whose_dropout_differs_are_averaged(tmp_path: Path) -> None:
    both = [
        {"lora_alpha": 8, "target_modules": ["q", "v"], "lora_dropout": 0.1, "inference_mode": True},
        {"lora_alpha": 8, "target_modules": ["v", "q"], "lora_dropout": 0.0, "inference_mode": False},
    ]
    assert planned(directories(tmp_path, both, "adapter_config.json")).warnings == ()


@pytest.mark.parametrize("make", [dict, lambda values: argparse.Namespace(**values)])
def test_arguments_in_the_file_are_compared_where_they_say_what_weights_mean(
    make: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    for step, heads in ((1, 8), (2, 4)):
        arguments = make({"heads": heads, "lr": 0.1 * step, "save_dir": f"run{step}", "seed": step})
        torch.save({"model": {"w": torch.ones(2)}, "args": arguments}, tmp_path / f"model_{step}.pt")
    (warning,) = planned(tmp_path, tmp_path / "x.pt").warnings
    assert "args: heads is 8 in model_1.pt and 4 in model_2.pt" in warning


def test_many_differences_are_counted(tmp_path: Path) -> None:
    both = [{f"key_{index}": value for index in range(9)} for value in (1, 2)]
    warnings = planned(directories(tmp_path, both)).warnings
    assert len(warnings) == 6
    assert warnings[-1].startswith("4 more keys of the configurations differ")


def test_loras_of_kohya_state_their_scale_in_the_metadata(tmp_path: Path) -> None:
    for step, alpha in ((1, "8"), (2, "32")):
        save_file({"w": torch.ones(2)}, tmp_path / f"lora-{step}.safetensors", {"ss_network_alpha": alpha})
    with pytest.raises(MismatchError, match=r"ss_network_alpha is '8' in lora-1\.safetensors and '32'"):
        planned(tmp_path, tmp_path / "x.safetensors")


# --- Entries that are not tensors --------------------------------------------------------------------------------


def save_with(run: Path, entries: list[dict[str, Any]]) -> Path:
    for step, entry in enumerate(entries, start=1):
        torch.save({"model": {"w": torch.full((2,), float(step)), **entry}, "step": step}, run / f"model_{step}.pt")
    return run


def extra(text: str) -> io.BytesIO:
    return io.BytesIO(text.encode())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"scale": 0.5}, {"scale": 0.25}),
        ({"fc._extra_state": {"amax": 1}}, {"fc._extra_state": {"amax": 2}}),
        ({"mean": np.arange(3.0)}, {"mean": np.arange(3.0) + 1}),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_entries_that_are_not_tensors_are_named_with_what_becomes_of_them(
    one: dict[str, Any], other: dict[str, Any], suffix: str, tmp_path: Path
) -> None:
    (name,) = one
    for number, members in enumerate(([one, other], [other, other])):
        folder = tmp_path / str(number)
        folder.mkdir()
        plan = planned(save_with(folder, members), folder / f"x.{suffix}")
        (note,) = [note for note in plan.notes if "not tensors" in note]
        assert name in note
        assert ("are those of model_2.pt" if suffix == "pt" else "left out: the output holds tensors only") in note
        assert (f"differ between members: {name}" if number == 0 else "the same in all members") in note


def test_a_state_dict_of_tensors_has_no_such_note(tmp_path: Path) -> None:
    plan = planned(save_with(tmp_path, [{}, {}]), tmp_path / "x.pt")
    assert not any("not tensors" in note for note in plan.notes)


# --- Ties --------------------------------------------------------------------------------------------------------


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(3, 2)
        self.head = torch.nn.Linear(2, 3, bias=False)
        self.head.weight = self.embed.weight


def test_a_tied_tensor_in_safetensors_is_said_with_the_way_to_load_it(tmp_path: Path) -> None:
    models = [Tied(), Tied()]
    for step, model in enumerate(models, start=1):
        torch.save(model.state_dict(), tmp_path / f"model_{step}.pt")
    plan = planned(tmp_path, tmp_path / "x.safetensors")
    (note,) = [note for note in plan.notes if "tied" in note]
    assert "head.weight and embed.weight" in note
    assert "safetensors.torch.load_model(model, file)" in note
    ct.execute(plan)
    loaded = Tied()
    assert load_model(loaded, tmp_path / "x.safetensors") == (set(), [])
    assert loaded.head.weight is loaded.embed.weight
    mean = (models[0].embed.weight.double() + models[1].embed.weight.double()) / 2
    assert torch.equal(loaded.embed.weight, mean.float())
    again = Tied()
    again.load_state_dict(load_file(tmp_path / "x.safetensors"), strict=False)
    assert torch.equal(again.head.weight, loaded.head.weight)
    # A .pt file holds ties, and there is nothing to say.
    assert not any("tied" in note for note in planned(tmp_path, tmp_path / "x.pt").notes)
