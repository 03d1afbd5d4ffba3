"""``average --window-from-running-mean``: the mean over a part of training, from the running means of its two ends."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Ran
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ckpttool as ct
from ckpttool.ema.running_means import find_running_mean
from ckpttool.errors import MismatchError, UsageError
from ckpttool.formats import open_checkpoint
from ckpttool.operations.running_mean_window import find_window, make_window_plan
from ckpttool.training import MovingAverage

Run = Callable[..., Ran]
State = dict[str, torch.Tensor]

PERIOD = 10
PER_EPOCH = 43  # no multiple of the period, as in life
EPOCHS = 9


class Net(torch.nn.Module):
    """Two tied weights, a batch norm and its counter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(6, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.out = torch.nn.Linear(4, 6, bias=False)
        self.out.weight = self.embedding.weight


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


FLOATS = [name for name, value in Net().state_dict().items() if value.is_floating_point()]


def walk(model: Net, generator: torch.Generator) -> None:
    """One batch of training, as far as weights and statistics go."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
        model.norm.running_mean += 0.05 * torch.randn(4, generator=generator).to(model.norm.running_mean.dtype)
        model.norm.running_var *= 0.5 + torch.rand(4, generator=generator).to(model.norm.running_var.dtype)
        model.norm.num_batches_tracked += 1


def update(running: Net, model: Net, batch: int, period: int) -> None:
    """The rule by which icefall keeps its mean: the newest weights count period / batch, what was before the rest."""
    share = period / batch
    now, seen = model.state_dict(), set()
    for name, value in running.state_dict().items():
        if value.is_floating_point() and value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            value.mul_(1 - share).add_(now[name].to(value.dtype) * share)


class Trained:
    """A run as icefall makes one, and every weight that went into its mean."""

    def __init__(
        self,
        directory: Path,
        batches: int,
        saved: Mapping[int, str],
        *,
        period: int = PERIOD,
        stored: torch.dtype = torch.float32,
        weights: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(seed)
        model = net(seed).to(weights)
        optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
        running = copy.deepcopy(model).to(torch.float64)
        self.directory = directory
        self.samples: dict[int, State] = {}
        self.states: dict[int, State] = {}
        for batch in range(1, batches + 1):
            walk(model, generator)
            if batch % period == 0:
                update(running, model, batch, period)
                self.samples[batch] = copy.deepcopy(model.state_dict())
            if batch in saved:
                self.states[batch] = copy.deepcopy(model.state_dict())
                content = {
                    "model": model.state_dict(),
                    "optimizer": optimizer,
                    "scheduler": {"last_epoch": 3, "_step_count": 4},
                    "grad_scaler": None,
                    "sampler": None,
                    # Training goes on with the converted mean, since Module.to works in place.
                    "model_avg": running.to(stored).state_dict(),
                    "best_valid_loss": 1.5,
                    "batch_idx_train": batch,
                    "average_period": period,
                }
                torch.save(content, directory / saved[batch])

    def mean(self, after: int, up_to: int) -> dict[str, Any]:
        """The mean of the weights that were sampled after one batch and up to another, in exact fractions."""
        taken = [state for batch, state in self.samples.items() if after < batch <= up_to]
        means = {}
        for name in FLOATS:
            values = [state[name].double().flatten().tolist() for state in taken]
            total = [sum(map(Fraction, column)) / len(taken) for column in zip(*values, strict=True)]
            means[name] = np.array([float(value) for value in total]).reshape(tuple(taken[0][name].shape))
        return means


def epochs(count: int, per_epoch: int = PER_EPOCH) -> dict[int, str]:
    return {epoch * per_epoch: f"epoch-{epoch}.pt" for epoch in range(1, count + 1)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("icefall") / "exp", EPOCHS * PER_EPOCH, epochs(EPOCHS))


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def plan_of(ran: Ran) -> Any:
    assert ran.exit_code == 0, ran.stderr
    return json.loads(ran.stdout)


def window(run: Run, *arguments: object) -> Any:
    return plan_of(run("average", *arguments, "--window-from-running-mean", "--dry-run", "--json"))


def near(got: torch.Tensor, wanted: Any, tolerance: float) -> None:
    np.testing.assert_allclose(got.double().numpy(), wanted, rtol=0, atol=tolerance)


# --- What comes out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [1, 3, 8])
def test_the_last_n_are_the_mean_of_all_that_was_sampled_in_their_intervals(
    last: int, trained: Trained, tmp_path: Path, run: Run
) -> None:
    output = tmp_path / "out.pt"
    ran = run("average", trained.directory, "--last", last, "--window-from-running-mean", "-o", output)
    assert ran.exit_code == 0, ran.stderr
    start, stop = (epoch * PER_EPOCH // PERIOD * PERIOD for epoch in (EPOCHS - last, EPOCHS))
    wanted = trained.mean(start, stop)
    got = load(output)["model"]
    # The mean is kept in float32 during training: its own rounding, grown by the coefficients.
    noise = (start + stop) / (stop - start)
    for name in FLOATS:
        near(got[name], wanted[name], 8 * noise * 2**-24 * max(1.0, float(np.abs(wanted[name]).max())))
        assert got[name].dtype == torch.float32


@pytest.mark.parametrize("last", [1, 4, 8])
def test_it_is_what_icefalls_formula_gives(last: int, trained: Trained, tmp_path: Path) -> None:
    """start and end rounded down to the period; (mean_end·end - mean_start·start) / (end - start)."""
    ct.average(trained.directory, tmp_path / "out.pt", last=last, window_from_running_mean=True)
    early, late = (load(trained.directory / f"epoch-{epoch}.pt") for epoch in (EPOCHS - last, EPOCHS))
    start, end = (state["batch_idx_train"] // state["average_period"] * PERIOD for state in (early, late))
    got = load(tmp_path / "out.pt")["model"]
    for name in FLOATS:
        mean = (late["model_avg"][name].double() * end - early["model_avg"][name].double() * start) / (end - start)
        torch.testing.assert_close(got[name], mean.float(), rtol=2**-23, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    period=st.integers(1, 7),
    saves=st.lists(st.integers(1, 60), min_size=2, max_size=6, unique=True).map(sorted),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_any_window_is_exact(
    period: int, saves: list[int], seed: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """For every period, every two moments of saving, whatever was saved between them."""
    directory = tmp_path_factory.mktemp("run")
    saved = {batch: f"checkpoint-{batch}.pt" for batch in saves}
    trained = Trained(directory, saves[-1], saved, period=period, stored=torch.float64, seed=seed)
    last = data.draw(st.integers(1, len(saves) - 1))
    start, stop = (batch // period * period for batch in (saves[-1 - last], saves[-1]))

    def average() -> None:
        ct.average(directory, directory / "out.pt", last=last, window_from_running_mean=True, dtype="float64")

    if start == stop:
        with pytest.raises(UsageError, match="nothing is between"):
            average()
        return
    average()
    wanted = trained.mean(start, stop)
    got = load(directory / "out.pt")["model"]
    noise = (start + stop) / (stop - start)
    for name in FLOATS:
        near(got[name], wanted[name], 1e-14 * noise * max(1.0, float(np.abs(wanted[name]).max())) * 60)
    assert int(got["norm.num_batches_tracked"]) == saves[-1]


def test_batches_after_the_last_update_do_not_count(tmp_path: Path, run: Run) -> None:
    """A checkpoint of batch 39 holds the mean up to batch 30: counted as 39 batches, the mean would be another."""
    trained = Trained(tmp_path / "exp", 39, {19: "epoch-1.pt", 39: "epoch-2.pt"}, stored=torch.float64)
    document = window(run, trained.directory, "--last", 1)
    shown = document["window_from_running_mean"]
    assert [(mean["stated"], mean["of"], mean["every"]) for mean in shown["means"]] == [(19, 10, 10), (39, 30, 10)]
    assert [member["coefficient"] for member in document["members"]] == [-0.5, 1.5]
    ct.average(trained.directory, tmp_path / "o.pt", last=1, window_from_running_mean=True, dtype="float64")
    got, wanted = load(tmp_path / "o.pt")["model"]["embedding.weight"], trained.mean(10, 30)["embedding.weight"]
    near(got, wanted, 1e-12)
    early, late = (load(trained.directory / f"epoch-{i}.pt")["model_avg"]["embedding.weight"] for i in (1, 2))
    assert float(((late * 39 - early * 19) / 20 - got).abs().max()) > 1e-3


def test_icefalls_loader_takes_the_output_and_finds_no_stale_mean(trained: Trained, tmp_path: Path) -> None:
    ct.average(trained.directory, tmp_path / "out.pt", last=4, window_from_running_mean=True)
    state = load(tmp_path / "out.pt")
    assert set(state) == {"model", "grad_scaler", "sampler", "best_valid_loss", "batch_idx_train", "average_period"}
    model = Net()
    model.load_state_dict(state["model"], strict=True)
    assert int(model.norm.num_batches_tracked) == EPOCHS * PER_EPOCH
    weights = state["model"]
    assert weights["out.weight"].data_ptr() == weights["embedding.weight"].data_ptr()


def test_the_output_says_what_it_was_made_of(trained: Trained, tmp_path: Path) -> None:
    ct.average(trained.directory, tmp_path / "out.pt", last=4, window_from_running_mean=True)
    said = open_checkpoint(tmp_path / "out.pt").provenance
    assert said is not None
    assert said["window_from_running_mean"] == {
        "framework": "icefall", "where": "model_avg", "after": 210, "up_to": 380, "unit": "batches",
    }  # fmt: skip
    assert [member["name"] for member in said["members"]] == ["epoch-5.pt", "epoch-9.pt"]


@pytest.mark.parametrize("last", [1, 3, 8])
def test_two_files_are_read_however_long_the_window(last: int, trained: Trained, run: Run) -> None:
    document = window(run, trained.directory, "--last", last)
    names = [Path(member["path"]).name for member in document["members"]]
    assert names == [f"epoch-{EPOCHS - last}.pt", f"epoch-{EPOCHS}.pt"]
    mean = load(trained.directory / "epoch-1.pt")["model_avg"]
    tied_once = sum(value.nbytes for name, value in mean.items() if name in FLOATS and name != "out.weight")
    counters = 8
    assert document["bytes_to_read"] == 2 * (tied_once + counters)
    between = [Path(each["path"]).name for each in document["skipped"] if "inside the window" in each["reason"]]
    assert between == [f"epoch-{epoch}.pt" for epoch in range(EPOCHS - last + 1, EPOCHS)]


def test_library_and_command_line_write_the_same_bytes(trained: Trained, tmp_path: Path, run: Run) -> None:
    ct.average(trained.directory, tmp_path / "a" / "x.pt", last=2, window_from_running_mean=True)
    run("average", trained.directory, "--last", 2, "--window-from-running-mean", "-o", tmp_path / "b" / "x.pt")
    pair = [trained.directory / "epoch-7.pt", trained.directory / "epoch-9.pt"]
    ct.average(pair, tmp_path / "c" / "x.pt", window_from_running_mean=True)
    run("average", *reversed(pair), "--window-from-running-mean", "-o", tmp_path / "d" / "x.pt")
    written = [(tmp_path / folder / "x.pt").read_bytes() for folder in "abcd"]
    assert written == written[:1] * 4


def test_bfloat16_weights_keep_their_type_next_to_a_float32_mean(tmp_path: Path, run: Run) -> None:
    trained = Trained(tmp_path / "exp", 60, epochs(3, 20), weights=torch.bfloat16)
    ran = run("average", trained.directory, "--last", 2, "--window-from-running-mean", "-o", tmp_path / "b.pt")
    assert ran.exit_code == 0, ran.stderr
    assert "stored as float32 and written as bfloat16, the weights' own type; --dtype float32 keeps it" in ran.stderr
    options = ("--window-from-running-mean", "--dtype", "float32", "-o", tmp_path / "f.pt")
    assert run("average", trained.directory, "--last", 2, *options).exit_code == 0
    narrow, wide = load(tmp_path / "b.pt")["model"], load(tmp_path / "f.pt")["model"]
    for name in FLOATS:
        assert narrow[name].dtype == torch.bfloat16
        half_a_step = 2**-8 * wide[name].abs() * (1 + 1e-6)
        assert bool(((narrow[name].float() - wide[name]).abs() <= half_a_step).all())
        near(wide[name], trained.mean(20, 60)[name], 1e-5)


def test_a_first_checkpoint_before_the_first_update_counts_nothing(tmp_path: Path, run: Run) -> None:
    trained = Trained(tmp_path / "exp", 30, {5: "epoch-1.pt", 30: "epoch-2.pt"})
    document = window(run, trained.directory, "--last", 1)
    assert [member["coefficient"] for member in document["members"]] == [0.0, 1.0]
    ct.average(trained.directory, tmp_path / "out.pt", last=1, window_from_running_mean=True)
    got, mean = load(tmp_path / "out.pt")["model"], load(trained.directory / "epoch-2.pt")["model_avg"]
    assert all(torch.equal(got[name], mean[name]) for name in FLOATS)


def test_infinities_of_a_mask_stay_though_one_coefficient_is_negative(tmp_path: Path) -> None:
    state = {"w": torch.ones(3), "mask": torch.tensor([0.0, -torch.inf])}
    for batch in (100, 200):
        content = {"model": state, "model_avg": state, "batch_idx_train": batch, "average_period": 100}
        torch.save(content, tmp_path / f"checkpoint-{batch}.pt")
    ct.average(tmp_path, tmp_path / "out.pt", last=1, window_from_running_mean=True)
    got = load(tmp_path / "out.pt")["model"]
    assert torch.equal(got["mask"], state["mask"])
    assert torch.equal(got["w"], state["w"])


# --- Which window -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "ends"),
    [
        (["--last", "2"], (7, 9)),
        (["--last", "2", "--to-step", str(6 * PER_EPOCH)], (4, 6)),
        (["--from-step", str(3 * PER_EPOCH)], (3, 9)),
        (["--from-step", str(3 * PER_EPOCH), "--to-step", str(6 * PER_EPOCH)], (3, 6)),
        (["--every", "2", "--last", "2"], (5, 9)),
        (["--include", "epoch-[1-5].pt", "--last", "3"], (2, 5)),
        ([], (1, 9)),
    ],
)
def test_selection_says_where_the_window_begins_and_ends(
    options: list[str], ends: tuple[int, int], trained: Trained, run: Run
) -> None:
    document = window(run, trained.directory, *options)
    assert [Path(member["path"]).name for member in document["members"]] == [f"epoch-{end}.pt" for end in ends]


def test_without_a_number_the_last_eight_intervals_are_taken_and_said(tmp_path: Path, run: Run) -> None:
    trained = Trained(tmp_path / "exp", 240, epochs(12, 20))
    document = window(run, trained.directory)
    assert document["window_from_running_mean"]["intervals"] == 8
    assert [Path(member["path"]).name for member in document["members"]] == ["epoch-4.pt", "epoch-12.pt"]
    assert any("no number was asked for: the last 8 and the one before" in note for note in document["notes"])
    assert {each["reason"] for each in document["skipped"]} == {
        "older than the last 8 and the one before",
        "inside the window: only its ends are read",
    }


def test_intervals_are_counted_in_checkpoints_of_one_kind_and_two_ends_may_be_of_any(tmp_path: Path, run: Run) -> None:
    """icefall saves every so many batches and at the ends of epochs; which are counted is asked."""
    between = {batch: f"checkpoint-{batch}.pt" for batch in (60, 120)}
    trained = Trained(tmp_path / "exp", 172, {**epochs(4), **between})
    for counted in (["--last", "1"], ["--last", "3"], []):
        ran = run("average", trained.directory, "--window-from-running-mean", "--dry-run", *counted)
        assert ran.exit_code == 2
        assert "2 families of checkpoints" in ran.stderr
    counted = window(run, trained.directory, "--include", "epoch-*", "--last", "2")
    assert [Path(member["path"]).name for member in counted["members"]] == ["epoch-2.pt", "epoch-4.pt"]
    ends = window(run, trained.directory, "--from-step", "50", "--to-step", "150")
    assert [Path(member["path"]).name for member in ends["members"]] == ["checkpoint-60.pt", "epoch-3.pt"]


# --- What is said -----------------------------------------------------------------------------------------------


def test_the_dry_run_shows_the_window_in_batches_and_in_checkpoints(trained: Trained, run: Run) -> None:
    ran = run("average", trained.directory, "--last", 4, "--window-from-running-mean", "--dry-run")
    assert ran.exit_code == 0
    shown = re.sub(r"(?m)^(selection|writes|peak memory)\t.*\n", "", ran.stdout.replace(str(trained.directory), "exp"))
    assert shown == (
        "step\tcheckpoint\tbytes\tcoefficient\tmean of\n"
        "215\texp/epoch-5.pt\t168\t-1.23529\t210 batches\n"
        "387\texp/epoch-9.pt\t168\t2.23529\t380 batches\n"
        "\n"
        "skipped\tbecause\n"
        "epoch-1.pt\tolder than the last 4 and the one before\n"
        "epoch-2.pt\tolder than the last 4 and the one before\n"
        "epoch-3.pt\tolder than the last 4 and the one before\n"
        "epoch-4.pt\tolder than the last 4 and the one before\n"
        "epoch-6.pt\tinside the window: only its ends are read\n"
        "epoch-7.pt\tinside the window: only its ends are read\n"
        "epoch-8.pt\tinside the window: only its ends are read\n"
        "\n"
        "plan\t\n"
        "output\texp/avg-last-4-window/epoch-9.pt\n"
        "format\ttorch\n"
        "tensors\t7 (5 averaged, 1 kept, 1 tied)\n"
        "parameters\t41\n"
        "reads\t336 B\n"
        "window\tthe batches after 210 up to 380: 170 batches\n"
        "in checkpoints\tafter epoch-5.pt (step 215) up to epoch-9.pt (step 387): the training of 4 checkpoints\n"
        "running mean\tmodel_avg (icefall), updated every 10 batches\n"
        "noise\t3.47 (the coefficients without their signs add up to it; 1 is the least)\n"
    )
    assert "epoch-5.pt was saved at batch 215, and its mean is that up to batch 210" in ran.stderr
    assert "training state left out: optimizer, scheduler" in ran.stderr
    assert "Warning" not in ran.stderr


def test_every_field_of_the_json_is_documented(trained: Trained, run: Run) -> None:
    documented = (Path(__file__).parent.parent / "docs" / "json.md").read_text(encoding="utf-8")
    for key, value in window(run, trained.directory)["window_from_running_mean"].items():
        assert f"`window_from_running_mean.{key}`" in documented
        if key == "means":
            assert all(f"`window_from_running_mean.means[].{inner}`" in documented for inner in value[0])


def test_a_short_window_late_in_training_is_a_warning_with_its_numbers(tmp_path: Path, run: Run) -> None:
    state = Net().state_dict()
    for batch in (400_000, 400_200):
        content = {"model": state, "model_avg": state, "batch_idx_train": batch, "average_period": 200}
        torch.save(content, tmp_path / f"checkpoint-{batch}.pt")
    document = window(run, tmp_path, "--last", 1)
    (warning,) = document["warnings"]
    assert "float32" in warning
    assert "grows 4e+03 times, to as much as 2.4e-04 of the weights' size" in warning
    assert document["window_from_running_mean"]["noise"] == 4001


@pytest.mark.parametrize(("dtype", "share"), [(torch.float16, "1.5e-03"), (torch.bfloat16, "1.2e-02")])
def test_a_mean_in_half_precision_is_a_warning(dtype: torch.dtype, share: str, tmp_path: Path, run: Run) -> None:
    trained = Trained(tmp_path / "exp", 60, {20: "epoch-1.pt", 40: "epoch-2.pt"}, stored=dtype)
    (warning,) = window(run, trained.directory, "--last", 1)["warnings"]
    assert f"grows 3 times, to as much as {share}" in warning


def test_another_period_is_a_warning(tmp_path: Path, run: Run) -> None:
    Trained(tmp_path / "exp", 40, {40: "epoch-1.pt"}, period=20)
    Trained(tmp_path / "exp", 80, {80: "epoch-2.pt"}, period=10)
    (warning,) = window(run, tmp_path / "exp", "--last", 1)["warnings"]
    assert "every 20 batches in epoch-1.pt and every 10 in epoch-2.pt" in warning


def test_ema_apply_says_that_it_is_the_mean_since_the_start_and_who_takes_a_window(trained: Trained, run: Run) -> None:
    ran = run("ema-apply", trained.directory / "epoch-9.pt", "--list")
    assert ran.exit_code == 0
    assert "the running mean of the whole run at model_avg (icefall)" in ran.stdout
    assert "the plain mean of all training so far" in ran.stderr
    assert "--window-from-running-mean" in ran.stderr


# --- What the mean does not cover -------------------------------------------------------------------------------


def test_what_the_mean_does_not_cover_is_the_newests_and_not_extrapolated(tmp_path: Path, run: Run) -> None:
    trained = Trained(tmp_path / "exp", 40, {20: "epoch-1.pt", 40: "epoch-2.pt"})
    for path in trained.directory.iterdir():
        state = load(path)
        del state["model_avg"]["norm.weight"]
        torch.save(state, path)
    output = tmp_path / "out.pt"
    ran = run("average", trained.directory, "--last", 1, "--window-from-running-mean", "-o", output)
    assert ran.exit_code == 0, ran.stderr
    assert "the running mean does not cover norm.weight: taken from epoch-2.pt as trained" in ran.stderr
    assert torch.equal(load(output)["model"]["norm.weight"], trained.states[40]["norm.weight"])
    near(load(output)["model"]["norm.bias"], trained.mean(20, 40)["norm.bias"], 1e-5)


def test_a_mean_that_covers_less_in_the_first_is_refused(tmp_path: Path, run: Run) -> None:
    trained = Trained(tmp_path / "exp", 40, {20: "epoch-1.pt", 40: "epoch-2.pt"})
    state = load(trained.directory / "epoch-1.pt")
    del state["model_avg"]["norm.weight"]
    torch.save(state, trained.directory / "epoch-1.pt")
    ran = run("average", trained.directory, "--last", 1, "--window-from-running-mean")
    assert ran.exit_code == 4
    assert "epoch-1.pt: the running mean does not cover norm.weight" in ran.stderr


# --- Other running means ----------------------------------------------------------------------------------------


def stochastic_weight_averages(
    saved: tuple[int, ...], keep: Callable[[int, Net, AveragedModel], None], **options: Any
) -> list[State]:
    """Train for as many updates as the last of `saved`, with torch's own AveragedModel next to the model."""
    generator = torch.Generator().manual_seed(3)
    model = net()
    averaged = AveragedModel(model, **options)
    states = []
    for number in range(1, saved[-1] + 1):
        walk(model, generator)
        averaged.update_parameters(model)
        states.append(copy.deepcopy(model.state_dict()))
        if number in saved:
            keep(number, model, averaged)
    return states


def as_state_dict(number: int, model: Net, averaged: AveragedModel) -> Any:
    return averaged.state_dict()


def next_to_the_model(number: int, model: Net, averaged: AveragedModel) -> Any:
    return {"model": model.state_dict(), "swa_model": averaged.state_dict(), "step": number}


def as_weight_averaging(number: int, model: Net, averaged: AveragedModel) -> Any:
    """Lightning 2.6 and later: the average has the place of the weights."""
    inside = averaged.state_dict()
    return {
        "state_dict": {name.removeprefix("module."): v for name, v in inside.items() if name != "n_averaged"},
        "current_model_state": model.state_dict(),
        "averaging_state": {"n_averaged": inside["n_averaged"]},
        "callbacks": {"WeightAveraging": {"latest_update_step": number}},
        "pytorch-lightning_version": "2.6.0",
        "global_step": number,
    }


def as_swa_callback(number: int, model: Net, averaged: AveragedModel) -> Any:
    """Lightning's StochasticWeightAveraging, which leaves the statistics as they were when it began."""
    inside = {**averaged.module.state_dict(), "norm.running_var": torch.ones(4)}
    return {
        "state_dict": model.state_dict(),
        "callbacks": {"StochasticWeightAveraging{}": {"n_averaged": number, "average_model_state": inside}},
        "pytorch-lightning_version": "2.5.0",
        "global_step": number,
    }


@pytest.mark.parametrize("layout", [as_state_dict, next_to_the_model, as_weight_averaging, as_swa_callback])
def test_torchs_averaged_model_gives_windows_of_its_updates(
    layout: Callable[[int, Net, AveragedModel], Any], tmp_path: Path, run: Run
) -> None:
    """Its statistics are copies, not means: extrapolated, a variance would come out negative."""
    paths = {number: tmp_path / f"{number}.pt" for number in (12, 20)}
    states = stochastic_weight_averages((12, 20), lambda n, model, mean: torch.save(layout(n, model, mean), paths[n]))
    output = tmp_path / "out" / "x.pt"
    ran = run("average", *paths.values(), "--window-from-running-mean", "-o", output)
    assert ran.exit_code == 0, ran.stderr
    assert "is taken for a plain mean, as asked" in ran.stderr
    assert "batch-norm statistics are the newest's" in ran.stderr
    assert "averaged as stored" not in ran.stderr
    tree = load(output)
    got = {**tree, **tree.get("state_dict", {}), **tree.get("model", {})}
    for name in ("embedding.weight", "out.weight", "norm.weight", "norm.bias"):
        near(got[name], torch.stack([state[name].double() for state in states[12:]]).mean(0).numpy(), 1e-5)
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
        assert torch.equal(got[name], states[-1][name])
    assert not any(re.search("n_averaged|swa_model|averag|current_model", name) for name in got)


def test_the_window_of_an_averaged_model_is_counted_in_updates(tmp_path: Path, run: Run) -> None:
    def keep(number: int, model: Net, averaged: AveragedModel) -> None:
        torch.save(next_to_the_model(number, model, averaged), tmp_path / f"model_{number}.pt")

    stochastic_weight_averages((4, 10), keep)
    shown = window(run, tmp_path, "--last", 1)["window_from_running_mean"]
    assert (shown["unit"], shown["after"], shown["up_to"], shown["where"]) == ("updates", 4, 10, "swa_model")


# --- What is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "said", "hint"),
    [
        (["exp", "--last", "9"], 3, "the mean over the last 9 needs 10 checkpoints", "Ask for --last 8"),
        (["exp", "--last", "9"], 3, "there are only 9 checkpoints, steps 43 to 387", "The mean since the start is in"),
        (["exp", "--to-step", "50"], 3, "needs 2 checkpoints", "The mean since the start is in"),
        (["exp", "--from-step", "380"], 3, "needs 2 checkpoints", "The mean since the start is in"),
        (["exp", "--best", "3", "--metric", "best_valid_loss"], 2, "--best", "Leave out one"),
        (["exp", "--weights", "0.5,0.5"], 2, "both say what the coefficients are", "Leave out one"),
        (["exp", "--anneal", "linear"], 2, "both say what the coefficients are", "Leave out one"),
        (["exp", "--normalize"], 2, "--normalize", "Leave out one"),
        (["exp", "--keep-state"], 2, "wrong running mean", "Resume"),
        (["exp", "--show", "no.such"], 2, "no tensor", ""),
        (["exp", "--section", "model_avg"], 4, "model_avg is not a mean of these weights", "--section was given"),
        (["exp/epoch-1.pt", "exp/epoch-2.pt", "exp/epoch-5.pt"], 2, "3 checkpoints were listed", "epoch-5.pt"),
        (["exp/epoch-1.pt"], 2, "one checkpoint", ""),
        (["exp/epoch-1.pt", "--last", "1"], 2, "1 checkpoint was listed", "Name two: the window"),
        (["exp/epoch-1.pt", "exp/epoch-2.pt", "--last", "1"], 2, "taken whole", ""),
        (["old/epoch-1.pt", "exp/epoch-9.pt"], 4, "epoch-1.pt: model_avg, the running mean", "Without --window"),
        (["aimless/epoch-1.pt", "exp/epoch-9.pt"], 4, "average_period is not", "Without --window"),
        (["plain/1.pt", "plain/2.pt"], 4, "a running mean is not in it", "Without --window"),
        (["vision/1.pt", "vision/2.pt"], 4, "exponential one (its name says so)", "--stored-profile decay:0.999"),
        (["lightning/1.ckpt", "lightning/2.ckpt"], 4, "EMAWeightAveraging", "--segment"),
        (["own/1.pt", "own/2.pt"], 4, "made with a decay of 0.99", "--stored-profile warmup:0.99 and --segment"),
        (["unnamed/1.pt", "unnamed/2.pt"], 4, "has no count of what", "--segment"),
        (["two/1.pt", "exp/epoch-9.pt"], 2, "there are averages at", "one average"),
        (["mixed/1.pt", "exp/epoch-9.pt"], 4, "hold different averages", "same running mean"),
        (["idle"], 2, "nothing is between", "longer window"),
        (["again"], 4, "begun anew", "--from-step"),
        (["anew/1.pt", "anew/2.pt"], 4, "1.pt holds a mean of 9 updates, and the later 2.pt one of 5", "--from-step"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_with_its_exit_code(
    options: list[str], code: int, said: str, hint: str, trained: Trained, tmp_path: Path, run: Run
) -> None:
    others(options[0].split("/")[0], tmp_path)
    root = trained.directory.parent
    known = [
        (root if word.startswith("exp") else tmp_path) / word if re.match(r"[a-z]+(/|$)", word) else word
        for word in options
    ]
    known = [
        word if word in {"linear", "best_valid_loss", "model_avg"} else path
        for word, path in zip(options, known, strict=True)
    ]
    ran = run("average", *known, "--window-from-running-mean", "-o", tmp_path / "out.pt")
    assert ran.exit_code == code, ran.stderr
    assert said in ran.stderr
    assert hint in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "out.pt").exists()


def others(kind: str, directory: Path) -> None:
    """Runs that have no running mean that a window could be taken from."""
    state = Net().state_dict()
    mean = {"model": state, "model_avg": state}
    counted = {**{f"module.{name}": value for name, value in state.items()}, "n_averaged": torch.tensor(5)}

    def save(name: str, content: Any) -> None:
        (directory / name).parent.mkdir(exist_ok=True)
        torch.save(content, directory / name)

    for number in (1, 2):
        if kind == "old":
            save(f"old/epoch-{number}.pt", {"model": state, "batch_idx_train": 40 * number, "average_period": 10})
        elif kind == "aimless":
            save(f"aimless/epoch-{number}.pt", {**mean, "batch_idx_train": 40 * number})
        elif kind == "plain":
            save(f"plain/{number}.pt", {"model": state, "step": number})
        elif kind == "vision":
            save(f"vision/{number}.pt", {"model": state, "model_ema": counted, "epoch": number})
        elif kind == "unnamed":
            save(f"unnamed/{number}.pt", {"model": state, "model_avg": state, "step": number})
        elif kind == "two":
            save(f"two/{number}.pt", {"model": state, "swa_model": counted, "avg_model": {**counted}})
        elif kind == "mixed":
            save(f"mixed/{number}.pt", {"model": state, "swa_model": counted, "step": number})
        elif kind == "idle":
            save(f"idle/epoch-{number}.pt", {**mean, "batch_idx_train": 200 + number, "average_period": 100})
        elif kind == "again":
            save(f"again/epoch-{number}.pt", {**mean, "batch_idx_train": 300 - 100 * number, "average_period": 100})
        elif kind == "anew":
            fewer = {**counted, "n_averaged": torch.tensor(13 - 4 * number)}
            save(f"anew/{number}.pt", {"model": state, "swa_model": fewer, "step": number})
        elif kind == "own":
            average = MovingAverage(Net(), 0.99)
            average.update(1000 * number)
            save(f"own/{number}.pt", {"model": state, "average": average.state_dict(), "step": 1000 * number})
        elif kind == "lightning":
            averaged = AveragedModel(Net(), multi_avg_fn=get_ema_multi_avg_fn(0.99))  # type: ignore[no-untyped-call]
            content = as_weight_averaging(number, Net(), averaged)
            save(f"lightning/{number}.ckpt", {**content, "callbacks": {"EMAWeightAveraging": {}}})


def test_the_way_that_the_hint_shows_for_an_exponential_average_works(tmp_path: Path, run: Run) -> None:
    others("own", tmp_path)
    pair = (tmp_path / "own" / "1.pt", tmp_path / "own" / "2.pt")
    profile = ("--stored-profile", "warmup:0.99", "--segment", "1000:2000")
    assert run("ema-apply", *pair, *profile, "-o", tmp_path / "out.pt").exit_code == 0


def test_the_library_refuses_weights_with_a_window(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="coefficients"):
        ct.average(trained.directory, tmp_path / "o.pt", weights=[0.5, 0.5], window_from_running_mean=True)
    with pytest.raises(UsageError, match="there is nothing to read"):
        ct.average([], tmp_path / "o.pt", window_from_running_mean=True)


def test_a_count_is_never_guessed(tmp_path: Path) -> None:
    """A count that is a fraction, negative, or no single number is none."""
    state = Net().state_dict()
    for count in (torch.tensor([3, 4]), torch.tensor(2.5), -3, True, "7"):
        content = {"model": state, "swa_model": {**state, "n_averaged": count}}
        torch.save(content, tmp_path / "c.pt")
        with pytest.raises(MismatchError, match="has no count of what"):
            find_running_mean(open_checkpoint(tmp_path / "c.pt"))


def test_a_plan_reads_no_weight(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*args: object) -> object:
        raise AssertionError(args)

    monkeypatch.setattr("ckpttool.ema.running_means.read_values", read)
    found = ct.discover(trained.directory).last_with_start(3)
    plan, _ = make_window_plan(found, str(tmp_path / "out.pt"))
    assert len(plan.members) == 2
    assert find_window(found).describe() == "the batches after 250 up to 380"
