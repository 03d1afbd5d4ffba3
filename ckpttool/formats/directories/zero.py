"""DeepSpeed ZeRO: the float32 masters of a model, put together from the files of its optimizer's ranks.

Read only: DeepSpeed's own ``global_stepN/``, alone or in a directory of Hugging Face's Trainer, Lightning or
accelerate. With stage 3 the masters are the only weights there are. With stages 1 and 2 the model's file has those that
it is trained with as well, which are averaged file by file (`parts`) unless `SECTION` asks for the masters.
The output has them in one piece, under the names that DeepSpeed's zero_to_fp32.py writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from ckpttool.errors import UnreadableError, UnsupportedError, UsageError
from ckpttool.formats.description import Implementation
from ckpttool.formats.directories.auxiliary import auxiliary_of
from ckpttool.formats.directories.common import (
    INTERRUPTED,
    MIXED_UP,
    SINGLE_FILE,
    Directory,
    copied_files,
    subfolders,
    with_copied,
)
from ckpttool.formats.directories.huggingface_writer import ModelFiles, is_weights, split
from ckpttool.formats.directories.trainer_records import TRAINER_STATE, configurations, stated_dtype, trainer_state
from ckpttool.formats.directories.zero_files import (
    CONVERT,
    ModelStates,
    Partitions,
    read_model_states,
    read_partitions,
)
from ckpttool.formats.directories.zero_partitions import frozen, masters
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import Artifact, Checkpoint, OutputFile, TensorSpec
from ckpttool.text import Message, first_names, parameter

__all__ = ["IMPLEMENTATION", "NAME", "SECTION", "has_masters", "lay_out", "no_masters", "read", "recognise"]

NAME = "zero"

SECTION = "fp32"
"""The section that asks for the masters where there are other weights too."""

_OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(?P<rank>\d+)_mp_rank_(?P<part>\d+)(?:_\d+)*_optim_states\.pt")
_MODEL = re.compile(r"(?:zero_pp_rank_(?P<rank>\d+)_)?mp_rank_(?P<part>\d+)(?:_\d+)*_model_states\.pt")
_EXPERT = re.compile(
    r"(?:layer_\d+_)?expert_\d+_mp_rank_\d+_model_states\.pt|expp_rank_\d+_mp_rank_\d+_optim_states\.pt"
)
_LAYER = re.compile(r"layer_\d+-model_.*model_states\.pt")
_PLACEHOLDERS = re.compile(r"zero_pp_rank_\d+_mp_rank_.*_model_states\.pt")

_LATEST = "latest"
_FOLDERS = ("checkpoint", "pytorch_model")
"""What Lightning and accelerate call the directory."""
_MAX_LATEST_BYTES = 1 << 12

# --- Finding the files -----------------------------------------------------------------------------------------


def recognise(path: Path, head: bytes, snapshot: Snapshot) -> bool:
    """Whether a directory has weights in ZeRO's partitions and nowhere else.

    One of the files is recognised as well, so that `read` can say that it is not a checkpoint: with ZeRO-3 a model's
    file has tensors of all names, and nothing in them.
    """
    if head or not snapshot.is_dir(path):
        return _is_tag([path.name])
    names = snapshot.names(path)
    if any(map(_PLACEHOLDERS.fullmatch, names)):
        return True
    if any(map(is_weights, names)) or any(map(_MODEL.fullmatch, names)):
        return False
    # Without the files that have the names, too: `read` says that they are missing.
    left_by_trainer = TRAINER_STATE in names and any(name.startswith("global_step") for name in names)
    return _is_tag(names) or bool(_tags(path, snapshot)) or left_by_trainer


def has_masters(path: Path, snapshot: Snapshot) -> bool:
    """Whether a directory has ZeRO's partitions, next to whatever else."""
    return snapshot.is_dir(path) and (_is_tag(snapshot.names(path)) or bool(_tags(path, snapshot)))


def no_masters(path: Path) -> UsageError:
    """The error for masters that are asked for where there are other weights only."""
    return UsageError(
        f"{path}: no float32 masters of DeepSpeed's ZeRO next to the weights",
        path=path,
        hint=f"They are in the files *_optim_states.pt, which may have been deleted. Without {parameter('section')} the"
        " weights are averaged.",
    )


