"""``ckpttool ema-apply`` and ``average --anneal`` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Ran
from safetensors.torch import load_file

Run = Callable[..., Ran]

STEPS = [5000, 10000, 15000, 20000, 25000, 30000, 35000, 40000, 45000, 50000]
NAMES = {"encoder.weight": (6, 4), "encoder.bias": (6,), "norm.running_mean": (6,)}


def state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in NAMES.items()}
    return {**tensors, "norm.num_batches_tracked": torch.tensor(seed)}


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    for step in STEPS:
        tree = {"model": state(step), "step": step, "optimizer": {"state": {}, "param_groups": []}}
        torch.save(tree, directory / f"checkpoint_{step}.pt")
    return directory


@pytest.fixture
def timm(tmp_path: Path) -> Path:
    path = tmp_path / "last.pth.tar"
    torch.save({"state_dict": state(1), "state_dict_ema": state(2), "arch": "net"}, path)
    return path


def plan_of(ran: Ran) -> Any:
    assert ran.exit_code == 0, ran.stderr
    return json.loads(ran.stdout)


def shares(ran: Ran) -> list[float]:
    return [member["coefficient"] for member in plan_of(ran)["members"]]


def mass_per_step(decay_at: Callable[[int], float], last: int) -> np.ndarray[Any, Any]:
    """What each step counts in the average after `last`, by running the recurrence on indicator vectors."""
    kept = np.cumprod([decay_at(step) for step in range(last, 0, -1)])[::-1]
    after = np.append(kept[1:], 1.0)
    mass = np.empty(last + 1)
    mass[0] = kept[0]
    mass[1:] = after - kept
    return mass


def linear(mass: np.ndarray[Any, Any], steps: list[int]) -> np.ndarray[Any, Any]:
    """Each step's mass to its two neighbours, as if the weights moved in a straight line between checkpoints."""
    every = np.arange(len(mass))
    return np.array([mass @ np.interp(every, steps, np.eye(len(steps))[i]) for i in range(len(steps))])


# --- A run's checkpoints ----------------------------------------------------------------------------------------


def test_the_default_is_the_rule_with_warm_up_over_the_steps(model_dir: Path, run: Run) -> None:
    wanted = linear(mass_per_step(lambda s: min(0.9999, (1 + s) / (10 + s)), STEPS[-1]), STEPS)
    ran = run("ema-apply", model_dir, "--dry-run", "--json")
    np.testing.assert_allclose(shares(ran), wanted, atol=1e-12)
    assert shares(run("ema-apply", model_dir, "--decay", "0.9999", "-n", "--json")) == shares(ran)


@pytest.mark.parametrize("decay", [0.999, 0.9999])
def test_a_constant_decay_over_the_steps(decay: float, model_dir: Path, run: Run) -> None:
    wanted = linear(mass_per_step(lambda _step: decay, STEPS[-1]), STEPS)
    ran = run("ema-apply", model_dir, "--decay", decay, "--no-warmup", "-n", "--json")
    np.testing.assert_allclose(shares(ran), wanted, atol=1e-12)


def test_hold_is_the_recurrence_with_the_decays_of_each_gap_multiplied(model_dir: Path, run: Run) -> None:
    shadow = np.eye(len(STEPS))[0]
    for index in range(1, len(STEPS)):
        kept = np.prod([min(0.9999, (1 + s) / (10 + s)) for s in range(STEPS[index - 1] + 1, STEPS[index] + 1)])
        shadow = shadow - (shadow - np.eye(len(STEPS))[index]) * (1 - kept)
    ran = run("ema-apply", model_dir, "--quadrature", "hold", "-n", "--json")
    np.testing.assert_allclose(shares(ran), shadow, atol=1e-12)


