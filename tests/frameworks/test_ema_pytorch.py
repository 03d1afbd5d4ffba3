"""ema-pytorch and torch-ema: their state next to the model's, and alone."""

from __future__ import annotations

import pytest
import torch


def build():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))


def train(directory, ema, model, update, *, alone=False, name="ema"):
    directory.mkdir()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for step in range(1, 9):
        loss = model(torch.randn(4, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update()
        if step % 2 == 0:
            state = {"model": model.state_dict(), name: ema.state_dict(), "opt": optimizer.state_dict(), "step": step}
            torch.save(ema.state_dict() if alone else state, directory / f"model-{step}.pt")


@pytest.mark.parametrize("with_model", [True, False])
def test_ema_pytorch_next_to_the_model(average, tmp_path, mean, same, with_model):
    ema_class = pytest.importorskip("ema_pytorch").EMA
    model = build()
    ema = ema_class(model, beta=0.9, update_after_step=0, update_every=1, include_online_model=with_model)
    train(tmp_path / "run", ema, model, ema.update)
    said = average(tmp_path / "run", "--last", 3)
    assert said.steps == [4, 6, 8]
    states = [torch.load(tmp_path / "run" / name) for name in said.names]
    ours = torch.load(said.output)
    same(ours["model"], mean([state["model"] for state in states]))
    fresh = ema_class(build(), beta=0.9, include_online_model=with_model)
    fresh.load_state_dict(ours["ema"])
    same(fresh.state_dict(), mean([state["ema"] for state in states]))
    assert fresh.step.item() == 8


def test_ema_pytorch_alone(average, tmp_path, mean, same):
    ema_class = pytest.importorskip("ema_pytorch").EMA
    model = build()
    ema = ema_class(model, beta=0.9, update_after_step=0, update_every=1)
    train(tmp_path / "run", ema, model, ema.update, alone=True)
    said = average(tmp_path / "run", "--last", 3)
    fresh = ema_class(build(), beta=0.9)
    fresh.load_state_dict(torch.load(said.output))
    same(fresh.state_dict(), mean([torch.load(tmp_path / "run" / name) for name in said.names]))


def test_the_nameless_list_of_torch_ema(average, tmp_path, mean, same):
    ema_class = pytest.importorskip("torch_ema").ExponentialMovingAverage
    model = build()
    ema = ema_class(model.parameters(), decay=0.7)
    train(tmp_path / "run", ema, model, ema.update)
    said = average(tmp_path / "run", "--last", 3)
    states = [torch.load(tmp_path / "run" / name)["ema"] for name in said.names]
    fresh = ema_class(build().parameters(), decay=0.5)
    fresh.load_state_dict(torch.load(said.output)["ema"])
    wanted = mean([dict(enumerate(state["shadow_params"])) for state in states])
    same(dict(enumerate(fresh.state_dict()["shadow_params"])), wanted)
    assert fresh.num_updates == 8
