"""OLMo-core: directories of its save_model_and_optim_state, taken by its load_model_and_optim_state."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("olmo_core")
from olmo_core.distributed.checkpoint import load_model_and_optim_state, save_model_and_optim_state


def build():
    return torch.nn.Sequential(torch.nn.Embedding(20, 4), torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))


def test_load_model_and_optim_state_takes_the_average(average, tmp_path, mean, same):
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    states = []
    for step in (1, 2, 3):
        model(torch.arange(8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        save_model_and_optim_state(tmp_path / f"step{step}" / "model_and_optim", model, optimizer)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    said = average(*(tmp_path / f"step{step}" / "model_and_optim" for step in (1, 2, 3)), "-o", tmp_path / "averaged")
    assert said.steps == [1, 2, 3]
    averaged = build()
    load_model_and_optim_state(said.output, averaged)
    same(averaged.state_dict(), mean(states))