def test_unit_checkpoints_is_the_recurrence_over_the_files(model_dir: Path, run: Run) -> None:
    shadow = np.eye(len(STEPS))[0]
    for step in range(1, len(STEPS)):
        decay = 1 - min(0.9999, (1 + step) / (10 + step))
        shadow = shadow - (shadow - np.eye(len(STEPS))[step]) * decay
    ran = run("ema-apply", model_dir, "--unit", "checkpoints", "-n", "--json")
    np.testing.assert_allclose(shares(ran), shadow, atol=1e-14)
    assert plan_of(ran)["length"]["unit"] == "checkpoints"


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [("--half-life", "3000", "half_life"), ("--sigma-rel", "0.1", "sigma_rel"), ("--window", "0.4", "window")],
)
def test_each_length_comes_back_in_its_own_terms(option: str, value: str, kind: str, model_dir: Path, run: Run) -> None:
    document = plan_of(run("ema-apply", model_dir, option, value, "-n", "--json"))
    assert document["length"]["in_other_terms"][kind] == pytest.approx(float(value), rel=1e-3)
    assert sum(member["coefficient"] for member in document["members"]) == pytest.approx(1, abs=1e-12)


def test_the_document_says_what_the_coefficients_amount_to(model_dir: Path, run: Run) -> None:
    document = plan_of(run("ema-apply", model_dir, "-n", "--json"))
    coefficients = np.array([member["coefficient"] for member in document["members"]])
    assert document["effective_number"] == pytest.approx(1 / (coefficients**2).sum())
    assert document["mean_age"]["value"] == pytest.approx(coefficients @ (50000 - np.array(STEPS)))
    assert document["oldest_share"] == coefficients[0]
    factors = [row["factor"] for row in document["learning_rate"]]
    np.testing.assert_allclose(factors, 1 - np.cumsum(coefficients), atol=1e-12)


def test_the_output_is_the_weighted_sum_in_the_newests_container(model_dir: Path, tmp_path: Path, run: Run) -> None:
    coefficients = shares(run("ema-apply", model_dir, "-n", "--json"))
    ran = run("ema-apply", model_dir, "-o", tmp_path / "ema.pt")
    assert ran.exit_code == 0, ran.stderr
    got = torch.load(tmp_path / "ema.pt")
    assert set(got) == {"model", "step"}
    for name in NAMES:
        wanted = sum(c * state(step)[name].double() for c, step in zip(coefficients, STEPS, strict=True))
        assert torch.equal(got["model"][name], wanted.float())
    assert int(got["model"]["norm.num_batches_tracked"]) == 50000


def test_without_an_output_it_goes_into_the_directory_and_is_no_member_next_time(model_dir: Path, run: Run) -> None:
    first = run("ema-apply", model_dir)
    assert first.stdout.strip() == str(model_dir / "ema" / "checkpoint_50000.pt")
    assert len(plan_of(run("ema-apply", model_dir, "-n", "--json", "-o", model_dir / "x.pt"))["members"]) == 10


def test_several_lengths_in_one_pass_equal_single_runs_bit_for_bit(model_dir: Path, tmp_path: Path, run: Run) -> None:
    pattern = tmp_path / "ema-{decay}.safetensors"
    ran = run("ema-apply", model_dir, "--decay", "0.999", "--decay", "0.9995", "--decay", "0.9999", "-o", pattern)
    assert ran.exit_code == 0, ran.stderr
    assert len(ran.stdout.split()) == 3
    for decay in ("0.999", "0.9995", "0.9999"):
        assert run("ema-apply", model_dir, "--decay", decay, "-o", tmp_path / "one.safetensors", "-f").exit_code == 0
        together, alone = tmp_path / f"ema-{decay}.safetensors", tmp_path / "one.safetensors"
        assert together.read_bytes() == alone.read_bytes()


def test_different_measures_of_length_share_a_placeholder(model_dir: Path, tmp_path: Path, run: Run) -> None:
    options = ("--half-life", "3000", "--window", "0.5")
    refused = run("ema-apply", model_dir, *options, "-o", tmp_path / "x.pt")
    assert (refused.exit_code, "{length}" in refused.stderr) == (2, True)
    assert run("ema-apply", model_dir, *options, "-o", tmp_path / "{length}.pt").exit_code == 0
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["half-life-3000.pt", "window-0.5.pt"]


