"""The moving average that a checkpoint holds: put in the weights' place, or listed with what its numbers say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ckpttool._version import __version__
from ckpttool.ema.diagnosis import Diagnosis, diagnose
from ckpttool.ema.files import find_stored_average, folder_average
from ckpttool.ema.stored_average import Origin, StoredAverage, already_in_place
from ckpttool.errors import NotFoundError, UsageError
from ckpttool.formats import open_checkpoint, weights_file
from ckpttool.operations.inputs import find_checkpoints
from ckpttool.operations.names import check_sources
from ckpttool.operations.opennmt_config import AveragingConfig
from ckpttool.operations.records import Planned, PlannedOutput, Selection
from ckpttool.planning.destination import find_place
from ckpttool.planning.matching import ties
from ckpttool.planning.plan import Member, Plan, PlannedTensor, Term
from ckpttool.planning.planner import assemble, output_tensor
from ckpttool.planning.request import OutputDType, Policy
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import TensorId
from ckpttool.text import Message, ending, parameter

__all__ = [
    "ListedAverage",
    "describe_average",
    "is_one_checkpoint",
    "list_averages",
    "make_stored_plan",
    "plan_stored_ema",
]


@dataclass(frozen=True)
class ListedAverage:
    """An average that a checkpoint holds, and its diagnosis.

    Attributes:
        path: The checkpoint, as it was named.
        average: What was found.
        diagnosis: Equal to the weights, frozen, partial, NaN.
    """

    path: Path
    average: StoredAverage
    diagnosis: Diagnosis

    def __repr__(self) -> str:
        found = ", ".join(finding.kind for finding in self.diagnosis.findings)
        return f"<ListedAverage {ending(self.path, 60)}: {ending(describe_average(self.average))}, {found}>"


def is_one_checkpoint(path: Path, snapshot: Snapshot) -> bool:
    """Whether a path is one checkpoint: a file, a directory with weights in it, or with weights and their average."""
    if not snapshot.is_dir(path):
        return snapshot.exists(path)
    return weights_file(path, snapshot) != path or folder_average(path, snapshot) is not None


def describe_average(found: StoredAverage) -> str:
    """What an average is and where, as a phrase."""
    inside = "" if found.source is found.checkpoint else f", a file next to {found.checkpoint.path.name}"
    return f"the {found.kind} at {found.where}{inside} ({found.framework})"


def plan_stored_ema(
    source: Path,
    output: str | None,
    *,
    section: str | None = None,
    slot: str | None = None,
    names_from: Path | None = None,
    policy: Policy = Policy(),
    configured: AveragingConfig | None = None,
    snapshot: Snapshot | None = None,
) -> Planned[StoredAverage]:
    """Plan the output that has a checkpoint's stored average for its weights. Nothing is written.

    Args:
        source: A checkpoint file or directory.
        output: The file to write; its suffix chooses the format.
        section: Dotted key path of the trained weights, where they are not found by themselves.
        slot: Which average, where there are several.
        names_from: A checkpoint with the names that the average lacks.
        policy: Element type, and what may be overwritten or pass.
        configured: What the run's configuration says of the weights, which may be an average without saying it.
        snapshot: What is seen of the storage.

    Raises:
        CkpttoolError: There is no average, or it cannot be applied; see `ckpttool.errors`.
    """
    snapshot = snapshot or Snapshot()
    try:
        found = find_stored_average(source, section=section, slot=slot, names_from=names_from, snapshot=snapshot)
    except NotFoundError:
        if configured is None or configured.moving_average_decay is None:
            raise
        found = _as_configured(source, section, configured, snapshot)
    if output is None:
        example = f"{source.name.split('.')[0]}-ema.safetensors"
        raise UsageError(
            f"{source}: found {describe_average(found)}, and there is no output to write it to",
            hint=f"For example: {parameter('output', example)}. {parameter('list')} says what was found, and what its "
            "numbers say.",
        )
    return Planned((PlannedOutput(make_stored_plan(found, output, policy), found),))


def _as_configured(source: Path, section: str | None, configured: AveragingConfig, snapshot: Snapshot) -> StoredAverage:
    """A checkpoint whose weights are the average, which only the run's configuration says."""
    checkpoint = open_checkpoint(weights_file(source, snapshot), section=section, snapshot=snapshot)
    why = (
        f"{configured.path.name} has moving_average_decay {configured.moving_average_decay:g}, with which OpenNMT-tf "
        "saves the average in the weights' place"
    )
    origin = Origin("OpenNMT-tf", checkpoint.section or "the top level", why)
    return already_in_place(checkpoint, checkpoint.weights, origin)


