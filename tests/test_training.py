"""The moving average in a training loop: against torch's AveragedModel, and a recurrence in plain Python."""

from __future__ import annotations

import copy
import doctest
import io
import math
import subprocess
import sys
import warnings

import pytest
import torch

import ckpttool.training
from ckpttool.coefficients.profiles import WarmupDecay
from ckpttool.coefficients.weights import from_decays
from ckpttool.errors import MismatchError, UsageError
from ckpttool.training import MovingAverage


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small are slowed down by threads, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(torch.nn.Module):
    """Linear layers, BatchNorm (float and integer buffers), tied embeddings, and a frozen parameter."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = torch.nn.Embedding(7, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.hidden = torch.nn.Linear(4, 4)
        self.out = torch.nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight
        self.frozen = torch.nn.Parameter(torch.randn(3), requires_grad=False)
        self.register_buffer("scratch", torch.randn(2), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.hidden(self.norm(self.embed(tokens))))


def train(model, steps, after_step, *, seed=1, optimizer=None):
    """A few steps of SGD on noise; `steps` are the numbers of the steps."""
    noise = torch.Generator().manual_seed(seed)
    optimizer = optimizer or torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    for step in steps:
        tokens = torch.randint(0, 7, (16,), generator=noise)
        targets = torch.randint(0, 7, (16,), generator=noise)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(tokens).float(), targets).backward()
        optimizer.step()
        after_step(step)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stored_and_loaded(state):
    """Through a file that is read with nothing but tensors and plain values allowed."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(ckpttool.training).failed == 0


def rule(decay, step):
    return min(decay, (1 + step) / (10 + step))


@pytest.mark.parametrize(("decay", "warmup"), [(0.9999, True), (0.95, True), (0.95, False)])
def test_it_is_torchs_averaged_model_with_the_same_rule_bit_for_bit(decay, warmup):
    model = Net()

    def mix(averaged, current, num_averaged):
        step = int(num_averaged) + 1
        torch._foreach_lerp_(averaged, current, 1 - (rule(decay, step) if warmup else decay))

    theirs = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=mix)
    ours = MovingAverage(model, decay, warmup=warmup)

    def after_step(step):
        ours.update(step)
        theirs.update_parameters(model)

    train(model, range(1, 41), after_step)
    with ours.shadow_weights():
        found = snapshot(model)
    assert same(found, snapshot(theirs.module))
    assert not torch.equal(found["hidden.weight"], model.hidden.weight)


@pytest.mark.parametrize("numbered", [True, False])
def test_it_is_the_recurrence_in_float64(numbered):
    model = Net().double()
    average, expected = MovingAverage(model, 0.9999), None

    def after_step(step):
        nonlocal expected
        average.update(step if numbered else None)
        now = model.hidden.weight.detach().flatten().tolist()
        rate = 1 - rule(0.9999, step)
        expected = (
            now if expected is None else [old - (old - new) * rate for old, new in zip(expected, now, strict=True)]
        )

    train(model, range(1, 61), after_step)
    assert average.state_dict()["shadow"]["hidden.weight"].flatten().tolist() == pytest.approx(expected, abs=1e-13)
    assert (average.step, average.num_updates) == (60, 60)


def test_it_is_the_weighted_sum_of_every_step():
    model, path = Net().double(), []
    average = MovingAverage(model)
    train(model, range(1, 51), lambda step: (average.update(step), path.append(model.hidden.bias.detach().clone())))
    shares = from_decays([WarmupDecay(0.9999).at(step) for step in range(2, 51)])
    expected = sum(share * value for share, value in zip(shares, path, strict=True))
    assert torch.allclose(average.state_dict()["shadow"]["hidden.bias"], expected, atol=1e-14)