def test_the_order_of_a_list_does_not_matter(model_dir: Path, tmp_path: Path, run: Run) -> None:
    files = sorted(model_dir.iterdir())
    assert run("ema-apply", *files, "-o", tmp_path / "a.safetensors").exit_code == 0
    assert run("ema-apply", *reversed(files), "-o", tmp_path / "b.safetensors").exit_code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_too_much_in_the_oldest_is_a_warning(model_dir: Path, run: Run) -> None:
    ran = run("ema-apply", model_dir, "--decay", "0.99999", "--no-warmup", "-n", "-q")
    assert "the oldest checkpoint has" in ran.stderr
    assert "is from before it" in ran.stderr
    assert "the oldest checkpoint has" not in run("ema-apply", model_dir, "-n").stderr


def test_almost_the_last_checkpoint_is_a_warning(model_dir: Path, run: Run) -> None:
    ran = run("ema-apply", model_dir, "--decay", "0.998", "-n", "-q")
    assert "almost the last checkpoint" in ran.stderr


def epochs(directory: Path) -> Path:
    directory.mkdir()
    for epoch in range(1, 5):
        torch.save({"state_dict": state(epoch)}, directory / f"checkpoint-epoch{epoch}.pth.tar")
    return directory


def test_a_decay_by_epoch_or_checkpoint_has_to_be_asked_for(tmp_path: Path, run: Run) -> None:
    directory, options = epochs(tmp_path / "run"), ("-n", "--json", "-o", tmp_path / "x.pt")
    for length in ((), ("--decay", "0.9"), ("--half-life", "2")):
        ran = run("ema-apply", directory, *length, *options)
        assert (ran.exit_code, ran.stdout) == (2, "")
        assert "the checkpoints are numbered by epoch" in ran.stderr
        assert "Say what one update is: --unit epochs or --unit checkpoints." in ran.stderr
    for unit in ("epochs", "checkpoints"):
        document = plan_of(run("ema-apply", directory, "--half-life", "2", "--unit", unit, *options))
        assert document["length"]["unit"] == unit
    refused = run("ema-apply", directory, "--half-life", "2", "--unit", "steps", "-o", tmp_path / "x.pt")
    assert (refused.exit_code, "--unit epochs or --unit checkpoints" in refused.stderr) == (2, True)


def test_a_share_of_a_run_named_by_epoch_needs_no_steps(tmp_path: Path, run: Run) -> None:
    directory, out = epochs(tmp_path / "run"), ("-o", tmp_path / "x.pt")
    ran = run("ema-apply", directory, "--window", "0.5", "-n", "--json", *out)
    assert shares(ran) == [0, 0, 0.5, 0.5]
    assert plan_of(ran)["length"]["unit"] == plan_of(ran)["mean_age"]["unit"] == "epochs"
    assert "of the run, counted in epochs" in run("ema-apply", directory, "--sigma-rel", "0.1", "-n", *out).stdout
    refused = run("ema-apply", directory, "--window", "0.5", "--unit", "steps", *out)
    assert (refused.exit_code, "Leave --unit out" in refused.stderr) == (2, True)


def test_a_share_of_a_list_without_numbers_takes_it_for_equal_parts_of_the_run(tmp_path: Path, run: Run) -> None:
    files = [tmp_path / f"{name}.pt" for name in ("alpha", "beta", "gamma", "delta")]
    for seed, file in enumerate(files):
        torch.save({"model": state(seed)}, file)
    ran = run("ema-apply", *files, "--window", "0.5", "-n", "--json", "-o", tmp_path / "x.pt")
    assert shares(ran) == [0, 0, 0.5, 0.5]
    assert any("equal parts of the run" in note for note in plan_of(ran)["notes"])
    refused = run("ema-apply", *files, "--decay", "0.9", "-n", "-o", tmp_path / "x.pt")
    assert (refused.exit_code, "do not say their training steps" in refused.stderr) == (2, True)


