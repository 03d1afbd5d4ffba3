"""How near a moving average that was computed from checkpoints comes to the one that training kept.

    python docs/ema_accuracy.py examples/digits/run

Every checkpoint of the run must hold its weights under ``model``, its ``step``, and under ``ema`` what
`ckpttool.training.MovingAverage.state_dict` returns. The average after the newest checkpoint is computed from the
weights of the last ones in several ways. Each number is the Euclidean distance of the result from the stored average,
all weights together, divided by the distance of the newest weights from it: 0 is the same, 1 is no better than not
averaging at all.

Prints the table of `ema-accuracy.md`. Needs PyTorch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ckpttool.coefficients.profiles import ConstantDecay, WarmupDecay
from ckpttool.coefficients.weights import from_decays, from_profile, per_checkpoint, uniform

Rule = WarmupDecay | ConstantDecay


@dataclass(frozen=True)
class Run:
    """Steps and weights of a run's checkpoints, oldest first, and the average that training kept at the newest."""

    steps: Sequence[int]
    weights: Sequence[Mapping[str, Tensor]]
    average: Mapping[str, Tensor]
    rule: Rule


def read(directory: Path) -> Run:
    """Read the numbered checkpoints of a run."""
    loaded = (torch.load(path, weights_only=True) for path in directory.glob("checkpoint-*.pt"))
    checkpoints = sorted(loaded, key=lambda checkpoint: checkpoint["step"])
    kept = checkpoints[-1]["ema"]
    return Run(
        steps=[checkpoint["step"] for checkpoint in checkpoints],
        weights=[checkpoint["model"] for checkpoint in checkpoints],
        average=kept["shadow"],
        rule=WarmupDecay(kept["decay"]) if kept["warmup"] else ConstantDecay(kept["decay"]),
    )


def once_per_checkpoint(steps: Sequence[int], rule: Rule) -> tuple[float, ...]:
    """The decay of each checkpoint's step, applied once for each checkpoint as training applies it to each step.

    What many a script does; the decay is meant for one step, and here the gaps have hundreds.
    """
    return from_decays([rule.mass(step - 1, step) for step in steps[1:]])


WAYS: Mapping[str, Callable[[Sequence[int], Rule], tuple[float, ...]]] = {
    "gap by gap, linear (`ema-apply`)": from_profile,
    "gap by gap, hold (`--quadrature hold`)": lambda steps, rule: from_profile(steps, rule, "hold"),
    "by ordinal (`--unit checkpoints`)": lambda steps, rule: per_checkpoint(
        len(steps), rule.decay, warmup=isinstance(rule, WarmupDecay)
    ),
    "plain mean": lambda steps, _: uniform(len(steps)),
    "the step's decay, once per checkpoint": once_per_checkpoint,
    "newest checkpoint": lambda steps, _: (0.0,) * (len(steps) - 1) + (1.0,),
}


def distance(run: Run, coefficients: Sequence[float]) -> float:
    """Euclidean distance of Σ c·θ, of as many of the last checkpoints as there are coefficients, from the average."""
    members = run.weights[-len(coefficients) :]
    square = 0.0
    for name, true in run.average.items():
        found = sum(c * weights[name].double() for c, weights in zip(coefficients, members, strict=True))
        square += float((found - true.double()).square().sum())
    return math.sqrt(square)


def accuracy(run: Run, way: str, count: int) -> float:
    """The distance of one way's result from the true average, from `count` checkpoints; the newest one's is 1."""
    steps = run.steps[-count:]
    return distance(run, WAYS[way](steps, run.rule)) / distance(run, WAYS["newest checkpoint"](steps, run.rule))


def table(run: Run, counts: Sequence[int]) -> str:
    """A Markdown table: one row for each way, one column for each number of checkpoints."""
    lines = ["| | " + " | ".join(f"last {count}" for count in counts) + " |", "|---" * (len(counts) + 1) + "|"]
    for way in WAYS:
        numbers = " | ".join(f"{accuracy(run, way, count):.2f}" for count in counts)
        lines.append(f"| {way} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("run", type=Path, help="directory with checkpoint-STEP.pt files")
    parser.add_argument("--counts", type=int, nargs="+", default=[12, 8, 5, 3], help="(default: %(default)s)")
    arguments = parser.parse_args()
    print(table(read(arguments.run), arguments.counts))
