"""The average of checkpoints: equal shares, weights as given, or shares that stand in for annealing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ckpttool.coefficients.weights import ANNEALING_CURVES, anneal, explicit, implied_multipliers
from ckpttool.errors import UsageError
from ckpttool.operations.inputs import averages_of_averages, select, select_window
from ckpttool.operations.names import (
    check_output_name,
    check_sources,
    default_output,
    folder_name,
    is_model_directory,
)
from ckpttool.operations.opennmt_config import AveragingConfig, read_averaging_config
from ckpttool.operations.records import Planned, PlannedOutput, Selection, one_of
from ckpttool.planning.planner import make_plan
from ckpttool.planning.request import Operation, Policy
from ckpttool.reading.snapshot import Snapshot
from ckpttool.selection.choice import Discovery
from ckpttool.text import parameter

if TYPE_CHECKING:
    from ckpttool.operations.running_mean_window import Window

__all__ = ["FOLDER", "Annealing", "AnnealingCurve", "plan_average"]

AnnealingCurve = Literal["linear", "1-sqrt", "cosine"]
"""The names of `ckpttool.coefficients.weights.ANNEALING_CURVES`."""

FOLDER = "avg"
"""Where the average of a model directory's checkpoints goes if nothing is said, as OpenNMT-tf's."""


@dataclass(frozen=True)
class Annealing:
    """The learning-rate decay that an average replaces.

    Attributes:
        curve: A name of `ckpttool.coefficients.ANNEALING_CURVES`.
        steps: The members' steps, oldest first; None where one has none.
        factors: For each member, the factor with which the updates after it count; 1 before the first.
    """

    curve: str
    steps: tuple[int | None, ...]
    factors: tuple[float, ...]


def plan_average(
    sources: Sequence[Path],
    output: str | None = None,
    *,
    selection: Selection = Selection(),
    policy: Policy = Policy(),
    weights: Sequence[float] | None = None,
    normalize: bool = False,
    anneal: AnnealingCurve | None = None,
    window_from_running_mean: bool = False,
    config: Path | None = None,
) -> Planned[Annealing | Window | None]:
    """Plan the average of checkpoints. No weight is read, and nothing is written.

    Args:
        sources: One model directory, or two checkpoints or more.
        output: The file or directory to write; None: `FOLDER` in the model directory, with what was chosen in its name.
        selection: Which of a directory's checkpoints; of none said, the newest 8, or as many as there are weights.
        policy: What becomes of what differs, and of the output.
        weights: One coefficient for each checkpoint, oldest first in a directory, as listed in a list; None: equal.
        normalize: Divide the weights by their sum; otherwise they must sum to 1.
        anneal: The decay of the learning rate that the average shall stand in for.
        window_from_running_mean: The mean over all training between the first checkpoint and the last, by the running
            means that they hold.
        config: An OpenNMT-tf configuration: how many checkpoints it says shall be averaged, and what they are.

    Raises:
        CkpttoolError: The request makes no sense, or cannot be met; see `ckpttool.errors`.
    """
    snapshot = Snapshot()
    sources = check_sources(sources, snapshot)
    check_output_name(output)
    asked = selection
    configured = AveragingConfig(Path()) if config is None else read_averaging_config(config, snapshot)
    counted = weights is not None or not is_model_directory(sources, snapshot)
    selection, config_notes = configured.completed(selection, counted=counted)
    config_notes = (*config_notes, *configured.notes())
    shares = {"weights": weights, "normalize": normalize or None, "anneal": anneal}
    if window_from_running_mean:
        from ckpttool.operations.running_mean_window import make_window_plan

        _refuse_together("window_from_running_mean", *(name for name, value in shares.items() if value is not None))
        found = select_window(sources, selection, snapshot=snapshot)
        name = default_output(sources, output, folder_name(FOLDER, asked, "window"), snapshot)
        plan, window = make_window_plan(replace(found, notes=(*found.notes, *config_notes)), name, policy)
        return Planned((PlannedOutput(plan, window),))
    if anneal is not None:
        _refuse_together("anneal", *(name for name in ("weights",) if weights is not None))
        one_of("anneal", anneal, tuple(ANNEALING_CURVES))
    if normalize and weights is None:
        raise UsageError(
            f"{parameter('normalize', True)} is about {parameter('weights')}, and none are given", hint="Leave it out."
        )
    number = selection.last or selection.best if is_model_directory(sources, snapshot) else len(sources)
    if weights is not None and number is not None and len(weights) != number:
        raise UsageError(
            f"{len(weights)} weight{' is' if len(weights) == 1 else 's are'} given for {number} "
            f"checkpoint{'s' * (number != 1)}",
            hint="Give one for each, the oldest first in a directory, as listed in a list.",
        )
    coefficients = None if weights is None else explicit(weights, normalize=normalize)
    found = select(sources, selection, count=None if coefficients is None else len(coefficients), snapshot=snapshot)
    found = replace(found, notes=(*found.notes, *config_notes, *averages_of_averages(found)))
    facts = None
    if anneal is not None:
        found, coefficients, facts = _annealed(found, anneal)
    folder = folder_name(FOLDER, asked, *([] if anneal is None else [f"anneal-{anneal}"]))
    plan = make_plan(
        found,
        default_output(sources, output, folder, snapshot),
        coefficients=coefficients,
        policy=policy,
        operation=Operation(details={} if facts is None else {"anneal": facts.curve}),
    )
    return Planned((PlannedOutput(plan, facts),))


def _refuse_together(name: str, *others: str) -> None:
    for other in others:
        raise UsageError(
            f"{parameter(name)} and {parameter(other)} both say what the coefficients are",
            hint="Leave out one of the two.",
        )


def _annealed(found: Discovery, curve: str) -> tuple[Discovery, tuple[float, ...] | None, Annealing]:
    """The selected checkpoints in the order of training, and the coefficients of a curve for them."""
    entries = found.entries
    if all(entry.step is not None for entry in entries):
        entries = tuple(sorted(entries, key=lambda entry: entry.step or 0))
    notes = list(found.notes)
    steps = [entry.step for entry in entries]
    gaps = {late - early for early, late in pairwise(steps) if early is not None and late is not None}
    if len(gaps) > 1:
        notes.append("the checkpoints are not evenly spaced: the curve is one over checkpoints, and uneven over steps")
    shares = anneal(len(entries), curve)
    facts = Annealing(curve, tuple(steps), implied_multipliers(shares))
    # Equal shares are summed and divided once, so that equal checkpoints give the same bits back.
    coefficients = None if curve == "linear" else shares
    return replace(found, entries=entries, notes=tuple(notes)), coefficients, facts