def test_decays_without_an_effect_are_warned_of(model_dir: Path, tmp_path: Path, run: Run) -> None:
    pattern = tmp_path / "{decay}.safetensors"
    ran = run("ema-apply", model_dir, "--decay", "0.9999", "--decay", "0.99999", "-o", pattern, "-q")
    assert ran.exit_code == 0, ran.stderr
    assert "the decay has an effect from step 89,991 on, and the average ends at step 50,000" in ran.stderr
    assert "the decay has an effect from step 899,991 on" in ran.stderr
    assert "--no-warmup keeps the decay constant; --half-life and --sigma-rel" in ran.stderr
    default = run("ema-apply", model_dir, "-n", "--json")
    assert "has an effect" not in default.stderr
    assert plan_of(default)["length"]["effective_from"] == 89_991
    assert "until step 89,990" in run("ema-apply", model_dir, "-n").stdout


def test_a_single_checkpoint_is_not_written_as_the_average_of_a_run(model_dir: Path, run: Run) -> None:
    ran = run("ema-apply", model_dir, "--last", "1", "--decay", "0.999", "-o", "x.pt")
    assert (ran.exit_code, "needs two checkpoints or more" in ran.stderr) == (3, True)


@pytest.mark.parametrize("command", ["average", "ema-apply"])
def test_averages_in_a_list_are_said_to_be(command: str, model_dir: Path, tmp_path: Path, run: Run) -> None:
    made = tmp_path / "made.pt"
    assert run("average", model_dir, "--last", "2", "-o", made).exit_code == 0
    ran = run(command, *sorted(model_dir.glob("*_[1-4]0000.pt")), made, "-n", "-o", tmp_path / "x.pt")
    assert ran.exit_code == 0, ran.stderr
    assert "the weights of made.pt are an average already (made by ckpttool)" in ran.stdout + ran.stderr


def test_an_average_that_each_checkpoint_holds_is_not_averaged_again(tmp_path: Path, run: Run) -> None:
    """A loader that prefers a stored average would load an average of averages."""
    directory = tmp_path / "run"
    directory.mkdir()
    for step in (1000, 2000, 3000):
        flat = {f"model_ema.{name.replace('.', '')}": value for name, value in state(step + 1).items() if name in NAMES}
        inside = {
            **{f"model.{name}": value for name, value in state(step).items()},
            "model_ema.decay": torch.tensor(0.9),
        }
        torch.save({"state_dict": {**inside, **flat}, "global_step": step}, directory / f"step={step}.ckpt")
    ran = run("ema-apply", directory, "-o", tmp_path / "out.ckpt")
    assert ran.exit_code == 0, ran.stderr
    assert "hold an EMA of their own at model_ema.*" in ran.stderr
    assert set(torch.load(tmp_path / "out.ckpt")["state_dict"]) == {f"model.{name}" for name in state(0)}


def test_weights_that_are_an_average_already_are_said_to_be(tmp_path: Path, run: Run) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    for step in (1000, 2000, 3000):
        other = {"steps": torch.tensor(step), **{f"module.{name}": value for name, value in state(step + 1).items()}}
        torch.save(
            {"state_dict": state(step), "ema_state_dict": other, "meta": {"iter": step}}, directory / f"iter_{step}.pth"
        )
    ran = run("ema-apply", directory, "-o", tmp_path / "out.pth")
    assert "an average of averages" in ran.stderr
    assert set(torch.load(tmp_path / "out.pth")) == {"state_dict", "meta"}