def list_averages(
    sources: Sequence[Path],
    *,
    selection: Selection = Selection(),
    slot: str | None = None,
    names_from: Path | None = None,
) -> tuple[ListedAverage, ...]:
    """The averages that checkpoints hold, and what their numbers say; of two of one run, whether the average moves.

    Args:
        sources: The checkpoints, or one model directory, whose newest two are taken.
        selection: Names of the directory's checkpoints to look at, and where the weights are in them.
        slot: Which average, where there are several.
        names_from: A checkpoint with the names that the averages lack.

    Raises:
        NotFoundError: A checkpoint holds none.
        CkpttoolError: It cannot be read; see `ckpttool.errors`.
    """
    snapshot = Snapshot()
    paths = check_sources(sources, snapshot)
    if len(paths) == 1 and snapshot.is_dir(paths[0]) and not is_one_checkpoint(paths[0], snapshot):
        paths = [entry.path for entry in find_checkpoints(paths[0], selection, snapshot).entries[-2:]]
    listed: list[ListedAverage] = []
    for path in paths:
        found = find_stored_average(
            path, section=selection.section, slot=slot, names_from=names_from, snapshot=snapshot
        )
        listed.append(ListedAverage(path, found, diagnose(found, listed[-1].average if listed else None)))
    return tuple(listed)


def make_stored_plan(
    found: StoredAverage,
    output: str,
    policy: Policy = Policy(),
) -> Plan:
    """Plan the output that has the average for its weights. No weight is read, and nothing is written.

    Args:
        found: The average.
        output: The file to write; its suffix chooses the format.
        policy: What the output keeps. The dtype "same" is that of the trained weights; `keep_state` is refused, since
            an optimizer's state belongs to the trained weights.

    Raises:
        UsageError: `keep_state`, or an output that nothing can write.
    """
    if policy.keep_state:
        raise UsageError(
            f"{parameter('keep_state', True)}: the optimizer's state belongs to the trained weights, and would be "
            "wrong for their average",
            hint="Resume from the checkpoint itself; the output is for inference.",
        )
    main = Member(found.checkpoint, 0.0, found.checkpoint.step)
    apart = found.source is not found.checkpoint
    source = Member(found.source, 1.0, found.source.step)
    members = [source, main] if apart else [source]
    place = find_place(
        output,
        [member.checkpoint for member in members],
        keep_state=False,
        keep_container=not found.renamed,
    )
    weights = {("", name): spec for name, spec in found.weights().items()}
    tied = ties(weights)
    tensors = tuple(
        _planned(name, found, len(members) - 1, policy.dtype, keeps_order=place.template is not None)
        for name in weights
        if name not in tied
    )
    plan = assemble(
        place,
        members,
        tensors,
        tuple(weights),
        tied,
        drop=found.drop,
        provenance={
            "ckpttool": __version__,
            "operation": "ema-apply",
            "members": [
                {"name": member.checkpoint.path.name, "step": member.step, "coefficient": member.coefficient}
                for member in members
            ],
            "dtype": policy.dtype,
            "average": {"framework": found.framework, "where": found.where, "applied_already": found.in_place},
        },
        policy=policy,
    )
    return _with_notes(plan, found, policy.dtype)


def _planned(
    name: TensorId, found: StoredAverage, newest: int, dtype: OutputDType, *, keeps_order: bool
) -> PlannedTensor:
    spec = found.averaged.get(name[1])
    if spec is None:
        kept = found.kept[name[1]]
        return PlannedTensor(
            name, "newest", output_tensor(kept, "same", keeps_order=keeps_order), (Term(newest, 1.0, kept),)
        )
    output = output_tensor(found.trained.get(name[1], spec), dtype, keeps_order=keeps_order)
    return PlannedTensor(name, "average", output, (Term(0, 1.0, spec),))


def _with_notes(plan: Plan, found: StoredAverage, dtype: OutputDType) -> Plan:
    notes = [*plan.notes, *found.notes]
    if found.in_place:
        notes.insert(
            0, "the average is in the weights' place already: nothing has to be applied, and nothing is undone"
        )
    narrowed = {
        (str(spec.dtype), str(plan.artifact.tensors["", name].dtype))
        for name, spec in found.averaged.items()
        if spec.dtype != plan.artifact.tensors["", name].dtype
    }
    for stored, written in sorted(narrowed):
        kept = f", the weights' own type; {parameter('dtype', stored)} keeps it" if dtype == "same" else ""
        notes.append(Message(f"the average is stored as {stored} and written as {written}{kept}"))
    state = found.checkpoint.state
    if state:
        notes.append(f"training state left out, since it belongs to the trained weights: {', '.join(state)}")
    if found.renamed:
        notes.append("the container has other names, so the output is a plain file of the weights")
    return replace(plan, notes=tuple(notes), warnings=found.warnings)
