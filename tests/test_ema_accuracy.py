"""The moving average computed from checkpoints comes near to the one that a real run kept."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from ckpttool.training import MovingAverage

SCRIPT = Path(__file__).parent.parent / "docs" / "ema_accuracy.py"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small are slowed down by threads, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("ema_accuracy", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(script, one_thread, tmp_path_factory):
    """A small network learns a noisy function with Adam at a constant rate: 1200 steps, a checkpoint every 100."""
    directory = tmp_path_factory.mktemp("run")
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer, average = torch.optim.Adam(model.parameters(), lr=0.01), MovingAverage(model)
    for step in range(1, 1201):
        inputs = torch.randn(8, 4, generator=generator)
        targets = inputs.prod(dim=1, keepdim=True) + 0.3 * torch.randn(8, 1, generator=generator)
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
        average.update(step)
        if step % 100 == 0:
            torch.save(
                {"model": model.state_dict(), "ema": average.state_dict(), "step": step},
                directory / f"checkpoint-{step}.pt",
            )
    return script.read(directory)


LINEAR, HOLD, _, _, NAIVE, NEWEST = range(6)


def test_gap_by_gap_is_much_nearer_than_the_newest_checkpoint(script, run):
    ways = list(script.WAYS)
    assert script.accuracy(run, ways[LINEAR], 12) <= 0.35
    assert script.accuracy(run, ways[LINEAR], 12) < script.accuracy(run, ways[HOLD], 12) < 1
    assert script.accuracy(run, ways[NEWEST], 12) == 1


def test_the_steps_decay_once_per_checkpoint_is_worse_than_not_averaging(script, run):
    assert script.accuracy(run, list(script.WAYS)[NAIVE], 12) > 1


def test_the_table_has_a_row_for_each_way_and_a_column_for_each_count(script, run):
    header, rule, *rows = script.table(run, [12, 5]).splitlines()
    assert header == "| | last 12 | last 5 |"
    assert rule == "|---|---|---|"
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(script.WAYS)