def test_the_computed_average_of_a_real_run_is_near_the_true_one(tmp_path: Path, run: Run) -> None:
    """The digits run kept the average of each of its steps; here it is computed from twelve checkpoints."""
    digits = Path(__file__).parent.parent / "examples" / "digits" / "run"
    got = {}
    for name, arguments in {
        "true": ["ema-apply", digits / "checkpoint-2000.pt"],
        "computed": ["ema-apply", digits, "--last", "12"],
        "newest": ["average", digits, "--last", "1"],
    }.items():
        assert run(*arguments, "-o", tmp_path / f"{name}.safetensors").exit_code == 0
        tensors = load_file(tmp_path / f"{name}.safetensors")
        got[name] = torch.cat([value.double().flatten() for value in tensors.values() if value.is_floating_point()])
    left = torch.dist(got["computed"], got["true"]) / torch.dist(got["newest"], got["true"])
    assert left < 0.2


# --- A stored average -------------------------------------------------------------------------------------------


def test_a_stored_average_is_applied_and_said_where(timm: Path, tmp_path: Path, run: Run) -> None:
    ran = run("ema-apply", timm, "-o", tmp_path / "out.safetensors")
    assert (ran.exit_code, ran.stdout.strip()) == (0, str(tmp_path / "out.safetensors"))
    assert "state_dict_ema" in ran.stderr
    got = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(got[name], state(2)[name]) for name in NAMES)
    assert int(got["norm.num_batches_tracked"]) == 1


def test_the_dry_run_says_what_was_recognised_and_reads_no_weights(timm: Path, tmp_path: Path, run: Run) -> None:
    document = plan_of(run("ema-apply", timm, "-o", tmp_path / "out.pt", "-n", "--json"))
    stored = document["stored_average"]
    assert (stored["framework"], stored["where"], stored["applied_already"]) == (
        "timm, open_clip",
        "state_dict_ema",
        False,
    )
    assert "names and shapes" in stored["why"]
    assert not (tmp_path / "out.pt").exists()


def test_list_needs_no_output_and_compares_numbers(timm: Path, run: Run) -> None:
    ran = run("ema-apply", timm, "--list", "--json")
    (found,) = plan_of(ran)["checkpoints"]
    assert found["where"] == "state_dict_ema"
    raw, average = state(1), state(2)
    square = sum(float((average[name] - raw[name]).double().square().sum()) for name in NAMES)
    size = sum(float(raw[name].double().square().sum()) for name in NAMES)
    assert found["distance"] == pytest.approx((square / size) ** 0.5)
    assert found["verdicts"] == []
    assert "state_dict_ema" in run("ema-apply", timm, "--list").stdout


def findings(ran: Ran) -> list[str]:
    return [finding["kind"] for finding in plan_of(ran)["checkpoints"][-1]["verdicts"]]


def test_findings_are_given_where_the_values_show_them(tmp_path: Path, run: Run) -> None:
    raw = state(1)
    poisoned = {**state(2), "encoder.bias": torch.full((6,), float("nan"))}
    partial = {name: value for name, value in state(2).items() if not name.startswith("norm")}
    for name, average in {"equal": raw, "nan": poisoned, "partial": partial}.items():
        torch.save({"model": raw, "ema": average}, tmp_path / f"{name}.pt")
    assert findings(run("ema-apply", tmp_path / "equal.pt", "--list", "--json")) == ["equal"]
    assert findings(run("ema-apply", tmp_path / "nan.pt", "--list", "--json")) == ["non-finite"]
    assert findings(run("ema-apply", tmp_path / "partial.pt", "--list", "--json")) == ["partial"]
    torch.save({"model": state(5), "ema": state(2)}, tmp_path / "a.pt")
    torch.save({"model": state(6), "ema": state(2)}, tmp_path / "b.pt")
    assert findings(run("ema-apply", tmp_path / "a.pt", tmp_path / "b.pt", "--list", "--json")) == ["frozen"]


def test_list_of_a_model_directory_looks_at_the_newest_two(tmp_path: Path, run: Run) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    for step in (1000, 2000, 3000):
        torch.save({"model": state(step), "ema": state(7)}, directory / f"checkpoint_{step}.pt")
    assert findings(run("ema-apply", directory, "--list", "--json")) == ["frozen"]


