"""``ema-apply`` on snapshots of averages that training kept: another length, or a segment, after the fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckpttool.cli._computed import output_names
from ckpttool.cli._options import PolicyOptions, RunOptions, SelectionOptions
from ckpttool.cli._output import Output
from ckpttool.cli._report import Details
from ckpttool.cli._steps import policy_of, run_plans
from ckpttool.errors import MismatchError, NotFoundError, UsageError

if TYPE_CHECKING:
    from ckpttool.coefficients.lengths import Wanted
    from ckpttool.coefficients.posthoc import Stored
    from ckpttool.coefficients.snapshots import StoredProfile
    from ckpttool.ema.trees import KeyPath
    from ckpttool.tensors import Checkpoint

__all__ = ["apply_posthoc", "is_posthoc"]

NOISE = 10.0
"""Σ|c| from which on a synthesised average is said to be noisy; the usual pair and targets stay below 6."""

ERROR = 0.1
"""Profile error from which on the result is said to be another average than the one wanted."""


@dataclass(frozen=True)
class _Snapshot:
    """A snapshot, opened: the tensors of its average, under the names of the output."""

    checkpoint: Checkpoint
    step: int | None
    drop: tuple[KeyPath, ...]
    renamed: bool


def is_posthoc(checkpoints: Sequence[Path]) -> bool:
    """Whether names are those of snapshots that EDM2 or ema-pytorch wrote for this."""
    from ckpttool.coefficients.snapshots import snapshot_number

    if len(checkpoints) == 1 and checkpoints[0].is_dir():
        names = [path for path in checkpoints[0].iterdir() if not path.name.startswith(".")]
        return len(names) > 1 and sum(snapshot_number(path) is not None for path in names) * 2 > len(names)
    return len(checkpoints) > 1 and all(snapshot_number(path) is not None for path in checkpoints)


def apply_posthoc(
    checkpoints: Sequence[Path],
    selection: SelectionOptions,
    wanted: Sequence[Wanted],
    output: str | None,
    *,
    profiles: Sequence[StoredProfile],
    update_every: int | None,
    segment: tuple[int, int] | None,
    policy: PolicyOptions,
    run: RunOptions,
    out: Output,
) -> None:
    """Synthesise averages of the wanted lengths from snapshots, or cut a segment of training out of two of them."""
    from ckpttool.coefficients.snapshots import profiles_of
    from ckpttool.planning.planner import make_plan
    from ckpttool.planning.request import Members, Operation, OutputForm

    paths, steps = _snapshots(checkpoints, selection)
    stored = profiles_of(paths, steps, profiles, update_every)
    if segment is not None:
        if wanted:
            raise UsageError("--segment is exact and takes no length", hint="Leave the length out.")
        if output is None:
            raise UsageError("--segment needs an output", hint="For example: -o segment.safetensors")
        results = [_segment(stored, *segment)]
        outputs = [output]
    else:
        if not wanted:
            raise UsageError("which length shall the average have?", hint="For example: --sigma-rel 0.10")
        results = [_fitted(stored, one) for one in wanted]
        outputs = output_names(checkpoints, output, wanted)
    snapshots = [_open(path, int(one.step), selection.section) for path, one in zip(paths, stored, strict=True)]
    notes = [f"{path.name} is {_said(one)}" for path, one in zip(paths[:4], stored[:4], strict=True)]
    plans = []
    for result, name in zip(results, outputs, strict=True):
        # Those without a share are no members: the container and the integers are those of the newest that has one.
        shared = [(one, c) for one, c in zip(snapshots, result.coefficients, strict=True) if c]
        newest = max((one for one, _ in shared), key=lambda snapshot: snapshot.step or 0)
        plan = make_plan(
            Members(
                [one for one, _ in shared],
                notes=notes if len(paths) <= 4 else [*notes, f"and {len(paths) - 4} more snapshots"],
                warnings=result.warnings,
            ),
            name,
            coefficients=[c for _, c in shared],
            policy=policy_of(policy, run),
            operation=Operation("ema-apply", {"length": result.text}),
            form=OutputForm(keep_container=not newest.renamed, drop=newest.drop),
        )
        plans.append(plan)
    run_plans(plans, "ema-apply", run, out, [result.details for result in results])


@dataclass(frozen=True)
class _Result:
    text: str
    coefficients: tuple[float, ...]
    warnings: tuple[str, ...]
    details: Details


def _fitted(stored: Sequence[Stored], wanted: Wanted) -> _Result:
    from ckpttool.coefficients.posthoc import retarget, synthesize
    from ckpttool.coefficients.profiles import PowerFunction

    target = wanted.profile()
    powers = isinstance(target, PowerFunction) and all(
        isinstance(one.profile, PowerFunction) and one.profile.gamma > -0.5 for one in stored
    )
    fit = synthesize(stored, target) if powers and isinstance(target, PowerFunction) else retarget(stored, target)
    warnings = []
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
    way = "least squares on the densities" if powers else "least squares on the cumulative shares"
    details = Details(
        rows=[
            ("length", str(wanted)),
            ("profile error", f"{fit.error:.3g} ({way})"),
            ("noise", f"{fit.noise:.3g} (the coefficients without their signs add up to it; 1 is the least)"),
        ],
        document={
            "length": {"kind": wanted.kind, "value": wanted.value},
            "profile_error": fit.error,
            "noise": fit.noise,
            "stored": [{"profile": _said(one), "step": one.step} for one in stored],
        },
        start=f"Synthesising {wanted} from {len(stored)} snapshots: "
        f"profile error {fit.error:.3g}, noise {fit.noise:.3g}.",
    )
    return _Result(str(wanted), fit.coefficients, tuple(warnings), details)


def _segment(stored: Sequence[Stored], start: int, stop: int) -> _Result:
    from ckpttool.coefficients.posthoc import segment

    ends = []
    for step in (start, stop):
        there = [index for index, one in enumerate(stored) if one.step == step]
        if len(there) != 1:
            known = ", ".join(f"{time:g}" for time in sorted({one.step for one in stored}))
            count = "no snapshot" if not there else f"{len(there)} snapshots"
            raise UsageError(
                f"--segment {start}:{stop}: there is {count} of step {step}", hint=f"Snapshots are at {known}."
            )
        ends.append(there[0])
    first, last = ends
    if stored[first].profile != stored[last].profile:
        raise UsageError(f"--segment {start}:{stop}: the two snapshots are of different averages")
    early, late = segment(stored[last].profile, start, stop)
    coefficients = [0.0] * len(stored)
    coefficients[first], coefficients[last] = early, late
    noise = abs(early) + abs(late)
    warnings: list[str] = []
    if noise > NOISE:
        share = f"The average holds only {1 / late:.0%} of the segment; a longer one is safer"
        warnings.append(f"--segment {start}:{stop}: noise grows by {noise:.1f}. {share}")
    text = f"the steps after {start} up to {stop}"
    details = Details(
        rows=[("segment", text), ("profile error", "0 (exact)"), ("noise", f"{noise:.3g}")],
        document={"segment": [start, stop], "profile_error": 0.0, "noise": noise},
        start=f"Cutting out {text}: exact, noise {noise:.3g}.",
    )
    return _Result(text, tuple(coefficients), tuple(warnings), details)


def _said(stored: Stored) -> str:
    from ckpttool.coefficients.profiles import ConstantDecay, PowerFunction, WarmupDecay

    profile = stored.profile
    if isinstance(profile, PowerFunction):
        # Below an exponent of 0 the deviation does not tell two profiles apart.
        return f"the power function with exponent {profile.gamma:.4g} at {stored.step:g}"
    if isinstance(profile, (ConstantDecay, WarmupDecay)):
        rule = "constant decay" if isinstance(profile, ConstantDecay) else "decay with warm-up"
        return f"an average of {rule} {profile.decay:.9g} at step {stored.step:g}"
    return f"{profile} at step {stored.step:g}"


def _snapshots(checkpoints: Sequence[Path], selection: SelectionOptions) -> tuple[list[Path], list[int | None]]:
    """The snapshots of a directory or a list, with the steps that selection knows."""
    from ckpttool.cli._steps import select
    from ckpttool.coefficients.snapshots import snapshot_number

    if len(checkpoints) == 1 and checkpoints[0].is_dir():
        numbered = sorted(
            (path for path in checkpoints[0].iterdir() if snapshot_number(path) is not None),
            key=lambda path: (snapshot_number(path), path.name),
        )
        if is_posthoc(checkpoints):
            low, high = selection.from_step or 0, selection.to_step
            kept = [
                path
                for path in numbered
                if (number := snapshot_number(path)) and low <= number[1] and (high is None or number[1] <= high)
            ]
            if not kept:
                raise NotFoundError(f"{checkpoints[0]}: no snapshot is left", path=checkpoints[0])
            return kept, [None] * len(kept)
        found = select(checkpoints, selection, take_all=True)
        return [entry.path for entry in found.entries], [entry.step for entry in found.entries]
    if all(snapshot_number(path) is not None for path in checkpoints):
        return list(checkpoints), [None] * len(checkpoints)
    found = select(checkpoints, selection, take_all=True)
    return [entry.path for entry in found.entries], [entry.step for entry in found.entries]


def _open(path: Path, step: int, section: str | None) -> _Snapshot:
    """A snapshot's average: the one inside the file where it holds both, else its weights, which are the average."""
    from ckpttool.ema.files import find_stored_average

    try:
        found = find_stored_average(path, section=section)
    except NotFoundError:
        found = None
    if found is None or (found.source is not found.checkpoint):
        from ckpttool.formats import open_checkpoint
        from ckpttool.selection.choice import weights_file

        opened = open_checkpoint(weights_file(path), section=section)
        return _Snapshot(replace(opened, copies={}), step, (), renamed=False)
    if found.uncovered and not found.averaged:
        raise MismatchError(f"{path}: the average in it covers nothing", path=path)
    view = replace(found.checkpoint, weights=found.weights(), copies={})
    return _Snapshot(view, step, found.drop, found.renamed)
