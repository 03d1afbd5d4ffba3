"""What ``ema-apply`` has to say about a plan beyond what every plan says: words, and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ckpttool.cli._output import format_bytes, format_count
from ckpttool.cli._report import NOISE, Details
from ckpttool.cli._wording import spoken
from ckpttool.coefficients.lengths import describe_length
from ckpttool.ema.stored_average import StoredAverage
from ckpttool.operations.computed_ema import ComputedAverage
from ckpttool.operations.posthoc_ema import Segment, Synthesis, describe_snapshot
from ckpttool.operations.stored_ema import describe_average
from ckpttool.text import first_names

if TYPE_CHECKING:
    from ckpttool.operations.ema_apply import EmaFacts
    from ckpttool.planning.plan import Plan

__all__ = ["average_document", "covered", "details_of"]


def details_of(plan: Plan, facts: EmaFacts) -> Details:
    """What to report about a plan.

    Args:
        plan: The plan.
        facts: What the operation says of it.
    """
    if isinstance(facts, StoredAverage):
        return _stored(plan, facts)
    if isinstance(facts, ComputedAverage):
        return _computed(facts)
    return _synthesis(facts) if isinstance(facts, Synthesis) else _segment(facts)


# --- Averages that checkpoints hold ----------------------------------------------------------------------------


def _stored(plan: Plan, found: StoredAverage) -> Details:
    said = describe_average(found)
    verb = "Writing" if found.in_place else "Applying"
    return Details(
        rows=[("average", said), ("because", found.why), ("covers", covered(found))],
        document={"stored_average": average_document(found)},
        start=f"{verb} {said}, {format_bytes(plan.bytes_to_read)}: {found.why}.",
    )


def covered(found: StoredAverage) -> str:
    """How many tensors an average covers, and which not."""
    said = format_count(len(found.averaged), "tensor")
    if found.uncovered:
        said += f"; not {len(found.uncovered):,}: {first_names(found.uncovered)}"
    return said


def average_document(found: StoredAverage) -> dict[str, Any]:
    """An average that was found, as JSON-able values."""
    return {
        "framework": found.framework,
        "kind": found.kind,
        "where": found.where,
        "source": str(found.source.path),
        "why": found.why,
        "applied_already": found.in_place,
        "covers": len(found.averaged),
        "uncovered": list(found.uncovered),
        "notes": [spoken(note) for note in found.notes],
        "warnings": [spoken(warning) for warning in found.warnings],
    }


# --- Averages that are computed --------------------------------------------------------------------------------

_QUADRATURES = {
    "linear": "the weights moved in a straight line (linear)",
    "hold": "the weights jumped to the next checkpoint's (hold)",
}


def _computed(facts: ComputedAverage) -> Details:
    one = facts.computed
    found = one.statistics
    said = describe_length(one.profile, found.multipliers[-1][0]) if one.profile is not None else {}
    share = f" of the run, counted in {one.unit}"
    rows = [("length", f"{one.wanted}{share if one.wanted.is_share else f', per {one.unit[:-1]}'}")]
    if one.wanted.first_effective_update() > 1:
        first = one.wanted.first_effective_update()
        rows.append(("warm-up", f"decides until {one.unit[:-1]} {first - 1:,}; the decay has an effect from then on"))
    if one.profile is not None:
        ages = {
            name: f"{said[name]:,.{0 if one.unit == 'steps' else 2}f} {one.unit}"
            for name in ("half-life", "mean-age", "window-99")
        }
        terms = (
            f"half-life {ages['half-life']}, mean age {ages['mean-age']}, 99% of it within {ages['window-99']}, "
            f"sigma-rel {said['sigma-rel']:.3g}, like the last {said['window']:.1%} of the run, "
            f"like a constant decay of {said['decay']:.6g}"
        )
        rows.append(("in other terms", terms))
        rows.append(("between checkpoints", _QUADRATURES[facts.quadrature]))
    rows.append(("effective number", f"{found.effective_number:.2f} of {len(one.coefficients)} checkpoints"))
    rows.append(("mean age", f"{found.mean_age:,.{0 if one.ages == 'steps' else 2}f} {one.ages}"))
    rows.append(("oldest share", f"{found.oldest_share:.2%}"))
    if found.mass_before_first is not None:
        rows.append(("before the first", f"{found.mass_before_first:.2%} of the average is from before it"))
    return Details(
        columns={"learning rate": [f"{factor:.3f}" for _, factor in found.multipliers]},
        rows=rows,
        document=_computed_document(facts, said),
    )


def _computed_document(facts: ComputedAverage, said: Mapping[str, float]) -> dict[str, Any]:
    one = facts.computed
    found = one.statistics
    return {
        "length": {
            "kind": one.wanted.kind,
            "value": one.wanted.value,
            "warmup": one.wanted.warmup if one.wanted.kind == "decay" else None,
            "unit": one.unit,
            "effective_from": one.wanted.first_effective_update(),
            "quadrature": facts.quadrature if one.profile is not None else None,
            "in_other_terms": {key.replace("-", "_"): value for key, value in said.items()} or None,
        },
        "effective_number": found.effective_number,
        "mean_age": {"value": found.mean_age, "unit": one.ages},
        "oldest_share": found.oldest_share,
        "mass_before_first": found.mass_before_first,
        "learning_rate": [{"step": step, "factor": factor} for step, factor in found.multipliers],
    }


# --- Averages out of averages ----------------------------------------------------------------------------------


def _synthesis(facts: Synthesis) -> Details:
    return Details(
        rows=[
            ("length", str(facts.wanted)),
            ("profile error", f"{facts.error:.3g} (least squares on the {facts.fitted})"),
            ("noise", f"{facts.noise:.3g} {NOISE}"),
        ],
        document={
            "length": {"kind": facts.wanted.kind, "value": facts.wanted.value},
            "profile_error": facts.error,
            "noise": facts.noise,
            "stored": [{"profile": describe_snapshot(one), "step": one.step} for one in facts.stored],
        },
        start=f"Synthesising {facts.wanted} from {len(facts.stored)} snapshots: "
        f"profile error {facts.error:.3g}, noise {facts.noise:.3g}.",
    )


def _segment(facts: Segment) -> Details:
    return Details(
        rows=[("segment", str(facts)), ("profile error", "0 (exact)"), ("noise", f"{facts.noise:.3g}")],
        document={"segment": [facts.start, facts.stop], "profile_error": 0.0, "noise": facts.noise},
        start=f"Cutting out {facts}: exact, noise {facts.noise:.3g}.",
    )
