"""``ckpttool average`` as its users meet it: files of torch and safetensors in, their own loaders on the result."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from commands import Ran

import ckpttool
from ckpttool.errors import UsageError
from ckpttool.formats import open_checkpoint

Run = Callable[..., Ran]
VALUES = (1.0, 2.0, 6.0)  # their mean is 3


def save_run(
    directory: Path, weights: Callable[[float], Mapping[str, Any]], values: tuple[float, ...] = VALUES, **extra: Any
) -> Path:
    """A training loop's checkpoints: model_100.pt, model_200.pt, ... with one value each."""
    directory.mkdir(parents=True, exist_ok=True)
    for index, value in enumerate(values, start=1):
        state = {"model": weights(value), "step": 100 * index, **extra}
        torch.save(state, directory / f"model_{100 * index}.pt")
    return directory


def simple(value: float) -> dict[str, torch.Tensor]:
    return {"a.weight": torch.full((3, 2), value), "a.bias": torch.tensor([value, -value])}


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    made = save_run(tmp_path / "run", simple, optimizer=optimizer.state_dict(), config={"width": 2}, epoch=7)
    shutil.copyfile(made / "model_300.pt", made / "last.pt")
    return made


# --- The main job ----------------------------------------------------------------------------------------------


def test_the_last_two_are_averaged_into_the_newest_container(run: Run, directory: Path) -> None:
    ran = run("average", directory, "--last", 2)
    assert ran.exit_code == 0, ran.stderr
    output = directory / "avg-last-2" / "model_300.pt"
    assert ran.stdout == f"{output}\n"
    state = load(output)
    assert list(state) == ["model", "step", "config", "epoch"]
    assert (state["step"], state["config"], state["epoch"]) == (300, {"width": 2}, 7)
    assert torch.equal(state["model"]["a.weight"], torch.full((3, 2), 4.0))
    assert torch.equal(state["model"]["a.bias"], torch.tensor([4.0, -4.0]))
    assert "--keep-state" in ran.stderr


def test_without_a_number_all_there_are_are_taken_and_said(run: Run, directory: Path) -> None:
    ran = run("average", directory)
    assert ran.exit_code == 0
    assert "3 checkpoints" in ran.stderr
    assert torch.equal(load(directory / "avg" / "model_300.pt")["model"]["a.bias"], torch.tensor([3.0, -3.0]))


def test_the_training_state_is_kept_when_asked(run: Run, directory: Path, tmp_path: Path) -> None:
    assert run("average", directory, "--last", 2, "--keep-state", "-o", tmp_path / "x.pt").exit_code == 0
    kept, newest = load(tmp_path / "x.pt")["optimizer"], load(directory / "model_300.pt")["optimizer"]
    assert kept["param_groups"] == newest["param_groups"]
    assert all(torch.equal(kept["state"][0][name], newest["state"][0][name]) for name in ("exp_avg", "exp_avg_sq"))