def test_nan_in_the_average_is_refused_and_nothing_is_left(tmp_path: Path, run: Run) -> None:
    torch.save(
        {"model": state(1), "ema": {**state(2), "encoder.bias": torch.full((6,), float("nan"))}}, tmp_path / "c.pt"
    )
    ran = run("ema-apply", tmp_path / "c.pt", "-o", tmp_path / "out.pt")
    assert ran.exit_code == 4
    assert "encoder.bias" in ran.stderr
    assert not (tmp_path / "out.pt").exists()
    assert run("ema-apply", tmp_path / "c.pt", "-o", tmp_path / "out.pt", "--allow-nonfinite").exit_code == 0


def test_an_average_in_place_is_written_as_it_is(tmp_path: Path, run: Run) -> None:
    other = {"steps": torch.tensor(9), **{f"module.{name}": value for name, value in state(1).items()}}
    torch.save({"state_dict": state(2), "ema_state_dict": other}, tmp_path / "epoch_1.pth")
    ran = run("ema-apply", tmp_path / "epoch_1.pth", "-o", tmp_path / "out.pth")
    assert ran.exit_code == 0
    assert "nothing has to be applied" in ran.stderr
    got = torch.load(tmp_path / "out.pth")
    assert set(got) == {"state_dict"}
    assert all(torch.equal(value, state(2)[name]) for name, value in got["state_dict"].items())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["timm"], 2, "no output"),
        (["timm", "-o", "out.pt", "--decay", "0.9"], 2, "the checkpoints of a run"),
        (["timm", "-o", "out.pt", "--keep-state"], 2, "belongs to the trained weights"),
        (["timm", "-o", "timm"], 5, "is one of the inputs"),
        (["timm", "-o", "out.pt", "--slot", "nothing"], 2, "no average of these weights"),
        (["timm", "-o", "out.pt", "--list"], 2, "only says"),
        (["plain", "-o", "out.pt"], 3, "no moving average"),
        (["cut", "-o", "out.pt"], 6, ""),
        (["missing.pt", "-o", "out.pt"], 3, ""),
        (["model_dir", "-o", "out.pt", "--decay", "1.5"], 2, "between 0 and 1"),
        (["model_dir", "-o", "out.pt", "--decay", "much"], 2, "not a number"),
        (["model_dir", "-o", "out.pt", "--sigma-rel", "0.4"], 2, "0.2887"),
        (["model_dir", "-o", "out.pt", "--window", "2"], 2, "at most 1"),
        (["model_dir", "-o", "out.pt", "--half-life", "9", "--no-warmup"], 2, "goes with --decay"),
        (["model_dir", "-o", "out.pt", "--slot", "ema"], 2, "one checkpoint"),
        (["model_dir", "-o", "{window}.pt", "--decay", "0.9"], 2, "{length}"),
        (["model_dir", "-o", "out.pt", "--segment", "5:6"], 2, "not known"),
        (["model_dir", "-o", "out.pt", "--segment", "five", "--stored-profile", "decay:0.999"], 2, "two steps"),
        (["model_dir", "-o", "out.pt", "--stored-profile", "decay"], 2, "not a profile"),
        (["model_dir", "-o", "out.pt", "--stored-profile", "decay:0.999"], 2, "which length"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_with_its_exit_code(
    arguments: list[str], code: int, said: str, timm: Path, model_dir: Path, tmp_path: Path, run: Run
) -> None:
    torch.save({"model": state(1)}, tmp_path / "plain.pt")
    (tmp_path / "cut.pt").write_bytes(timm.read_bytes()[:600])
    known = {"timm": timm, "model_dir": model_dir, "plain": tmp_path / "plain.pt", "cut": tmp_path / "cut.pt"}
    ran = run("ema-apply", *[known.get(word, tmp_path / word if word.endswith(".pt") else word) for word in arguments])
    assert ran.exit_code == code, ran.stderr
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "out.pt").exists()


# --- Snapshots of averages --------------------------------------------------------------------------------------


