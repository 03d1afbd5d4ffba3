"""Hugging Face's model directories: safetensors or .bin, in one file or in shards with an index.

Reads what transformers, PEFT, diffusers, Eole and torchtune save: a model directory, or a trainer's `checkpoint-N`; and
what torch.distributed.checkpoint saves for them, whole or in slices.
The output is a directory of the same file names and shards as the newest member's, with its configuration, tokenizer
and code, and without its training state. Layout: https://huggingface.co/docs/safetensors and huggingface_hub's
`split_torch_state_dict_into_shards`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckpttool.errors import CkpttoolError, UnreadableError, UnsupportedError, UsageError
from ckpttool.formats.description import Implementation
from ckpttool.formats.directories import slices, zero
from ckpttool.formats.directories.auxiliary import auxiliary_of
from ckpttool.formats.directories.common import (
    INTERRUPTED,
    Directory,
    Part,
    collect,
    has_any,
    load_json,
    open_part,
    subfolders,
)
from ckpttool.formats.directories.huggingface_writer import (
    INDEX,
    NAME,
    SHARD,
    SINGLE,
    TOTAL_SIZE,
    ModelFiles,
    is_weights,
    lay_out,
)
from ckpttool.formats.directories.trainer_records import configurations, stated_dtype, trainer_state
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import Checkpoint
from ckpttool.text import Message, first_names, parameter

__all__ = ["IMPLEMENTATION", "NAME", "lay_out", "read", "recognise"]

_ADAPTERS = frozenset({"adapter_model", "pytorch_lora_weights"})
_COMPONENT = re.compile(
    r"(?:unet|transformer|controlnet|prior|decoder|vqmodel|vae|autoencoder_?kl|text_encoder|image_encoder|t2iadapter)"
    r"(?:_\d+)?(?P<ema>_ema)?"
)
_PIPELINE = "model_index.json"
_MODULE = re.compile(r"\d+_[A-Za-z]\w*")
"""A layer of its own of a sentence-transformers model: ``2_Dense/``."""


# --- Reading ---------------------------------------------------------------------------------------------------


def recognise(path: Path, head: bytes, snapshot: Snapshot) -> bool:
    """Whether a directory has weights under the names that Hugging Face's libraries give them.

    A file with slices of tensors is recognised as well, so that `read` can say that it is not a checkpoint.
    """
    if head or not snapshot.is_dir(path):
        return slices.is_slice_file(path.name)
    names = snapshot.names(path)
    if ".metadata" in names or "CKPT.yaml" in names or has_any(names, ["*mp_rank_*"]):
        return False
    if any(map(is_weights, names)):
        return True
    view = _View(path, snapshot)
    return bool(_components(view)) or _slices(view, "") is not None


@dataclass(frozen=True)
class _View:
    """A directory, how it is seen, and what is to be said about it."""

    path: Path
    snapshot: Snapshot
    notes: list[str] = field(default_factory=list)

    def names(self, folder: str = "") -> tuple[str, ...]:
        return self.snapshot.names(self.path / folder)

    def is_file(self, name: str) -> bool:
        return self.snapshot.is_file(self.path / name)

    def is_dir(self, name: str) -> bool:
        return self.snapshot.is_dir(self.path / name)


def read(path: Path, *, section: str | None = None, snapshot: Snapshot | None = None) -> Checkpoint:
    """Open a directory: the index, and the header of every shard. No weight is read.

    Args:
        path: The directory.
        section: Where the weights are inside each .bin file; or a component of a diffusers directory ("unet_ema"); or
            "fp32" for the masters of DeepSpeed's ZeRO, where the Trainer has saved those next to the weights.
        snapshot: The operation's view of the storage; None: a new one.

    Raises:
        UnreadableError: A shard is missing or broken, or the index and the shards do not fit together.
        UnsupportedError: It is a piece of a checkpoint.
        UsageError: The directory holds several models, or not the masters that were asked for.
    """
    view = _View(path, snapshot or Snapshot())
    if not view.is_dir(""):
        above = path.parent.parent if path.parent.name == slices.FOLDER else path.parent
        raise UnsupportedError(
            f"{path}: slices of tensors, a piece of a checkpoint that is a directory",
            path=path,
            hint=f"Name the directory: {above}",
        )
    has_masters = zero.has_masters(path, view.snapshot)
    if section == zero.SECTION and has_masters:
        return zero.read(path, section=section, snapshot=view.snapshot)
    model = _choose(view, "")
    components: dict[str, ModelFiles] = {} if model is not None else _components(view)
    if model is None and not components:
        raise UnreadableError(f"{path}: the weights are gone", path=path, hint="Is the run still writing?")
    chosen: str | None = None
    if section is not None and section in components:
        chosen, components, section = section, {section: components[section]}, None
    models = [model, *_modules(view)] if model is not None else list(components.values())
    parts: list[Part] = []
    laid: list[ModelFiles] = []
    for each in models:
        opened = _parts(view, each, section, _naming(each, components, alone=chosen is not None))
        written = each
        if slices.are_sliced(opened):
            opened = slices.put_together(path, opened)
            if any(slices.is_slice_file(name.rpartition("/")[2]) for name in each.files):
                # The files that the slices are meant for are not there yet.
                index = "model.safetensors.index.json" if len(opened) > 1 else None
                written = replace(each, index=index, files=tuple(part.name for part in opened))
        parts += opened
        laid.append(written)
        if each.stem in _ADAPTERS:
            view.notes.append(
                "adapters are averaged factor by factor: the mean of the A's times the mean of the B's"
                " is not the mean of the products B·A"
            )
    if section == zero.SECTION and all(part.checkpoint.format == "safetensors" for part in parts):
        raise zero.no_masters(path)
    if section is None and has_masters:
        masters = parameter("section", zero.SECTION)
        view.notes.append(
            Message(
                "averaged are the weights that were saved for use, not the float32 masters that DeepSpeed has next to"
                f" them; {masters} averages those"
            )
        )
    whole = collect(path, parts)
    step, values = trainer_state(path, view.snapshot, view.notes)
    configured = configurations(path, view.snapshot, dict.fromkeys(["", *(each.folder for each in models)]))
    values.update(stated_dtype(configured.get("config.json", {})))
    indexes = [each.path(each.index) for each in models if each.index]
    taken = {each.path(name) for each in models for name in each.files}
    auxiliary = auxiliary_of(path, view.snapshot, {*taken, *indexes, *(part.name for part in parts)})
    return Checkpoint(
        path=path,
        format=NAME,
        weights=whole.weights,
        copies=whole.copies,
        section=chosen or section or "",
        step=step if step is not None else max(whole.steps, default=None),
        values={**whole.values, **values},
        metadata=parts[0].checkpoint.metadata,
        provenance=whole.provenance,
        files=(*whole.files, *(path / name for name in indexes)),
        state=auxiliary.state,
        configurations=configured,
        left_out=auxiliary.left_out,
        notes=tuple(dict.fromkeys(view.notes)),
        container=Directory(tuple(parts), auxiliary.files, tuple(laid)),
    )


def _choose(view: _View, folder: str) -> ModelFiles | None:
    """The files that a loader would take, of what is in a folder: safetensors before .bin, one file before shards."""
    path, names = view.path, view.names(folder)
    candidates: list[ModelFiles] = []
    pieces: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if match := INDEX.fullmatch(name):
            candidates.append(ModelFiles(folder, match["stem"], match["suffix"], match["variant"] or "", index=name))
        elif match := SINGLE.fullmatch(name):
            if (match["variant"] or "").isdigit():  # Eole: model.00.safetensors, model.01.safetensors
                pieces.setdefault((match["stem"], match["suffix"]), []).append(name)
            else:
                candidates.append(
                    ModelFiles(folder, match["stem"], match["suffix"], match["variant"] or "", files=(name,))
                )
    candidates += [ModelFiles(folder, stem, suffix, files=tuple(some)) for (stem, suffix), some in pieces.items()]
    if not candidates:
        shards = [name for name in names if SHARD.fullmatch(name) and not slices.is_slice_file(name)]
        sliced = _slices(view, folder)
        if sliced is not None:
            if shards:
                view.notes.append(
                    f"the tensors are put together from their slices, and not read from {first_names(shards)}, which"
                    " have no index: consolidating the slices was not finished"
                )
            return sliced
        if shards:
            raise UnreadableError(
                f"{path}: shards without an index ({shards[0]}, {len(shards)} in all)",
                path=path,
                hint=f"The index is written last. {INTERRUPTED}",
            )
        return None
    candidates.sort(key=lambda each: (each.suffix != "safetensors", each.variant, each.index is not None, each.stem))
    adapters = [each for each in candidates if each.stem in _ADAPTERS]
    if adapters and len(adapters) < len(candidates):
        full = next(each for each in candidates if each not in adapters)
        raise UsageError(
            f"{path}: holds a model ({full.index or full.files[0]}) and an adapter"
            f" ({adapters[0].index or adapters[0].files[0]})",
            path=path,
            hint="Name the files that are meant instead of their directories.",
        )
    first = candidates[0]
    others = [each.index or each.files[0] for each in candidates[1:]]
    sliced = _slices(view, folder)
    if sliced is not None:
        others.append(f"{sliced.files[0]} and the other slices of the tensors")
    if others:
        view.notes.append(
            f"{first.index or first.files[0]} is what transformers loads, and what is averaged;"
            f" not {first_names(others)}"
        )
    return first


def _slices(view: _View, folder: str) -> ModelFiles | None:
    """The files in which each rank has saved its slices of the tensors: in a folder, or in one below it."""
    for below in ("", f"{slices.FOLDER}/"):
        place = f"{folder}/{below}".strip("/")
        files = slices.slice_files(view.names(place)) if view.is_dir(place) else []
        if files:
            return ModelFiles(folder, "model", "safetensors", files=tuple(below + name for name in files))
    return None


def _components(view: _View) -> dict[str, ModelFiles]:
    """Models in folders of their own, by folder: a diffusers directory, or several named adapters."""
    found: dict[str, ModelFiles] = {}
    pipeline = _pipeline(view)
    for folder, inside in subfolders(view.path, view.snapshot).items():
        is_named = (
            folder in pipeline
            or _COMPONENT.fullmatch(folder)
            or ("adapter_config.json" in inside and not re.search(r"\d", folder) and not folder.startswith("."))
        )
        if is_named and any(SINGLE.fullmatch(name) or INDEX.fullmatch(name) for name in inside):
            model = _choose(replace(view, notes=[]), folder)
            if model is not None:
                found[folder] = model
    return found


def _pipeline(view: _View) -> set[str]:
    """The components that diffusers' index of a pipeline names."""
    if not view.is_file(_PIPELINE):
        return set()
    try:
        content = load_json(view.path / _PIPELINE, view.snapshot)
    except CkpttoolError:
        return set()
    return {name for name in content if _is_plain(name)} if isinstance(content, dict) else set()


