"""``average --window-from-running-mean``: the mean over all training of a window, by the running means of its ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpttool.cli._options import PolicyOptions, RunOptions, SelectionOptions
from ckpttool.cli._output import Output, format_bytes, format_count
from ckpttool.cli._report import Details
from ckpttool.cli._show import check_shown
from ckpttool.cli._steps import default_output, policy_of, run_plans, select
from ckpttool.errors import UsageError

if TYPE_CHECKING:
    from ckpttool.operations.running_mean_window import Window
    from ckpttool.planning.plan import Plan
    from ckpttool.selection.choice import Entry

__all__ = ["average_window"]


def average_window(
    checkpoints: Sequence[Path],
    selection: SelectionOptions,
    output: str | None,
    *,
    policy: PolicyOptions,
    run: RunOptions,
    show: Sequence[str],
    out: Output,
) -> None:
    """Average all training of the selected checkpoints' intervals, from the two running means at their ends."""
    from ckpttool.operations.running_mean_window import make_window_plan

    for option, value in (("--best", selection.best), ("--metric", selection.metric), ("--mode", selection.mode)):
        if value is not None:
            raise UsageError(
                f"--window-from-running-mean and {option}: a window is one stretch of training, and the best "
                "checkpoints are none",
                hint="Leave out one of the two.",
            )
    found = select(checkpoints, selection, with_start=True)
    name = default_output(checkpoints, output, "avg")
    plan, window = make_window_plan(found, name, policy_of(policy, run))
    check_shown(show, plan, dry_run=run.dry_run)
    run_plans([plan], "average", run, out, [_details(plan, window)], show=show)


def _details(plan: Plan, window: Window) -> Details:
    said = window.describe()
    means = (window.start, window.stop)
    rows = [
        ("window", f"{said}: {window.stop.count - window.start.count:,} {window.stop.unit}"),
        ("in checkpoints", _in_checkpoints(window)),
        ("running mean", f"{window.stop.average.where} ({window.stop.average.framework}), {_updated(window)}"),
        ("noise", f"{window.noise:.3g} (the coefficients without their signs add up to it; 1 is the least)"),
    ]
    # The plan's members are in the order of steps, and so are the ends of a window.
    return Details(
        columns={"mean of": [f"{mean.count:,} {mean.unit}" for mean in means]},
        rows=rows,
        document={"window_from_running_mean": _document(window)},
        start=f"Averaging {said}, from the running means of two checkpoints, {format_bytes(plan.bytes_to_read)}.",
    )


def _in_checkpoints(window: Window) -> str:
    first, last = (_numbered(entry) for entry in window.entries)
    span = "" if window.intervals is None else f": the training of {format_count(window.intervals, 'checkpoint')}"
    return f"after {first} up to {last}{span}"


def _numbered(entry: Entry) -> str:
    """A checkpoint's name, and its step where the name does not say it."""
    if entry.step is None or (entry.where_step == "name" and str(entry.step) in entry.name):
        return entry.name
    return f"{entry.name} ({entry.unit} {entry.step:,})"


def _updated(window: Window) -> str:
    every = window.stop.every
    return f"updated every {every:,} {window.stop.unit}" if every > 1 else f"counted in {window.stop.unit}"


def _document(window: Window) -> dict[str, Any]:
    return {
        "framework": window.stop.average.framework,
        "where": window.stop.average.where,
        "unit": window.stop.unit,
        "after": window.start.count,
        "up_to": window.stop.count,
        "intervals": window.intervals,
        "means": [
            {"path": str(entry.path), "of": mean.count, "stated": mean.stated, "every": mean.every}
            for entry, mean in zip(window.entries, (window.start, window.stop), strict=True)
        ],
        "noise": window.noise,
        "stored_as": window.stored,
        "rounding": window.rounding,
    }
