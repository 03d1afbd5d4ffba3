"""The moving average that a run would have had, computed from its checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from ckpttool.coefficients.lengths import Computed, Counted, Unit, Wanted, compute
from ckpttool.coefficients.weights import Quadrature
from ckpttool.ema.already_averaged import recognise_by_names
from ckpttool.errors import NotFoundError
from ckpttool.formats.average_keys import COPY_KEYS
from ckpttool.formats.container import KeyPath
from ckpttool.operations.inputs import averages_of_averages, select
from ckpttool.operations.lengths import default_lengths, output_names
from ckpttool.operations.records import Planned, PlannedOutput, Selection, one_of
from ckpttool.planning.planner import make_plan
from ckpttool.planning.request import Operation, OutputForm, Policy, members_of
from ckpttool.reading.snapshot import Snapshot
from ckpttool.selection.choice import Discovery
from ckpttool.tensors import Checkpoint
from ckpttool.text import parameter

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
    notes: Sequence[str] = (),
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
        unit: What an update is; None: a training step. Where steps are not known, a length that counts updates needs
            it, and a share of the run does not.
        quadrature: What the weights are taken to have done between two checkpoints.
        notes: What else is known of the checkpoints.
        snapshot: What is seen of the storage.

    Raises:
        CkpttoolError: The request makes no sense, or cannot be met; see `ckpttool.errors`.
    """
    snapshot = snapshot or Snapshot()
    if unit is not None:
        one_of("unit", unit, get_args(Unit))
    one_of("quadrature", quadrature, get_args(Quadrature))
    wanted = tuple(lengths) or default_lengths(warmup=warmup)
    found = _by_step(select(sources, selection, take_all=True, snapshot=snapshot))
    if len(found.entries) == 1:
        raise NotFoundError(
            f"{found.entries[0].path}: an average over the run needs two checkpoints or more",
            hint=f"Take more than {parameter('last', 1)}. Named alone, and without a length, a checkpoint gives the "
            "average that it holds.",
            path=found.entries[0].path,
        )
    times = _times(found)
    computed = [
        compute(one, times.values, len(found.entries), unit=unit, counted=times.counted, quadrature=quadrature)
        for one in wanted
    ]
    own = _without_their_own(found)
    notes = (*times.notes, *notes, *own.notes)
    names = output_names(sources, output, wanted, selection, snapshot)
    outputs = []
    for one, name in zip(computed, names, strict=True):
        plan = make_plan(
            members_of(found, entries=own.members, notes=(*notes, *_by_place(one)), warnings=one.warnings),
            name,
            coefficients=one.coefficients,
            policy=policy,
            operation=Operation("ema-apply", {"length": str(one.wanted), "unit": one.unit, "quadrature": quadrature}),
            form=OutputForm(drop=own.drop),
        )
        outputs.append(PlannedOutput(plan, ComputedAverage(one, quadrature)))
    return Planned(tuple(outputs))


def _by_place(one: Computed) -> tuple[str, ...]:
    if one.unit == "checkpoints" and one.wanted.is_share:
        return (f"{one.wanted}: the checkpoints are taken for equal parts of the run",)
    return ()


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
    newest = found.entries[-1].checkpoint
    stored = recognise_by_names(newest)
    names = newest.weights.keys() if stored is None else set(stored.order)
    members = tuple(
        _Trained(_only(entry.checkpoint, names if stored is not None and not stored.renamed else None), entry.step)
        for entry in found.entries
    )
    averaged = averages_of_averages(found)
    if stored is None:
        places = ", ".join(newest.copies)
        return _Own(members, notes=(*averaged, f"the stored EMA at {places} is left out") if places else averaged)
    if not stored.in_place:
        note = (
            f"the checkpoints hold an EMA of their own at {stored.where} ({stored.framework}), which is left out; of "
            f"{newest.path.name} alone, it would be taken"
        )
        averaged = (*averaged, note)
    return _Own(members, () if stored.renamed else stored.drop, averaged)


def _only(checkpoint: Checkpoint, names: Collection[str] | None) -> Checkpoint:
    weights = checkpoint.weights
    if names is not None:
        # What the newest has as its average's own is left out; all else is matched, so that a difference is seen.
        weights = {name: spec for name, spec in weights.items() if name in names or not _is_average(name)}
    return replace(checkpoint, weights=weights, copies={})


def _is_average(name: str) -> bool:
    return COPY_KEYS.search(name) is not None


def _by_step(found: Discovery) -> Discovery:
    """Oldest first, also where a list was given in another order; without steps, the order given counts."""
    if any(entry.step is None for entry in found.entries):
        return found
    return replace(found, entries=tuple(sorted(found.entries, key=lambda entry: entry.step or 0)))


@dataclass(frozen=True)
class _Times:
    """When the checkpoints were written, oldest first.

    Attributes:
        values: Their numbers; None where not all have one.
        counted: What these count.
        notes: Where they come from, if not from the selection.
    """

    values: tuple[int, ...] | None
    counted: Counted
    notes: tuple[str, ...] = ()


def _times(found: Discovery) -> _Times:
    """The checkpoints' training steps where these are known, else their epochs or numbers."""
    numbers = tuple(entry.step for entry in found.entries if entry.step is not None)
    values = numbers if len(numbers) == len(found.entries) else None
    if found.unit == "step" and values is not None:
        return _Times(values, "steps")
    stated = tuple(entry.checkpoint.step for entry in found.entries)
    steps = tuple(step for step in stated if step is not None)
    # A file that states the number in its name states an epoch, whatever it calls it.
    if len(steps) == len(stated) and steps == tuple(sorted(set(steps))) and steps != values:
        note = f"the names count {found.unit}s; the training steps are the ones that the files state"
        return _Times(steps, "steps", (note,))
    return _Times(values, "epochs" if found.unit == "epoch" else "numbers")
