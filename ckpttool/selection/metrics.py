"""Metrics of a checkpoint: where a run keeps them, and which direction is better.

Sources, the most specific first: the checkpoint's own content, a sidecar of its own, a table of the whole run, the
file name (which is rounded). Sidecars are data: YAML is loaded safely, sizes are limited.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ckpttool.errors import UnreadableError, UsageError

__all__ = [
    "Mode",
    "Reading",
    "Tables",
    "find_metric",
    "mode_of",
    "name_metrics",
    "read_sidecar",
    "read_tables",
    "sidecar",
    "sidecars_of",
]

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

_MAX_BYTES = 64 << 20
_MAX_NUMBERS = 100_000
_FLOAT = r"[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?"


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
            hint=f"Add --mode max if higher values of {metric} are better, --mode min if lower ones are.",
        )
    return "min" if lower else "max"


def _flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested mappings and lists, by dotted key."""
    pending = [(prefix, node)]
    seen: set[int] = set()
    count = 0
    while pending:
        name, value = pending.pop()
        if isinstance(value, (Mapping, list)):
            if id(value) in seen:
                continue
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            pending.extend((f"{name}.{key}" if name else str(key), child) for key, child in items)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            count += 1
            if count > _MAX_NUMBERS:
                return
            yield name, float(value)


def name_metrics(name: str) -> dict[str, float]:
    """The metrics that a file name states: ``val_loss=0.12``, ``-loss0.12``, ``best_bleu_28.35``."""
    stem = re.sub(r"\.(?:pth\.tar|[A-Za-z]\w*)$", "", name)
    found: dict[str, float] = {}
    for key, text in re.findall(rf"([A-Za-z][\w/.]*?)=({_FLOAT})(?![A-Za-z\d])", stem):
        found[key] = float(text)
    for key, text in re.findall(rf"(?:^|[-_.])([A-Za-z]+(?:_[A-Za-z]+)*)[-_]?({_FLOAT})(?![A-Za-z\d])", stem):
        words = key.lower().split("_")
        if words[-1] in MINIMISED | MAXIMISED and "." in text:
            found.setdefault(key.removeprefix("best_"), float(text))
    return {key: value for key, value in found.items() if key not in {"step", "epoch"}}


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UnreadableError(f"{path}: too large to be a table of metrics", path=path)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"{path}: cannot be read ({error})", path=path) from error


def read_sidecar(path: Path) -> dict[str, float]:
    """The numbers of a YAML or JSON file, by dotted key.

    Raises:
        UnreadableError: It is not such a file; the message names the line.
    """
    text = _text(path)
    if path.suffix == ".json":
        try:
            return dict(_flatten(json.loads(text)))
        except (ValueError, RecursionError) as error:
            raise UnreadableError(f"{path}: not valid JSON: {error}", path=path) from error
    if path.suffix == ".txt":
        alone = re.fullmatch(rf"\s*({_FLOAT})\s*", text)
        return {"score": float(alone[1])} if alone else dict(_lines(text, ":"))
    import yaml

    try:
        return dict(_flatten(yaml.safe_load(text)))
    except (yaml.YAMLError, RecursionError) as error:
        raise UnreadableError(f"{path}: not valid YAML: {' '.join(str(error).split())}", path=path) from error


def _lines(text: str, separator: str) -> Iterator[tuple[str, float]]:
    for key, value in re.findall(rf"([A-Za-z][\w .-]*?)\s*{separator}\s*({_FLOAT})(?![\w.])", text):
        yield key.strip(), float(value)


def _trainer_state(path: Path) -> dict[int, dict[str, float]]:
    """Step to metrics, from the log of a Hugging Face Trainer; later rows of a step add to earlier ones."""
    try:
        history = json.loads(_text(path)).get("log_history", [])
        rows: dict[int, dict[str, float]] = {}
        for row in history:
            rows.setdefault(int(row["step"]), {}).update(_flatten(row))
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UnreadableError(f"{path}: not a trainer state: {error}", path=path) from error
    return rows


