"""What the command line can do is one call in Python, with the same bytes as the result."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pytest
import safetensors.torch
import torch
from commands import Ran

import ckpttool as ct
from ckpttool.api import averages, keywords
from ckpttool.cli import group
from ckpttool.errors import CkpttoolError, MismatchError, UsageError

Run = Callable[..., Ran]


# --- Inputs that every use of the commands finds what it needs in ------------------------------------------------


def weights(value: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(round(1000 * value))
    return {
        "encoder.weight": torch.randn(4, 3, generator=generator),
        "encoder.bias": torch.randn(4, generator=generator),
        "count": torch.tensor(round(value)),
    }


def make_inputs(root: Path) -> None:
    """Checkpoints of each kind, by what they are used for."""
    run = root / "run"
    run.mkdir(parents=True)
    for step in range(100, 1001, 100):
        torch.save(
            {
                "model": weights(step),
                "step": step,
                "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
                "metrics": {"loss": (step % 300) / 100},
            },
            run / f"model_{step}.pt",
        )
    torch.save({"net": weights(1), "other": weights(2)}, root / "two-parts-1.pt")
    torch.save({"net": weights(3), "other": weights(4)}, root / "two-parts-2.pt")
    torch.save({"a": torch.ones(2), "b": torch.ones(1)}, root / "more.pt")
    torch.save({"a": torch.zeros(2)}, root / "fewer.pt")
    torch.save({"a": torch.tensor([1.0, float("nan")])}, root / "nan-1.pt")
    torch.save({"a": torch.tensor([2.0, 3.0])}, root / "nan-2.pt")
    torch.save({"state_dict": weights(1), "state_dict_ema": weights(2)}, root / "last.pth.tar")
    torch.save({"model": weights(1), "ema_a": weights(2), "ema_b": weights(3)}, root / "several.pt")
    plain = weights(1)
    del plain["count"]
    torch.save({"model": plain}, root / "names.pt")
    listed = {"decay": 0.9, "num_updates": 3, "shadow_params": [tensor + 1 for tensor in plain.values()]}
    torch.save(listed, root / "nameless.pt")
    for step in (10, 20):
        directory = root / "transformers" / f"checkpoint-{step}"
        directory.mkdir(parents=True)
        safetensors.torch.save_file(
            {"a": torch.full((40,), float(step)), "b": torch.full((40,), 1.0)},
            directory / "model.safetensors",
            {"format": "pt"},
        )
        (directory / "config.json").write_text("{}")
    for batch in (100, 200, 300):
        directory = root / "icefall"
        directory.mkdir(exist_ok=True)
        mean = {
            name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in weights(batch).items()
        }
        content = {
            "model": weights(batch + 1),
            "model_avg": mean,
            "batch_idx_train": batch,
            "average_period": 50,
            "optimizer": None,
        }
        torch.save(content, directory / f"epoch-{batch // 100}.pt")
    (root / "data.yml").write_text("train: {average_last_checkpoints: 3, moving_average_decay: 0.99}\n")
    (root / "edm2").mkdir()
    (root / "averages").mkdir()
    for step in (1000, 2000, 3000):
        for width in ("0.050", "0.100"):
            torch.save(weights(step + float(width)), root / "edm2" / f"snapshot-{step:07d}-{width}.pt")
        torch.save({"model": weights(step), "step": step}, root / "averages" / f"snapshot_{step}.pt")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    make_inputs(root)
    return root


class Use(NamedTuple):
    """One use of the command line, and the call that it is in Python. Names are in the directory of the inputs."""

    command: str
    inputs: Sequence[str]
    options: Sequence[str]
    keywords: Mapping[str, Any]
    output: str | None = "out.safetensors"


TWO = ("nan-1.pt", "nan-2.pt")

USES = (
    # --- average: which checkpoints
    Use("average", ["run"], [], {}, None),
    Use("average", ["run"], ["--last", "3"], {"last": 3}),
    Use("average", ["run"], ["--last", "3"], {"last": 3}, "into/"),
    Use("average", ["run"], ["--last", "2", "--every", "4"], {"last": 2, "every": 4}),
    Use("average", ["run"], ["--from-step", "300", "--to-step", "700"], {"from_step": 300, "to_step": 700}),
    Use("average", ["run"], ["--include", "*_1*.pt", "--include", "*_2*.pt"], {"include": ["*_1*.pt", "*_2*.pt"]}),
    Use("average", ["run"], ["--exclude", "*_200.pt", "--last", "3"], {"exclude": "*_200.pt", "last": 3}),
    Use("average", ["run"], ["--best", "2", "--metric", "metrics.loss"], {"best": 2, "metric": "metrics.loss"}),
    Use(
        "average",
        ["run"],
        ["--best", "2", "--metric", "metrics.loss", "--mode", "max"],
        {"best": 2, "metric": "metrics.loss", "mode": "max"},
    ),
    Use(
        "average",
        ["transformers"],
        ["--layout", "huggingface", "--last", "2"],
        {"layout": "huggingface", "last": 2},
        "hf",
    ),
    Use("average", ["two-parts-1.pt", "two-parts-2.pt"], ["--section", "other"], {"section": "other"}),
    Use("average", ["run/model_100.pt"], ["--last", "1"], {"last": 1}),
    Use("average", ["run"], ["--config", "data.yml"], {"config": "data.yml"}),
    # --- average: how
    Use("average", ["run"], ["--weights", "0.2,0.3,0.5"], {"weights": [0.2, 0.3, 0.5]}),
    Use("average", ["run"], ["--weights", "1,2", "--normalize"], {"weights": (1, 2), "normalize": True}),
    Use("average", ["run"], ["--last", "5", "--anneal", "1-sqrt"], {"last": 5, "anneal": "1-sqrt"}),
    Use(
        "average",
        ["icefall"],
        ["--window-from-running-mean", "--last", "2"],
        {"window_from_running_mean": True, "last": 2},
        "out.pt",
    ),
    # --- what comes out, of both commands
    Use("average", ["run"], ["--dtype", "bfloat16"], {"dtype": "bfloat16"}),
    Use("average", ["run"], ["--dtype", "fp16"], {"dtype": "fp16"}),
    Use("average", ["more.pt", "fewer.pt"], ["--keys", "intersection"], {"keys": "intersection"}),
    Use("average", ["run"], ["--integers", "newest"], {"integers": "newest"}),
    Use("average", ["run"], ["--keep-state"], {"keep_state": True}, "out.pt"),
    Use("average", TWO, ["--allow-nonfinite"], {"allow_nonfinite": True}),
    Use("average", ["transformers"], ["--max-shard-size", "200B"], {"max_shard_size": "200B"}, "hf"),
    Use("average", ["run"], ["--force", "--jobs", "2"], {"force": True, "jobs": 2}, "run/../names.pt"),
    # --- ema-apply: stored
    Use("ema-apply", ["last.pth.tar"], [], {}),
    Use("ema-apply", ["last.pth.tar"], ["--dtype", "float64"], {"dtype": "float64"}, "out.pth.tar"),
    Use("ema-apply", ["several.pt"], ["--slot", "ema_b"], {"slot": "ema_b"}),
    Use("ema-apply", ["nameless.pt"], ["--names-from", "names.pt"], {"names_from": "names.pt"}),
    Use("ema-apply", ["run/model_100.pt"], ["--config", "data.yml"], {"config": "data.yml"}),
    # --- ema-apply: computed
    Use("ema-apply", ["run"], [], {}, None),
    Use("ema-apply", ["run"], ["--decay", "0.99"], {"decay": 0.99}),
    Use("ema-apply", ["run"], ["--decay", "0.99", "--no-warmup"], {"decay": 0.99, "warmup": False}),
    Use("ema-apply", ["run"], ["--half-life", "300"], {"half_life": 300}),
    Use("ema-apply", ["run"], ["--sigma-rel", "0.2"], {"sigma_rel": 0.2}),
    Use("ema-apply", ["run"], ["--window", "0.5"], {"window": 0.5}),
    Use(
        "ema-apply",
        ["run"],
        ["--half-life", "2", "--unit", "checkpoints", "--last", "4"],
        {"half_life": 2, "unit": "checkpoints", "last": 4},
    ),
    Use("ema-apply", ["run"], ["--window", "0.5", "--quadrature", "hold"], {"window": 0.5, "quadrature": "hold"}),
    Use(
        "ema-apply",
        ["run"],
        ["--decay", "0.9", "--decay", "0.99"],
        {"decay": [0.9, 0.99]},
        "ema-{decay}.safetensors",
    ),
    Use(
        "ema-apply",
        ["run"],
        ["--decay", "0.9", "--half-life", "300"],
        {"decay": [0.9], "half_life": [300]},
        "ema-{length}.pt",
    ),
    # --- ema-apply: out of snapshots
    Use("ema-apply", ["edm2"], ["--sigma-rel", "0.07"], {"sigma_rel": 0.07}),
    Use(
        "ema-apply",
        ["averages"],
        ["--stored-profile", "decay:0.99", "--update-every", "2", "--half-life", "200"],
        {"stored_profile": "decay:0.99", "update_every": 2, "half_life": 200},
    ),
    Use(
        "ema-apply",
        ["averages"],
        ["--stored-profile", "snapshot_*=decay:0.999", "--segment", "1000:3000"],
        {"stored_profile": ["snapshot_*=decay:0.999"], "segment": (1000, 3000)},
    ),
)

FUNCTIONS: Mapping[str, Callable[..., Any]] = {"average": ct.average, "ema-apply": ct.ema_apply}


def files_in(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("use", USES, ids=lambda use: " ".join((use.command, *use.inputs, *use.options)))
def test_a_use_of_the_command_line_is_one_call_with_the_same_bytes(
    use: Use, made: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    shutil.copytree(made, there)
    shutil.copytree(made, here)
    monkeypatch.chdir(there)
    output = [] if use.output is None else ["-o", use.output]
    ran = run(use.command, *use.inputs, *use.options, *output)
    assert ran.exit_code == 0, ran.stderr
    monkeypatch.chdir(here)
    source = use.inputs[0] if len(use.inputs) == 1 else list(use.inputs)
    result = FUNCTIONS[use.command](source, use.output, **use.keywords)
    results = result if isinstance(result, list) else [result]
    assert [str(one.output) for one in results] == ran.stdout.splitlines()
    assert files_in(here) == files_in(there)
    assert files_in(here) != files_in(made)


@pytest.mark.parametrize("name", ["average", "ema-apply"])
def test_the_table_has_every_option_that_is_not_about_printing(name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    options = {option for each in command.params if isinstance(each, click.Option) for option in each.opts}
    longest = {option for option in options if option.startswith("--")}
    printing = {"--quiet", "--verbose", "--json", "--show", "--help"}
    elsewhere = {"--output", "--dry-run", "--list"}  # every use has an output; the others have tests of their own
    used = {word for use in USES for word in use.options if word.startswith("--")}
    assert longest - printing - elsewhere - used == set()


@pytest.mark.parametrize("name", ["average", "ema-apply"])
def test_a_function_has_the_options_of_its_command_as_keywords(name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    printing = {"quiet", "verbose", "as_json", "show"}
    renamed = {"no_warmup": "warmup", "checkpoints": "source"}
    elsewhere = {"listing"}  # list_averages
    options = {renamed.get(each.name or "", each.name) for each in command.params} - printing - elsewhere
    assert set(inspect.signature(FUNCTIONS[name]).parameters) == options | {"on_progress"}


@pytest.mark.parametrize(
    ("function", "types"),
    [
        (ct.average, keywords.AverageKeywords),
        (ct.ema_apply, keywords.EmaKeywords),
        (ct.ema_apply, keywords.EmaListKeywords),
    ],
)
def test_the_types_of_the_overloads_are_about_the_keywords_of_the_function(
    function: Callable[..., Any], types: type
) -> None:
    """Annotations are compared as they are written: a list instead of a number is the difference between overloads."""
    parameters = inspect.signature(function).parameters
    own = {name for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
    assert set(types.__annotations__) == own - {"dry_run"}
    lengths = {"decay", "half_life", "sigma_rel", "window"}
    for name in own - lengths - {"dry_run"}:
        written = types.__annotations__[name]
        assert getattr(written, "__forward_arg__", written) == parameters[name].annotation, name


# --- Plans -----------------------------------------------------------------------------------------------------


def test_a_dry_run_returns_the_plan_and_writes_nothing(made: Path, tmp_path: Path) -> None:
    plan = ct.average(made / "run", tmp_path / "x.pt", last=2, dry_run=True)
    assert [member.coefficient for member in plan.members] == [0.5, 0.5]
    one = ct.ema_apply(made / "run", tmp_path / "x.pt", decay=0.99, dry_run=True)
    assert len(one.members) == 10
    several = ct.ema_apply(made / "run", tmp_path / "{decay}.pt", decay=[0.9, 0.99], dry_run=True)
    assert [each.output.name for each in several] == ["0.9.pt", "0.99.pt"]
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told_in_bytes(made: Path, tmp_path: Path) -> None:
    told: list[int] = []
    result = ct.average(made / "run", tmp_path / "x.pt", last=2, on_progress=told.append)
    assert sum(told) == result.bytes_read


def test_a_list_of_one_length_writes_one_output_and_returns_a_list(made: Path, tmp_path: Path) -> None:
    results = ct.ema_apply(made / "run", tmp_path / "{decay}.pt", decay=[0.9])
    assert [each.output.name for each in results] == ["0.9.pt"]


def test_several_numbers_for_one_output_are_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="decay and window are several lengths") as caught:
        ct.ema_apply(made / "run", tmp_path / "x.pt", decay=0.9, window=0.5)
    assert "Give each as a list" in str(caught.value.hint)


# --- Mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "wrong", "meant"),
    [
        (ct.average, "laast", "did you mean last?"),
        (ct.average, "max_shard_bytes", "did you mean max_shard_size?"),
        (ct.ema_apply, "halflife", "did you mean half_life?"),
        (ct.list_averages, "slots", "did you mean slot?"),
        (ct.average, "qqqq", "it has source, output, last"),
    ],
)
def test_a_misspelt_keyword_is_answered_with_the_one_that_was_meant(
    function: Callable[..., Any], wrong: str, meant: str
) -> None:
    with pytest.raises(TypeError, match=wrong) as caught:
        function("x", **{wrong: 3})
    assert meant in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dtype": "float31"}, "dtype"),
        ({"dtype": "int8"}, "dtype"),
        ({"keys": "strickt"}, "keys"),
        ({"integers": "mean"}, "integers"),
        ({"anneal": "step"}, "anneal"),
        ({"mode": "low", "best": 2, "metric": "loss"}, "mode"),
        ({"max_shard_size": "5 parsecs"}, "max_shard_size"),
        ({"best": 2}, "metric"),
        ({"metric": "loss"}, "best"),
        ({"normalize": True}, "weights"),
        ({"weights": [1.0], "anneal": "linear"}, "anneal and weights"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_parameter(given: dict[str, Any], said: str, made: Path) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        ct.average(made / "run", **given)
    assert "--" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("use", "keyword", "option"),
    [
        (Use("average", ["run/model_100.pt"], [], {}), "last=1 converts", "--last 1 converts"),
        (Use("average", TWO, [], {}, None), "output='averaged.safetensors'", "-o averaged.safetensors"),
        (Use("average", TWO, ["--every", "2"], {"every": 2}), "every: a list", "--every: a list"),
        (Use("average", ["run"], ["--best", "2"], {"best": 2}), "best and metric", "--best and --metric"),
        (
            Use("ema-apply", ["run"], ["--window", "0.5", "--no-warmup"], {"window": 0.5, "warmup": False}),
            "warmup=False goes with decay",
            "--no-warmup goes with --decay",
        ),
        (
            Use("ema-apply", ["run"], ["--decay", "0.9", "--decay", "0.99"], {"decay": [0.9, 0.99]}),
            "output='ema-{decay}.safetensors'",
            "-o 'ema-{decay}.safetensors'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_speaks_of_parameters_and_the_command_line_of_options(
    use: Use, keyword: str, option: str, made: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    with pytest.raises(CkpttoolError) as caught:
        FUNCTIONS[use.command](use.inputs[0] if len(use.inputs) == 1 else use.inputs, use.output, **use.keywords)
    said = f"{caught.value} {caught.value.hint}"
    assert keyword in said
    assert "--" not in said
    ran = run(use.command, *use.inputs, *use.options, *([] if use.output is None else ["-o", use.output]))
    assert ran.exit_code == caught.value.exit_code
    assert option in ran.stderr


# --- What averages there are -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "options", "given"),
    [
        (["last.pth.tar"], [], {}),
        (["several.pt"], ["--slot", "ema_a"], {"slot": "ema_a"}),
        (["icefall"], ["--exclude", "epoch-3.pt"], {"exclude": "epoch-3.pt"}),
    ],
)
def test_stored_averages_are_listed_in_python_as_on_the_command_line(
    inputs: list[str], options: list[str], given: dict[str, Any], made: Path, run: Run
) -> None:
    listed = ct.list_averages([made / name for name in inputs] if len(inputs) > 1 else made / inputs[0], **given)
    ran = run("ema-apply", *(made / name for name in inputs), "--list", "--json", *options)
    assert ran.exit_code == 0, ran.stderr
    shown = json.loads(ran.stdout)["checkpoints"]
    assert [str(one.path) for one in listed] == [one["path"] for one in shown]
    assert [one.average.where for one in listed] == [one["where"] for one in shown]
    assert [[finding.text for finding in one.diagnosis.findings] for one in listed] == [
        [finding["text"] for finding in one["verdicts"]] for one in shown
    ]


# --- Tensors ---------------------------------------------------------------------------------------------------


def test_a_tensor_is_read_by_its_name(made: Path) -> None:
    checkpoint = ct.open_checkpoint(made / "run" / "model_100.pt")
    loaded = torch.load(made / "run" / "model_100.pt", weights_only=True)["model"]
    assert list(checkpoint) == list(checkpoint.keys()) == list(loaded)
    assert len(checkpoint) == len(loaded)
    assert "encoder.weight" in checkpoint
    for name, tensor in loaded.items():
        assert checkpoint[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(checkpoint[name], tensor.numpy())
    assert {name: array.shape for name, array in dict(checkpoint).items()} == {
        name: tuple(tensor.shape) for name, tensor in loaded.items()
    }


def test_bfloat16_is_read_as_ml_dtypes_has_it(tmp_path: Path) -> None:
    tensor = torch.tensor([[1.5, -2.0], [3.0, 0.125]], dtype=torch.bfloat16)
    torch.save({"w": tensor.T}, tmp_path / "x.pt")
    array = ct.open_checkpoint(tmp_path / "x.pt")["w"]
    assert array.dtype.name == "bfloat16"
    np.testing.assert_array_equal(array.astype(np.float32), tensor.T.float().numpy())


def test_a_stored_copy_is_read_by_its_place_and_name(made: Path) -> None:
    checkpoint = ct.open_checkpoint(made / "last.pth.tar")
    loaded = torch.load(made / "last.pth.tar", weights_only=True)
    (place,) = checkpoint.copies
    np.testing.assert_array_equal(checkpoint[place, "encoder.bias"], loaded[place]["encoder.bias"].numpy())


def test_a_name_that_is_not_there_is_answered_with_one_like_it(made: Path) -> None:
    checkpoint = ct.open_checkpoint(made / "run" / "model_100.pt")
    with pytest.raises(KeyError, match=r"did you mean encoder\.weight"):
        checkpoint["encoder.wieght"]
    with pytest.raises(KeyError):
        checkpoint["nowhere", "encoder.weight"]


def test_an_open_checkpoint_is_a_member_like_any_other(made: Path, tmp_path: Path) -> None:
    paths = [made / "run" / f"model_{step}.pt" for step in (100, 200)]
    ct.average(paths, tmp_path / "a.safetensors")
    found = ct.from_paths(paths)
    ct.execute(ct.make_plan(found, tmp_path / "b.safetensors"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


# --- What is shown of objects ----------------------------------------------------------------------------------


def test_what_an_interpreter_shows_is_short_and_says_what_it_is(made: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    shutil.copytree(made / "run", deep)
    found = ct.discover(deep).last(3)
    plan = ct.make_plan(found, tmp_path / "x.pt")
    shown = {
        "model_100.pt": ct.open_checkpoint(deep / "model_100.pt"),
        "step 1000": found.entries[-1].checkpoint,
        "3 checkpoints, steps 800 to 1000": found,
        "x.pt": plan,
        "bytes written": ct.execute(plan) and ct.execute(ct.make_plan(found, tmp_path / "y.pt")),
        "state_dict_ema": ct.find_stored_average(made / "last.pth.tar"),
        "last.pth.tar": ct.list_averages(made / "last.pth.tar")[0],
    }
    for said, each in shown.items():
        text = repr(each)
        assert text.startswith(f"<{type(each).__name__} ")
        assert said.split()[0] in text
        assert len(text) <= 230, text


def test_every_public_name_is_found_where_it_is_typed() -> None:
    """The table of lazy names and the imports for type checkers say the same."""
    assert {name for name in ct.__all__ if not name.startswith("__")} == set(ct._HOME)
    for name in ("average", "ema_apply", "list_averages"):
        assert getattr(averages, name) is getattr(ct, name)


def test_a_mismatch_is_an_exception_of_its_own(made: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError):
        ct.average([made / "more.pt", made / "fewer.pt"], tmp_path / "x.pt")