def moving_averages(decays: list[Callable[[int], float]], every: int, last: int) -> tuple[Any, dict[int, list[Any]]]:
    """A random walk of two tensors, the true averages at its end, and snapshots of them."""
    generator = np.random.default_rng(0)
    walk = np.cumsum(generator.standard_normal((last + 1, 8)), axis=0)
    averages = [walk[0].copy() for _ in decays]
    snapshots = {}
    for step in range(1, last + 1):
        for average, decay in zip(averages, decays, strict=True):
            kept = decay(step)
            average[:] = kept * average + (1 - kept) * walk[step]
        if step % every == 0:
            snapshots[step] = [average.copy() for average in averages]
    return walk, snapshots


def save(path: Path, values: Any) -> None:
    torch.save({"weight": torch.from_numpy(values), "count": torch.tensor(1)}, path)


def power(gamma: float) -> Callable[[int], float]:
    return lambda step: (1 - 1 / step) ** (gamma + 1)


def test_a_length_between_two_stored_ones_is_synthesised(tmp_path: Path, run: Run) -> None:
    """EDM2's names say what each snapshot is; the result is the average that training at that length would have."""
    gammas = [16.97, 6.937, 10.0]  # sigma_rel 0.05, 0.10, and the wanted one
    wanted = 0.0754
    _, snapshots = moving_averages([power(gamma) for gamma in gammas], 100, 1600)
    for step, (short, long, _) in snapshots.items():
        save(tmp_path / f"snapshot-{step:07d}-0.050.pt", short)
        save(tmp_path / f"snapshot-{step:07d}-0.100.pt", long)
    ran = run("ema-apply", tmp_path, "--sigma-rel", wanted, "-o", tmp_path / "out.safetensors")
    assert ran.exit_code == 0, ran.stderr
    got = load_file(tmp_path / "out.safetensors")["weight"].numpy()
    true = snapshots[1600][2]
    scale = np.linalg.norm(snapshots[1600][0] - snapshots[1600][1])
    assert np.linalg.norm(got - true) < 0.03 * scale
    document = plan_of(run("ema-apply", tmp_path, "--sigma-rel", wanted, "-o", tmp_path / "x.pt", "-n", "--json"))
    assert document["profile_error"] < 0.02
    assert document["noise"] < 2


def test_a_constant_decay_is_retargeted_to_another(tmp_path: Path, run: Run) -> None:
    decays = [0.99, 0.997]
    _, snapshots = moving_averages([lambda _s: decays[0], lambda _s: decays[1]], 50, 2000)
    for step, (short, _) in snapshots.items():
        save(tmp_path / f"checkpoint_{step}.pt", short)
    options = ("--stored-profile", "decay:0.99", "--decay", "0.997", "--no-warmup", "-o", tmp_path / "out.safetensors")
    assert run("ema-apply", tmp_path, *options).exit_code == 0
    got = load_file(tmp_path / "out.safetensors")["weight"].numpy()
    short, long = snapshots[2000]
    assert np.linalg.norm(got - long) < 0.05 * np.linalg.norm(short - long)


def test_a_segment_is_cut_out_exactly(tmp_path: Path, run: Run) -> None:
    walk, snapshots = moving_averages([lambda _s: 0.99], 50, 400)
    for step, (average,) in snapshots.items():
        save(tmp_path / f"checkpoint_{step}.pt", average)
    options = ("--stored-profile", "decay:0.99", "--segment", "200:300", "-o", tmp_path / "out.safetensors")
    ran = run("ema-apply", tmp_path, *options)
    assert ran.exit_code == 0, ran.stderr
    ages = 300 - np.arange(201, 301)
    wanted = (0.99**ages) @ walk[201:301] / (0.99**ages).sum()
    np.testing.assert_allclose(load_file(tmp_path / "out.safetensors")["weight"].numpy(), wanted, rtol=1e-9)
    refused = run(
        "ema-apply", tmp_path, "--stored-profile", "decay:0.99", "--segment", "210:300", "-o", tmp_path / "x.pt"
    )
    assert (refused.exit_code, "Snapshots are at 50, 100" in refused.stderr) == (2, True)


