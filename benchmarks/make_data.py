"""Makes checkpoints to be averaged: `python make_data.py DIRECTORY FORMAT DTYPE MEMBERS MEGABYTES TENSORS`.

As in checkpoints of one run, a weight differs little from member to member. Each member has `TENSORS` tensors of equal
shape, and MEGABYTES of them. FORMAT: safetensors; torch, which has the state of Adam next to the weights; shards, a
directory as Hugging Face saves it, with a file for each 500 MB; dcp, a directory of torch.distributed.checkpoint.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
SHARD = 500_000_000
ROWS = 64


def block(member: int, dtype: str, columns: int) -> np.ndarray:
    """The values of one tensor of a member; all tensors have the same."""
    shape = (ROWS, columns)
    values = np.random.default_rng(0).standard_normal(shape, np.float32) * np.float32(0.02)
    values += np.random.default_rng(member + 1).standard_normal(shape, np.float32) * np.float32(0.0005)
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def write_safetensors(path: Path, names: list[str], values: np.ndarray, dtype: str) -> None:
    """A file as safetensors writes it, without holding it in memory."""
    nbytes = values.nbytes
    header = {
        name: {"dtype": CODES[dtype], "shape": list(values.shape), "data_offsets": [i * nbytes, (i + 1) * nbytes]}
        for i, name in enumerate(names)
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    several = max(1, (1 << 22) // nbytes)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, len(names), several):
            file.write(values.tobytes() * min(several, len(names) - start))


def write_shards(directory: Path, names: list[str], values: np.ndarray, dtype: str) -> None:
    """A model directory of Hugging Face."""
    directory.mkdir(exist_ok=True)
    each = max(1, SHARD // values.nbytes)
    groups = [names[start : start + each] for start in range(0, len(names), each)]
    places = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write_safetensors(directory / file, group, values, dtype)
        places.update(dict.fromkeys(group, file))
    index = {"metadata": {"total_size": len(names) * values.nbytes}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    layers = len({name.split(".")[2] for name in names if ".layers." in name})
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers}
    (directory / "config.json").write_text(json.dumps(config))


def llama_names(count: int) -> list[str]:
    """About `count` names of tensors as Llama has them, since mergekit wants the tensors that it knows."""
    parts = [f"self_attn.{each}_proj" for each in "qkvo"] + [f"mlp.{each}_proj" for each in ("gate", "up", "down")]
    parts += ["input_layernorm", "post_attention_layernorm"]
    layers = [f"model.layers.{layer}.{part}.weight" for layer in range(count // len(parts)) for part in parts]
    return ["model.embed_tokens.weight", *layers, "model.norm.weight", "lm_head.weight"]


def write_torch(path: Path, names: list[str], values: np.ndarray, dtype: str, step: int) -> None:
    """Weights and the state of Adam, as torch.save writes them."""
    import torch

    tensor = torch.from_numpy(values.view(np.uint8)).view(getattr(torch, dtype)).reshape(values.shape)
    model = {name: tensor.clone() for name in names}
    state = {
        index: {"step": torch.tensor(1000.0), "exp_avg": value.clone(), "exp_avg_sq": value.clone()}
        for index, value in enumerate(model.values())
    }
    optimizer = {"state": state, "param_groups": [{"lr": 1e-3, "params": list(state)}]}
    torch.save({"model": model, "optimizer": optimizer, "step": step}, path)


def write_dcp(directory: Path, names: list[str], values: np.ndarray, dtype: str) -> None:
    """A directory as torch.distributed.checkpoint writes it."""
    import torch
    import torch.distributed.checkpoint as dcp

    tensor = torch.from_numpy(values.view(np.uint8)).view(getattr(torch, dtype)).reshape(values.shape)
    dcp.save({"model": {name: tensor.clone() for name in names}}, checkpoint_id=directory)


def main() -> None:
    """Make the members that are not there yet."""
    directory, kind, dtype = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    members, megabytes, tensors = map(int, sys.argv[4:])
    itemsize = 4 if dtype == "float32" else 2
    columns = max(1, megabytes * 1_000_000 // (tensors * ROWS * itemsize))
    names = [f"model.layers.{index:06d}.weight" for index in range(tensors)]
    if kind == "shards":
        names = llama_names(tensors)
    directory.mkdir(parents=True, exist_ok=True)
    for member in range(members):
        step = 1000 * (member + 1)
        path = directory / f"checkpoint-{step}{ {'safetensors': '.safetensors', 'torch': '.pt'}.get(kind, '') }"
        if path.exists():
            continue
        values = block(member, dtype, columns)
        if kind == "safetensors":
            write_safetensors(path, names, values, dtype)
        elif kind == "shards":
            write_shards(path, names, values, dtype)
        elif kind == "torch":
            write_torch(path, names, values, dtype, step)
        else:
            write_dcp(path, names, values, dtype)
    if kind == "torch":  # as much as the weights are, to be read and copied in their place
        for path in sorted(directory.glob("*.pt")):
            weights = path.with_suffix(".weights")
            if not weights.exists():
                with path.open("rb") as source, weights.open("wb") as target:
                    for _ in range(tensors):
                        target.write(source.read(ROWS * columns * itemsize))


if __name__ == "__main__":
    main()
