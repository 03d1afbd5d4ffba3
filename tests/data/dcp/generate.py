"""Writes the checkpoints next to it: what two processes with FSDP and a DTensor in each dimension really save.

    python generate.py

They were written with PyTorch 2.13.0 on CPU (gloo). Element i of a tensor in C order is i + 1000 * step.
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

HERE = Path(__file__).parent
SHAPES = {"weight": (5, 3), "bias": (5,)}


def numbered(shape: tuple[int, ...], step: int) -> torch.Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape) + 1000 * step


def run(rank: int) -> None:
    os.chdir(HERE)  # torch keeps the path that it is given
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for step in (1, 2):
        model = torch.nn.Linear(3, 5)
        with torch.no_grad():
            for value in model.parameters():
                value.copy_(numbered(tuple(value.shape), step))
        fully_shard(model, mesh=mesh)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        weights, state = get_state_dict(model, optimizer)
        columns = distribute_tensor(numbered((3, 5), step), mesh, [Shard(1)])
        everywhere = distribute_tensor(numbered((2, 2), step), mesh, [Replicate()])
        dcp.save(
            {"model": {**weights, "columns": columns, "everywhere": everywhere}, "optim": state, "step": step},
            checkpoint_id=f"step-{step}",
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    for old in HERE.glob("step-*"):
        shutil.rmtree(old)
    mp.spawn(run, nprocs=2)