def test_updating_every_tenth_step_reaches_equally_far_back():
    model = Net().double()
    with torch.no_grad():
        model.hidden.bias.fill_(1.0)
    often, seldom = MovingAverage(model, 0.99), MovingAverage(model, 0.99)
    often.update(10)
    seldom.update(10)
    with torch.no_grad():
        model.hidden.bias.fill_(0.0)
    for step in range(11, 1041):
        often.update(step)
        if step % 10 == 0:
            seldom.update(step)
    left = [average.state_dict()["shadow"]["hidden.bias"][0].item() for average in (often, seldom)]
    assert left[0] == pytest.approx(math.prod(rule(0.99, step) for step in range(11, 1041)), rel=1e-9)
    assert left[1] == pytest.approx(left[0], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_resumed_run_goes_on_to_the_same_bits(dtype):
    def begin():
        model = Net().to(dtype)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3, momentum=0.9)
        return model, optimizer, MovingAverage(model)

    straight, optimizer, whole = begin()
    train(straight, range(1, 21), whole.update, seed=1, optimizer=optimizer)
    train(straight, range(21, 41), whole.update, seed=2, optimizer=optimizer)

    first, optimizer, average = begin()
    train(first, range(1, 21), average.update, seed=1, optimizer=optimizer)
    saved = stored_and_loaded(
        {"model": first.state_dict(), "optimizer": optimizer.state_dict(), "average": average.state_dict()}
    )
    second, optimizer, resumed = begin()
    second.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["average"])
    train(second, range(21, 41), resumed.update, seed=2, optimizer=optimizer)

    assert same(snapshot(second), snapshot(straight))
    assert same(resumed.state_dict()["shadow"], whole.state_dict()["shadow"])
    assert {k: v for k, v in resumed.state_dict().items() if k != "shadow"} == {
        "format": "ckpttool.MovingAverage",
        "version": 1,
        "decay": 0.9999,
        "warmup": True,
        "buffers": "newest",
        "num_updates": 40,
        "step": 40,
    }


def test_a_loaded_average_is_its_own():
    model = Net()
    average = MovingAverage(model)
    average.update(1)
    state = average.state_dict()
    other = MovingAverage(model)
    other.load_state_dict(state)
    before = copy.deepcopy(state["shadow"])
    train(model, range(2, 5), other.update)
    assert same(state["shadow"], before)


# Swapping


def test_the_trained_weights_come_back_bit_for_bit():
    model = Net()
    average = MovingAverage(model)
    train(model, range(1, 11), average.update)
    trained, places = snapshot(model), [p.data_ptr() for p in model.parameters()]
    with average.shadow_weights():
        inside = snapshot(model)
        assert [p.data_ptr() for p in model.parameters()] == places
    assert same(snapshot(model), trained)
    assert not same(inside, trained)
    for name, shadow in average.state_dict()["shadow"].items():
        assert torch.equal(inside[name], shadow)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_trained_weights_come_back_after_an_exception(error):
    model = Net()
    average = MovingAverage(model)
    train(model, range(1, 11), average.update)
    trained = snapshot(model)
    with pytest.raises(error), average.shadow_weights():
        raise error
    assert same(snapshot(model), trained)
    average.update(11)


def test_the_trained_weights_come_back_when_swapping_itself_fails():
    model = Net()
    average = MovingAverage(model)
    train(model, range(1, 11), average.update)
    trained = snapshot(model)
    average._shadow["hidden.weight"] = _Uncopyable(model.hidden.weight.shape)
    with pytest.raises(TypeError), average.shadow_weights():
        raise AssertionError("the block must not be entered")
    assert same(snapshot(model), trained)


class _Uncopyable:
    def __init__(self, shape):
        self.shape = shape


def test_a_block_inside_a_block_changes_nothing():
    model = Net()
    average = MovingAverage(model)
    train(model, range(1, 11), average.update)
    trained = snapshot(model)
    with average.shadow_weights():
        outer = snapshot(model)
        with average.shadow_weights():
            assert same(snapshot(model), outer)
        assert same(snapshot(model), outer)
        with pytest.raises(RuntimeError), average.shadow_weights():
            raise RuntimeError
        assert same(snapshot(model), outer)
        with pytest.raises(UsageError, match="cannot update"):
            average.update(11)
        with pytest.raises(UsageError, match="cannot load"):
            average.load_state_dict(average.state_dict())
    assert same(snapshot(model), trained)


def test_two_averages_of_one_model_can_be_nested():
    model = Net()
    short, long = MovingAverage(model, 0.9, warmup=False), MovingAverage(model)
    train(model, range(1, 21), lambda step: (short.update(step), long.update(step)))
    trained = snapshot(model)
    with short.shadow_weights():
        outer = snapshot(model)
        with long.shadow_weights():
            assert not same(snapshot(model), outer)
        assert same(snapshot(model), outer)
    assert same(snapshot(model), trained)


