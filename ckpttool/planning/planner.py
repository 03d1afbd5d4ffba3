"""Makes plans. No weight is read, nothing is written, and all that can be refused is refused here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckpttool._version import __version__
from ckpttool.errors import UsageError
from ckpttool.planning.configurations import compare_configurations
from ckpttool.planning.destination import Place, find_place
from ckpttool.planning.matching import Matched, match, ties
from ckpttool.planning.notes import notes_of, tie_notes
from ckpttool.planning.plan import Action, Equality, Member, Plan, PlannedTensor, Term
from ckpttool.planning.quantized import check_complete, compare_scales
from ckpttool.planning.request import Operation, OutputDType, OutputForm, Policy, Selected
from ckpttool.tensors import DTYPES, Artifact, OutputTensor, TensorId, TensorSpec
from ckpttool.text import distinct_labels, parameter, tensor_label, unicode_only

__all__ = ["assemble", "make_plan", "output_tensor"]


def make_plan(
    selected: Selected,
    output: str | Path,
    *,
    coefficients: Sequence[float] | None = None,
    policy: Policy = Policy(),
    operation: Operation = Operation(),
    form: OutputForm = OutputForm(),
) -> Plan:
    """Plan a weighted sum of checkpoints. No weight is read, and nothing is written.

    Whether the output may be written where it is planned is what `ckpttool.planning.destination.check_destinations`
    says of a plan; `ckpttool.execute` begins with it.

    Args:
        selected: The members, in the order of `coefficients`. The newest is the one of the highest step where all
            have a step, else the last.
        output: The file to write; its suffix chooses the format. An existing directory, or a path that ends in a
            separator: the newest member's file name in there. Where the newest member is a directory, and the suffix
            is not that of a file: the directory to write, or with a separator at its end the one to write it into.
        coefficients: What each member is multiplied by; None for the uniform mean.
        policy: What to do where members differ, and what the output keeps.
        operation: What the coefficients mean, for the provenance.
        form: What the output takes from the newest member.

    Raises:
        UsageError: The request contradicts itself.
        MismatchError: The members do not fit together.
    """
    entries = selected.entries
    if not entries:
        raise UsageError("there is nothing to average", hint="Name a model directory, or checkpoint files.")
    shares = list(coefficients) if coefficients is not None else [1 / len(entries)] * len(entries)
    if len(shares) != len(entries):
        raise UsageError(f"{len(shares)} weights were given for {len(entries)} checkpoints")
    members = _in_canonical_order([Member(e.checkpoint, c, e.step) for e, c in zip(entries, shares, strict=True)])
    checkpoints = [member.checkpoint for member in members]
    place = find_place(
        output,
        checkpoints,
        keep_state=policy.keep_state,
        keep_container=form.keep_container,
    )
    newest = checkpoints[-1]

    holds_copies = place.template is not None and bool(newest.copies)
    matched = match(checkpoints, len(members) - 1, policy.keys, with_copies=holds_copies)
    tied = _kept_ties(matched)
    matched = replace(matched, alone=matched.alone | {("", name) for name in form.from_newest})
    weights = [1.0] * len(members) if coefficients is None else [member.coefficient for member in members]
    counting = [checkpoint for checkpoint, weight in zip(checkpoints, weights, strict=True) if weight != 0] or [newest]
    differing = compare_configurations(counting)
    packed = check_complete(matched, checkpoints, weights)
    like = form.like or {}
    tensors = tuple(
        _plan_tensor(
            name,
            matched,
            weights,
            tied,
            like.get(name[1]) if not name[0] else None,
            replace(policy, dtype="same") if name in packed.kept else policy,
            packed.equal.get(name),
            keeps_order=place.template is not None,
        )
        for name in matched.names
        if name not in tied
    )
    compare_scales(tensors, members, packed)
    plan = assemble(
        place,
        members,
        tensors,
        matched.names,
        tied,
        divisor=float(len(members)) if coefficients is None else 1.0,
        drop=form.drop,
        policy=policy,
        provenance=_provenance(members, selected.unit, operation, policy),
    )
    told = notes_of(checkpoints, matched, plan.artifact, policy.dtype, holds_copies=holds_copies)
    return replace(
        plan,
        selection=selected.why,
        unit=selected.unit,
        skipped=tuple(selected.skipped),
        notes=(*selected.notes, *matched.notes, *told, *plan.notes),
        warnings=(*selected.warnings, *differing, *(packed.warnings if len(counting) > 1 else ())),
    )


def assemble(
    place: Place,
    members: Sequence[Member],
    tensors: Sequence[PlannedTensor],
    names: Sequence[TensorId],
    tied: Mapping[TensorId, TensorId],
    *,
    divisor: float = 1.0,
    drop: Sequence[tuple[str | int, ...]] = (),
    policy: Policy = Policy(),
    provenance: Mapping[str, Any] | None = None,
) -> Plan:
    """Lay out what has been decided.

    Args:
        place: Where it goes.
        members: Whose tensors the terms are; the last is the newest.
        tensors: What is computed; of tied tensors only the first.
        names: Every name of the output, in output order.
        tied: Of tied names, each but the first, mapped to the first.
        divisor: See `Plan`.
        drop: Key paths of the template's container that are left out.
        policy: What the output keeps, and how it is written.
        provenance: What the output is made of.

    Raises:
        UsageError: The format has no shards.
    """
    if policy.max_shard_size is not None and not place.writer.writes_shards:
        raise UsageError(
            f"{place.path.name} is written by the format {place.writer.name}, which has no shards of a chosen size",
            hint=f"{parameter('max_shard_size')} is for directories in the layout of Hugging Face.",
        )
    outputs = {tensor.id: tensor.output for tensor in tensors}
    artifact = Artifact(
        tensors={name: outputs[tied.get(name, name)] for name in names},
        ties=tied,
        template=place.template,
        drop=tuple(drop) if place.template is not None else (),
        keep_state=policy.keep_state,
        provenance=provenance or {},
        stem=_stem(place.path),
        max_shard_bytes=policy.max_shard_size,
    )
    return Plan(
        members=tuple(members),
        divisor=divisor,
        tensors=tuple(tensors),
        output=place.path,
        format=place.writer.written_format,
        artifact=artifact,
        files=place.writer.lay_out(artifact),
        notes=tie_notes(artifact, place.writer.written_format),
        force=policy.force,
        allow_nonfinite=policy.allow_nonfinite,
    )


def _in_canonical_order(members: list[Member]) -> list[Member]:
    """By step where all have one, so that the result does not depend on the order of arguments; else as given."""
    if all(member.step is not None for member in members):
        return sorted(members, key=lambda m: (m.step, m.checkpoint.path.name, str(m.checkpoint.path)))
    return members


def _kept_ties(matched: Matched) -> dict[TensorId, TensorId]:
    """The newest member's ties among the tensors of the output."""
    newest = matched.found[-1]
    return ties({name: newest[name] for name in matched.names})


