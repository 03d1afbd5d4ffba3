"""What ``--as``, ``--compare-log`` and ``--fit`` print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ckpttool.cli._output import Output
from ckpttool.errors import MismatchError, UsageError
from ckpttool.operations.learning_rates import FittedSchedule, LearningRates, LogComparison
from ckpttool.schedules.request import title
from ckpttool.schedules.translation import Translation
from ckpttool.text import parameter

__all__ = ["show_comparison", "show_fit", "show_translations"]

_MOST_UPDATES = 8  # columns of the list of all frameworks


def show_translations(out: Output, rates: LearningRates, framework: str, *, as_json: bool) -> None:
    """Print another framework's options for the same curve, and where its rates differ; ``all``: a list.

    Raises:
        UsageError: If the framework is unknown, or the schedule is not Noam's with a warm-up.
    """
    found = rates.translations() if framework == "all" else (rates.translate(framework),)
    if found[0].left_out:
        out.warn(f"{', '.join(found[0].left_out)}: other frameworks have nothing like it; it is left out here")
    if as_json:
        out.json({"peers": [_document(each) for each in found]})
    elif framework == "all":
        _print_all(out, found, rates)
    else:
        _print_one(out, found[0])


def _print_all(out: Output, found: Sequence[Translation], rates: LearningRates) -> None:
    updates = [pair.update for pair in found[0].rates]
    if rates.chosen.by_default:
        updates = [1, 2, int(rates.schedule.values["warmup_steps"] or 1)]
    if len(updates) > _MOST_UPDATES:
        raise UsageError(
            f"{parameter('steps')}: the list of all frameworks has a column for each of {len(updates)} updates",
            hint=f"Ask for {_MOST_UPDATES} at most, or for one framework.",
        )
    rows = []
    for each in found:
        by_update = {pair.update: pair.theirs for pair in each.rates}
        rows.append([each.name, *(_cell(by_update.get(update)) for update in updates), each.title])
    out.table(["--as", *(f"update {update}" for update in updates), "framework"], rows)


def _cell(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.6e}"


def _document(each: Translation) -> dict[str, Any]:
    return {
        "name": each.name,
        "title": each.title,
        "equivalent": each.equivalent,
        "options": list(each.options),
        "first_update": each.first_update,
        "remarks": list(each.remarks),
        "rates": [
            # Of OpenNMT-tf itself, both keys are one.
            {"update": pair.update, "opennmt_tf": pair.own, each.name: pair.theirs}
            for pair in each.rates
        ],
    }


def _print_one(out: Output, each: Translation) -> None:
    out.answer(each.title)
    for option in each.options:
        out.answer(f"  {option}")
    if not each.equivalent:
        out.answer("  no equivalent")
    out.answer("")
    out.answer(f"{each.first_update}.")
    for remark in each.remarks:
        out.answer(f"- {remark}")
    if not each.equivalent:
        return
    out.answer("")
    rows = []
    for pair in each.rates:
        difference = "-" if pair.theirs is None else f"{(pair.theirs / pair.own - 1) * 100:+.4f} %"
        rows.append([str(pair.update), _cell(pair.own), _cell(pair.theirs), difference])
    out.table(["update", "OpenNMT-tf", each.name, "difference"], rows)


_MEANINGS = {
    "applied": "the rate that update k was applied with",
    "logged": "the rate of the next update",
}


def show_comparison(out: Output, path: str, found: LogComparison, rates: LearningRates, *, as_json: bool) -> None:
    """Print whether a log agrees with the schedule.

    Raises:
        MismatchError: If it does not (exit code 4).
    """
    verdict = found.verdict
    first = verdict.first
    if as_json:
        out.json(
            {
                "log": path,
                "verdict": verdict.outcome,
                "explanation": verdict.explanation,
                "compared": verdict.compared,
                "differing": verdict.differing,
                "semantics": found.semantics,
                "first_difference": first
                and {
                    "step": first.record.step,
                    "line": first.record.line,
                    "logged": _finite(first.record.rate),
                    "expected": first.expected,
                },
            }
        )
    else:
        out.answer(f"{path}: {verdict.outcome}")
        if found.log.format is not None and found.semantics != "logged":
            out.answer(f"  a log of {found.log.format}: step k shows {_MEANINGS[found.semantics]}")
        out.answer(f"  {verdict.explanation}")
        out.answer(f"  {verdict.compared} lines compared, {verdict.differing} differ")
        if first:
            out.answer(
                f"  first difference: Step = {first.record.step} (line {first.record.line}) shows "
                f"{first.record.rate:g}, the schedule says {first.expected:.6e}"
            )
    if not verdict.agrees:
        raise MismatchError(
            f"{path} does not agree with {title(rates.curves[:1])}: {verdict.outcome}",
            hint=_hint(found),
            path=path,
        )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _hint(found: LogComparison) -> str | None:
    if found.verdict.outcome == "shifted by one":
        other = "applied" if found.semantics == "logged" else "logged"
        return f"If that log is meant to show it so, add {parameter('semantics', other)}."
    if found.verdict.outcome == "different parameters":
        return "Try --fit on the log, and check start_decay_steps, decay_step_duration and the floor."
    return None


def show_fit(out: Output, path: str, found: FittedSchedule, *, as_json: bool) -> None:
    """Print which ``learning_rate`` and ``warmup_steps`` explain a log.

    Raises:
        MismatchError: If none explain all of it (exit code 4).
    """
    fit = found.fit
    scale = "learning_rate" if found.has_model_dim else "learning_rate / sqrt(model_dim)"
    if as_json:
        out.json(
            {
                "log": path,
                scale: fit.scale,
                f"{scale} bounds": fit.scale_bounds,
                "warmup_steps": fit.warmup_steps,
                "warmup_steps bounds": fit.warmup_bounds,
                "compared": fit.compared,
                "differing": fit.differing,
                "semantics": found.semantics,
            }
        )
    elif not fit.differing:
        out.answer(f"{path}: {fit.compared} of {len(found.log.records)} lines are above the floor of {found.floor:g}")
        if found.semantics != "logged":
            out.answer(f"  step k shows {_MEANINGS[found.semantics]}")
        out.answer(f"  {scale}: {_fitted(fit.scale, fit.scale_bounds)}")
        out.answer(f"  warmup_steps: {_fitted(fit.warmup_steps, fit.warmup_bounds)}")
        if fit.scale is None or fit.warmup_steps is None:
            side = "before" if fit.slope_bounds is None else "after"
            out.answer(f"  The log has no line {side} the peak, and both sides are needed.")
        if not found.has_model_dim:
            out.answer("  A curve shows the quotient only: give --model-dim for learning_rate itself.")
    if fit.differing and fit.first:
        as_they_were = [parameter(name) for name in ("start_decay_steps", "decay_step_duration")]
        hint = f"Give {', '.join(as_they_were)} and {parameter('minimum_learning_rate')} as they were."
        if found.better:
            hint = f"One does if step k shows {_MEANINGS[found.better]}: add {parameter('semantics', found.better)}."
        raise MismatchError(
            f"{path}: no Noam schedule explains it: the nearest one misses {fit.differing} of its lines, first "
            f"Step = {fit.first.record.step} (line {fit.first.record.line}): {fit.first.record.rate:g}, "
            f"expected {fit.first.expected:.6e}",
            hint=hint,
            path=path,
        )


def _fitted(value: float | None, bounds: tuple[float, float] | None) -> str:
    if value is None:
        return "unknown"
    low, high = sorted(bounds or (value, value))
    return f"{value:.7g} (from {low:.7g} to {high:.7g})"
