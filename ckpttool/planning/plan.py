"""The plan: what will be done, and every reason not to.

A plan is made without reading a single weight, and all that can be refused is refused here.
`ckpttool.engine.run` executes it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from ckpttool._version import __version__
from ckpttool.errors import UsageError
from ckpttool.formats import writes_shards, written_format
from ckpttool.planning.destination import Place, check_room, find_place
from ckpttool.planning.matching import KeyPolicy, Matched, match, ties
from ckpttool.planning.notes import notes_of, warnings_of
from ckpttool.tensors import DTYPES, Artifact, Checkpoint, OutputFile, OutputTensor, Skipped, TensorId, TensorSpec
from ckpttool.text import tensor_label

__all__ = [
    "Action",
    "Entry",
    "Member",
    "Plan",
    "PlannedTensor",
    "Term",
    "assemble",
    "make_plan",
    "output_tensor",
]

Action = Literal["average", "newest", "equal"]
"""What becomes of a tensor.

    average  the weighted sum of its terms
    newest   the newest member's bytes; the other members are compared, and a difference is reported
    equal    as newest, but a difference is an error
"""


@dataclass(frozen=True, slots=True)
class Member:
    """A checkpoint that takes part, with its share."""

    checkpoint: Checkpoint
    coefficient: float
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """One member's part in a tensor."""

    member: int
    """Index into `Plan.members`."""
    weight: float
    """What its elements are multiplied by before they are added (1 for a uniform mean)."""
    tensor: TensorSpec


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the output: out = (Σ weight · term) / divisor in float64, rounded once to `output.dtype`.

    Attributes:
        id: (section, name).
        action: What becomes of it.
        output: As it shall be written.
        terms: In canonical order (by step, then by name), which fixes the order of summation. Terms of weight 0 are
            left out for action "average", so that they are never read.
        newest: Index into `terms` of the newest member's.
        must_equal: Pairs of tensors of one member that must hold the same values (byte for byte): the output ties two
            names, and in this member they are two tensors. Before each pair, the name of its second.
    """

    id: TensorId
    action: Action
    output: OutputTensor
    terms: tuple[Term, ...]
    newest: int = 0
    must_equal: tuple[tuple[str, TensorSpec, TensorSpec], ...] = ()


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        members: In canonical order: by step where steps are known, then by name.
        newest: Index into `members` of the newest.
        divisor: What each sum is divided by: the number of members for a uniform mean (so that N identical members
            give the same bits back), 1 for any other coefficients.
        tensors: What is computed, in output order. Of tied tensors only the first is here.
        selection: How the members were recognised in their directory: which layout, and why. Empty for named members.
        unit: What the members' steps count: ``step``, ``epoch`` or ``date``.
        skipped: What was seen and left out, with reasons.
        notes: Sentences that the user should read.
        warnings: Sentences that the user must read.
        output: Path of the output.
        force: Whether an existing output may be replaced.
        allow_nonfinite: Whether NaN and infinity may pass.
        format: Name of the output's format.
        artifact: What the format was asked to lay out.
        files: The output, laid out.
    """

    members: tuple[Member, ...]
    newest: int
    divisor: float
    tensors: tuple[PlannedTensor, ...]
    output: Path
    format: str
    artifact: Artifact
    files: tuple[OutputFile, ...]
    selection: str = ""
    unit: str = "step"
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    force: bool = False
    allow_nonfinite: bool = False

    @property
    def bytes_to_read(self) -> int:
        """Bytes that will be read, all members together: weights, what they are compared with, and what is copied."""
        terms = sum(term.tensor.nbytes for tensor in self.tensors for term in tensor.terms)
        compared = {(first, second) for tensor in self.tensors for _, first, second in tensor.must_equal}
        terms += sum(first.nbytes + second.nbytes for first, second in compared)
        return terms + sum(copy.source.nbytes for file in self.files for copy in file.copies)

    @property
    def bytes_to_write(self) -> int:
        """Size of the output."""
        return sum(file.nbytes for file in self.files)