def _plan_tensor(
    name: TensorId,
    matched: Matched,
    weights: Sequence[float],
    tied: Mapping[TensorId, TensorId],
    like: TensorSpec | None,
    policy: Policy,
    equality: Equality | None,
    *,
    keeps_order: bool,
) -> PlannedTensor:
    spec = matched.found[-1][name]
    averaged = spec.dtype.is_averaged and name not in matched.alone and equality is None
    if name in matched.alone:
        last = Term(len(weights) - 1, 1.0, spec)
        return PlannedTensor(name, "newest", output_tensor(spec, policy.dtype, keeps_order=keeps_order), (last,))
    output = output_tensor(like if like is not None and averaged else spec, policy.dtype, keeps_order=keeps_order)
    terms = tuple(
        Term(index, weight, tensors[name])
        for index, (tensors, weight) in enumerate(zip(matched.found, weights, strict=True))
        if weight != 0 or not (averaged or equality)
    )
    aliases = [alias for alias, original in tied.items() if original == name]
    must_equal = tuple(
        (tensor_label(alias), tensors[name], tensors[alias])
        for tensors in matched.found
        for alias in aliases
        if tensors[alias] != tensors[name]
    )
    if equality is not None:
        return PlannedTensor(name, "equal", output, terms, len(terms) - 1, equality, must_equal)
    action: Action = "average" if averaged else "equal" if policy.integers == "error" else "newest"
    return PlannedTensor(name, action, output, terms, len(terms) - 1, must_equal=must_equal)


def output_tensor(like: TensorSpec, dtype: OutputDType, *, keeps_order: bool = True) -> OutputTensor:
    """A tensor as it is written in the place of `like`: with its dtype unless asked, and its order of dimensions.

    A format holds the orders of dimensions that its own files have (`keeps_order`); another may know C order alone.
    """
    out_dtype = DTYPES[dtype] if dtype != "same" and like.dtype.kind == "float" else like.dtype
    return OutputTensor(out_dtype, like.shape, like.strides if like.is_dense and keeps_order else None)


def _stem(path: Path) -> str:
    """The name without its suffixes; ``model`` for ``model.pth.tar``. Steps keep their points (``step=1.5``)."""
    name = path.name
    for suffix in (".tar", path.suffix if path.suffix != ".tar" else path.with_suffix("").suffix):
        name = name.removesuffix(suffix)
    return name or "archive"


def _provenance(members: Sequence[Member], unit: str, operation: Operation, policy: Policy) -> dict[str, Any]:
    """What the output was made of. Names without directories and no times, so that equal inputs give equal bytes."""
    return {
        "ckpttool": __version__,
        "operation": operation.name,
        "members": [
            {"name": unicode_only(name), unit: m.step, "coefficient": m.coefficient}
            for m, name in zip(members, distinct_labels([m.checkpoint.path for m in members]), strict=True)
        ],
        "dtype": policy.dtype,
        "keys": policy.keys,
        **operation.details,
    }
