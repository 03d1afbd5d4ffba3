"""Checkpoints in several PyTorch files that belong together: one for each rank, layer or object.

Megatron's and NeMo's `mp_rank_*`, DeepSpeed's and gpt-neox's `*_model_states.pt`, fairseq's `-shardN.pt` and
`_partN.pt`, fairseq2's `model/pp_*/tp_*/sdp_*.pt`, SpeechBrain's `CKPT+...`. The files are averaged one by one, each
with the file of the same name in the other members, and written in the same layout. A tensor's name is that of the file
and its own: ``mp_rank_00:word_embeddings.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path
from typing import Literal

from ckpttool.errors import UnreadableError, UnsupportedError, UsageError
from ckpttool.formats.description import Implementation
from ckpttool.formats.directories import zero
from ckpttool.formats.directories.auxiliary import Auxiliary, AuxiliaryFile, auxiliary_of, matches
from ckpttool.formats.directories.common import (
    MIXED_UP,
    SINGLE_FILE,
    Directory,
    Part,
    collect,
    copied_files,
    lay_out_part,
    layout_row,
    open_part,
    shares,
    with_copied,
)
from ckpttool.formats.directories.trainer_records import configurations
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import Artifact, Checkpoint, OutputFile
from ckpttool.text import Message, first_names, parameter

__all__ = ["IMPLEMENTATION", "NAME", "lay_out", "rank_folders", "read", "recognise"]

NAME = "parts"

RANK = re.compile(r"mp_rank_\d+(?:_\d+)*|tp_rank_\d+_pp_rank_\d+")
_RANK_FILES = ("model_optim_rng.pt", "model_rng.pt", "model_weights.ckpt")
_GROUP = re.compile(r"(?P<stem>.+?)(?P<label>(?:-shard|_part|-model_part-|-part-?)(?P<number>\d+))\.(?P<suffix>pt)")
_STATES = re.compile(
    r"(?:mp_rank_\d+|layer_\d+-model_\d+(?:-\d+)?|layer_\d+_expert_\d+_mp_rank_\d+|expert_\d+_mp_rank_\d+)[-_]model_states\.pt"
)
_ALONE = (
    "model.pt",
    "model.pth",
    "model.ckpt",
    "pytorch_model.pt",
    "model_weights.ckpt",
    "lit_model.pth",
    "lit_model.pth.lora",
)


@dataclass(frozen=True)
class _Found:
    """The files of one checkpoint.

    Attributes:
        kind: Who has saved it.
        files: Label (what precedes the names of its tensors) to path in the directory.
        path: What the checkpoint is called.
    """

    kind: Literal["speechbrain", "megatron", "nemo", "deepspeed", "fairseq", "fairseq2", "one file"]
    files: dict[str, str]
    path: Path


def recognise(path: Path, head: bytes, snapshot: Snapshot) -> bool:  # noqa: ARG001  # the same question to all formats
    """Whether a directory is such a checkpoint; or whether a file is the first of several that are one."""
    if not snapshot.is_dir(path):
        return _group_of(path, snapshot) is not None
    return ".metadata" not in snapshot.names(path) and _find(path, snapshot) is not None


def rank_folders(path: Path, snapshot: Snapshot | None = None) -> list[str]:
    """The folders of a directory that hold one model-parallel rank each."""
    listed = (snapshot or Snapshot()).list(path)
    return [name for name, item in listed.items() if RANK.fullmatch(name) and item.kind == "directory"]


# --- Finding the files -----------------------------------------------------------------------------------------


def _find(path: Path, snapshot: Snapshot) -> _Found | None:
    """What kind of checkpoint a directory is, if it is one."""
    names = snapshot.names(path)
    if "CKPT.yaml" in names:
        state = layout_row("speechbrain").state
        files = {name: name for name in names if name.endswith(".ckpt") and not matches(name, state)}
        return _Found("speechbrain", files, path) if files else None
    ranks = _ranks(path, snapshot)
    if ranks is not None:
        return ranks
    for folder in ("", "checkpoint"):
        found = _states(path, folder, snapshot)
        if found is not None:
            return found
    if "model" in names:
        shards = _fairseq2(path, snapshot)
        if shards:
            return _Found("fairseq2", {name: name for name in shards}, path)
    groups = {match["stem"]: name for name in names if (match := _GROUP.fullmatch(name)) and int(match["number"]) == 0}
    if len(groups) == 1 and all(fnmatchcase(name, f"{next(iter(groups))}*") for name in names):
        group = _group_of(path / next(iter(groups.values())), snapshot)
        if group is not None:
            return _Found(group.kind, group.files, path)
    alone = [name for name in _ALONE if name in names]
    if alone and not any(name.endswith((".safetensors", ".index.json")) for name in names):
        return _Found("one file", {"": alone[0]}, path)
    return None


def _fairseq2(path: Path, snapshot: Snapshot) -> list[str]:
    """``model/pp_*/tp_*/sdp_*.pt``."""
    found = ["model"]
    for pattern in ("pp_*", "tp_*", "sdp_*.pt"):
        found = [
            f"{folder}/{name}"
            for folder in found
            if snapshot.is_dir(path / folder)
            for name in snapshot.names(path / folder)
            if fnmatchcase(name, pattern)
        ]
    return found


def _ranks(path: Path, snapshot: Snapshot) -> _Found | None:
    """One folder a rank, one file in each: Megatron's classic format, and NeMo's with model parallelism."""
    folders = rank_folders(path, snapshot)
    if not folders:
        return None
    state = layout_row("megatron").state
    everywhere = {
        name
        for folder in folders
        for name in snapshot.names(path / folder)
        if name.endswith((".pt", ".ckpt")) and not matches(name, state)
    }
    known = [name for name in _RANK_FILES if name in everywhere]
    if not known and len(everywhere) != 1:
        return None  # a model directory with many checkpoints, or of another kind
    name = known[0] if known else everywhere.pop()
    return _Found("megatron", {folder: f"{folder}/{name}" for folder in folders}, path)


def _states(path: Path, folder: str, snapshot: Snapshot) -> _Found | None:
    """DeepSpeed's files, and gpt-neox's one for each layer."""
    if not snapshot.is_dir(path / folder):
        return None
    names = snapshot.names(path / folder)
    states = [name for name in names if _STATES.fullmatch(name)]
    if not states or any(fnmatchcase(name, "zero_pp_rank_*_model_states.pt") for name in names):
        return None  # of ZeRO-3: `zero` reads it, or says why not
    return _Found("deepspeed", {name: f"{folder}/{name}" if folder else name for name in states}, path)


def _group_of(path: Path, snapshot: Snapshot) -> _Found | None:
    """The files next to each other, or in the folders of the ranks, of which this one is the first."""
    match = _GROUP.fullmatch(path.name)
    if match is not None and int(match["number"]) == 0:
        found = {}
        for name in snapshot.names(path.parent):
            other = _GROUP.fullmatch(name)
            if other is not None and other["stem"] == match["stem"] and _mark(other["label"]) == _mark(match["label"]):
                found[int(other["number"])] = other
        if len(found) > 1:
            missing = next(number for number in count() if number not in found)
            files = {found[number]["label"].lstrip("-_"): found[number].group() for number in sorted(found)}
            if missing < max(found):
                files[f"shard{missing}"] = f"{match['stem']}{_mark(match['label'])}{missing}.pt"
            return _Found("fairseq", files, path.with_name(match["stem"]))
    if RANK.fullmatch(path.parent.name):
        ranks = rank_folders(path.parent.parent, snapshot)
        others = [rank for rank in ranks[1:] if snapshot.is_file(path.parent.parent / rank / path.name)]
        if others and ranks[0] == path.parent.name:
            stem = path.name.removesuffix(".ckpt").removesuffix(".pt")
            return _Found("nemo", {rank: f"{rank}/{path.name}" for rank in ranks}, path.parent.parent / stem)
    return None


def _mark(label: str) -> str:
    return label.rstrip("0123456789")


# --- Reading ---------------------------------------------------------------------------------------------------


def read(path: Path, *, section: str | None = None, snapshot: Snapshot | None = None) -> Checkpoint:
    """Open all the files of a checkpoint. No weight is read.

    Args:
        path: The directory; or the first of several files next to each other.
        section: Where the weights are inside each file, where they are not found by themselves; "fp32" for the masters
            of DeepSpeed's ZeRO, which are in the files of its optimizer.
        snapshot: The operation's view of the storage; None: a new one.

    Raises:
        UnreadableError: A file is missing or broken, or the files are of different steps.
        UnsupportedError: None of the files holds weights.
    """
    snapshot = snapshot or Snapshot()
    if section == zero.SECTION and zero.has_masters(path, snapshot):
        return zero.read(path, section=section, snapshot=snapshot)
    is_directory = snapshot.is_dir(path)
    found = _find(path, snapshot) if is_directory else _group_of(path, snapshot)
    if found is None:
        raise UnreadableError(f"{path}: the weights are gone", path=path, hint="Is the run still writing?")
    if section == zero.SECTION and found.kind == "deepspeed":
        raise zero.no_masters(path)
    base = path if is_directory else found.path.parent
    parts: list[Part] = []
    copied: list[str] = []
    for label, name in found.files.items():
        checkpoint = _open(base / name, found, snapshot, section)
        if checkpoint is None:
            copied.append(name)
        else:
            parts.append(Part(name, checkpoint, prefix=f"{label}:" if label and len(found.files) > 1 else ""))
    if not parts:
        raise UnsupportedError(f"{path}: none of its files holds weights ({first_names(copied)})", path=path)
    whole = collect(path, parts)
    if len(set(whole.steps)) > 1:
        raise UnreadableError(
            f"{path}: its files are of different steps: {', '.join(map(str, sorted(set(whole.steps))))}",
            path=path,
            hint=f"The run may have been interrupted while it was saving. {MIXED_UP}",
        )
    around = auxiliary_of(path, snapshot, found.files.values()) if is_directory else Auxiliary()
    sizes = {name: item.nbytes for name in copied if (item := snapshot.item(base / name)) is not None}
    auxiliary = (*(AuxiliaryFile(name, base / name, nbytes) for name, nbytes in sizes.items()), *around.files)
    inner = {state: None for part in parts for state in part.checkpoint.state}
    outer = {file.name: None for file in around.files if file.is_state}
    notes = _notes(found, parts, copied, outer)
    return Checkpoint(
        path=found.path,
        format=NAME,
        weights=whole.weights,
        copies=whole.copies,
        section=section or "",
        step=whole.steps[0] if whole.steps else None,
        values=whole.values,
        provenance=whole.provenance,
        files=whole.files,
        state=(*inner, *outer),
        configurations=configurations(base, snapshot) if is_directory else {},
        left_out=around.left_out,
        notes=tuple(dict.fromkeys([*notes, *(note for part in parts for note in part.checkpoint.notes)])),
        container=Directory(tuple(parts), auxiliary),
    )


def _open(path: Path, found: _Found, snapshot: Snapshot, section: str | None) -> Checkpoint | None:
    """One of the files; None for one without weights of a model, where the kind of checkpoint has such files."""
    try:
        checkpoint = open_part(path, snapshot, section)
    except UsageError:
        if found.kind == "megatron" and section is None:
            return _open_virtual(path, snapshot)
        if found.kind == "speechbrain" and section is None:
            return None
        raise
    except UnsupportedError:
        holds_layers = any(label.startswith("layer_") for label in found.files)
        if found.kind == "speechbrain" or (found.kind == "deepspeed" and holds_layers and path.name.startswith("mp_")):
            return None
        raise
    if found.kind == "speechbrain" and (checkpoint.section or checkpoint.values or checkpoint.state):
        return None  # an object with a state of its own, as the normalizer's statistics with their count
    return checkpoint


def _open_virtual(path: Path, snapshot: Snapshot) -> Checkpoint:
    """A file of Megatron's virtual pipeline: the model in several pieces, `model0`, `model1`, ..."""
    section, checkpoint = "model0", open_part(path, snapshot, "model0")
    for number in count(1):
        section = f"{section}+model{number}"
        try:
            checkpoint = open_part(path, snapshot, section)
        except UsageError:
            break
    return checkpoint


