"""Averages out of averages: another length than the stored ones have, or a segment of training, after the fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ckpttool.coefficients.lengths import Wanted
from ckpttool.coefficients.posthoc import Stored, retarget, segment, synthesize
from ckpttool.coefficients.profiles import ConstantDecay, PowerFunction, WarmupDecay
from ckpttool.coefficients.snapshots import StoredProfile, profiles_of, snapshot_number
from ckpttool.ema.files import find_stored_average
from ckpttool.errors import MismatchError, NotFoundError, UsageError
from ckpttool.formats import open_checkpoint
from ckpttool.formats.container import KeyPath
from ckpttool.operations.inputs import select
from ckpttool.operations.lengths import FOLDER, output_names
from ckpttool.operations.names import default_output, folder_name, is_model_directory
from ckpttool.operations.records import Planned, PlannedOutput, Selection
from ckpttool.planning.planner import make_plan
from ckpttool.planning.request import Members, Operation, OutputForm, Policy
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import Checkpoint
from ckpttool.text import Message, parameter

__all__ = ["Segment", "Synthesis", "are_snapshots", "describe_snapshot", "plan_posthoc_ema"]

NOISE = 10.0
"""Σ|c| from which on a synthesised average is said to be noisy; the usual pair and targets stay below 6."""

ERROR = 0.1
"""Profile error from which on the result is said to be another average than the one wanted."""


@dataclass(frozen=True)
class Synthesis:
    """An average of a wanted length, out of snapshots.

    Attributes:
        wanted: The length.
        stored: What the snapshots are.
        error: How far the result's profile is from the wanted one, relative to it.
        noise: Σ|c|, by which errors of the snapshots grow; 1 or more.
        fitted: What the least squares are of.
    """

    wanted: Wanted
    stored: tuple[Stored, ...]
    error: float
    noise: float
    fitted: Literal["densities", "cumulative shares"]


@dataclass(frozen=True)
class Segment:
    """The exact mean over a stretch of training, out of two snapshots of one average.

    Attributes:
        start: The step that it begins after.
        stop: The last step in it.
        noise: Σ|c|, by which errors of the snapshots grow; 1 or more.
    """

    start: int
    stop: int
    noise: float

    def __str__(self) -> str:
        return f"the steps after {self.start} up to {self.stop}"


def are_snapshots(sources: Sequence[Path], snapshot: Snapshot) -> bool:
    """Whether names are those of snapshots that EDM2 or ema-pytorch wrote for this."""
    if is_model_directory(sources, snapshot):
        names = [name for name in snapshot.names(sources[0]) if not name.startswith(".")]
        return len(names) > 1 and sum(snapshot_number(Path(name)) is not None for name in names) * 2 > len(names)
    return len(sources) > 1 and all(snapshot_number(path) is not None for path in sources)


def plan_posthoc_ema(
    sources: Sequence[Path],
    output: str | None = None,
    *,
    lengths: Sequence[Wanted] = (),
    profiles: Sequence[StoredProfile] = (),
    update_every: int | None = None,
    stretch: tuple[int, int] | None = None,
    selection: Selection = Selection(),
    policy: Policy = Policy(),
    snapshot: Snapshot | None = None,
) -> Planned[Synthesis | Segment]:
    """Plan averages of other lengths than those of the snapshots, or a stretch of training. No weight is read.

    Args:
        sources: A directory of snapshots, or a list.
        output: The file to write, with a placeholder for several lengths; None: `ema` in the directory.
        lengths: What the averages shall be; none for a stretch.
        profiles: What the snapshots are averages of, where their names do not say it.
        update_every: Steps from update to update of the snapshots, where their decay is meant for each step.
        stretch: The step that a segment begins after, and the last step in it.
        selection: Which of the directory's snapshots.
        policy: What becomes of what differs, and of the output.
        snapshot: What is seen of the storage.

    Raises:
        CkpttoolError: The request makes no sense, or cannot be met; see `ckpttool.errors`.
    """
    snapshot = snapshot or Snapshot()
    paths, steps = _snapshots(sources, selection, snapshot)
    stored = profiles_of(paths, steps, profiles, update_every)
    weighed: list[_Weighed]
    if stretch is not None:
        if lengths:
            raise UsageError(f"{parameter('segment')} is exact and takes no length", hint="Leave the length out.")
        weighed = [_cut(stored, *stretch)]
        folder = folder_name(FOLDER, selection, "segment-{}-{}".format(*stretch))
        names = [default_output(sources, output, folder, snapshot)]
    else:
        if not lengths:
            raise UsageError(
                "which length shall the average have?", hint=f"For example: {parameter('sigma_rel', 0.1)}."
            )
        weighed = [_fitted(stored, one) for one in lengths]
        names = output_names(sources, output, lengths, selection, snapshot)
    opened = [_open(path, int(one.step), selection.section, snapshot) for path, one in zip(paths, stored, strict=True)]
    notes = [f"{path.name} is {describe_snapshot(one)}" for path, one in zip(paths[:4], stored[:4], strict=True)]
    if len(paths) > 4:
        notes.append(f"and {len(paths) - 4} more snapshots")
    outputs = []
    for result, name in zip(weighed, names, strict=True):
        # Those without a share are not members: the container and the integers are those of the newest that has one.
        shared = [(one, c) for one, c in zip(opened, result.coefficients, strict=True) if c]
        newest = max((one for one, _ in shared), key=lambda one: one.step or 0)
        plan = make_plan(
            Members([one for one, _ in shared], notes=notes, warnings=result.warnings),
            name,
            coefficients=[c for _, c in shared],
            policy=policy,
            operation=Operation("ema-apply", {"length": result.label}),
            form=OutputForm(keep_container=not newest.renamed, drop=newest.drop),
        )
        outputs.append(PlannedOutput(plan, result.facts))
    return Planned(tuple(outputs))


@dataclass(frozen=True)
class _Weighed:
    facts: Synthesis | Segment
    coefficients: tuple[float, ...]
    warnings: tuple[str, ...]

    @property
    def label(self) -> str:
        """What it is, for the output's provenance."""
        return str(self.facts.wanted) if isinstance(self.facts, Synthesis) else str(self.facts)


