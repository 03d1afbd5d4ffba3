"""Checkpoints in several PyTorch files that belong together: one for each rank, layer or object.

Megatron's and NeMo's `mp_rank_*`, DeepSpeed's and gpt-neox's `*_model_states.pt`, fairseq's `-shardN.pt` and
`_partN.pt`, fairseq2's `model/pp_*/tp_*/sdp_*.pt`, SpeechBrain's `CKPT+...`. The files are averaged one by one, each
with the files of its name in the other members, and written in the same layout. A tensor is called by file and name:
``mp_rank_00:word_embeddings.weight``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path

from ckpttool.errors import UnreadableError, UnsupportedError, UsageError
from ckpttool.formats.description import Implementation
from ckpttool.formats.directories import zero as zero_shards
from ckpttool.formats.directories.common import (
    Companion,
    Directory,
    Part,
    collect,
    companion_files,
    companions_of,
    lay_out_part,
    layout_row,
    matches,
    open_part,
    shares,
    with_copied,
)
from ckpttool.formats.directories.trainer_records import configurations
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import Artifact, Checkpoint, OutputFile

__all__ = ["IMPLEMENTATION", "NAME", "lay_out", "rank_folders", "read", "recognise"]

NAME = "parts"

RANK = re.compile(r"mp_rank_\d+(?:_\d+)*|tp_rank_\d+_pp_rank_\d+")
_RANK_FILES = ("model_optim_rng.pt", "model_rng.pt", "model_weights.ckpt")
_GROUP = re.compile(r"(?P<stem>.+?)(?P<label>(?:-shard|_part|-model_part-|-part-?)(?P<number>\d+))\.(?P<suffix>pt)")
_STATES = re.compile(
    r"(?:mp_rank_\d+|layer_\d+-model_\d+(?:-\d+)?|layer_\d+_expert_\d+_mp_rank_\d+|expert_\d+_mp_rank_\d+)[-_]model_states\.pt"
)
_ALONE = ("model.pt", "model.pth", "model.ckpt", "pytorch_model.pt", "model_weights.ckpt")
_LONE_CARRY = ("config*.json", "config*.yaml", "config*.yml", "*.yaml", "tokenizer*", "vocab*", "*.model", "args.json")


@dataclass(frozen=True)
class _Found:
    """The files of one checkpoint.

    Attributes:
        kind: Name of the row of the table of layouts that describes the rest of its directory.
        files: Label (what stands before the names of its tensors) to path in the directory.
        path: What the checkpoint is called.
        carry: Globs of what goes along.
        never: Globs of training state.
        folders: Where companions are.
    """

    kind: str
    files: dict[str, str]
    path: Path
    carry: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    folders: tuple[str, ...] = ("",)


def recognise(path: Path, head: bytes, snapshot: Snapshot) -> bool:  # noqa: ARG001  # the same question to all formats
    """Whether a directory is such a checkpoint; or whether a file is the first of several that are one."""
    if not path.is_dir():
        return _group_of(path) is not None
    names = os.listdir(path)
    if ".metadata" in names:
        return False
    return _find(path) is not None


def rank_folders(path: Path) -> list[str]:
    """The folders of a directory that hold one model-parallel rank each."""
    return sorted(name for name in os.listdir(path) if RANK.fullmatch(name) and (path / name).is_dir())


# --- Finding the files -----------------------------------------------------------------------------------------


def _find(path: Path) -> _Found | None:
    """What kind of checkpoint a directory is, if it is one."""
    names = sorted(os.listdir(path))
    if "CKPT.yaml" in names:
        row = layout_row("speechbrain")
        files = {name: name for name in names if name.endswith(".ckpt") and not matches(name, row.state)}
        return _Found("speechbrain", files, path, ("*",), row.state) if files else None
    ranks = _ranks(path)
    if ranks is not None:
        return ranks
    for folder in ("", "checkpoint"):
        found = _states(path, folder)
        if found is not None:
            return found
    if "model" in names:
        shards = sorted(place.relative_to(path).as_posix() for place in path.glob("model/pp_*/tp_*/sdp_*.pt"))
        if shards:
            row = layout_row("fairseq2")
            return _Found("fairseq2", {name: name for name in shards}, path, row.auxiliary, row.state)
    groups = {match["stem"]: name for name in names if (match := _GROUP.fullmatch(name)) and int(match["number"]) == 0}
    if len(groups) == 1 and all(fnmatchcase(name, f"{next(iter(groups))}*") for name in names):
        group = _group_of(path / next(iter(groups.values())))
        if group is not None:
            return _Found(group.kind, group.files, path)
    alone = [name for name in _ALONE if name in names]
    if alone and not any(name.endswith((".safetensors", ".index.json")) for name in names):
        row = layout_row("olmo")
        # An unpacked .nemo archive: its configuration and tokenizers have names of all kinds.
        carry = ("*",) if alone[0] == "model_weights.ckpt" else (*row.auxiliary, *_LONE_CARRY)
        return _Found("", {"": alone[0]}, path, carry, row.state)
    return None


def _ranks(path: Path) -> _Found | None:
    """One folder a rank, one file in each: Megatron's classic format, and NeMo's with model parallelism."""
    folders = rank_folders(path)
    if not folders:
        return None
    row = layout_row("megatron")
    inside = [
        {name for name in os.listdir(path / folder) if name.endswith((".pt", ".ckpt")) and not matches(name, row.state)}
        for folder in folders
    ]
    everywhere = set.union(*inside)
    known = [name for name in _RANK_FILES if name in everywhere]
    if not known and len(everywhere) != 1:
        return None  # a model directory with many checkpoints, or of another kind
    name = known[0] if known else everywhere.pop()
    files = {folder: f"{folder}/{name}" for folder in folders}
    carry = ("*.yaml", "*.model", "*.json", "vocab*", "merges*")
    return _Found("megatron", files, path, carry, row.state, ("", *folders))


def _states(path: Path, folder: str) -> _Found | None:
    """DeepSpeed's files, and gpt-neox's one for each layer."""
    if not (path / folder).is_dir():
        return None
    names = sorted(os.listdir(path / folder))
    states = [name for name in names if _STATES.fullmatch(name)]
    if not states or any(fnmatchcase(name, "zero_pp_rank_*_model_states.pt") for name in names):
        return None  # of ZeRO-3: `zero_shards` reads it, or says why not
    row = layout_row("deepspeed")
    folders = [folder, *(name for name in ("configs",) if (path / name).is_dir())]
    inner = {name: f"{folder}/{name}" if folder else name for name in states}
    return _Found("deepspeed", inner, path, ("*.yml", "*.yaml", "config.json", "meta.pt"), row.state, tuple(folders))


def _group_of(path: Path) -> _Found | None:
    """The files beside each other, or in the folders of the ranks, of which this one is the first."""
    match = _GROUP.fullmatch(path.name)
    if match is not None and int(match["number"]) == 0:
        found = {}
        for name in os.listdir(path.parent):
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
        ranks = rank_folders(path.parent.parent)
        others = [rank for rank in ranks[1:] if (path.parent.parent / rank / path.name).is_file()]
        if others and ranks[0] == path.parent.name:
            stem = path.name.removesuffix(".ckpt").removesuffix(".pt")
            return _Found("nemo", {rank: f"{rank}/{path.name}" for rank in ranks}, path.parent.parent / stem)
    return None


def _mark(label: str) -> str:
    return label.rstrip("0123456789")


# --- Reading ---------------------------------------------------------------------------------------------------


def read(path: Path, *, section: str | None = None, snapshot: Snapshot | None = None) -> Checkpoint:  # noqa: ARG001
    """Open all the files of a checkpoint. No weight is read.

    Args:
        path: The directory; or the first of several files beside each other.
        section: Where the weights are inside each file, where they are not found by themselves; "fp32" for the masters
            of DeepSpeed's ZeRO, which are in the files of its optimizer.
        snapshot: The operation's view of the storage; None: a new one.

    Raises:
        UnreadableError: A file is missing or broken, or the files are of different steps.
        UnsupportedError: None of the files holds weights.
    """
    if section == zero_shards.SECTION and zero_shards.has_masters(path):
        return zero_shards.read(path, section=section)
    found = _find(path) if path.is_dir() else _group_of(path)
    if found is None:
        raise UnreadableError(f"{path}: the files of a checkpoint were here, and are gone", path=path)
    if section == zero_shards.SECTION and found.kind == "deepspeed":
        raise zero_shards.no_masters(path)
    base = path if path.is_dir() else found.path.parent
    parts: list[Part] = []
    copied: list[str] = []
    notes: list[str] = []
    for label, name in found.files.items():
        checkpoint = _open(base / name, found, section)
        if checkpoint is None:
            copied.append(name)
        else:
            parts.append(Part(name, checkpoint, prefix=f"{label}:" if label and len(found.files) > 1 else ""))
    if not parts:
        raise UnsupportedError(f"{path}: none of its files holds weights ({', '.join(copied[:5])})", path=path)
    whole = collect(path, parts)
    if len(set(whole.steps)) > 1:
        raise UnreadableError(
            f"{path}: its files are of different steps: {', '.join(map(str, sorted(set(whole.steps))))}",
            path=path,
            hint="The run may have been interrupted while it was saving, or files of two checkpoints were mixed up.",
        )
    companions = [Companion(name, base / name, (base / name).stat().st_size) for name in copied]
    if path.is_dir():
        taken = set(found.files.values())
        more, left_out = companions_of(path, found.carry, found.never, taken, found.folders)
        companions += more
        if left_out:
            notes.append(f"left out: {', '.join(left_out)}")
    notes += _told(found, parts, copied, companions)
    inner = {state: None for part in parts for state in part.checkpoint.state}
    outer = {each.name: None for each in companions if each.is_state}
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
        configurations=configurations(base) if path.is_dir() else {},
        notes=tuple(dict.fromkeys([*notes, *(note for part in parts for note in part.checkpoint.notes)])),
        container=Directory(tuple(parts), tuple(companions), found.kind),
    )


def _open(path: Path, found: _Found, section: str | None) -> Checkpoint | None:
    """One of the files; None for one without weights of a model, where the kind of checkpoint has such files."""
    try:
        checkpoint = open_part(path, section)
    except UsageError:
        if found.kind == "megatron" and section is None:
            return _open_virtual(path)
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


def _open_virtual(path: Path) -> Checkpoint:
    """A file of Megatron's virtual pipeline: the model in several pieces, `model0`, `model1`, ..."""
    section, checkpoint = "model0", open_part(path, "model0")
    for number in count(1):
        section = f"{section}+model{number}"
        try:
            checkpoint = open_part(path, section)
        except UsageError:
            break
    return checkpoint


