"""Metrics by name: which direction is better, what a file name states, and looking one up in several sources."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ckpttool.errors import UsageError
from ckpttool.selection.metric_files import FLOAT
from ckpttool.text import parameter

__all__ = ["MAXIMISED", "MINIMISED", "Mode", "Reading", "find_metric", "mode_of", "name_metrics"]

Mode = Literal["min", "max"]

MINIMISED = frozenset(
    {"loss", "losses", "ppl", "perplexity", "wer", "cer", "ter", "per", "mer", "der", "eer", "error", "err", "errors"}
    | {"mse", "rmse", "mae", "nll", "bpb", "bpc", "bpd", "fid", "ce", "xent"}
)
MAXIMISED = frozenset(
    {"bleu", "sacrebleu", "chrf", "acc", "accuracy", "acc1", "acc5", "top1", "top5", "f1", "map", "auc", "rouge"}
    | {
        "rouge1",
        "rouge2",
        "rougel",
        "meteor",
        "comet",
        "precision",
        "recall",
        "psnr",
        "ssim",
        "miou",
        "iou",
        "dice",
        "mcc",
    }
)


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric of one checkpoint: its full name where it was found, its value, and the source in words."""

    name: str
    value: float
    source: str


def mode_of(metric: str) -> Mode:
    """The better direction of a well-known metric.

    Raises:
        UsageError: The name says nothing, or both.
    """
    words = set(re.findall(r"[a-z]+\d*", metric.lower().replace("_", " ")))
    lower, higher = bool(words & MINIMISED), bool(words & MAXIMISED)
    if lower == higher:
        raise UsageError(
            f"is a higher or a lower {metric!r} better? The name does not say it",
            hint=f"Add {parameter('mode', 'max')} if higher values of {metric} are better, "
            f"{parameter('mode', 'min')} if lower ones are.",
        )
    return "min" if lower else "max"


def name_metrics(name: str) -> dict[str, float]:
    """The metrics that a file name states: ``val_loss=0.12``, ``-loss0.12``, ``best_bleu_28.35``."""
    stem = re.sub(r"\.(?:pth\.tar|[A-Za-z]\w*)$", "", name)
    found: dict[str, float] = {}
    for key, text in re.findall(rf"([A-Za-z][\w/.]*?)=({FLOAT})(?![A-Za-z\d])", stem):
        found[key] = float(text)
        # What follows the number of the checkpoint: loss of model_step_100_loss=0.1.
        found.setdefault(re.sub(r".*(?<![A-Za-z])\d+[_.](?=[A-Za-z])", "", key), float(text))
    for key, text in re.findall(rf"(?:^|[-_.])([A-Za-z]+(?:_[A-Za-z]+)*)[-_]?({FLOAT})(?![A-Za-z\d])", stem):
        words = key.lower().split("_")
        if words[-1] in MINIMISED | MAXIMISED and "." in text:
            found.setdefault(key.removeprefix("best_"), float(text))
    return {key: value for key, value in found.items() if key not in {"step", "epoch"}}


def find_metric(
    metric: str, sources: Sequence[tuple[str, Mapping[str, float]]]
) -> tuple[Reading | None, list[Reading]]:
    """Look a metric up in sources, the most specific first.

    A name fits exactly, or as the ending of exactly one dotted or slashed key (``loss`` for ``loss_dict.loss``), or
    but for its capitals.

    Returns:
        The reading, and those of later sources that disagree with it.

    Raises:
        UsageError: Several keys of one source end so, with different values.
    """
    words = re.split(r"[./]", metric)
    readings = []
    for source, values in sources:
        keys = [key for key in values if key == metric]
        keys = keys or [key for key in values if re.split(r"[./]", key)[-len(words) :] == words]
        keys = keys or [key for key in values if key.lower() == metric.lower()]
        if len(keys) > 1 and len({values[key] for key in keys}) > 1:
            raise UsageError(
                f"{metric!r} may be {', '.join(sorted(keys)[:8])} ({source})",
                hint=f"Say which, for instance {parameter('metric', min(keys))}.",
            )
        if keys:
            readings.append(Reading(keys[0], values[keys[0]], source))
    if not readings:
        return None, []
    first = readings[0]
    others = [other for other in readings[1:] if not math.isclose(other.value, first.value, rel_tol=1e-2, abs_tol=5e-3)]
    return first, [other for other in others if not (math.isnan(other.value) and math.isnan(first.value))]