def _is_tag(names: Iterable[str]) -> bool:
    return any(_OPTIMIZER.fullmatch(name) or _PLACEHOLDERS.fullmatch(name) for name in names)


def _tags(path: Path, snapshot: Snapshot) -> list[str]:
    """The directories in it that DeepSpeed has written."""
    return [
        name
        for name, inside in subfolders(path, snapshot).items()
        if (name in _FOLDERS or name.startswith("global_step")) and _is_tag(inside)
    ]


def _tag(path: Path, snapshot: Snapshot) -> Path:
    """The directory with the files: this one, or the one in it that ``latest`` names."""
    if _is_tag(snapshot.names(path)):
        return path
    tags = _tags(path, snapshot)
    if not tags:
        raise UnsupportedError(
            f"{path}: no weights of the model in it, and no partitions of DeepSpeed's ZeRO",
            path=path,
            hint="Were the weights, or the files *_optim_states.pt, deleted or saved elsewhere?",
        )
    if len(tags) == 1:
        return path / tags[0]
    latest = path / _LATEST
    said = ""
    if snapshot.is_file(latest):
        said = snapshot.read(latest, _MAX_LATEST_BYTES).decode("utf-8", "replace").strip()
    if said in tags:
        return path / said
    raise UsageError(
        f"{path}: {len(tags)} checkpoints in it, {first_names(tags)}, and no file {_LATEST} says which is meant",
        path=path,
        hint=f"Name the one that is meant, for instance {path / tags[-1]}.",
    )


def _files(folder: Path, snapshot: Snapshot) -> tuple[dict[int, Path], dict[int, Path]]:
    """The files of the optimizer and of the model, by rank. Of stages 1 and 2 the model has one."""
    if snapshot.is_dir(folder / "zero"):
        raise UnsupportedError(
            f"{folder}: a universal checkpoint of DeepSpeed, with a folder for each parameter",
            path=folder,
            hint="Average the checkpoints that it was converted from.",
        )
    optimizer: dict[int, Path] = {}
    model: dict[int, Path] = {}
    for name in snapshot.names(folder):
        if _EXPERT.fullmatch(name):
            raise UnsupportedError(
                f"{folder}: a mixture of experts ({name}), whose experts are partitioned apart from the rest",
                path=folder,
                hint=CONVERT,
            )
        found = _OPTIMIZER.fullmatch(name) or _MODEL.fullmatch(name)
        if _LAYER.fullmatch(name) or (found is not None and int(found["part"])):
            raise UnsupportedError(
                f"{folder}: the model itself is cut by tensor or pipeline parallelism ({name}), and ZeRO has cut the"
                " pieces again",
                path=folder,
                hint=CONVERT,
            )
        if found is not None:
            ranks = optimizer if found.re is _OPTIMIZER else model
            rank = int(found["rank"] or 0)
            if rank in ranks:
                raise UnreadableError(
                    f"{folder}: two files of rank {rank}: {ranks[rank].name} and {name}",
                    path=folder,
                    hint="Two runs have saved into one directory. Move one's files away.",
                )
            ranks[rank] = folder / name
    return optimizer, model


# --- Reading ---------------------------------------------------------------------------------------------------


