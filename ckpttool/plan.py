"""The plan: what will be done, and every reason not to.

A plan is made without reading a single weight, and all that can be refused is refused here.
`ckpttool.engine` executes it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from ckpttool import __version__
from ckpttool.errors import OutputExistsError, UsageError, WriteError
from ckpttool.formats import Format, format_for_output, get_format, writes_directory, writes_model_directory
from ckpttool.matching import KeyPolicy, Matched, first_names, match, spoken, ties
from ckpttool.tensors import DTYPES, Artifact, Checkpoint, OutputFile, OutputTensor, Skipped, TensorId, TensorSpec

__all__ = [
    "Action",
    "Entry",
    "Member",
    "Place",
    "Plan",
    "PlannedTensor",
    "Term",
    "assemble",
    "find_place",
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
            names, and in this member they are two tensors.
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
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    force: bool = False
    allow_nonfinite: bool = False

    @property
    def bytes_to_read(self) -> int:
        """Bytes of weights that will be read, all members together."""
        terms = sum(term.tensor.nbytes for tensor in self.tensors for term in tensor.terms)
        return terms + sum(copy.source.nbytes for file in self.files for copy in file.copies)

    @property
    def bytes_to_write(self) -> int:
        """Size of the output."""
        return sum(file.nbytes for file in self.files)


OutputDType = Literal["same", "float32", "bfloat16", "float16", "float64"]
IntegerPolicy = Literal["newest", "error"]


class Entry(Protocol):
    """A checkpoint that was selected: what `ckpttool.selection` yields."""

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
    max_shard_bytes: int | None = None,
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
        max_shard_bytes: Split the output's weights anew, for formats that have shards.
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
    place = find_place(output, members, keep_state=keep_state, keep_container=keep_container, force=force)
    newest = members[-1].checkpoint

    holds_copies = place.template is not None and bool(newest.copies)
    checkpoints = [member.checkpoint for member in members]
    matched = match(checkpoints, len(members) - 1, keys, with_copies=holds_copies)
    tied = _kept_ties(matched)
    weights = [1.0] * len(members) if coefficients is None else [member.coefficient for member in members]
    tensors = tuple(
        _plan_tensor(name, matched, weights, checkpoints, tied, dtype, integers, keeps_order=place.template is not None)
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
        provenance=_provenance(members, operation, dtype, keys, details),
        force=force,
        allow_nonfinite=allow_nonfinite,
    )
    told = _notes(checkpoints, matched, plan.artifact, dtype, holds_copies=holds_copies)
    return replace(
        plan, skipped=tuple(skipped), notes=(*notes, *matched.notes, *told), warnings=(*warnings, *_warnings(matched))
    )


@dataclass(frozen=True)
class Place:
    """Where an output goes, who writes it, and whose container it keeps."""

    path: Path
    writer: Format
    template: Checkpoint | None


def find_place(
    output: str | Path, members: Sequence[Member], *, keep_state: bool, force: bool, keep_container: bool = True
) -> Place:
    """Where the output goes: its suffix chooses the format, and the last member's container is kept where it can be.

    Args:
        output: As the user named it.
        members: The last one's container is kept.
        keep_state: Whether the training state shall be kept as well.
        force: Whether an existing output may be replaced.
        keep_container: False for names that the container does not have: the output is a plain file of the weights.

    Raises:
        UsageError: Nothing can write such a file, or not with the training state.
        OutputExistsError: It exists (without `force`) or is an input.
        WriteError: Its directory cannot be written.
    """
    newest = members[-1].checkpoint
    path, writer = _path_and_writer(output, newest)
    template = newest if newest.format == writer.NAME and keep_container else None
    if keep_state and template is None:
        raise UsageError(
            f"--keep-state needs an output of the newest checkpoint's own format, and {path.name} is not",
            hint=f"Name an output of the format {newest.format}, or leave --keep-state out.",
        )
    _check_output(path, members, force=force, is_directory=writes_directory(writer))
    return Place(path, writer, template)


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
    if max_shard_bytes is not None and place.writer.NAME != "huggingface":
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
        format=place.writer.NAME,
        artifact=artifact,
        files=place.writer.lay_out(artifact),
        force=force,
        allow_nonfinite=allow_nonfinite,
    )
    _check_room(place.path, plan.bytes_to_write)
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
    checkpoints: Sequence[Checkpoint],
    tied: Mapping[TensorId, TensorId],
    dtype: OutputDType,
    integers: IntegerPolicy,
    *,
    keeps_order: bool,
) -> PlannedTensor:
    spec = matched.found[-1][name]
    averaged = spec.dtype.is_averaged and name not in matched.alone
    output = output_tensor(spec, dtype, keeps_order=keeps_order)
    if name in matched.alone:
        last = Term(len(weights) - 1, 1.0, spec)
        return PlannedTensor(name, "newest", output, (last,))
    terms = tuple(
        Term(index, weight, tensors[name])
        for index, (tensors, weight) in enumerate(zip(matched.found, weights, strict=True))
        if weight != 0 or not averaged
    )
    aliases = [alias for alias, original in tied.items() if original == name]
    must_equal = tuple(
        (str(checkpoint.path), tensors[name], tensors[alias])
        for checkpoint, tensors in zip(checkpoints, matched.found, strict=True)
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


def _path_and_writer(output: str | Path, newest: Checkpoint) -> tuple[Path, Format]:
    """Where the output goes, and who writes it."""
    path = Path(output)
    own = get_format(newest.format)
    into = str(output).endswith(("/", os.sep))  # a Path does not keep the separator at its end
    if into and writes_model_directory(own):
        return path, own
    if into or (path.is_dir() and not writes_directory(own)):
        return path / newest.path.name, own
    writer = format_for_output(path, newest)
    if writer is not own and newest.format == "parts" and len(newest.container.parts) > 1:
        raise UsageError(
            f"{newest.path.name} is in {len(newest.container.parts)} files that hold pieces of tensors or of a model;"
            f" they cannot be joined in {path.name}",
            hint="-o DIRECTORY writes the same files again; the framework's own converter joins them.",
        )
    return path, writer


def _stem(path: Path) -> str:
    """The name without its suffixes; ``model`` for ``model.pth.tar``. Steps keep their points (``step=1.5``)."""
    name = path.name
    for suffix in (".tar", path.suffix if path.suffix != ".tar" else path.with_suffix("").suffix):
        name = name.removesuffix(suffix)
    return name or "archive"


def _check_output(path: Path, members: Sequence[Member], *, force: bool, is_directory: bool = False) -> None:
    for member in members:
        inside = member.checkpoint.path
        if inside.is_dir() and inside.resolve() in path.resolve().parents:
            raise OutputExistsError(
                f"{path}: the output lies in one of the inputs, {inside}",
                path=path,
                hint="Inputs are never written to. Choose -o.",
            )
        for file in (member.checkpoint.path, *member.checkpoint.files):
            if _is_same_file(path, file):
                raise OutputExistsError(
                    f"{path}: the output is one of the inputs",
                    path=path,
                    hint="Inputs are never written to. Choose -o.",
                )
    if path.is_symlink() or path.exists():
        if path.is_dir() and not is_directory:
            raise OutputExistsError(f"{path}: a directory is in the way", path=path)
        if path.exists() and is_directory and not path.is_dir():
            raise OutputExistsError(
                f"{path}: a file is in the way of the output, which is a directory",
                path=path,
                hint="-o writes somewhere else.",
            )
        if is_directory and not force and any(path.iterdir()):
            raise OutputExistsError(
                f"{path}: exists already",
                path=path,
                hint=f"--force replaces an earlier output; -o {path}{os.sep} writes into the directory.",
            )
        if not is_directory and not force:
            raise OutputExistsError(
                f"{path}: exists already", path=path, hint="--force replaces it; -o writes somewhere else."
            )
    parent = _nearest_directory(path.parent)
    if not parent.is_dir():
        raise WriteError(f"{path}: {parent} is not a directory", path=path)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise WriteError(f"{path}: no permission to write in {parent}", path=path, hint="-o writes somewhere else.")


def _nearest_directory(path: Path) -> Path:
    """The deepest part of a path that exists; the rest is made when the output is written."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one == other