def _notes(found: _Found, parts: Sequence[Part], copied: Sequence[str], state: Collection[str]) -> list[str]:
    """What a user should know about this kind of checkpoint."""
    notes = []
    if len(parts) > 1:
        names = [part.name for part in parts]
        notes.append(f"averaged file by file into the same layout: {names[0]} to {names[-1]} ({len(names)} files)")
    if copied:
        notes.append(f"not a model's weights, copied from the newest: {', '.join(copied)}")
    if found.kind == "deepspeed" and any("zero_pp_rank" in name for name in state):
        dtypes = sorted({str(spec.dtype) for part in parts for spec in part.checkpoint.weights.values()})
        masters = parameter("section", zero.SECTION)
        notes.append(
            Message(
                f"averaged are the weights that DeepSpeed trains with ({', '.join(dtypes)}), not the float32 masters of"
                f" its optimizer; {masters} averages those"
            )
        )
    return notes


# --- Laying out ------------------------------------------------------------------------------------------------


def lay_out(artifact: Artifact) -> tuple[OutputFile, ...]:
    """Lay every file out as its own in the newest member, and copy the auxiliary files.

    Raises:
        UnsupportedError: There is no such member to follow.
    """
    template = artifact.template
    if template is None or template.format != NAME:
        raise UnsupportedError(
            "a checkpoint in several files is only written in the layout of an input", hint=SINGLE_FILE
        )
    directory: Directory = template.container
    copied = copied_files(directory, artifact)
    artifact = with_copied(artifact, copied)
    files = [
        lay_out_part(artifact, part.name, part.checkpoint.format, part.checkpoint, share)
        for part, share in shares(artifact, directory.parts)
    ]
    return (*files, *copied)


IMPLEMENTATION = Implementation(recognise, read, lay_out)