def test_a_safetensors_output_holds_the_weights_and_what_they_are_made_of(
    run: Run, directory: Path, tmp_path: Path
) -> None:
    output = tmp_path / "x.safetensors"
    assert run("average", directory, "-o", output, "--dtype", "bfloat16").exit_code == 0
    tensors = safetensors.torch.load_file(output)
    assert torch.equal(tensors["a.weight"], torch.full((3, 2), 3.0, dtype=torch.bfloat16))
    with safetensors.safe_open(output, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["format"] == "pt"
    provenance = json.loads(metadata["ckpttool"])
    assert [member["step"] for member in provenance["members"]] == [100, 200, 300]
    assert [member["name"] for member in provenance["members"]] == ["model_100.pt", "model_200.pt", "model_300.pt"]


def test_the_provenance_in_a_torch_file_is_a_record_that_torch_ignores(run: Run, directory: Path) -> None:
    run("average", directory)
    with zipfile.ZipFile(directory / "avg" / "model_300.pt") as archive:
        assert archive.testzip() is None
        (name,) = [name for name in archive.namelist() if name.endswith("ckpttool.json")]
        assert len(json.loads(archive.read(name))["members"]) == 3
    assert torch.load(directory / "avg" / "model_300.pt", mmap=True, weights_only=True)["step"] == 300


def test_a_framework_whose_names_have_no_suffix_gets_its_own_names(run: Run, tmp_path: Path) -> None:
    """Sockeye's params.00002, ESPnet's snapshot.ep.2: the average may be called params.best."""
    for number in (1, 2):
        torch.save(simple(float(number)), tmp_path / f"params.{number:05d}")
    assert run("average", tmp_path, "-o", tmp_path / "params.best").exit_code == 0
    assert torch.equal(load(tmp_path / "params.best")["a.weight"], torch.full((3, 2), 1.5))
    torch.save(simple(3.0), tmp_path / "params.pt")
    listed = [tmp_path / "params.00001", tmp_path / "params.pt"]
    assert run("average", *listed, "-o", tmp_path / "x.best").exit_code == 2


def test_any_mixture_of_formats_makes_one_average(run: Run, directory: Path, tmp_path: Path) -> None:
    safetensors.torch.save_file(simple(2.0), tmp_path / "b.safetensors")
    torch.save(simple(6.0), tmp_path / "c.bin", _use_new_zipfile_serialization=False)
    output = tmp_path / "x.safetensors"
    ran = run("average", directory / "model_100.pt", tmp_path / "b.safetensors", tmp_path / "c.bin", "-o", output)
    assert ran.exit_code == 0, ran.stderr
    assert torch.equal(safetensors.torch.load_file(output)["a.weight"], torch.full((3, 2), 3.0))


def test_as_many_of_a_directory_are_taken_as_there_are_weights_in_python_as_well(
    run: Run, directory: Path, tmp_path: Path
) -> None:
    assert run("average", directory, "--weights", "0.25,0.75", "-o", tmp_path / "a" / "x.pt").exit_code == 0
    ckpttool.average(directory, tmp_path / "b" / "x.pt", weights=[0.25, 0.75])
    assert torch.equal(load(tmp_path / "b" / "x.pt")["model"]["a.weight"], torch.full((3, 2), 5.0))
    assert (tmp_path / "a" / "x.pt").read_bytes() == (tmp_path / "b" / "x.pt").read_bytes()


def test_weights_are_paired_oldest_first_in_a_directory_and_as_given_in_a_list(
    run: Run, directory: Path, tmp_path: Path
) -> None:
    ran = run("average", directory, "--weights", "0.5,0.25,0.25", "-o", tmp_path / "x.pt")
    assert ran.exit_code == 0, ran.stderr
    assert load(tmp_path / "x.pt")["model"]["a.bias"][0] == 2.5
    files = [directory / "model_300.pt", directory / "model_100.pt"]
    assert run("average", *files, "--weights", "3,1", "--normalize", "-o", tmp_path / "y.pt").exit_code == 0
    state = load(tmp_path / "y.pt")
    assert state["model"]["a.bias"][0] == 4.75
    assert state["step"] == 300  # the newest is the highest step, wherever it is in the list
    ran = run("average", *files, "--weights", "3,1", "--normalize", "-o", tmp_path / "z.pt", "-n", "--json")
    document = json.loads(ran.stdout)
    assert [(m["step"], m["coefficient"]) for m in document["members"]] == [(100, 0.25), (300, 0.75)]


def test_the_order_of_arguments_does_not_matter_where_steps_are_known(
    run: Run, directory: Path, tmp_path: Path
) -> None:
    files = [directory / f"model_{step}.pt" for step in (100, 200, 300)]
    outputs = []
    for index, order in enumerate([(0, 1, 2), (2, 0, 1), (1, 2, 0)]):
        output = tmp_path / str(index) / "x.pt"
        assert run("average", *(files[i] for i in order), "-o", output).exit_code == 0
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]


def test_one_checkpoint_is_converted_only_if_that_is_said(run: Run, directory: Path, tmp_path: Path) -> None:
    refused = run("average", directory / "model_100.pt", "-o", tmp_path / "x.safetensors")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--last 1" in refused.stderr
    for source in (directory / "model_300.pt", directory):
        assert run("average", source, "--last", 1, "-o", tmp_path / "x.safetensors", "-f").exit_code == 0
        assert torch.equal(safetensors.torch.load_file(tmp_path / "x.safetensors")["a.weight"], torch.full((3, 2), 6.0))