def _check_room(path: Path, nbytes: int) -> None:
    free = shutil.disk_usage(_nearest_directory(path.parent)).free
    if free < nbytes:
        raise WriteError(
            f"{path}: the output needs {nbytes:,} bytes and the disk has {free:,} free",
            path=path,
            hint="-o writes to another disk; --dtype bfloat16 halves a float32 output.",
        )


def _provenance(
    members: Sequence[Member], operation: str, dtype: str, keys: str, details: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the output was made of. Names without directories and no times, so that equal inputs give equal bytes."""
    return {
        "ckpttool": __version__,
        "operation": operation,
        "members": [{"name": m.checkpoint.path.name, "step": m.step, "coefficient": m.coefficient} for m in members],
        "dtype": dtype,
        "keys": keys,
        **(details or {}),
    }


def _notes(
    checkpoints: Sequence[Checkpoint], matched: Matched, artifact: Artifact, dtype: str, *, holds_copies: bool
) -> tuple[str, ...]:
    newest = checkpoints[-1]
    said = [note for c in checkpoints for note in c.notes]
    shared = {note for note in said if all(note in c.notes for c in checkpoints)}
    notes = list(dict.fromkeys(note for note in said if note in shared))
    notes += [f"{c.path.name}: {note}" for c in checkpoints for note in c.notes if note not in shared]
    by_dtype = {
        tuple(str(found[name].dtype) for found in matched.found if name in found): name for name in matched.names
    }
    mixed = [(dtypes, name) for dtypes, name in by_dtype.items() if len(set(dtypes)) > 1]
    for dtypes, name in mixed:
        kept = artifact.tensors[name].dtype
        notes.append(
            f"dtypes differ between members ({', '.join(dict.fromkeys(dtypes))}), as in {spoken(name)}; "
            f"the output is {kept}"
        )
    if dtype != "same":
        notes.append(f"the averaged tensors are written as {dtype}")
        stated = newest.values.get("config.dtype", dtype)
        if artifact.template is not None and stated != dtype:
            notes.append(
                f"config.json is copied and states {stated}, by which transformers loads: pass dtype={dtype!r}"
            )
    integers = [name for name in matched.names if not matched.found[-1][name].dtype.is_averaged]
    if integers:
        notes.append(f"{_count(integers, 'integer or bool tensor')} kept from {newest.path.name}, not averaged")
    if newest.copies and holds_copies:
        notes.append(f"averaged with its own kind: the copy of the weights in {', '.join(newest.copies)}")
    elif newest.copies:
        notes.append(
            f"the copy of the weights in {', '.join(newest.copies)} is left out; "
            f"--section {next(iter(newest.copies))} averages it instead"
        )
    unmatched = [c.path.name for c in checkpoints[:-1] if c.copies and not newest.copies]
    if unmatched:
        notes.append(f"copies of the weights in {first_names(unmatched)} are left out: the newest has none")
    if newest.state and not artifact.keep_state:
        notes.append(
            f"training state left out: {', '.join(newest.state)}"
            + (" (--keep-state keeps it)" if artifact.template else "")
        )
    statistics = [name for name in matched.names if name[1].endswith(("running_mean", "running_var"))]
    if statistics:
        notes.append(
            f"{_count(statistics, 'batch-norm statistic')} averaged as stored; "
            "re-estimate them on data if accuracy depends on it"
        )
    return tuple(notes)


def _warnings(matched: Matched) -> tuple[str, ...]:
    newest = matched.found[-1]
    eights = [
        name
        for name in matched.names
        if newest[name].dtype.name.startswith("float8") and newest[name].dtype.is_averaged
    ]
    scaled = any(name[1].endswith(("_scale", "_scale_inv", ".scale")) for name in matched.names)
    if eights and scaled:
        found = f"{_count(eights, 'float8 tensor')} with scales of their own, as {spoken(eights[0])}"
        return (f"{found}: a mean of scaled numbers is right only if all members have the same scales",)
    return ()


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things):,} {noun}" + ("" if len(things) == 1 else "s")
