"""FSDP2: two ranks save shards with torch.distributed.checkpoint, and load the average into the sharded model again."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh

RANKS = 2
STEPS = (10, 20, 30)

pytestmark = pytest.mark.skipif(sys.platform == "win32" or not dist.is_gloo_available(), reason="needs gloo")


def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3))


def sharded(rank, rendezvous):
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS)
    model = build()
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    return model


def train(rank, directory):
    model = sharded(rank, directory / "rendezvous")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for step in STEPS:
        torch.manual_seed(step + rank)
        model(torch.randn(4, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        state = {"model": get_model_state_dict(model), "optimizer": optimizer.state_dict(), "step": step}
        dcp.save(state, checkpoint_id=str(directory / "run" / f"step-{step}"))
        whole = {name: value.full_tensor() for name, value in get_model_state_dict(model).items()}
        if rank == 0:
            torch.save(whole, directory / f"whole-{step}.pt")
    dist.destroy_process_group()


def load(rank, directory, checkpoint):
    model = sharded(rank, directory / "rendezvous-2")
    state = {"model": get_model_state_dict(model)}
    dcp.load(state, checkpoint_id=str(checkpoint))
    set_model_state_dict(model, state["model"])
    whole = {name: value.full_tensor() for name, value in get_model_state_dict(model).items()}
    if rank == 0:
        torch.save(whole, directory / "loaded.pt")
    dist.destroy_process_group()


def test_the_sharded_model_loads_the_average(average, tmp_path, mean, same):
    (tmp_path / "run").mkdir()
    mp.spawn(train, (tmp_path,), nprocs=RANKS)
    said = average(tmp_path / "run", "--last", 3)
    assert said.steps == list(STEPS)
    mp.spawn(load, (tmp_path, said.output), nprocs=RANKS)
    same(torch.load(tmp_path / "loaded.pt"), mean([torch.load(tmp_path / f"whole-{step}.pt") for step in STEPS]))
