"""``ema-apply`` on a run's checkpoints: the moving average that the run would have had, computed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpttool.cli._options import PolicyOptions, RunOptions, SelectionOptions
from ckpttool.cli._output import Output
from ckpttool.cli._report import Details
from ckpttool.cli._steps import policy_of, run_plans, select
from ckpttool.errors import MismatchError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from ckpttool.coefficients.lengths import Computed, Kind, Unit, Wanted
    from ckpttool.coefficients.weights import Quadrature
    from ckpttool.formats.section_names import KeyPath
    from ckpttool.selection.choice import Discovery
    from ckpttool.tensors import Checkpoint

__all__ = ["DEFAULT_DECAY", "apply_computed", "output_names", "wanted_lengths"]

DEFAULT_DECAY = "0.9999"
"""The decay of the rule min(decay, (1+step)/(10+step)) where nobody says one."""


def wanted_lengths(
    decay: Sequence[str], half_life: Sequence[str], sigma_rel: Sequence[str], window: Sequence[str], *, warmup: bool
) -> list[Wanted]:
    """The lengths that the options say, in the order of the options' help.

    Raises:
        UsageError: --no-warmup without a decay.
    """
    from ckpttool.coefficients.lengths import Wanted

    said: list[tuple[Kind, Sequence[str]]] = [
        ("decay", decay),
        ("half-life", half_life),
        ("sigma-rel", sigma_rel),
        ("window", window),
    ]
    wanted = [Wanted(kind, _number(kind, text), text, warmup) for kind, texts in said for text in texts]
    if not warmup and wanted and not decay:
        raise UsageError("--no-warmup goes with --decay: the other lengths have no warm-up", hint="Leave it out.")
    return wanted


def _number(kind: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a number", param_hint=f"--{kind}") from error


def apply_computed(
    checkpoints: Sequence[Path],
    selection: SelectionOptions,
    wanted: Sequence[Wanted],
    output: str | None,
    *,
    unit: str | None,
    quadrature: Quadrature,
    policy: PolicyOptions,
    run: RunOptions,
    out: Output,
) -> None:
    """Average a run's checkpoints as a moving average would have, at one length or several in one pass."""
    from ckpttool.coefficients.lengths import compute
    from ckpttool.planning.planner import make_plan
    from ckpttool.planning.request import Operation, OutputForm, members_of

    found = _by_step(select(checkpoints, selection, take_all=True))
    steps, notes = _steps(found)
    chosen, more = _unit(unit, steps, wanted)
    own = _without_their_own(found)
    notes = [*notes, *more, *own.notes]
    outputs = output_names(checkpoints, output, wanted)
    computed = [compute(one, steps, len(found.entries), unit=chosen, quadrature=quadrature) for one in wanted]
    plans = [
        make_plan(
            members_of(found, entries=own.members, notes=notes, warnings=one.warnings),
            name,
            coefficients=one.coefficients,
            policy=policy_of(policy, run),
            operation=Operation("ema-apply", {"length": str(one.wanted), "unit": one.unit, "quadrature": quadrature}),
            form=OutputForm(drop=own.drop),
        )
        for one, name in zip(computed, outputs, strict=True)
    ]
    run_plans(plans, "ema-apply", run, out, [_details(one, quadrature) for one in computed])


@dataclass(frozen=True)
class _Trained:
    """A checkpoint without the average that it holds itself."""

    checkpoint: Checkpoint
    step: int | None


@dataclass(frozen=True)
class _Own:
    """The checkpoints, and what becomes of the averages that they hold themselves."""

    members: tuple[_Trained, ...]
    drop: tuple[KeyPath, ...] = ()
    notes: tuple[str, ...] = ()


def _without_their_own(found: Discovery) -> _Own:
    """Leave the averages out that the checkpoints hold: averaged once more, they would be another average.

    Loaders that prefer a stored average would then load that one.
    """
    from ckpttool.ema.locating import recognise

    def unread(_spec: object) -> object:
        raise MismatchError("values are not read for a plan")

    newest = found.entries[-1].checkpoint
    stored = None
    with suppress(MismatchError, UsageError, UnsupportedError):
        stored = recognise(newest, values=unread)
    names = newest.weights.keys() if stored is None else set(stored.order)
    members = tuple(
        _Trained(_only(entry.checkpoint, names if stored is not None and not stored.renamed else None), entry.step)
        for entry in found.entries
    )
    if stored is None:
        places = ", ".join(newest.copies)
        return _Own(members, (), (f"the copy of the weights at {places} is left out",) if places else ())
    if stored.in_place:
        note = (
            f"the weights of these checkpoints are an average already ({stored.framework}): this is an average of "
            "averages, longer and later than its length says"
        )
    else:
        note = (
            f"the checkpoints hold an average of their own at {stored.where} ({stored.framework}), which is left out; "
            f"ema-apply {newest.path.name} takes it"
        )
    return _Own(members, () if stored.renamed else stored.drop, (note,))


def _only(checkpoint: Checkpoint, names: Collection[str] | None) -> Checkpoint:
    weights = checkpoint.weights
    if names is not None:
        # What the newest has as its average's own is left out; all else is matched, so that a difference is seen.
        weights = {name: spec for name, spec in weights.items() if name in names or not _is_average(name)}
    return replace(checkpoint, weights=weights, copies={})


def _is_average(name: str) -> bool:
    from ckpttool.formats.section_names import COPY_KEYS

    return COPY_KEYS.search(name) is not None or name.startswith("ema_")