def read(path: Path, *, section: str | None = None, snapshot: Snapshot | None = None) -> Checkpoint:
    """Open the files of all ranks, and find each parameter's elements in them. No weight is read.

    Args:
        path: The directory of the files, or one around it.
        section: None or `SECTION`: there is nothing else.
        snapshot: The operation's view of the storage; None: a new one.

    Raises:
        UnreadableError: A rank's file is missing or broken, or they do not fit together.
        UnsupportedError: The model is cut in another way as well, or the partitions are not ZeRO's.
        UsageError: Another section was asked for.
    """
    if section not in {None, SECTION}:
        raise UsageError(
            f"{path}: there is no section {section!r}: ZeRO's partitions hold one set of weights",
            path=path,
            hint=f"Call it without {parameter('section')}.",
        )
    snapshot = snapshot or Snapshot()
    if not snapshot.is_dir(path):
        raise UnsupportedError(
            f"{path}: one rank's file of DeepSpeed's ZeRO, a piece of a checkpoint that is a directory",
            path=path,
            hint=f"Name the directory: {path.parent}",
        )
    folder = _tag(path, snapshot)
    optimizer, model = _files(folder, snapshot)
    partitions = _open_partitions(folder, optimizer)
    models = _open_models(folder, model, partitions[0])
    weights = _weights(models, partitions)
    notes = _notes(partitions[0], weights)
    step, values = trainer_state(path, snapshot, notes)
    configured = configurations(path, snapshot)
    values = {**models[0].values, **values, **stated_dtype(configured.get("config.json", {}))}
    stated = values.get("config.dtype", "float32")
    if stated != "float32":
        written = parameter("dtype", stated)
        notes.append(
            Message(f"config.json states {stated}, by which transformers loads; {written} writes as it states")
        )
    files = (*(each.path for each in models), *(each.path for each in partitions))
    taken = [file.name for file in files] if folder == path else [folder.name]
    auxiliary = auxiliary_of(path, snapshot, taken)
    copied = tuple(file for file in auxiliary.files if not file.is_state)
    return Checkpoint(
        path=path,
        format=NAME,
        weights=weights,
        section=section or "",
        step=step if step is not None else models[0].step,
        values=values,
        files=files,
        configurations=configured,
        left_out=auxiliary.left_out,
        notes=tuple(notes),
        container=Directory((), copied, _output(path, snapshot, weights)),
    )


def _notes(partitions: Partitions, weights: Mapping[str, TensorSpec]) -> list[str]:
    """What is averaged, and what has no masters."""
    kinds = {flat.dtype.name for flat in partitions.flat} or {"float32"}
    where = f"in the files of the optimizer (DeepSpeed ZeRO-{partitions.stage})"
    notes = [f"averaged are the {', '.join(sorted(kinds))} masters {where}; its state is left out"]
    unlike = {name: spec.dtype.name for name, spec in weights.items() if spec.dtype.kind == "float"}
    unlike = {name: kind for name, kind in unlike.items() if kind not in kinds}
    if unlike:
        shown = f"{', '.join(list(unlike)[:3])}{', ...' if len(unlike) > 3 else ''}"
        notes.append(f"not of the optimizer, and taken as stored ({', '.join(sorted(set(unlike.values())))}): {shown}")
    return notes


def _open_partitions(folder: Path, files: Mapping[int, Path]) -> list[Partitions]:
    """The files of all ranks."""
    if not files:
        raise UnreadableError(
            f"{folder}: the files *_optim_states.pt are missing, in which ZeRO keeps the weights",
            path=folder,
            hint=INTERRUPTED,
        )
    first = read_partitions(files[min(files)])
    missing = first.ranks - sum(rank < first.ranks for rank in files)
    if missing:
        rank = next(rank for rank in count() if rank not in files)
        name = re.sub(r"zero_pp_rank_\d+", f"zero_pp_rank_{rank}", first.path.name)
        more = f", and those of {missing - 1} more of its {first.ranks} ranks" if missing > 1 else ""
        raise UnreadableError(f"{folder}: {name} is missing{more}", path=folder / name, hint=INTERRUPTED)
    if len(files) > first.ranks:
        raise UnreadableError(
            f"{folder}: {files[max(files)].name} is one too many: {first.path.name} is of {first.ranks} ranks",
            path=folder,
            hint="A run with more processes may have saved here before. Move its files away.",
        )
    found = [first if path == first.path else read_partitions(path) for _, path in sorted(files.items())]
    for each in found:
        if (each.stage, each.ranks) != (first.stage, first.ranks):
            raise UnreadableError(
                f"{each.path}: of ZeRO-{each.stage} with {each.ranks} ranks, and {first.path.name} is of"
                f" ZeRO-{first.stage} with {first.ranks}",
                path=each.path,
                hint=MIXED_UP,
            )
    return found


