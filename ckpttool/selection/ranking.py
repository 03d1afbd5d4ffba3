"""The best checkpoints by a metric.

Sources of a metric, the most specific first: the checkpoint's own content, a sidecar of its own, a table of the whole
run, the file name. A name is rounded, so that what the content holds counts before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpttool.errors import NotFoundError
from ckpttool.formats import get_format
from ckpttool.run_layouts import COMMON_SIDECARS, COMMON_TABLES, LAYOUTS, Reason
from ckpttool.selection.metric_files import Metrics, Table, number_of, read_sidecar, read_tables, sidecar
from ckpttool.selection.metrics import Mode, Reading, find_metric, mode_of, name_metrics
from ckpttool.selection.opening import Entry, Ignored
from ckpttool.tensors import Checkpoint, TensorSpec
from ckpttool.text import first_names, parameter

__all__ = ["Ranked", "rank"]

_NAME = "the file name"
_CONTENT = "the checkpoint itself"


@dataclass(frozen=True)
class Ranked:
    """The best entries in their order, why the others are left out, and what is to be said."""

    entries: tuple[Entry, ...]
    skipped: tuple[Ignored, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def rank(
    entries: Sequence[Entry], n: int, metric: str, mode: Mode | None, *, layout: str, directory: Path | None
) -> Ranked:
    """The n entries with the best metric. Of equal ones the newer is better; NaN never is.

    Args:
        entries: Oldest first.
        n: How many.
        metric: Its name; see `ckpttool.selection.metrics.find_metric`.
        mode: Whether lower ("min") or higher ("max") is better; None: known metrics only.
        layout: Name of the run's layout, which says where metrics are kept.
        directory: The model directory.

    Raises:
        UsageError: The direction of the metric is not known, or its name is ambiguous.
        NotFoundError: Entries without the metric, or fewer than n.
    """
    readings, notes = _read_metric(entries, metric, layout, directory)
    if mode is None:  # A name that nothing has is not asked for its direction.
        mode = mode_of(metric)
        notes.append(f"a {'lower' if mode == 'min' else 'higher'} {metric} is better")
    numbers = [reading.value for reading in readings]
    valid = [index for index, value in enumerate(numbers) if not math.isnan(value)]
    skipped = [
        Ignored.because(entry.path, Reason.NAN, metric=metric)
        for entry, value in zip(entries, numbers, strict=True)
        if math.isnan(value)
    ]
    if len(valid) < n:
        raise NotFoundError(
            f"{f'{directory}: ' if directory else ''}the best {n} by {metric} were asked for, and only {len(valid)} "
            "have it",
            hint=f"Ask for {parameter('best', len(valid))}." if valid else None,
            path=directory,
        )
    sign = 1 if mode == "min" else -1
    ranked = sorted(valid, key=lambda index: (sign * numbers[index], -index))
    skipped += [
        Ignored.because(entries[index].path, Reason.NOT_BEST, count=n, metric=metric, value=f"{numbers[index]:.6g}")
        for index in ranked[n:]
    ]
    listed = ", ".join(f"{entries[index].name} {numbers[index]:.6g}" for index in ranked[:n])
    notes.append(f"best {n} by {metric}: {listed}")
    return Ranked(
        tuple(entries[index] for index in sorted(ranked[:n])),
        tuple(skipped),
        tuple(notes),
        tuple(_tie(entries, readings, ranked, n, metric)),
    )


def _tie(
    entries: Sequence[Entry], readings: Sequence[Reading], ranked: Sequence[int], n: int, metric: str
) -> Iterator[str]:
    """The sentence that the last one taken is not better than others that are left out."""
    if n == len(ranked):
        return
    value = readings[ranked[n - 1]].value
    equal = sorted(index for index in ranked if readings[index].value == value)
    if readings[ranked[n]].value != value:
        return
    taken = [entries[index].name for index in equal if index in set(ranked[:n])]
    left = [entries[index].name for index in equal if index not in set(ranked[:n])]
    rounded = " (as rounded in the file names)" if readings[ranked[n]].source == _NAME else ""
    yield (
        f"equal at the cut: {metric} is {value:.6g}{rounded} for {first_names(taken)}, taken because newer, and for "
        f"{first_names(left)}, left out"
    )


# --- Reading ---------------------------------------------------------------------------------------------------


def _read_metric(
    entries: Sequence[Entry], metric: str, layout: str, directory: Path | None
) -> tuple[list[Reading], list[str]]:
    """The metric of every entry, and notes about sources that disagree."""
    row = next((row for row in LAYOUTS if row.name == layout), None)
    sidecars = (*COMMON_SIDECARS, *(row.sidecars if row else ()))
    tables = (*(row.tables if row else ()), *COMMON_TABLES)
    run: list[Table] = []
    if directory is not None and entries:
        opener = entries[-1].opener
        run = read_tables(directory, tables, opener.snapshot, opener.open)
    named = _named_tables(entries)
    found: list[Reading] = []
    notes: list[str] = []
    missing: list[str] = []
    known: set[str] = set()
    for entry in entries:
        sources = list(_sources(entry, sidecars, run, named))
        reading, others = find_metric(metric, sources)
        if reading is None:
            missing.append(entry.name)
            known.update(key for _, numbers in sources for key in numbers)
            continue
        found.append(reading)
        notes += [
            f"{entry.name}: {metric} is {reading.value:.6g} by {reading.source} and {other.value:.6g} by "
            f"{other.source}; the former counts"
            for other in others[:1]
        ]
    if missing:
        raise NotFoundError(
            f"no metric {metric!r} for {first_names(missing)}",
            hint=f"Metrics that are there: {', '.join(sorted(known)[:20])}."
            if known
            else "No numbers were found in the checkpoints, in files next to them, or in their names.",
            path=directory,
        )
    return found, notes


def _sources(
    entry: Entry, sidecars: Sequence[str], run: Sequence[Table], named: Mapping[str, Metrics]
) -> Iterator[tuple[str, Metrics]]:
    """Where metrics of an entry are, the most specific first."""
    checkpoint = entry.peek()
    snapshot = entry.opener.snapshot
    yield _CONTENT, {**_numbers(checkpoint.values), **_monitored(checkpoint)}
    tables = list(run)
    for template in sidecars:
        path = entry.path.parent / sidecar(template, entry.name)
        if not snapshot.is_file(path):
            continue
        if path.name == "trainer_state.json":
            tables = [*read_tables(path.parent, [path.name], snapshot, entry.opener.open), *tables]
        else:
            yield path.name, read_sidecar(path, snapshot)
    if entry.name in named:
        yield "the newest checkpoint's table", named[entry.name]
    # By its update and by its own number: Sockeye's table counts checkpoints.
    steps = list(dict.fromkeys((entry.step if entry.unit in {"step", "number"} else None, checkpoint.step)))
    epoch = entry.epoch if entry.epoch is not None else (entry.step if entry.unit == "epoch" else None)
    for table in tables:
        for step in steps:
            for number in () if step is None else (step, step - 1) if table.before else (step,):
                if number in table.by_step:
                    yield table.source, table.by_step[number]
    for table in tables:
        if epoch is not None and epoch in table.by_epoch:
            yield table.source, table.by_epoch[epoch]
    yield _NAME, name_metrics(entry.name)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    numbers = ((key, number_of(value)) for key, value in values.items())
    return {key: number for key, number in numbers if number is not None}


def _monitored(checkpoint: Checkpoint) -> dict[str, float]:
    """The metric that Lightning's ModelCheckpoint watches, with the value it has for this checkpoint.

    Its name states the same, rounded to two digits.
    """
    found: dict[str, float] = {}
    prefixes = [key.removesuffix("monitor") for key in checkpoint.values if key.endswith(".monitor")]
    if not any(prefix.startswith("callbacks.") for prefix in prefixes):
        return found
    tree = get_format(checkpoint.format).tree(checkpoint)
    callbacks = tree.get("callbacks") if isinstance(tree, Mapping) else None
    for state in callbacks.values() if isinstance(callbacks, Mapping) else ():
        if isinstance(state, Mapping) and isinstance(state.get("monitor"), str):
            value = _scalar(state.get("current_score"))
            if value is not None:
                found[state["monitor"]] = value
    return found


def _scalar(value: Any) -> float | None:
    """A number, or the only element of a tensor."""
    if isinstance(value, TensorSpec) and value.numel == 1:
        from ckpttool.reading.values import read_values

        return float(read_values(value, name="current_score").astype("float64").reshape(-1)[0])
    return number_of(value)


_FUNASR = ("val_acc_step_or_epoch.", "val_loss_step_or_epoch.")


def _named_tables(entries: Sequence[Entry]) -> dict[str, dict[str, float]]:
    """Metrics by the checkpoint's name, which every checkpoint of FunASR holds of all that were before it."""
    found: dict[str, dict[str, float]] = {}
    for key, value in _numbers(entries[-1].peek().values).items() if entries else ():
        for prefix in _FUNASR:
            if key.startswith(prefix):
                found.setdefault(key.removeprefix(prefix), {})[prefix.removesuffix("_step_or_epoch.")] = value
    return found