def _sockeye_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Checkpoint number to metrics: ``1<TAB>bleu-val=0.3<TAB>...`` a line."""
    rows = {}
    for line in _text(path).splitlines():
        number, _, rest = line.partition("\t")
        if number.strip().isdigit():
            rows[int(number)] = dict(_lines(rest, "="))
    return rows


def _validations(path: Path) -> dict[int, dict[str, float]]:
    """Step to metrics: JoeyNMT's ``Steps: 1000<TAB>Loss: 2.3<TAB>PPL: 9.1<TAB>bleu: 20.1`` a line."""
    rows = {}
    for line in _text(path).splitlines():
        values = dict(_lines(line.replace("\t", " ; "), ":"))
        step = values.pop("Steps", None)
        if step is not None:
            rows[int(step)] = values
    return rows


def _csv_by_epoch(path: Path) -> dict[int, dict[str, float]]:
    """Epoch to metrics, from timm's summary.csv and ultralytics' results.csv."""
    rows: dict[int, dict[str, float]] = {}
    for row in csv.DictReader(_text(path).splitlines()):
        values = {}
        for key, text in row.items():
            if key and isinstance(text, str) and re.fullmatch(rf"\s*(?:{_FLOAT}|nan|inf)\s*", text):
                values[key.strip()] = float(text)
        if "epoch" in values:
            rows[int(values.pop("epoch"))] = values
    return rows


@dataclass(frozen=True)
class Tables:
    """Tables of a whole run: by step and by epoch, each with its source."""

    by_step: tuple[tuple[str, Mapping[int, Mapping[str, float]]], ...] = ()
    by_epoch: tuple[tuple[str, Mapping[int, Mapping[str, float]]], ...] = ()


_BY_STEP = {"trainer_state.json": _trainer_state, "metrics": _sockeye_metrics, "validations.txt": _validations}
_BY_EPOCH = {"summary.csv": _csv_by_epoch, "results.csv": _csv_by_epoch}


def read_tables(directory: Path) -> Tables:
    """The tables of metrics that stand in a directory."""
    return Tables(
        tuple((name, read(directory / name)) for name, read in _BY_STEP.items() if (directory / name).is_file()),
        tuple((name, read(directory / name)) for name, read in _BY_EPOCH.items() if (directory / name).is_file()),
    )


def sidecar(template: str, name: str) -> str:
    """The file that a row's template means for a checkpoint; see `ckpttool.run_layouts.Layout.sidecars`."""
    digits = re.search(r"\d+", name)
    stem = re.sub(r"\.pth\.tar$|\.[^.]*$", "", name)
    return template.format(name=name, stem=stem, digits=digits.group() if digits else "")


def sidecars_of(path: Path, step: int | None) -> Iterator[Path]:
    """The files of metrics that belong to one checkpoint alone."""
    if path.is_dir():
        candidates = [path / "CKPT.yaml", path.parent / "scores" / f"{path.name}.txt"]
    else:
        stem = re.sub(r"\.pth\.tar$|\.[^.]*$", "", path.name)
        candidates = [path.with_name(stem + suffix) for suffix in (".yaml", ".yml", ".json")]
        number = re.search(r"\d+", path.name)
        if number and step is not None:
            candidates.append(path.with_name(f"meta_{number.group()}.json"))
    yield from (candidate for candidate in candidates if candidate.is_file())


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
                hint=f"Say which, for instance --metric {min(keys)}.",
            )
        if keys:
            readings.append(Reading(keys[0], values[keys[0]], source))
    if not readings:
        return None, []
    first = readings[0]
    others = [other for other in readings[1:] if not math.isclose(other.value, first.value, rel_tol=1e-2, abs_tol=5e-3)]
    return first, [other for other in others if not (math.isnan(other.value) and math.isnan(first.value))]