def _open_models(folder: Path, files: Mapping[int, Path], partitions: Partitions) -> list[ModelStates]:
    """The files of the model: the first rank's, and with stage 3 those of the others, which must be of the same step.

    Only frozen parameters need the others.
    """
    ranks = range(partitions.ranks if partitions.stage == 3 else 1)
    first = None if 0 not in files else read_model_states(files[0])
    missing = [rank for rank in ranks if rank not in files]
    if first is None or (missing and first.frozen):
        name = "mp_rank_00_model_states.pt"
        name = f"zero_pp_rank_{missing[0]}_{name}" if partitions.stage == 3 else name
        raise UnreadableError(f"{folder}: {name} is missing", path=folder / name, hint=INTERRUPTED)
    found = [first, *(read_model_states(files[rank]) for rank in ranks[1:] if rank in files)]
    odd = next((each for each in found if each.step != first.step), None)
    if odd is not None:
        raise UnreadableError(
            f"{folder}: its files are of different steps: {first.path.name} of {first.step}, {odd.path.name} of"
            f" {odd.step}",
            path=folder,
            hint=f"The run may have been interrupted while it was saving. {MIXED_UP}",
        )
    return found


def _weights(models: Sequence[ModelStates], partitions: Sequence[Partitions]) -> dict[str, TensorSpec]:
    """Every tensor of the model, in the model's order."""
    first = models[0]
    known = masters(first, partitions)
    found = dict(known)
    if partitions[0].stage == 3:
        found.update(frozen(models))
        own = {name: first.module[name] for name in first.buffers if name in first.module}
    else:
        _check_shapes(first, found)
        # What the optimizer does not have (frozen parameters, buffers) is there as the model has it.
        # A name for a parameter that has a master under another name is the same view of the same storage.
        same = {first.module[name]: known[name] for name in known if name in first.module and known[name].numel}
        own = {name: same.get(spec, spec) for name, spec in first.module.items()}
    found = {**own, **found}
    # The other name may be of something that was not saved, as frozen parameters need not be.
    found.update((alias, found[name]) for alias, name in first.shared.items() if name in found)
    order = {name: index for index, name in enumerate(first.module)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


def _check_shapes(model: ModelStates, found: Mapping[str, TensorSpec]) -> None:
    """Hold what was put together against the weights that the model is trained with."""
    for name, spec in found.items():
        held = model.module.get(name)
        if held is not None and held.shape != spec.shape:
            raise UnreadableError(
                f"{model.path}: {name} has shape {list(held.shape)} in the model, and {list(spec.shape)} among the"
                " parameters of the optimizer",
                path=model.path,
                tensor=name,
                hint="zero_to_fp32.py of DeepSpeed may know more of this layout.",
            )


def _output(path: Path, snapshot: Snapshot, weights: Mapping[str, TensorSpec]) -> ModelFiles:
    """What is written: as transformers saves a model where this is one of its directories, else as zero_to_fp32.py."""
    names = snapshot.names(path)
    in_c_order = all(spec.strides is None or not spec.is_dense for spec in weights.values())
    if in_c_order and (TRAINER_STATE in names or "config.json" in names):
        return ModelFiles("", "model", "safetensors")
    return ModelFiles("", "pytorch_model", "bin")


# --- Laying out ------------------------------------------------------------------------------------------------


def lay_out(artifact: Artifact) -> tuple[OutputFile, ...]:
    """Lay a directory out: the weights in one file, or in shards with an index, and the auxiliary files.

    Raises:
        UnsupportedError: There is no such member to follow.
        UsageError: The training state shall be kept, in which the weights are those from before.
    """
    template = artifact.template
    if template is None or template.format != NAME:
        raise UnsupportedError("partitions of DeepSpeed's ZeRO are read, and not written", hint=SINGLE_FILE)
    if artifact.keep_state:
        raise UsageError(
            f"{template.path}: its training state cannot be kept: ZeRO has the weights from before averaging in it",
            path=template.path,
            hint=f"Call it without {parameter('keep_state')}, and begin with a new optimizer from the average.",
        )
    directory: Directory = template.container
    model: ModelFiles = directory.extra
    copied = copied_files(directory, artifact)
    artifact = replace(with_copied(artifact, copied), template=None, drop=())
    names = {identity: identity for identity in artifact.tensors}
    return (
        *split(artifact, model, "safetensors" if model.suffix == "safetensors" else "torch", None, names),
        *copied,
    )


IMPLEMENTATION = Implementation(recognise, read, lay_out)
