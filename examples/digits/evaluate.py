"""Held-out loss and accuracy of the digits model in any checkpoint, by numpy alone.

    python examples/digits/evaluate.py examples/digits/run/last.pt averaged.safetensors

The model is the one of `train.py`, written out: what its `forward` does in PyTorch, this does in numpy.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ckpttool import open_checkpoint

Array = NDArray[np.float64]
LAYERS = 2


def load(path: Path) -> dict[str, Array]:
    """The weights in a checkpoint of any format."""
    checkpoint = open_checkpoint(path)
    return {name: checkpoint[name].astype(np.float64) for name in checkpoint}


def normalised(x: Array) -> Array:
    """Mean 0 and variance 1 along the last dimension, as torch's LayerNorm (eps 1e-5)."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def softmax(x: Array) -> Array:
    """Shares along the last dimension."""
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def forward(weights: Mapping[str, Array], images: Array) -> Array:
    """Scores (n, 10) of images (n, 8, 8) with pixels from 0 to 1. Matrices are (out, in), as torch's are."""
    x = (images - weights["mean_image"]) @ weights["rows.weight"].T + weights["positions.weight"]
    for number in range(LAYERS):
        # The layers are tied: a safetensors file holds the first one alone.
        tied = f"layers.{number}." if f"layers.{number}.attention_out.weight" in weights else "layers.0."
        layer = {name.removeprefix(tied): value for name, value in weights.items() if name.startswith(tied)}
        y = normalised(x) * layer["attention_norm.weight"]
        query, key, value = np.split(y @ layer["query_key_value.weight"].T, 3, axis=-1)
        attention = softmax(query @ key.swapaxes(-1, -2) / np.sqrt(x.shape[-1]))
        x = x + attention @ value @ layer["attention_out.weight"].T
        y = normalised(x) * layer["feed_forward_norm.weight"]
        x = x + np.maximum(y @ layer["feed_forward_in.weight"].T, 0) @ layer["feed_forward_out.weight"].T
    return (normalised(x) * weights["norm.weight"]).mean(1) @ weights["head.weight"].T


def evaluate(path: Path, held_out: Path) -> tuple[float, float]:
    """Mean cross-entropy in nats, and the share of digits named rightly."""
    with np.load(held_out) as digits:
        images, labels = digits["images"] / 16, digits["labels"]
    shares = softmax(forward(load(path), images))
    loss = -np.log(shares[np.arange(len(labels)), labels]).mean()
    return float(loss), float((shares.argmax(1) == labels).mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--held-out", type=Path, default=Path(__file__).parent / "held-out.npz", metavar="NPZ")
    arguments = parser.parse_args()
    width = max(len(str(path)) for path in arguments.checkpoints)
    print(f"{'checkpoint':{width}}  held-out loss  accuracy")
    for path in arguments.checkpoints:
        loss, accuracy = evaluate(path, arguments.held_out)
        print(f"{path!s:{width}}  {loss:13.4f}  {accuracy:8.1%}")
