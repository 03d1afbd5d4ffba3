"""The moving average that a run would have had, computed from its checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from ckpttool.coefficients.lengths import Computed, Unit, Wanted, compute
from ckpttool.coefficients.weights import Quadrature
from ckpttool.ema.locating import recognise
from ckpttool.ema.trees import KeyPath
from ckpttool.errors import MismatchError, UnsupportedError, UsageError
from ckpttool.formats.average_keys import COPY_KEYS
from ckpttool.operations.inputs import select
from ckpttool.operations.lengths import DEFAULT_DECAY, output_names, wanted_lengths
from ckpttool.operations.records import Planned, PlannedOutput, Selection, one_of
from ckpttool.planning.planner import make_plan
from ckpttool.planning.request import Operation, OutputForm, Policy, members_of
from ckpttool.reading.snapshot import Snapshot
from ckpttool.selection.choice import Discovery
from ckpttool.tensors import Checkpoint
from ckpttool.text import Message, parameter

__all__ = ["ComputedAverage", "plan_computed_ema"]


@dataclass(frozen=True)
class ComputedAverage:
    """What an average that is computed from checkpoints amounts to.

    Attributes:
        computed: The length, its coefficients and their statistics.
        quadrature: What the weights are taken to have done between two checkpoints.
    """

    computed: Computed
    quadrature: Quadrature


def plan_computed_ema(
    sources: Sequence[Path],
    output: str | None = None,
    *,
    lengths: Sequence[Wanted] = (),
    warmup: bool = True,
    selection: Selection = Selection(),
    policy: Policy = Policy(),
    unit: Unit | None = None,
    quadrature: Quadrature = "linear",
    snapshot: Snapshot | None = None,
) -> Planned[ComputedAverage]:
    """Plan the moving average that a run would have had, at one length or several. No weight is read.

    Args:
        sources: One model directory, or two checkpoints or more.
        output: The file or directory to write, with a placeholder for several lengths; None: `ema` in the model
            directory.
        lengths: What the average shall be; none: a decay of `DEFAULT_DECAY`.
        warmup: Whether that one has a warm-up.
        selection: Which of a directory's checkpoints; of none said, all.
        policy: What becomes of what differs, and of the output.
        unit: What an update is; None: a training step where steps are known, else a checkpoint.
        quadrature: What the weights are taken to have done between two checkpoints.
        snapshot: What is seen of the storage.

    Raises:
        CkpttoolError: The request makes no sense, or cannot be met; see `ckpttool.errors`.
    """
    snapshot = snapshot or Snapshot()
    if unit is not None:
        one_of("unit", unit, get_args(Unit))
    one_of("quadrature", quadrature, get_args(Quadrature))
    wanted = tuple(lengths) or wanted_lengths(decay=(DEFAULT_DECAY,), warmup=warmup)
    found = _by_step(select(sources, selection, take_all=True, snapshot=snapshot))
    steps, step_notes = _steps(found)
    chosen, unit_notes = _unit(unit, steps, wanted)
    own = _without_their_own(found)
    notes = (*step_notes, *unit_notes, *own.notes)
    names = output_names(sources, output, wanted, snapshot)
    computed = [compute(one, steps, len(found.entries), unit=chosen, quadrature=quadrature) for one in wanted]
    outputs = []
    for one, name in zip(computed, names, strict=True):
        plan = make_plan(
            members_of(found, entries=own.members, notes=notes, warnings=one.warnings),
            name,
            coefficients=one.coefficients,
            policy=policy,
            operation=Operation("ema-apply", {"length": str(one.wanted), "unit": one.unit, "quadrature": quadrature}),
            form=OutputForm(drop=own.drop),
        )
        outputs.append(PlannedOutput(plan, ComputedAverage(one, quadrature)))
    return Planned(tuple(outputs))


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


def _unit(unit: Unit | None, steps: Sequence[int] | None, wanted: Sequence[Wanted]) -> tuple[Unit, list[str]]:
    if unit == "steps" or (unit is None and steps is not None):
        return "steps", []
    if unit == "checkpoints":
        return "checkpoints", []
    if any(one.kind in {"sigma-rel", "window"} for one in wanted):
        return "steps", []  # which says what is missing
    return "checkpoints", [
        Message(
            "the training steps are not known, so each checkpoint counts as one update "
            f"({parameter('unit', 'checkpoints')})"
        )
    ]