OutputDType = Literal["same", "float32", "bfloat16", "float16", "float64"]
IntegerPolicy = Literal["newest", "error"]


class Entry(Protocol):
    """A checkpoint that was selected: what `ckpttool.selection.choice` yields."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, opened."""

    @property
    def step(self) -> int | None:
        """Its training step, where one is known."""


def make_plan(
    entries: Sequence[Entry],
    output: str | Path,
    *,
    coefficients: Sequence[float] | None = None,
    operation: str = "average",
    dtype: OutputDType = "same",
    keys: KeyPolicy = "strict",
    integers: IntegerPolicy = "newest",
    keep_state: bool = False,
    keep_container: bool = True,
    force: bool = False,
    allow_nonfinite: bool = False,
    drop: Sequence[tuple[str | int, ...]] = (),
    like: Mapping[str, TensorSpec] | None = None,
    from_newest: Collection[str] = (),
    max_shard_bytes: int | None = None,
    selection: str = "",
    unit: str = "step",
    skipped: Sequence[Skipped] = (),
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
) -> Plan:
    """Plan a weighted sum of checkpoints. No weight is read, and nothing is written.

    Args:
        entries: The members, in the order of `coefficients`. The newest is the one of the highest step where all have
            a step, else the last.
        output: The file to write; its suffix chooses the format. An existing directory, or a path that ends in a
            separator: the newest member's file name in there. Where the newest member is a directory, and the suffix
            is not that of a file: the directory to write, or with a separator at its end the one to write it into.
        coefficients: What each member is multiplied by; None for the uniform mean.
        operation: What the coefficients mean, for the provenance: "average", "ema", ...
        dtype: Element type of the averaged tensors; "same" keeps the newest member's.
        keys: What to do about tensors that not all members have.
        integers: Integer and bool tensors are never averaged. "newest": take the newest member's, report differences.
            "error": a difference is an error.
        keep_state: Keep the newest member's training state (optimizer, scaler, scheduler).
        keep_container: Keep what else the newest member's file holds, where the output is of its format.
        force: Replace an existing output.
        allow_nonfinite: Let NaN and infinity pass.
        drop: Key paths of the newest member's container that are left out.
        like: Weights whose dtype and order of dimensions the averaged tensors are written in; of others, and for None,
            the newest member's.
        from_newest: Names of weights that are not averaged: the newest member's are taken, as they are.
        max_shard_bytes: Split the output's weights anew, for formats that have shards.
        selection: How the members were recognised, to be reported with the plan.
        unit: What the members' steps count: "step", "epoch" or "date".
        skipped: What the selection left out, to be reported with the plan.
        notes: What the selection wants to be known.
        warnings: What the selection or the coefficients want to be known by all means.
        details: More facts for the provenance, JSON-able.

    Raises:
        UsageError: The request contradicts itself.
        MismatchError: The members do not fit together.
        OutputExistsError: The output exists (without `force`) or is an input.
        WriteError: The output's directory cannot be written, or the disk has no room.
    """
    if not entries:
        raise UsageError("there is nothing to average", hint="Name a model directory, or checkpoint files.")
    shares = list(coefficients) if coefficients is not None else [1 / len(entries)] * len(entries)
    if len(shares) != len(entries):
        raise UsageError(f"{len(shares)} weights were given for {len(entries)} checkpoints")
    members = _in_canonical_order([Member(e.checkpoint, c, e.step) for e, c in zip(entries, shares, strict=True)])
    checkpoints = [member.checkpoint for member in members]
    place = find_place(output, checkpoints, keep_state=keep_state, keep_container=keep_container, force=force)
    newest = checkpoints[-1]

    holds_copies = place.template is not None and bool(newest.copies)
    matched = match(checkpoints, len(members) - 1, keys, with_copies=holds_copies)
    tied = _kept_ties(matched)
    matched = replace(matched, alone=matched.alone | {("", name) for name in from_newest})
    weights = [1.0] * len(members) if coefficients is None else [member.coefficient for member in members]
    tensors = tuple(
        _plan_tensor(
            name,
            matched,
            weights,
            tied,
            (like or {}).get(name[1]) if not name[0] else None,
            dtype,
            integers,
            keeps_order=place.template is not None,
        )
        for name in matched.names
        if name not in tied
    )
    plan = assemble(
        place,
        members,
        tensors,
        matched.names,
        tied,
        divisor=float(len(members)) if coefficients is None else 1.0,
        drop=drop,
        max_shard_bytes=max_shard_bytes,
        keep_state=keep_state,
        provenance=_provenance(members, unit, operation, dtype, keys, details),
        force=force,
        allow_nonfinite=allow_nonfinite,
    )
    told = notes_of(checkpoints, matched, plan.artifact, dtype, holds_copies=holds_copies)
    return replace(
        plan,
        selection=selection,
        unit=unit,
        skipped=tuple(skipped),
        notes=(*notes, *matched.notes, *told),
        warnings=(*warnings, *warnings_of(matched)),
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
    max_shard_bytes: int | None = None,
    keep_state: bool = False,
    provenance: Mapping[str, Any] | None = None,
    force: bool = False,
    allow_nonfinite: bool = False,
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
        max_shard_bytes: See `make_plan`.
        keep_state: Keep the template's training state.
        provenance: What the output is made of.
        force: See `Plan`.
        allow_nonfinite: See `Plan`.

    Raises:
        UsageError: The format has no shards.
        WriteError: The disk has no room.
    """
    if max_shard_bytes is not None and not writes_shards(place.writer):
        raise UsageError(
            f"{place.path.name} is written by the format {place.writer.NAME}, which has no shards of a chosen size",
            hint="--max-shard-size is for directories in the layout of Hugging Face.",
        )
    outputs = {tensor.id: tensor.output for tensor in tensors}
    artifact = Artifact(
        tensors={name: outputs[tied.get(name, name)] for name in names},
        ties=tied,
        template=place.template,
        drop=tuple(drop) if place.template is not None else (),
        keep_state=keep_state,
        provenance=provenance or {},
        stem=_stem(place.path),
        max_shard_bytes=max_shard_bytes,
    )
    plan = Plan(
        members=tuple(members),
        newest=len(members) - 1,
        divisor=divisor,
        tensors=tuple(tensors),
        output=place.path,
        format=written_format(place.writer),
        artifact=artifact,
        files=place.writer.lay_out(artifact),
        force=force,
        allow_nonfinite=allow_nonfinite,
    )
    check_room(place.path, plan.bytes_to_write)
    return plan


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
    dtype: OutputDType,
    integers: IntegerPolicy,
    *,
    keeps_order: bool,
) -> PlannedTensor:
    spec = matched.found[-1][name]
    averaged = spec.dtype.is_averaged and name not in matched.alone
    if name in matched.alone:
        last = Term(len(weights) - 1, 1.0, spec)
        return PlannedTensor(name, "newest", output_tensor(spec, dtype, keeps_order=keeps_order), (last,))
    output = output_tensor(like if like is not None and averaged else spec, dtype, keeps_order=keeps_order)
    terms = tuple(
        Term(index, weight, tensors[name])
        for index, (tensors, weight) in enumerate(zip(matched.found, weights, strict=True))
        if weight != 0 or not averaged
    )
    aliases = [alias for alias, original in tied.items() if original == name]
    must_equal = tuple(
        (tensor_label(alias), tensors[name], tensors[alias])
        for tensors in matched.found
        for alias in aliases
        if tensors[alias] != tensors[name]
    )
    action: Action = "average" if averaged else "equal" if integers == "error" else "newest"
    return PlannedTensor(name, action, output, terms, len(terms) - 1, must_equal)


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


def _provenance(
    members: Sequence[Member], unit: str, operation: str, dtype: str, keys: str, details: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the output was made of. Names without directories and no times, so that equal inputs give equal bytes."""
    return {
        "ckpttool": __version__,
        "operation": operation,
        "members": [{"name": m.checkpoint.path.name, unit: m.step, "coefficient": m.coefficient} for m in members],
        "dtype": dtype,
        "keys": keys,
        **(details or {}),
    }