# --- Every class of tensor (the conformance suite) ---------------------------------------------------------------


def averaged(run: Run, directory: Path, *options: object) -> tuple[dict[str, torch.Tensor], Ran]:
    ran = run("average", directory, "-o", directory / "out.pt", "-f", *options)
    assert ran.exit_code == 0, ran.stderr
    return load(directory / "out.pt")["model"], ran


def test_tied_tensors_are_averaged_once_and_stay_tied(run: Run, tmp_path: Path) -> None:
    def weights(value: float) -> dict[str, torch.Tensor]:
        shared = torch.full((2, 2), value)
        return {"embed": shared, "head": shared}

    model, _ = averaged(run, save_run(tmp_path, weights))
    assert torch.equal(model["embed"], torch.full((2, 2), 3.0))
    assert model["embed"].data_ptr() == model["head"].data_ptr()


def test_views_of_one_storage_that_are_not_ties_stay_correct(run: Run, tmp_path: Path) -> None:
    def weights(value: float) -> dict[str, torch.Tensor]:
        flat = torch.arange(12.0) * value
        return {"whole": flat, "part": flat[2:5], "grid": flat[4:].view(2, 4).t(), "every": flat[::3]}

    model, _ = averaged(run, save_run(tmp_path, weights))
    expected = weights(3.0)
    assert all(torch.equal(expected[name], model[name]) for name in expected)


@pytest.mark.parametrize(
    ("dtype", "values", "mean"),
    [
        (torch.float16, (30000.0, 30000.0, 60000.0), 40000.0),  # the sum is over the largest float16
        (torch.bfloat16, (1.0, 2.0, 6.0), 3.0),
        (torch.float64, (1.0, 2.0, 6.0), 3.0),
        (torch.complex64, (1.0, 2.0, 6.0), 3.0),
        (torch.float8_e4m3fn, (1.0, 2.0, 6.0), 3.0),
        (torch.float8_e5m2, (1.0, 2.0, 6.0), 3.0),
    ],
)
def test_every_floating_dtype_keeps_its_type(
    run: Run, tmp_path: Path, dtype: torch.dtype, values: tuple[float, ...], mean: float
) -> None:
    model, _ = averaged(run, save_run(tmp_path, lambda value: {"w": torch.full((5,), value).to(dtype)}, values))
    assert model["w"].dtype == dtype
    assert torch.equal(model["w"].to(torch.complex128), torch.full((5,), mean, dtype=torch.complex128))


def test_integers_and_bools_are_never_averaged(run: Run, tmp_path: Path) -> None:
    def weights(value: float) -> dict[str, torch.Tensor]:
        return {
            "w": torch.full((2,), value),
            "position_ids": torch.arange(4),
            "num_batches_tracked": torch.tensor(int(value) * 100),
            "mask": torch.tensor([True, False]),
        }

    directory = save_run(tmp_path, weights)
    model, ran = averaged(run, directory)
    assert torch.equal(model["position_ids"], torch.arange(4))
    assert torch.equal(model["num_batches_tracked"], torch.tensor(600))
    assert torch.equal(model["mask"], torch.tensor([True, False]))
    assert "num_batches_tracked" in ran.stderr
    assert "position_ids" not in ran.stderr
    refused = run("average", directory, "-o", tmp_path / "y.pt", "--integers", "error")
    assert refused.exit_code == 4
    assert "num_batches_tracked" in refused.stderr
    assert not (tmp_path / "y.pt").exists()


def test_scalars_empty_and_non_contiguous_tensors_survive(run: Run, tmp_path: Path) -> None:
    def weights(value: float) -> dict[str, torch.Tensor]:
        return {
            "scale": torch.tensor(value),
            "empty": torch.zeros(0, 4),
            "t": (torch.arange(6.0) * value).view(2, 3).t(),
            "last": torch.full((1, 2, 3, 4), value).to(memory_format=torch.channels_last),
            "p": torch.nn.Parameter(torch.full((2,), value)),
        }

    model, _ = averaged(run, save_run(tmp_path, weights))
    for name, expected in weights(3.0).items():
        assert torch.equal(expected, model[name])
        assert model[name].shape == expected.shape
    assert isinstance(model["p"], torch.nn.Parameter)