def test_ema_pytorchs_profiles_depend_on_how_often_it_updated(tmp_path: Path, run: Run) -> None:
    """Its decay of one step is applied once in update_every steps, so that the labels alone are wrong."""
    _, snapshots = moving_averages([power(3), power(1)], 100, 1000)
    for step, pair in snapshots.items():
        for index, average in enumerate(pair):
            inside = {
                "ema_model.weight": torch.from_numpy(average),
                "initted": torch.tensor(True),
                "step": torch.tensor(step),
            }
            torch.save(inside, tmp_path / f"{index}.{step}.pt")
    # update_every 2 with labels of exponent 7 and 3 stores the exponents 3 and 1
    options = ("--stored-profile", "gamma:7", "--stored-profile", "gamma:3", "--sigma-rel", "0.2")
    refused = run("ema-apply", tmp_path, *options, "-o", tmp_path / "out.safetensors")
    assert (refused.exit_code, "10 (its class PostHocEMA" in refused.stderr) == (2, True)
    ran = run("ema-apply", tmp_path, *options, "--update-every", "2", "-o", tmp_path / "out.safetensors")
    assert ran.exit_code == 0, ran.stderr
    assert "exponent 3" in ran.stderr
    got = load_file(tmp_path / "out.safetensors")
    assert set(got) == {"weight"}


def test_a_metric_in_a_name_makes_no_snapshot_of_it(tmp_path: Path, run: Run) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    for step in (100, 200, 300):
        torch.save({"state_dict": state(step), "global_step": step}, directory / f"model-{step}-0.15.ckpt")
    document = plan_of(run("ema-apply", *directory.iterdir(), "-o", tmp_path / "x.ckpt", "-n", "--json"))
    assert document["length"]["kind"] == "decay"
    assert "profile_error" not in document


def test_amplified_noise_is_a_warning(tmp_path: Path, run: Run) -> None:
    _, snapshots = moving_averages([power(3), power(1)], 100, 1600)
    for step, pair in snapshots.items():
        for index, average in enumerate(pair):
            save(tmp_path / f"snapshot-{step:07d}-0.{(15, 25)[index]}0.pt", average)
    ran = run("ema-apply", tmp_path, "--sigma-rel", "0.05", "-o", tmp_path / "x.pt", "-n", "-q")
    assert "noise grows" in ran.stderr


# --- average --anneal -------------------------------------------------------------------------------------------


def test_anneal_gives_the_published_weights_and_shows_the_curve(model_dir: Path, tmp_path: Path, run: Run) -> None:
    document = plan_of(run("average", model_dir, "--last", "10", "--anneal", "1-sqrt", "-n", "--json"))
    factors = 1 - np.sqrt(np.arange(11) / 10)
    np.testing.assert_allclose([m["coefficient"] for m in document["members"]], factors[:-1] - factors[1:], atol=1e-12)
    np.testing.assert_allclose([row["factor"] for row in document["learning_rate"]], factors[1:], atol=1e-12)
    assert run("average", model_dir, "--anneal", "cosine", "-o", tmp_path / "c.safetensors").exit_code == 0


def test_linear_annealing_is_the_plain_average(model_dir: Path, tmp_path: Path, run: Run) -> None:
    for name, options in {"a": (), "b": ("--anneal", "linear")}.items():
        assert run("average", model_dir, "--last", "5", *options, "-o", tmp_path / f"{name}.safetensors").exit_code == 0
    one, other = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert "linear" in run("average", "--help").stdout


def test_anneal_and_weights_contradict_each_other(model_dir: Path, run: Run) -> None:
    ran = run("average", model_dir, "--anneal", "cosine", "--weights", "0.5,0.5")
    assert (ran.exit_code, "--weights" in ran.stderr) == (2, True)
