"""The mean over a part of training, from two running means: the plan, and what to know about it.

With M_n the mean of the first n weights of a run, the mean of those after `start` up to `stop` is

    (stop·M_stop - start·M_start) / (stop - start),

exactly, for any window, from two files (icefall's `average_checkpoints_with_averaged_model`). What rounding has left in
the stored means is multiplied by (start + stop) / (stop - start).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckpttool.coefficients.posthoc import window_from_running_means
from ckpttool.ema.running_means import RunningMean, find_running_mean
from ckpttool.errors import MismatchError, UsageError
from ckpttool.formats.wrappers import wrapper_prefix
from ckpttool.planning.plan import Plan
from ckpttool.planning.planner import make_plan
from ckpttool.planning.request import Operation, OutputForm, Policy, members_of
from ckpttool.selection.choice import Discovery
from ckpttool.tensors import Checkpoint, Skipped
from ckpttool.text import Message, first_names, parameter

if TYPE_CHECKING:
    from ckpttool.selection.choice import Entry

__all__ = ["Window", "find_window", "make_window_plan"]

ROUNDING = 1e-5
"""Rounding of the result, as a share of the weights' size, from which on it is a warning."""

_SIGNIFICANT_BITS = {"float64": 53, "complex128": 53, "float32": 24, "complex64": 24, "float16": 11, "bfloat16": 8}
_FEWEST_BITS = 3  # of the float8 kinds, the coarsest


@dataclass(frozen=True)
class Window:
    """A part of training, between two running means.

    Attributes:
        entries: The two checkpoints: where the window begins (itself not in it), and where it ends.
        start: The running mean of the first.
        stop: The running mean of the second.
        intervals: How many checkpoints the window spans; None where only its ends are known.
        stored: The coarsest type that either mean is stored in.
    """

    entries: tuple[Entry, Entry]
    start: RunningMean
    stop: RunningMean
    intervals: int | None
    stored: str

    @property
    def coefficients(self) -> tuple[float, float]:
        """What the two means are multiplied by."""
        return window_from_running_means(self.start.count, self.stop.count)

    @property
    def noise(self) -> float:
        """The coefficients without their signs, added up: by how much the stored means' errors grow; 1 or more."""
        return (self.start.count + self.stop.count) / (self.stop.count - self.start.count)

    @property
    def rounding(self) -> float:
        """Bound on what the rounding of the stored values becomes, as a share of the weights' size."""
        return self.noise * 2.0 ** -_SIGNIFICANT_BITS.get(self.stored, _FEWEST_BITS)

    def describe(self) -> str:
        """The window in the unit of its counts: ``the batches after 45,000 up to 90,000``."""
        return f"the {self.stop.unit} after {self.start.count:,} up to {self.stop.count:,}"


def find_window(found: Discovery) -> Window:
    """The window from the first of the selected checkpoints to the last, by the running means that the two hold.

    Args:
        found: Two checkpoints or more of a model directory, oldest first; or a list of exactly two.

    Raises:
        UsageError: Not two ends, or the mean was not updated between the two.
        MismatchError: One has no running mean, or they are not of one run.
    """
    entries = found.entries
    if len(entries) < 2 or (found.directory is None and len(entries) != 2):
        count = f"{len(entries)} checkpoint{' was' if len(entries) == 1 else 's were'}"
        instance = f", for instance {entries[0].name} and {entries[-1].name}" if entries[2:] else ""
        raise UsageError(
            f"{parameter('window_from_running_mean')}: {count} listed, and a window has two ends",
            hint=f"Name two{instance}: the window is what is between them, without the first. Of a model directory, "
            f"{parameter('last', 'N')} takes the last N checkpoints.",
        )
    first, last = entries[0], entries[-1]
    start, stop = find_running_mean(first.checkpoint), find_running_mean(last.checkpoint)
    # A list is in the order it was typed in.
    steps = (first.step, last.step) if first.step is not None and last.step is not None else (start.count, stop.count)
    if steps[0] > steps[1]:
        first, last, start, stop = last, first, stop, start
    _check_one_run(first, last, start, stop)
    dtypes = {spec.dtype.name for mean in (start, stop) for spec in mean.average.averaged.values()}
    return Window(
        (first, last),
        start,
        stop,
        intervals=None if found.directory is None else len(entries) - 1,
        stored=min(dtypes, key=lambda name: (_SIGNIFICANT_BITS.get(name, _FEWEST_BITS), name), default="float32"),
    )


def _check_one_run(first: Entry, last: Entry, start: RunningMean, stop: RunningMean) -> None:
    names = f"{first.name} and {last.name}"
    if (start.unit, start.average.where, start.average.framework) != (
        stop.unit,
        stop.average.where,
        stop.average.framework,
    ):
        raise MismatchError(
            f"{names} hold different averages: {start.average.where} ({start.average.framework}) and "
            f"{stop.average.where} ({stop.average.framework})",
            path=last.path,
            hint="A window needs the same running mean at two moments of one run.",
        )
    if start.count > stop.count:
        raise MismatchError(
            f"{first.name} holds a mean of {start.count:,} {start.unit}, and the later {last.name} one of "
            f"{stop.count:,}: it was begun anew between them",
            path=last.path,
            hint=f"{parameter('from_step')} begins the window later; {parameter('exclude')} leaves a checkpoint out.",
        )
    if start.count == stop.count:
        rounded = f", since it is updated every {stop.every:,} {stop.unit}" if stop.every > 1 else ""
        raise UsageError(
            f"{names} both hold the mean of the first {stop.count:,} {stop.unit}{rounded}: nothing is between them",
            hint="Take a longer window.",
        )
    # The names of the two may differ by a wrapper's prefix; those of one file and its mean do not.
    cut = [len(wrapper_prefix(mean.average.order)) for mean in (start, stop)]
    lacking = {name[cut[0] :] for name in start.not_averaged} - {name[cut[1] :] for name in stop.not_averaged}
    if lacking:
        raise MismatchError(
            f"{first.path}: the running mean does not cover {first_names(sorted(lacking))}, "
            f"and that of {last.name} does",
            path=first.path,
            tensor=min(lacking),
            hint=f"Was the model changed between the two? {parameter('from_step')} begins the window later.",
        )


