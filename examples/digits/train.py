"""Train a small Transformer on handwritten digits, and save checkpoints as a training loop does.

    python examples/digits/train.py --seed 0 -o examples/digits/run

A digit is eight rows of eight pixels, and a row is a token. The learning rate follows the Noam schedule and stays high
on purpose: the weights keep moving around the minimum that they have found, and the mean of the last checkpoints is
nearer to it than any one of them.

Needs PyTorch and scikit-learn, which ships the digits; `evaluate.py` needs neither.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ckpttool.schedules import noam
from ckpttool.training import MovingAverage

HERE = Path(__file__).parent

HELD_OUT = 600
"""The last digits of the set, in its own order: mostly of people whose handwriting is not among the first ones."""

CONFIG: dict[str, Any] = {
    "model": {"dim": 16, "feed_forward": 32, "layers": 2},
    "learning_rate": 2.0,
    "warmup_steps": 400,
    "label_smoothing": 0.1,
    "batch_size": 16,
    "steps": 2000,
    "save_every": 100,
    "keep_last": 12,
    "moving_average_decay": 0.9999,
}


class Layer(nn.Module):
    """Attention and a feed-forward network, each after a LayerNorm and with a residual path."""

    def __init__(self, dim: int, feed_forward: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, bias=False)
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.attention_out = nn.Linear(dim, dim, bias=False)
        self.feed_forward_norm = nn.LayerNorm(dim, bias=False)
        self.feed_forward_in = nn.Linear(dim, feed_forward, bias=False)
        self.feed_forward_out = nn.Linear(feed_forward, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 8, dim) to the same shape."""
        query, key, value = self.query_key_value(self.attention_norm(x)).chunk(3, dim=-1)
        scores = query @ key.transpose(-1, -2) / math.sqrt(x.shape[-1])
        x = x + self.attention_out(scores.softmax(dim=-1) @ value)
        return x + self.feed_forward_out(self.feed_forward_in(self.feed_forward_norm(x)).relu())


class DigitTransformer(nn.Module):
    """Rows of pixels in, scores of the ten digits out. All layers share one layer's weights, as ALBERT's do."""

    mean_image: Tensor
    position_ids: Tensor

    def __init__(self, dim: int, feed_forward: int, layers: int, mean_image: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean_image", mean_image)
        self.register_buffer("position_ids", torch.arange(8))
        self.rows = nn.Linear(8, dim, bias=False)
        self.positions = nn.Embedding(8, dim)
        self.layers = nn.ModuleList([Layer(dim, feed_forward)] * layers)
        self.norm = nn.LayerNorm(dim, bias=False)
        self.head = nn.Linear(dim, 10, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, 8, 8), pixels from 0 to 1, to (batch, 10)."""
        x = self.rows(images - self.mean_image) + self.positions(self.position_ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(dim=1))


def read_digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The 1797 images (n, 8, 8), pixels from 0 to 16, and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.uint8)


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
    """Epoch (from 0) and indices, for ever; each epoch in an order of its own, without its last, smaller batch."""
    epoch = 0
    while True:
        for batch in torch.randperm(count, generator=generator).split(size):
            if len(batch) == size:
                yield epoch, batch
        epoch += 1


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Cross-entropy in nats and share of right answers."""
    scores = model(images)
    loss = functional.cross_entropy(scores, labels)
    return {"valid_loss": loss.item(), "valid_accuracy": (scores.argmax(1) == labels).double().mean().item()}


def train(run: Path, seed: int) -> None:
    """Train, and leave the last checkpoints in `run`."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # the order of a sum must not depend on the machine's number of cores
    torch.use_deterministic_algorithms(mode=True)
    pixels, targets = read_digits()
    images = torch.tensor(pixels / 16, dtype=torch.float32)
    labels = torch.tensor(targets, dtype=torch.int64)
    train_images, train_labels = images[:-HELD_OUT], labels[:-HELD_OUT]
    held_images, held_labels = images[-HELD_OUT:], labels[-HELD_OUT:]

    shape = CONFIG["model"]
    model = DigitTransformer(**shape, mean_image=train_images.mean(dim=0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-9)  # LambdaLR multiplies the 1
    rate = noam(CONFIG["learning_rate"], shape["dim"], CONFIG["warmup_steps"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    average = MovingAverage(model, CONFIG["moving_average_decay"])

    run.mkdir(parents=True, exist_ok=True)
    saved: list[Path] = []
    order = batches(len(train_images), CONFIG["batch_size"], torch.Generator().manual_seed(seed))
    for step, (epoch, batch) in zip(range(1, CONFIG["steps"] + 1), order, strict=False):
        scores = model(train_images[batch])
        loss = functional.cross_entropy(scores, train_labels[batch], label_smoothing=CONFIG["label_smoothing"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update(step)
        if step % CONFIG["save_every"] == 0:
            metrics = {"train_loss": loss.item(), **evaluate(model, held_images, held_labels)}
            print(f"step {step:5d}  " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
            saved.append(run / f"checkpoint-{step}.pt")
            torch.save(
                {
                    "model": model.state_dict(),
                    "ema": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "epoch": epoch,
                    "config": {**CONFIG, "seed": seed},
                    "metrics": metrics,
                },
                saved[-1],
            )
    shutil.copyfile(saved[-1], run / "last.pt")
    for old in saved[: -CONFIG["keep_last"]]:
        old.unlink()


def save_held_out(path: Path) -> None:
    """Write the held-out digits as they are."""
    pixels, targets = read_digits()
    np.savez_compressed(path, images=pixels[-HELD_OUT:], labels=targets[-HELD_OUT:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "run", help="directory (default: %(default)s)")
    arguments = parser.parse_args()
    save_held_out(HERE / "held-out.npz")
    train(arguments.output, arguments.seed)
