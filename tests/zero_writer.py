"""DeepSpeed's ZeRO checkpoints, written with ``torch.save`` in the layout that DeepSpeed 0.19 gives them.

What is there for alignment only is NaN here, so that a reader that takes it for weights is found out.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from enum import IntEnum

import torch

NAN = float("nan")


class ZeroStageEnum(IntEnum):
    """As DeepSpeed has it: its checkpoints hold the member, not the number."""

    optimizer_states = 1
    gradients = 2
    weights = 3


class LossScaler:
    """An object of a class of its own, as is in every checkpoint."""

    def __init__(self):
        self.cur_scale = 1


def nans(count):
    return torch.full((count,), NAN)


def save_zero(
    folder,
    groups,
    *,
    stage=3,
    ranks=2,
    frozen=None,
    buffers=None,
    shared=None,
    step=10,
    pieces=1,
    alignment=1,
    keeps_padding=False,
    prefix="bf16_",
    optimizer=None,
    model=None,
):
    """Save a checkpoint.

    Args:
        folder: Where.
        groups: Of each group of parameters, name to float32 tensor.
        stage: 1, 2 or 3.
        ranks: How many processes saved.
        frozen: Name to tensor of the parameters that the optimizer does not have.
        buffers: Name to tensor.
        shared: Name to the name of the parameter that it is as well.
        step: The training step.
        pieces: Into how many flat tensors each rank's are cut (stage 3).
        alignment: Each parameter begins at a multiple of it (stages 1 and 2).
        keeps_padding: Whether the padding at a group's end is saved (stages 1 and 2, before 2021).
        prefix: Before the names of the optimizer's files.
        optimizer: More for the state of the optimizer.
        model: More for the files of the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frozen, buffers, shared = frozen or {}, buffers or {}, shared or {}
    everything = {name: tensor for group in groups for name, tensor in group.items()}
    if stage == 3:
        flat = [_slices(everything.values(), rank, ranks, pieces) for rank in range(ranks)]
        more = {"fp32_flat_groups": None, "partition_count": ranks}
    else:
        lines, gaps = zip(*(_line(group.values(), alignment) for group in groups), strict=True)
        flat = list(zip(*(_partitions(line, ranks, keeps_padding) for line in lines), strict=True))
        more = {
            "single_partition_of_fp32_groups": None,
            "partition_count": [ranks] * len(groups),
            "param_alignment_paddings": [list(each) for each in gaps],
        }
    key = next(iter(more))
    for rank, own in enumerate(flat):
        state = {
            "loss_scaler": LossScaler(),
            "zero_stage": ZeroStageEnum(stage),
            **more,
            "base_optimizer_state": {"state": {0: {"exp_avg": nans(5)}}, "param_groups": [{"params": [0]}]},
            **(optimizer or {}),
        }
        if key in state and state[key] is None:
            state[key] = list(own)
        name = f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": state, "ds_version": "0.19.8"}, folder / name)
    half = {name: tensor.bfloat16() for name, tensor in everything.items()}
    for rank in range(ranks if stage == 3 else 1):
        names = (*buffers, *everything, *frozen, *shared)
        if stage == 3:
            module = {**dict.fromkeys(names, torch.empty(0, dtype=torch.bfloat16)), **buffers}
            fragments = {name: _slices([tensor], rank, ranks, 1)[0] for name, tensor in frozen.items()}
        else:
            module = {**buffers, **half, **frozen}
            module.update({alias: module[name] for alias, name in shared.items()})
            fragments = frozen
        content = {
            "module": OrderedDict(module),
            "buffer_names": list(buffers),
            "param_shapes": [OrderedDict((name, tensor.shape) for name, tensor in group.items()) for group in groups],
            "frozen_param_shapes": OrderedDict((name, t.shape) for name, t in frozen.items()) if stage > 1 else None,
            "frozen_param_fragments": OrderedDict(fragments) if stage > 1 else None,
            "shared_params": shared if rank == 0 else {},
            "global_steps": step,
            "ds_version": "0.19.8",
            **(model or {}),
        }
        name = "mp_rank_00_model_states.pt"
        torch.save(content, folder / (f"zero_pp_rank_{rank}_{name}" if stage == 3 else name))


def _slices(tensors, rank, ranks, pieces):
    """A rank's part of each tensor, one after the other, in so many flat tensors."""
    found = []
    for tensor in tensors:
        share = math.ceil(tensor.numel() / ranks)
        padded = torch.cat([tensor.flatten(), nans(share * ranks - tensor.numel()).to(tensor.dtype)])
        found.append(padded[rank * share : (rank + 1) * share])
    return [each.clone() for each in torch.cat(found).tensor_split(pieces)]


def _line(tensors, alignment):
    """All tensors of a group one after the other, and how much follows each of them."""
    tensors = list(tensors)
    line, gaps = torch.zeros(0), []
    for index, tensor in enumerate(tensors):
        line = torch.cat([line, tensor.flatten()])
        gaps.append(0 if index == len(tensors) - 1 else -len(line) % alignment)
        line = torch.cat([line, nans(gaps[-1])])
    return line, gaps


def _partitions(line, ranks, keeps_padding):
    """A group cut for the ranks; each is a part of a larger storage, as it is where the padding was cut off."""
    padding = -len(line) % (2 * ranks)
    size = (len(line) + padding) // ranks
    padded = torch.cat([line, nans(padding)])
    ends = [(rank + 1) * size if keeps_padding else min((rank + 1) * size, len(line)) for rank in range(ranks)]
    return [padded[rank * size : max(end, rank * size)] for rank, end in enumerate(ends)]