@dataclass(frozen=True)
class _Mean:
    """A running mean as a member of a plan."""

    checkpoint: Checkpoint
    step: int | None


def make_window_plan(found: Discovery, output: str, policy: Policy = Policy()) -> tuple[Plan, Window]:
    """Plan the mean over the window from the first selected checkpoint to the last. No weight is read.

    The output is the newest's container with the mean for its weights, in their own types; the running mean itself
    and the training state are left out, since both would be wrong next to it.

    Args:
        found: The selected checkpoints; see `find_window`.
        output: The file to write; see `ckpttool.planning.planner.make_plan`.
        policy: What to do where the two differ; `keep_state` is refused.

    Raises:
        UsageError: As `find_window`, or `keep_state`.
        MismatchError: As `find_window`, or the two do not fit together.
    """
    if policy.keep_state:
        raise UsageError(
            f"{parameter('keep_state', True)}: training that goes on from a window's mean would go on from the wrong "
            "running mean, too",
            hint="Resume from the checkpoint itself; the output is for inference.",
        )
    window = find_window(found)
    stop = window.stop
    first, last = window.entries
    plan = make_plan(
        members_of(
            found,
            entries=[_Mean(window.start.view(), first.step), _Mean(stop.view(), last.step)],
            skipped=_skipped(found, window),
            notes=_notes(window),
            warnings=_warnings(window),
        ),
        output,
        coefficients=window.coefficients,
        policy=policy,
        operation=Operation(
            details={
                "window_from_running_mean": {
                    "framework": stop.average.framework,
                    "where": stop.average.where,
                    "after": window.start.count,
                    "up_to": stop.count,
                    "unit": stop.unit,
                }
            }
        ),
        form=OutputForm(
            keep_container=not stop.average.renamed,
            drop=stop.average.drop,
            like=stop.average.trained,
            from_newest=stop.not_averaged,
        ),
    )
    return replace(plan, notes=(*plan.notes, *_narrowed(plan, window, policy.dtype))), window


def _skipped(found: Discovery, window: Window) -> Sequence[Skipped]:
    inside = [entry for entry in found.entries if entry not in window.entries]
    reason = "inside the window: only its ends are read"
    return [Skipped(entry.path, reason) for entry in inside]


def _notes(window: Window) -> list[str]:
    stop = window.stop
    notes = [*stop.notes]
    for entry, mean in zip(window.entries, (window.start, stop), strict=True):
        if mean.stated != mean.count:
            notes.append(
                f"{entry.name} was saved at batch {mean.stated:,}, and its mean is that up to batch {mean.count:,}: "
                f"it is updated every {mean.every:,}"
            )
    if stop.average.uncovered:
        notes.append(
            f"the running mean does not cover {first_names(stop.average.uncovered)}: taken from "
            f"{window.entries[1].name} as trained"
        )
    if stop.copied:
        notes.append(
            f"batch-norm statistics are the newest's ({first_names(stop.copied)}), since it is not known whether they "
            "were averaged; re-estimate them on data if accuracy depends on it"
        )
    if stop.average.checkpoint.state:
        notes.append(f"training state left out: {', '.join(stop.average.checkpoint.state)}")
    if stop.average.renamed:
        notes.append("the container has other names, so the output is a plain file of the weights")
    return notes


def _warnings(window: Window) -> list[str]:
    warnings = [*dict.fromkeys((*window.start.average.warnings, *window.stop.average.warnings))]
    if window.start.every != window.stop.every:
        warnings.append(
            f"the mean is updated every {window.start.every:,} {window.stop.unit} in {window.entries[0].name} and "
            f"every {window.stop.every:,} in {window.entries[1].name}: where that changed, a few count more than others"
        )
    if window.rounding > ROUNDING:
        warnings.append(
            f"the means are stored as {window.stored}, and what rounding has left in them grows {window.noise:.3g} "
            f"times, to as much as {window.rounding:.1e} of the weights' size. A longer window is safer"
        )
    return warnings


def _narrowed(plan: Plan, window: Window, dtype: str) -> list[str]:
    """What to say where the mean is stored in another type than the weights are written in."""
    outputs = plan.artifact.tensors
    pairs = {
        (str(spec.dtype), str(outputs["", name].dtype))
        for name, spec in window.stop.average.averaged.items()
        if ("", name) in outputs and name not in window.stop.copied
    }
    own = f", the weights' own type; {parameter('dtype', window.stored)} keeps it" if dtype == "same" else ""
    return [
        Message(f"the mean is stored as {stored} and written as {written}{own}")
        for stored, written in sorted(pairs)
        if stored != written
    ]