def _by_step(found: Discovery) -> Discovery:
    """Oldest first, also where a list was given in another order; without steps, the order given counts."""
    if any(entry.step is None for entry in found.entries):
        return found
    return replace(found, entries=tuple(sorted(found.entries, key=lambda entry: entry.step or 0)))


def _steps(found: Discovery) -> tuple[list[int] | None, list[str]]:
    """The training steps of the checkpoints, oldest first; None where not all are known."""
    if found.unit == "step" and all(entry.step is not None for entry in found.entries):
        return [entry.step for entry in found.entries if entry.step is not None], []
    stated = [entry.checkpoint.step for entry in found.entries]
    known = [step for step in stated if step is not None]
    if len(known) == len(stated) and sorted(set(known)) == known:
        return known, [f"the names count {found.unit}s; the training steps are the ones that the files state"]
    return None, []


def _unit(unit: str | None, steps: Sequence[int] | None, wanted: Sequence[Wanted]) -> tuple[Unit, list[str]]:
    if unit == "steps" or (unit is None and steps is not None):
        return "steps", []
    if unit == "checkpoints":
        return "checkpoints", []
    if any(one.kind in {"sigma-rel", "window"} for one in wanted):
        return "steps", []  # which says what is missing
    return "checkpoints", [
        "the training steps are not known, so each checkpoint counts as one update (--unit checkpoints)"
    ]


def output_names(checkpoints: Sequence[Path], output: str | None, wanted: Sequence[Wanted]) -> list[str]:
    """The output of each length: '{decay}' and the like stand for the number as it was typed.

    Raises:
        UsageError: Several lengths would be written to one file, or a placeholder has no number.
    """
    if output is None:
        if len(checkpoints) != 1 or not checkpoints[0].is_dir():
            raise UsageError("a list of checkpoints needs an output", hint="For example: -o ema.safetensors")
        if len(wanted) > 1:
            raise UsageError(
                f"{len(wanted)} lengths need {len(wanted)} outputs",
                hint=f"For example: -o 'ema-{_placeholder(wanted)}.safetensors'",
            )
        return [f"{checkpoints[0] / 'ema'}/"]
    names = []
    for one in wanted:
        fields = {one.kind: one.text, one.kind.replace("-", "_"): one.text, "length": f"{one.kind}-{one.text}"}
        name = _filled(output, fields)
        if re.search(r"\{(decay|half.life|sigma.rel|window|length)\}", name):
            raise UsageError(
                f"-o {output}: the length {one} has no number for it", hint="'{length}' stands for any of them."
            )
        names.append(name)
    if len(set(names)) < len(names):
        raise UsageError(
            f"{len(wanted)} lengths would be written to one file, {output}",
            hint=f"Say where the number goes: -o 'ema-{_placeholder(wanted)}.safetensors'.",
        )
    return names


def _filled(name: str, fields: Mapping[str, str]) -> str:
    return re.sub(r"\{([a-z_-]+)\}", lambda match: fields.get(match[1], match[0]), name)


def _placeholder(wanted: Sequence[Wanted]) -> str:
    kinds = {one.kind for one in wanted}
    return f"{{{kinds.pop() if len(kinds) == 1 else 'length'}}}"


def _details(one: Computed, quadrature: Quadrature) -> Details:
    from ckpttool.coefficients.lengths import describe_length

    found = one.statistics
    last = found.multipliers[-1][0]
    said = describe_length(one.profile, last) if one.profile is not None else {}
    unit = "step" if one.unit == "steps" else "checkpoint"
    rows = [("length", f"{one.wanted}, per {unit}")]
    if one.profile is not None:
        terms = (
            f"half-life {said['half-life']:,.0f} steps, mean age {said['mean-age']:,.0f} steps, 99% of it within "
            f"{said['window-99']:,.0f} steps, sigma-rel {said['sigma-rel']:.3g}, like the last {said['window']:.1%} of "
            f"the run, like a constant decay of {said['decay']:.6g}"
        )
        rows.append(("in other terms", terms))
        rows.append(("between checkpoints", _QUADRATURES[quadrature]))
    rows.append(("effective number", f"{found.effective_number:.2f} of {len(one.coefficients)} checkpoints"))
    rows.append(("mean age", f"{found.mean_age:,.{0 if one.ages == 'steps' else 2}f} {one.ages}"))
    rows.append(("oldest share", f"{found.oldest_share:.2%}"))
    if found.mass_before_first is not None:
        rows.append(("before the first", f"{found.mass_before_first:.2%} of the average lies before its step"))
    return Details(
        columns={"learning rate": [f"{factor:.3f}" for _, factor in found.multipliers]},
        rows=rows,
        document=_document(one, quadrature, said),
        start=None,
    )


_QUADRATURES = {
    "linear": "the weights moved in a straight line (linear)",
    "hold": "the weights jumped to the next checkpoint's (hold)",
}


def _document(one: Computed, quadrature: Quadrature, said: dict[str, float]) -> dict[str, Any]:
    found = one.statistics
    return {
        "length": {
            "kind": one.wanted.kind,
            "value": one.wanted.value,
            "warmup": one.wanted.warmup if one.wanted.kind == "decay" else None,
            "unit": one.unit,
            "quadrature": quadrature if one.unit == "steps" else None,
            "in_other_terms": {key.replace("-", "_"): value for key, value in said.items()} or None,
        },
        "effective_number": found.effective_number,
        "mean_age": {"value": found.mean_age, "unit": one.ages},
        "oldest_share": found.oldest_share,
        "mass_before_first": found.mass_before_first,
        "learning_rate": [{"step": step, "factor": factor} for step, factor in found.multipliers],
    }