def _told(found: _Found, parts: Sequence[Part], copied: Sequence[str], companions: Sequence[Companion]) -> list[str]:
    """What a user should know about this kind of checkpoint."""
    notes = []
    if len(parts) > 1:
        names = [part.name for part in parts]
        notes.append(f"averaged file by file into the same layout: {names[0]} to {names[-1]} ({len(names)} files)")
    if copied:
        notes.append(f"not a model's weights, copied from the newest: {', '.join(copied)}")
    if found.kind == "deepspeed" and any("zero_pp_rank" in each.name for each in companions):
        dtypes = sorted({str(spec.dtype) for part in parts for spec in part.checkpoint.weights.values()})
        notes.append(
            f"averaged are the weights that DeepSpeed trains with ({', '.join(dtypes)}), not the float32 masters of its"
            f" optimizer; --section {zero_shards.SECTION} averages those"
        )
    return notes


# --- Laying out ------------------------------------------------------------------------------------------------


def lay_out(artifact: Artifact) -> tuple[OutputFile, ...]:
    """Lay every file out as its own in the newest member, and copy what goes along.

    Raises:
        UnsupportedError: There is no such member to follow.
    """
    template = artifact.template
    if template is None or template.format != NAME:
        raise UnsupportedError(
            "a checkpoint in several files is only written in the layout of an input",
            hint="Write a single file, with -o NAME.safetensors.",
        )
    directory: Directory = template.container
    copied = companion_files(directory, artifact)
    artifact = with_copied(artifact, copied)
    files = [
        lay_out_part(artifact, part.name, part.checkpoint.format, part.checkpoint, share)
        for part, share in shares(artifact, directory.parts)
    ]
    return (*files, *copied)


IMPLEMENTATION = Implementation(recognise, read, lay_out)