def _modules(view: _View) -> list[ModelFiles]:
    """The further modules of a sentence-transformers model that have weights."""
    if not view.is_file("modules.json"):
        return []
    found = [_choose(view, name) for name in view.names() if _MODULE.fullmatch(name) and view.is_dir(name)]
    return [model for model in found if model is not None]


def _naming(model: ModelFiles, components: Mapping[str, ModelFiles], *, alone: bool) -> tuple[str, str]:
    """Of the tensors of a model: which stored EMA they belong to, if any, and what precedes their names."""
    if alone or not model.folder:
        return "", ""
    if model.folder not in components:
        return "", f"{model.folder}:"
    copies = {name for name in components if name.endswith("_ema") and name.removesuffix("_ema") in components}
    is_copy = model.folder in copies
    base = model.folder.removesuffix("_ema") if is_copy else model.folder
    return model.folder if is_copy else "", f"{base}:" if len(components) - len(copies) > 1 else ""


def _parts(view: _View, model: ModelFiles, section: str | None, naming: tuple[str, str]) -> list[Part]:
    """The files of one model, opened and compared with their index."""
    path = view.path

    def opened(name: str) -> Part:
        return Part(model.path(name), open_part(path / model.path(name), view.snapshot, section), *naming)

    if model.index is None:
        return [opened(name) for name in model.files]
    place = path / model.path(model.index)
    weight_map, metadata = _read_index(view, place, model.suffix)
    files = sorted(set(weight_map.values()))
    parts = [opened(name) for name in files]
    total = 0
    seen: dict[str, str] = {}
    for name, part in zip(files, parts, strict=True):
        stored = part.checkpoint.container if part.checkpoint.format == "safetensors" else part.checkpoint.weights
        for tensor in stored:
            if tensor in seen:
                raise UnreadableError(
                    f"{path}: the tensor {tensor} is in two shards, {seen[tensor]} and {name}", path=path, tensor=tensor
                )
            seen[tensor] = name
        total += sum(spec.nbytes for spec in set(part.checkpoint.weights.values()))
    wrong = [tensor for tensor in (*weight_map, *seen) if weight_map.get(tensor) != seen.get(tensor)]
    if wrong:
        tensor = wrong[0]
        said = f"it is in {seen[tensor]}" if tensor in seen else "it is not in there"
        where = f"puts it into {weight_map[tensor]}" if tensor in weight_map else "does not name it"
        raise UnreadableError(
            f"{place}: the index does not fit its shards: of {tensor} it {where}, and {said}"
            + (f" ({len(set(wrong)) - 1} more)" if len(set(wrong)) > 1 else ""),
            path=place,
            tensor=tensor,
            hint="Index and shards may be of two checkpoints; save it again.",
        )
    stated = metadata.get(TOTAL_SIZE)
    if isinstance(stated, (int, float)) and stated != total:
        view.notes.append(f"{model.index} states a total size of {int(stated):,} bytes, and the shards hold {total:,}")
    return parts


def _read_index(view: _View, place: Path, suffix: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The map of an index, tensor to file, and its metadata; every file name is one that may be opened."""
    content = load_json(place, view.snapshot)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnreadableError(
            f"{place}: not an index: it has no weight_map", path=place, hint="Copy it again, or save it again."
        )
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _is_plain(name) or not name.endswith(f".{suffix}"):
            raise UnreadableError(
                f"{place}: {tensor} is said to be in {name!r}, which is not the name of a .{suffix} file next to it",
                path=place,
                tensor=tensor,
                hint="A shard is looked for in the directory of its index only.",
            )
    metadata = content.get("metadata")
    return weight_map, metadata if isinstance(metadata, dict) else {}


def _is_plain(name: str) -> bool:
    """Whether a name is a file name and no path: no separator of any system, no drive, not ``..``."""
    return bool(name) and name not in {".", ".."} and not re.search(r"[/\\:\x00]", name)


IMPLEMENTATION = Implementation(recognise, read, lay_out)
