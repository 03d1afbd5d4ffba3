"""The plan that puts a stored moving average in the weights' place: the same container, without the average's own."""

from __future__ import annotations

from dataclasses import replace

from ckpttool._version import __version__
from ckpttool.ema.stored_average import StoredAverage
from ckpttool.errors import UsageError
from ckpttool.planning.destination import find_place
from ckpttool.planning.matching import ties
from ckpttool.planning.plan import Member, Plan, PlannedTensor, Term
from ckpttool.planning.planner import assemble, output_tensor
from ckpttool.planning.request import OutputDType, Policy
from ckpttool.tensors import TensorId

__all__ = ["make_stored_plan"]


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
        OutputExistsError: The output exists (without `force`) or is an input.
        WriteError: The output's directory cannot be written, or the disk has no room.
    """
    if policy.keep_state:
        raise UsageError(
            "--keep-state: the optimizer's state belongs to the trained weights, and would be wrong for their average",
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
        force=policy.force,
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
    notes = list(found.notes)
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
        notes.append(
            f"the average is stored as {stored} and written as {written}"
            + (f", the weights' own type; --dtype {stored} keeps it" if dtype == "same" else "")
        )
    state = found.checkpoint.state
    if state:
        notes.append(f"training state left out, since it belongs to the trained weights: {', '.join(state)}")
    if found.renamed:
        notes.append("the container has other names, so the output is a plain file of the weights")
    return replace(plan, notes=tuple(notes), warnings=found.warnings)
