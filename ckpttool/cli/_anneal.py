"""``average --anneal``: coefficients that stand in for a decay of the learning rate, and the curve they emulate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ckpttool.cli._report import Details

if TYPE_CHECKING:
    from ckpttool.selection import Discovery

__all__ = ["Annealed", "annealing"]


@dataclass(frozen=True)
class Annealed:
    """Checkpoints in the order of training, what each counts, and what to say about it."""

    found: Discovery
    coefficients: tuple[float, ...] | None
    details: Details
    provenance: Mapping[str, Any]


def annealing(found: Discovery, curve: str) -> Annealed:
    """The coefficients of a curve for the selected checkpoints, which are put in the order of training.

    Raises:
        UsageError: There is no such curve.
    """
    from ckpttool.coefficients import anneal, implied_multipliers

    entries = found.entries
    if all(entry.step is not None for entry in entries):
        entries = tuple(sorted(entries, key=lambda entry: entry.step or 0))
    notes = list(found.notes)
    steps = [entry.step for entry in entries]
    gaps = {late - early for early, late in pairwise(steps) if early is not None and late is not None}
    if len(gaps) > 1:
        notes.append("the checkpoints are not evenly spaced: the curve is one over checkpoints, and uneven over steps")
    shares = anneal(len(entries), curve)
    factors = implied_multipliers(shares)
    details = Details(
        columns={"learning rate": [f"{factor:.3f}" for factor in factors]},
        rows=[
            ("anneals", f"the updates after each checkpoint count with its factor ({curve}); before the first with 1"),
        ],
        document={
            "anneal": curve,
            "learning_rate": [{"step": step, "factor": factor} for step, factor in zip(steps, factors, strict=True)],
        },
    )
    # Equal shares are summed and divided once, so that equal checkpoints give the same bits back.
    coefficients = None if curve == "linear" else shares
    return Annealed(replace(found, entries=entries, notes=tuple(notes)), coefficients, details, {"anneal": curve})