def test_before_the_first_update_there_is_no_average():
    model = Net()
    average = MovingAverage(model)
    trained = snapshot(model)
    with average.shadow_weights():
        assert same(snapshot(model), trained)
    state = average.state_dict()
    assert (state["num_updates"], state["step"], state["shadow"]) == (0, 0, {})
    MovingAverage(model).load_state_dict(state)


def test_the_first_update_takes_the_weights_as_they_are_at_any_step():
    model = Net()
    average = MovingAverage(model)
    average.update(50_000)
    assert torch.equal(average.state_dict()["shadow"]["hidden.weight"], model.hidden.weight)


# What is averaged, and what is not


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_shadow_of_a_half_precision_model_moves(dtype):
    """A shadow in the model's own type would stay where it began: the update is below its resolution."""
    model = torch.nn.Linear(1, 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average = MovingAverage(model, 0.9999, warmup=False)
    average.update(1)
    frozen = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.fill_(2.0)
    for step in range(2, 2002):
        average.update(step)
        frozen.lerp_(model.weight.detach(), 1 - 0.9999)
    shadow = average.state_dict()["shadow"]["weight"]
    assert frozen.item() == 1.0
    assert shadow.dtype == torch.float32
    assert shadow.item() == pytest.approx(2 - 0.9999**2000, abs=1e-4)
    with average.shadow_weights():
        assert model.weight.dtype == dtype
        assert torch.equal(model.weight, shadow.to(dtype))


def test_weights_of_mixed_types_are_averaged_in_pieces(monkeypatch):
    model = Net()
    model.hidden.to(torch.bfloat16)
    model.norm.to(torch.float64)
    model.extra = torch.nn.Parameter(torch.randn(3, dtype=torch.complex64))
    at_once, pieces = MovingAverage(model), MovingAverage(model)
    for step in range(1, 6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        at_once.update(step)
        with monkeypatch.context() as patch:
            patch.setattr(ckpttool.training, "_CONVERTED_AT_ONCE", 0)
            pieces.update(step)
    shadow = at_once.state_dict()["shadow"]
    assert same(shadow, pieces.state_dict()["shadow"])
    assert {name: tensor.dtype for name, tensor in shadow.items()} == {
        "embed.weight": torch.float32,
        "norm.weight": torch.float64,
        "norm.bias": torch.float64,
        "hidden.weight": torch.float32,
        "hidden.bias": torch.float32,
        "extra": torch.complex64,
    }


def test_tied_weights_have_one_shadow_and_stay_tied():
    model = Net()
    average = MovingAverage(model)
    train(model, range(1, 11), average.update)
    shadow = average.state_dict()["shadow"]
    assert "embed.weight" in shadow
    assert "out.weight" not in shadow
    with average.shadow_weights():
        assert model.out.weight is model.embed.weight
        assert torch.equal(model.state_dict()["out.weight"], shadow["embed.weight"])


def test_frozen_parameters_join_when_they_are_unfrozen():
    model = Net()
    average = MovingAverage(model)
    train(model, range(1, 4), average.update)
    assert "frozen" not in average.state_dict()["shadow"]
    model.frozen.requires_grad_(True)
    average.update(4)
    first = model.frozen.detach().clone()
    with torch.no_grad():
        model.frozen.zero_()
    average.update(5)
    assert torch.allclose(average.state_dict()["shadow"]["frozen"], first * rule(0.9999, 5))
    model.frozen.requires_grad_(False)
    average.update(6)
    assert "frozen" in average.state_dict()["shadow"]
    other = Net()
    MovingAverage(other).load_state_dict(average.state_dict())


def test_buffers_are_the_newest_unless_asked_for():
    model = Net()
    average = MovingAverage(model)
    train(model, range(1, 11), average.update)
    newest = snapshot(model)
    with average.shadow_weights():
        for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
            assert torch.equal(model.state_dict()[name], newest[name])


def test_averaged_buffers_are_those_of_torch_and_integers_stay_the_newest():
    model = Net()

    def mix(averaged, current, num_averaged):
        return (
            averaged.lerp(current, 1 - rule(0.9999, int(num_averaged) + 1)) if averaged.is_floating_point() else current
        )

    theirs = torch.optim.swa_utils.AveragedModel(model, avg_fn=mix, use_buffers=True)
    ours = MovingAverage(model, buffers="average")

    def after_step(step):
        ours.update(step)
        theirs.update_parameters(model)

    train(model, range(1, 11), after_step)
    assert "scratch" not in ours.state_dict()["shadow"]
    with ours.shadow_weights():
        assert same(snapshot(model), snapshot(theirs.module))
        assert model.norm.num_batches_tracked == 10
    assert not torch.equal(theirs.module.norm.running_mean, model.norm.running_mean)


def test_names_are_those_of_the_model_inside_its_wrappers():
    class Compiled(torch.nn.Module):
        """As torch.compile wraps it."""

        def __init__(self, inner):
            super().__init__()
            self._orig_mod = inner

    model = Net()
    average = MovingAverage(Compiled(torch.nn.DataParallel(model)))
    average.update(1)
    assert list(average.state_dict()["shadow"]) == [
        *("embed.weight", "norm.weight", "norm.bias", "hidden.weight", "hidden.bias"),
    ]
    MovingAverage(model).load_state_dict(average.state_dict())


# Refusals


@pytest.mark.parametrize("decay", [0.0001, 0.5, 0.89])
def test_a_decay_below_a_tenth_of_a_step_is_warned_of(decay):
    with pytest.warns(UserWarning, match=f"give {1 - decay:g}"):
        MovingAverage(Net(), decay)


@pytest.mark.parametrize("decay", [0.9, 0.9999])
def test_a_usual_decay_is_not_warned_of(decay):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MovingAverage(Net(), decay)


@pytest.mark.parametrize("keywords", [{"decay": 1.0}, {"decay": 0.0}, {"decay": 2.0}, {"buffers": "mean"}])
def test_impossible_settings_are_refused(keywords):
    with pytest.raises(UsageError) as caught:
        MovingAverage(Net(), **keywords)
    assert caught.value.hint


@pytest.mark.parametrize("step", [5, 4, 0, -1])
def test_a_step_that_does_not_grow_is_refused_and_changes_nothing(step):
    average = MovingAverage(Net())
    average.update(5)
    with pytest.raises(UsageError, match=f"step {step} cannot be averaged after step 5"):
        average.update(step)
    assert (average.step, average.num_updates) == (5, 1)


@pytest.mark.parametrize(("name", "value"), [("decay", 0.99), ("warmup", False), ("buffers", "average")])
def test_an_average_made_otherwise_is_refused(name, value):
    stored = MovingAverage(Net())
    stored.update(1)
    with pytest.raises(UsageError, match=f"has {name}=") as caught:
        MovingAverage(Net(), **{name: value}).load_state_dict(stored.state_dict())
    assert f"{name}=" in caught.value.hint


def test_the_average_of_another_model_is_refused_and_names_the_weight():
    average = MovingAverage(Net())
    average.update(1)
    state = average.state_dict()
    for change, said in (
        (lambda shadow: shadow.pop("hidden.bias"), "no weight 'hidden.bias'"),
        (lambda shadow: shadow.update(other=torch.zeros(1)), "a weight 'other'"),
        (
            lambda shadow: shadow.update({"hidden.bias": torch.zeros(5)}),
            r"hidden.bias is \(4,\) in the model and \(5,\)",
        ),
    ):
        wrong = {**state, "shadow": dict(state["shadow"])}
        change(wrong["shadow"])
        target = MovingAverage(Net())
        with pytest.raises(MismatchError, match=said) as caught:
            target.load_state_dict(wrong)
        assert caught.value.tensor
        assert target.state_dict()["shadow"] == {}


@pytest.mark.parametrize("state", [{}, {"shadow": {}}, {"format": "ckpttool.MovingAverage", "version": 2}])
def test_what_is_not_a_stored_average_is_refused(state):
    with pytest.raises(UsageError, match="not a stored moving average"):
        MovingAverage(Net()).load_state_dict(state)


def test_a_model_that_changed_under_the_average_is_refused():
    model = Net()
    average = MovingAverage(model)
    average.update(1)
    model.hidden = torch.nn.Linear(4, 5)
    for use in (lambda: average.update(2), lambda: average.shadow_weights().__enter__()):
        with pytest.raises(MismatchError, match=r"hidden\.weight is"):
            use()
    del model.hidden
    for use in (lambda: average.update(2), lambda: average.shadow_weights().__enter__()):
        with pytest.raises(MismatchError, match="no weight 'hidden"):
            use()
    assert average.num_updates == 1


def test_without_torch_the_message_names_the_extra():
    code = "import sys; sys.modules['torch'] = None\nimport ckpttool.training"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "pip install 'ckpttool[torch]'" in run.stderr.splitlines()[-1]