def _fitted(stored: Sequence[Stored], wanted: Wanted) -> _Weighed:
    target = wanted.profile()
    powers = isinstance(target, PowerFunction) and all(
        isinstance(one.profile, PowerFunction) and one.profile.gamma > -0.5 for one in stored
    )
    fit = synthesize(stored, target) if powers and isinstance(target, PowerFunction) else retarget(stored, target)
    idle = wanted.no_effect(int(max(one.step for one in stored)))
    warnings = [] if idle is None else [idle]
    if fit.noise > NOISE:
        warnings.append(
            f"{wanted}: the coefficients add up to {fit.noise:.1f} without their signs, and noise grows by as much. "
            "A length between the stored ones is safer"
        )
    if fit.error > ERROR:
        warnings.append(
            f"{wanted}: the profile is off by {fit.error:.0%}, so this is another average than the one asked for. "
            "More snapshots, or two stored lengths, bring it nearer"
        )
    facts = Synthesis(wanted, tuple(stored), fit.error, fit.noise, "densities" if powers else "cumulative shares")
    return _Weighed(facts, fit.coefficients, tuple(warnings))


def _cut(stored: Sequence[Stored], start: int, stop: int) -> _Weighed:
    asked = parameter("segment", f"{start}:{stop}")
    ends = []
    for step in (start, stop):
        there = [index for index, one in enumerate(stored) if one.step == step]
        if len(there) != 1:
            known = ", ".join(f"{time:g}" for time in sorted({one.step for one in stored}))
            count = "no snapshot" if not there else f"{len(there)} snapshots"
            raise UsageError(f"{asked}: there is {count} of step {step}", hint=f"Snapshots are at {known}.")
        ends.append(there[0])
    first, last = ends
    if stored[first].profile != stored[last].profile:
        raise UsageError(f"{asked}: the two snapshots are of different averages")
    early, late = segment(stored[last].profile, start, stop)
    coefficients = [0.0] * len(stored)
    coefficients[first], coefficients[last] = early, late
    facts = Segment(start, stop, abs(early) + abs(late))
    warnings: list[str] = []
    if facts.noise > NOISE:
        share = f"The average holds only {1 / late:.0%} of the segment; a longer one is safer"
        warnings.append(Message(f"{asked}: noise grows by {facts.noise:.1f}. {share}"))
    return _Weighed(facts, tuple(coefficients), tuple(warnings))


def describe_snapshot(stored: Stored) -> str:
    """What a snapshot is an average of, as a phrase."""
    profile = stored.profile
    if isinstance(profile, PowerFunction):
        # Below an exponent of 0 the deviation does not tell two profiles apart.
        return f"the power function with exponent {profile.gamma:.4g} at {stored.step:g}"
    if isinstance(profile, (ConstantDecay, WarmupDecay)):
        rule = "constant decay" if isinstance(profile, ConstantDecay) else "decay with warm-up"
        return f"an average of {rule} {profile.decay:.9g} at step {stored.step:g}"
    return f"{profile} at step {stored.step:g}"


def _snapshots(
    sources: Sequence[Path], selection: Selection, snapshot: Snapshot
) -> tuple[list[Path], list[int | None]]:
    """The snapshots of a directory or a list, with the steps that selection knows."""
    if not is_model_directory(sources, snapshot):
        if all(snapshot_number(path) is not None for path in sources):
            return list(sources), [None] * len(sources)
    elif are_snapshots(sources, snapshot):
        directory = sources[0]
        low, high = selection.from_step or 0, selection.to_step
        numbered = [
            (number, path)
            for path in (directory / name for name in snapshot.names(directory))
            if (number := snapshot_number(path)) and low <= number[1] and (high is None or number[1] <= high)
        ]
        if not numbered:
            raise NotFoundError(f"{directory}: no snapshot is left", path=directory)
        kept = [path for _, path in sorted(numbered, key=lambda pair: (pair[0], pair[1].name))]
        return kept, [None] * len(kept)
    found = select(sources, selection, take_all=True, snapshot=snapshot)
    return [entry.path for entry in found.entries], [entry.step for entry in found.entries]


@dataclass(frozen=True)
class _Snapshot:
    """A snapshot, opened: the tensors of its average, under the names of the output."""

    checkpoint: Checkpoint
    step: int | None
    drop: tuple[KeyPath, ...]
    renamed: bool


def _open(path: Path, step: int, section: str | None, snapshot: Snapshot) -> _Snapshot:
    """A snapshot's average: the one inside the file where it holds both, else its weights, which are the average."""
    try:
        found = find_stored_average(path, section=section, snapshot=snapshot)
    except NotFoundError:
        found = None
    if found is None or (found.source is not found.checkpoint):
        opened = open_checkpoint(path, section=section, snapshot=snapshot)
        return _Snapshot(replace(opened, copies={}), step, (), renamed=False)
    if found.uncovered and not found.averaged:
        raise MismatchError(f"{path}: the average in it covers nothing", path=path)
    view = replace(found.checkpoint, weights=found.weights(), copies={})
    return _Snapshot(view, step, found.drop, found.renamed)