def test_channels_last_becomes_plain_order_in_a_format_without_strides(run: Run, tmp_path: Path) -> None:
    def weights(value: float) -> dict[str, torch.Tensor]:
        return {"w": (torch.arange(24.0) * value).view(1, 2, 3, 4).to(memory_format=torch.channels_last)}

    directory = save_run(tmp_path, weights)
    assert run("average", directory, "-o", tmp_path / "x.safetensors").exit_code == 0
    assert torch.equal(safetensors.torch.load_file(tmp_path / "x.safetensors")["w"], weights(3.0)["w"])


def test_the_plan_says_which_layout_was_recognised_and_why(run: Run, tmp_path: Path) -> None:
    for step in (500, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
        safetensors.torch.save_file({"w": torch.ones(3)}, tmp_path / f"checkpoint-{step}" / "model.safetensors")
    why = "layout huggingface: 2 names like checkpoint-1000 fit it"
    assert f"selection\t{why}\n" in run("average", tmp_path, "--dry-run").stdout
    assert json.loads(run("average", tmp_path, "--dry-run", "--json").stdout)["selection"] == why
    assert "layout huggingface, as asked" in run("average", tmp_path, "--layout", "huggingface", "--dry-run").stdout
    named = run("average", *sorted(tmp_path.iterdir()), "-o", tmp_path / "x.safetensors", "--dry-run", "--json")
    assert json.loads(named.stdout)["selection"] is None
    assert f"Selection: {why}." in run("average", tmp_path, "-v").stderr


def test_steps_that_count_epochs_are_called_so(run: Run, tmp_path: Path) -> None:
    for epoch in (1, 2, 10):
        torch.save({"w": torch.full((3,), float(epoch))}, tmp_path / f"epoch_{epoch}.pt")
    assert run("average", tmp_path, "--dry-run").stdout.startswith("epoch\tcheckpoint\t")
    ran = run("average", tmp_path, "-o", tmp_path / "out.safetensors", "--json")
    assert "(epochs 1, 2, 10)" in ran.stderr
    assert json.loads(ran.stdout)["unit"] == "epoch"
    assert open_checkpoint(tmp_path / "out.safetensors").provenance["members"][2]["epoch"] == 10


def test_the_library_selects_by_name_and_refuses_what_a_list_cannot_mean(tmp_path: Path) -> None:
    for name in ("epoch_1.pt", "epoch_2.pt", "epoch_3.pt", "step_10.pt"):
        torch.save({"w": torch.full((3,), float(name[-4]))}, tmp_path / name)
    out = tmp_path / "out.safetensors"
    with pytest.raises(UsageError, match="2 families"):
        ckpttool.average(tmp_path, out)
    ckpttool.average(tmp_path, out, include="epoch_*.pt", exclude=["*_1.pt"])
    assert safetensors.torch.load_file(out)["w"].tolist() == [2.5] * 3
    paths = [tmp_path / "epoch_1.pt", tmp_path / "epoch_2.pt"]
    for wrong in ({"last": 2}, {"include": "*"}, {"exclude": ["x"]}, {"layout": "wenet"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            ckpttool.average(paths, tmp_path / "two.safetensors", **wrong)
    assert not (tmp_path / "two.safetensors").exists()


def test_an_output_that_ends_in_a_separator_is_a_directory_to_write_into(run: Run, tmp_path: Path) -> None:
    directory = save_run(tmp_path, lambda value: {"w": torch.full((3,), value)})
    ran = run("average", directory, "-o", f"{tmp_path / 'new'}/")
    assert ran.exit_code == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model_300.pt"]
    assert run("ema-apply", directory, "-o", f"{tmp_path / 'ema'}/").exit_code == 0
    assert [path.name for path in (tmp_path / "ema").iterdir()] == ["model_300.pt"]


def test_an_empty_output_name_is_refused(run: Run, tmp_path: Path) -> None:
    ran = run("average", save_run(tmp_path, lambda value: {"w": torch.full((3,), value)}), "-o", "")
    assert ran.exit_code == 2
    assert "empty" in ran.stderr


def test_nan_is_an_error_that_names_checkpoint_and_tensor(run: Run, tmp_path: Path) -> None:
    directory = save_run(tmp_path, lambda value: {"ok": torch.ones(3), "w": torch.full((3,), value)})
    torch.save(
        {"model": {"ok": torch.ones(3), "w": torch.tensor([1.0, float("nan"), 1])}, "step": 200},
        tmp_path / "model_200.pt",
    )
    ran = run("average", directory)
    assert ran.exit_code == 4
    assert "model_200.pt" in ran.stderr
    assert re.search(r"\bw\b", ran.stderr)
    assert not (directory / "avg").exists() or not list((directory / "avg").iterdir())
    allowed = run("average", directory, "--allow-nonfinite")
    assert allowed.exit_code == 0
    assert load(directory / "avg" / "model_300.pt")["model"]["w"].isnan().tolist() == [False, True, False]


def test_a_cast_that_overflows_is_an_error(run: Run, tmp_path: Path) -> None:
    directory = save_run(tmp_path, lambda value: {"w": torch.full((3,), value * 1e30)})
    ran = run("average", directory, "--dtype", "float16")
    assert ran.exit_code == 4
    assert "w" in ran.stderr
    assert "float16" in ran.stderr


def test_members_of_different_dtypes_are_averaged_and_said(run: Run, tmp_path: Path) -> None:
    directory = save_run(tmp_path, lambda value: {"w": torch.full((3,), value)})
    torch.save({"model": {"w": torch.full((3,), 1.0, dtype=torch.float16)}, "step": 100}, tmp_path / "model_100.pt")
    model, ran = averaged(run, directory)
    assert torch.equal(model["w"], torch.full((3,), 3.0))
    assert "float16" in ran.stderr


def test_a_wrapper_prefix_in_one_member_is_recognised_and_said(run: Run, tmp_path: Path) -> None:
    directory = save_run(tmp_path, simple)
    wrapped = {f"module.{name}": tensor for name, tensor in simple(1.0).items()}
    torch.save({"model": wrapped, "step": 100}, tmp_path / "model_100.pt")
    model, ran = averaged(run, directory)
    assert list(model) == ["a.weight", "a.bias"]
    assert model["a.bias"][0] == 3.0
    assert "'module.'" in ran.stderr


def test_objects_of_classes_that_are_not_installed_come_back_unchanged(run: Run, tmp_path: Path) -> None:
    arguments = argparse.Namespace(arch="transformer", lr=[0.1], betas=(0.9, 0.98))
    directory = save_run(tmp_path, simple, args=arguments)
    ran = run("average", directory)
    assert ran.exit_code == 0, ran.stderr
    state = torch.load(directory / "avg" / "model_300.pt", weights_only=False)
    assert state["args"] == arguments


def test_each_copy_is_averaged_with_its_own_kind(run: Run, tmp_path: Path) -> None:
    for index, value in enumerate(VALUES, start=1):
        state = {"model": simple(value), "ema": simple(10 * value), "step": index}
        torch.save(state, tmp_path / f"model_{index}.pt")
    assert run("average", tmp_path, "-o", tmp_path / "x.pt").exit_code == 0
    state = load(tmp_path / "x.pt")
    assert state["model"]["a.bias"][0] == 3.0
    assert state["ema"]["a.bias"][0] == 30.0
    assert run("average", tmp_path, "--section", "ema", "-o", tmp_path / "x.safetensors").exit_code == 0
    assert safetensors.torch.load_file(tmp_path / "x.safetensors")["a.bias"][0] == 30.0


# --- What is refused -----------------------------------------------------------------------------------------------


def torn(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def wrong_shape(directory: Path) -> None:
    torch.save(
        {"model": {"a.weight": torch.ones(1, 2), "a.bias": torch.ones(2)}, "step": 100}, directory / "model_100.pt"
    )


def missing_key(directory: Path) -> None:
    torch.save({"model": {"a.weight": torch.ones(3, 2)}, "step": 100}, directory / "model_100.pt")


@pytest.mark.parametrize(
    ("spoil", "arguments", "exit_code", "words"),
    [
        pytest.param(None, ["--last", "9"], 3, ["3 checkpoints", "steps 100 to 300"], id="too few"),
        pytest.param(None, ["--last", "0"], 2, ["--last"], id="no number"),
        pytest.param(None, ["--from-step", "900"], 3, [], id="none left"),
        pytest.param(None, ["--weights", "0.5,0.6"], 2, ["1.1"], id="weights do not sum to 1"),
        pytest.param(None, ["--weights", "0.5,x"], 2, ["--weights"], id="weights are not numbers"),
        pytest.param(None, ["--best", "2"], 2, ["--metric"], id="best by what"),
        pytest.param(None, ["--section", "modle"], 2, ["model"], id="wrong section"),
        pytest.param(None, ["-o", "x.xyz"], 2, [".xyz", ".safetensors"], id="unknown suffix"),
        pytest.param(None, ["-o", "x.safetensors", "--keep-state"], 2, ["--keep-state"], id="state has no place"),
        pytest.param(None, ["--show", "a.wieght"], 2, ["a.weight"], id="no such tensor"),
        pytest.param(wrong_shape, [], 4, ["a.weight", "[1, 2]", "[3, 2]", "model_100.pt"], id="shape"),
        pytest.param(missing_key, [], 4, ["a.bias", "model_100.pt", "--keys"], id="missing key"),
        pytest.param(lambda d: torn(d / "model_200.pt", 0.7), [], 6, ["model_200.pt"], id="truncated"),
        pytest.param(
            lambda d: (d / "model_200.pt").write_bytes(b""), [], 6, ["model_200.pt", "empty"], id="empty file"
        ),
        pytest.param(lambda d: (d / "model_200.pt").write_text("<html>"), [], 6, ["model_200.pt"], id="wrong magic"),
    ],
)
def test_bad_input_ends_in_one_clear_error(
    run: Run,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], object] | None,
    arguments: list[str],
    exit_code: int,
    words: list[str],
) -> None:
    monkeypatch.chdir(directory.parent)
    if spoil is not None:
        spoil(directory)
    before = sorted(directory.rglob("*"))
    ran = run("average", directory, *arguments)
    assert ran.exit_code == exit_code, ran.stderr
    assert ran.stdout == ""
    assert ran.stderr.count("Error: ") == 1
    assert "Traceback" not in ran.stderr
    for word in words:
        assert word in ran.stderr
    assert sorted(directory.rglob("*")) == before


def test_an_existing_output_stays_and_an_input_is_never_written_to(run: Run, directory: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.pt"
    output.write_text("precious")
    ran = run("average", directory, "-o", output)
    assert ran.exit_code == 5
    assert "--force" in ran.stderr
    assert output.read_text() == "precious"
    assert run("average", directory, "-o", output, "--force").exit_code == 0
    assert load(output)["step"] == 300
    for target in (directory / "model_200.pt", directory / "last.pt"):
        before = (directory / "model_200.pt").read_bytes()
        os.link(directory / "model_200.pt", tmp_path / "link.pt") if not (tmp_path / "link.pt").exists() else None
        assert run("average", directory, "-o", directory / "model_200.pt", "--force").exit_code == 5
        assert run("average", directory, "-o", tmp_path / "link.pt", "--force").exit_code == 5
        assert (directory / "model_200.pt").read_bytes() == before
        assert target.exists()


def test_the_same_checkpoint_twice_is_an_error(run: Run, directory: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.pt"
    link.symlink_to(directory / "model_100.pt")
    ran = run("average", directory / "model_100.pt", link, "-o", tmp_path / "x.pt")
    assert ran.exit_code == 2
    assert "link.pt" in ran.stderr


@pytest.mark.parametrize("make", [shutil.copyfile, os.link, os.symlink])
def test_aliases_and_earlier_averages_are_left_out_with_a_reason(
    run: Run, directory: Path, make: Callable[[Path, Path], object]
) -> None:
    make(directory / "model_300.pt", directory / "best.pt")
    run("average", directory, "-o", directory / "model_400.pt")  # an average in disguise
    run("average", directory, "--last", 3, "-o", directory / "avg" / "model_300.pt")
    document = json.loads(run("average", directory, "-n", "--json", "-f").stdout)
    assert [member["step"] for member in document["members"]] == [100, 200, 300]
    reasons = {Path(skipped["path"]).name: skipped["reason"] for skipped in document["skipped"]}
    assert {"last.pt", "best.pt", "model_400.pt", "avg"} <= set(reasons)
    assert all(reasons.values())


def test_a_name_that_contradicts_its_content_is_a_warning(run: Run, tmp_path: Path) -> None:
    for name, step in (("100", 100), ("200", 150), ("300", 300)):
        torch.save({"model": simple(1.0), "step": step}, tmp_path / f"m_step_{name}.pt")
    ran = run("average", tmp_path, "-n")
    assert ran.exit_code == 0
    assert "Warning: " in ran.stderr
    assert "m_step_200.pt" in ran.stderr
    assert "150" in ran.stderr


def test_nothing_named_in_a_pickle_is_ever_called(run: Run, tmp_path: Path) -> None:
    sentinel = tmp_path / "called"

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (os.system, (f"touch {sentinel}",))

    save_run(tmp_path / "run", simple, payload=Evil())
    ran = run("average", tmp_path / "run")
    assert not sentinel.exists()
    assert ran.exit_code == 0, ran.stderr  # an inert object is carried along unchanged
    with zipfile.ZipFile(tmp_path / "run" / "avg" / "model_300.pt") as archive:
        assert b"system" in archive.read("model_300/data.pkl")


# --- What is printed -------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_writes_nothing(run: Run, directory: Path) -> None:
    ran = run("average", directory, "--last", 2, "--dry-run")
    assert ran.exit_code == 0
    assert not (directory / "avg-last-2").exists()
    for word in (
        "model_200.pt",
        "model_300.pt",
        "0.5",
        "last.pt",
        "peak memory",
        str(directory / "avg-last-2" / "model_300.pt"),
    ):
        assert word in ran.stdout


def test_every_field_of_the_json_is_documented(run: Run, directory: Path) -> None:
    documented = (Path(__file__).parent.parent / "docs" / "json.md").read_text()
    document = json.loads(run("average", directory, "--json").stdout)

    def check(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                check(value, f"{prefix}{key}.")
            else:
                assert f"`{prefix}{key}`" in documented, prefix + key
            if isinstance(value, list) and value and isinstance(value[0], dict):
                check(value[0], f"{prefix}{key}[].")

    check(document, "")
    assert document["schema"] == 1
    assert document["result"]["bytes_written"] == (directory / "avg" / "model_300.pt").stat().st_size


def test_show_prints_a_tensor_in_each_member_and_in_the_average(run: Run, directory: Path) -> None:
    ran = run("average", directory, "--last", 2, "--show", "a.bias")
    assert ran.stdout.splitlines()[:-1] == [
        "a.bias\tmodel_200.pt\tmodel_300.pt\toutput",
        "[0]\t2\t6\t4",
        "[1]\t-2\t-6\t-4",
    ]


def test_show_in_json_keeps_stdout_one_document(run: Run, directory: Path) -> None:
    document = json.loads(run("average", directory, "--last", 2, "--show", "a.bias", "--json").stdout)
    assert document["shown"]["a.bias"]["output"] == {"[0]": "4", "[1]": "-4"}


def test_options_can_come_from_the_environment(run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTTOOL_AVERAGE_LAST", "2")
    assert len(json.loads(run("average", directory, "-n", "--json").stdout)["members"]) == 2


def test_off_a_terminal_there_is_no_escape_sequence_and_nothing_is_cut(tmp_path: Path) -> None:
    long = tmp_path / ("d" * 120)
    save_run(long, simple)
    ran = subprocess.run(
        [sys.executable, "-m", "ckpttool", "average", str(long), "--dry-run"],
        capture_output=True,
        check=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    )
    assert b"\x1b" not in ran.stdout + ran.stderr
    assert str(long).encode() in ran.stdout
