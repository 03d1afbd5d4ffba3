"""What ``average`` has to say about a plan beyond what every plan says: words, and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckpttool.cli._output import format_bytes, format_count
from ckpttool.cli._report import NOISE, Details
from ckpttool.operations.averaging import Annealing

if TYPE_CHECKING:
    from ckpttool.operations.running_mean_window import Window
    from ckpttool.planning.plan import Plan
    from ckpttool.selection.choice import Entry

__all__ = ["details_of"]


def details_of(plan: Plan, facts: Annealing | Window | None) -> Details:
    """What to report about a plan.

    Args:
        plan: The plan.
        facts: What the operation says of it; None: nothing.
    """
    if facts is None:
        return Details()
    return _annealing(facts) if isinstance(facts, Annealing) else _window(plan, facts)


def _annealing(facts: Annealing) -> Details:
    return Details(
        columns={"learning rate": [f"{factor:.3f}" for factor in facts.factors]},
        rows=[
            (
                "anneals",
                f"the updates after each checkpoint count with its factor ({facts.curve}); before the first with 1",
            ),
        ],
        document={
            "anneal": facts.curve,
            "learning_rate": [
                {"step": step, "factor": factor} for step, factor in zip(facts.steps, facts.factors, strict=True)
            ],
        },
    )


# --- Windows of running means ----------------------------------------------------------------------------------


def _window(plan: Plan, window: Window) -> Details:
    said = window.describe()
    means = (window.start, window.stop)
    every = window.stop.every
    updated = f"updated every {every:,} {window.stop.unit}" if every > 1 else f"counted in {window.stop.unit}"
    rows = [
        ("window", f"{said}: {window.stop.count - window.start.count:,} {window.stop.unit}"),
        ("in checkpoints", _in_checkpoints(window)),
        ("running mean", f"{window.stop.average.where} ({window.stop.average.framework}), {updated}"),
        ("noise", f"{window.noise:.3g} {NOISE}"),
    ]
    # The plan's members are in the order of steps, and so are the ends of a window.
    return Details(
        columns={"mean of": [f"{mean.count:,} {mean.unit}" for mean in means]},
        rows=rows,
        document={"window_from_running_mean": _window_document(window)},
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


def _window_document(window: Window) -> dict[str, Any]:
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
