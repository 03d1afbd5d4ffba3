"""Hugging Face's model directories: safetensors or .bin, in one file or in shards with an index.

Reads what transformers, PEFT, diffusers, Eole and torchtune save: a model directory, or a trainer's `checkpoint-N`; and
what torch.distributed.checkpoint saves for them, whole or in slices.
The output is a directory of the same file names and shards as the newest member's, with its configuration, tokenizer
and code, and without its training state. Layout: https://huggingface.co/docs/safetensors and huggingface_hub's
`split_torch_state_dict_into_shards`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckpttool.errors import UnreadableError, UnsupportedError, UsageError
from ckpttool.formats.description import Implementation
from ckpttool.formats.directories import slices
from ckpttool.formats.directories import zero as zero_shards
from ckpttool.formats.directories.common import (
    Directory,
    Part,
    collect,
    companions_of,
    has_any,
    layout_row,
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
    Family,
    is_weights,
    lay_out,
)
from ckpttool.formats.directories.trainer_records import configurations, stated_dtype, trainer_state
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import Checkpoint

__all__ = ["IMPLEMENTATION", "NAME", "lay_out", "read", "recognise"]


_ADAPTERS = frozenset({"adapter_model", "pytorch_lora_weights"})
_COMPONENT = re.compile(
    r"(?:unet|transformer|controlnet|prior|decoder|vqmodel|vae|autoencoder_?kl|text_encoder|image_encoder|t2iadapter)"
    r"(?:_\d+)?(?P<ema>_ema)?"
)
_MODULE = re.compile(r"\d+_[A-Za-z]\w*")
"""A layer of its own of a sentence-transformers model: ``2_Dense/``."""


# --- Reading ---------------------------------------------------------------------------------------------------


def recognise(path: Path, head: bytes, snapshot: Snapshot) -> bool:  # noqa: ARG001  # the same question to all formats
    """Whether a directory has weights under the names that Hugging Face's libraries give them.

    A file with slices of tensors is recognised as well, so that `read` can say that it is no checkpoint.
    """
    if head or not path.is_dir():
        return slices.is_slice_file(path.name)
    names = os.listdir(path)
    if ".metadata" in names or "CKPT.yaml" in names or has_any(names, ["*mp_rank_*"]):
        return False
    if any(map(is_weights, names)):
        return True
    return bool(_components(path)) or _slices(path, "") is not None


def read(path: Path, *, section: str | None = None, snapshot: Snapshot | None = None) -> Checkpoint:  # noqa: ARG001
    """Open a directory: the index, and the header of every shard. No weight is read.

    Args:
        path: The directory.
        section: Where the weights are inside each .bin file; or a component of a diffusers directory ("unet_ema"); or
            "fp32" for the masters of DeepSpeed's ZeRO, where the Trainer has saved those beside the weights.
        snapshot: The operation's view of the storage; None: a new one.

    Raises:
        UnreadableError: A shard is missing or broken, or the index and the shards do not fit together.
        UnsupportedError: It is a piece of a checkpoint.
        UsageError: The directory holds several models, or not the masters that were asked for.
    """
    if not path.is_dir():
        above = path.parent.parent if path.parent.name == slices.FOLDER else path.parent
        raise UnsupportedError(
            f"{path}: slices of tensors, a piece of a checkpoint that is a directory",
            path=path,
            hint=f"Name the directory: {above}",
        )
    if section == zero_shards.SECTION and zero_shards.has_masters(path):
        return zero_shards.read(path, section=section)
    notes: list[str] = []
    family = _choose(path, "", notes)
    components: dict[str, Family] = {} if family is not None else _components(path)
    if family is None and not components:
        raise UnreadableError(f"{path}: the weights were here, and are gone", path=path)
    chosen: str | None = None
    if section is not None and section in components:
        chosen, components, section = section, {section: components[section]}, None
    families = [family, *_modules(path, notes)] if family is not None else list(components.values())
    parts: list[Part] = []
    laid: list[Family] = []
    for each in families:
        opened = _parts(path, each, section, _naming(each, components, alone=chosen is not None), notes)
        if slices.are_sliced(opened):
            opened = slices.put_together(path, opened)
            if any(slices.is_slice_file(name.rpartition("/")[2]) for name in each.files):
                # The files that the slices are meant for are not there yet.
                index = "model.safetensors.index.json" if len(opened) > 1 else None
                each = replace(each, index=index, files=tuple(part.name for part in opened))  # noqa: PLW2901
        parts += opened
        laid.append(each)
        if each.stem in _ADAPTERS:
            notes.append(
                "adapters are averaged factor by factor: the mean of the A's times the mean of the B's"
                " is not the mean of the products B·A"
            )
    if section == zero_shards.SECTION and all(part.checkpoint.format == "safetensors" for part in parts):
        raise zero_shards.no_masters(path)
    if section is None and zero_shards.has_masters(path):
        notes.append(
            "averaged are the weights that were saved for use, not the float32 masters that DeepSpeed has beside"
            f" them; --section {zero_shards.SECTION} averages those"
        )
    whole = collect(path, parts)
    step, values = trainer_state(path, notes)
    configured = configurations(path, dict.fromkeys(["", *(each.folder for each in families)]))
    values.update(stated_dtype(configured.get("config.json", {})))
    row = layout_row("huggingface")
    folders = _folders(path, families)
    taken = {part.name for part in parts} | {each.path(each.index) for each in families if each.index}
    companions, left_out = companions_of(path, row.auxiliary, row.state, taken | set(_stale(path)), folders)
    if left_out:
        notes.append(f"left out, as no loader asks for it: {', '.join(left_out)}")
    state = tuple(sorted({each.name.split("/")[0] for each in companions if each.is_state}))
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
        files=(*whole.files, *(path / each.path(each.index) for each in families if each.index)),
        state=state,
        configurations=configured,
        notes=tuple(dict.fromkeys(notes)),
        container=Directory(tuple(parts), tuple(companions), tuple(laid)),
    )


def _choose(path: Path, folder: str, notes: list[str]) -> Family | None:
    """The files that a loader would take, of what is in a folder: safetensors before .bin, one file before shards."""
    names = sorted(os.listdir(path / folder))
    candidates: list[Family] = []
    pieces: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if match := INDEX.fullmatch(name):
            candidates.append(Family(folder, match["stem"], match["suffix"], match["variant"] or "", index=name))
        elif match := SINGLE.fullmatch(name):
            if (match["variant"] or "").isdigit():  # Eole: model.00.safetensors, model.01.safetensors
                pieces.setdefault((match["stem"], match["suffix"]), []).append(name)
            else:
                candidates.append(Family(folder, match["stem"], match["suffix"], match["variant"] or "", files=(name,)))
    candidates += [Family(folder, stem, suffix, files=tuple(some)) for (stem, suffix), some in pieces.items()]
    if not candidates:
        shards = [name for name in names if SHARD.fullmatch(name) and not slices.is_slice_file(name)]
        sliced = _slices(path, folder)
        if sliced is not None:
            if shards:
                notes.append(
                    f"the tensors are put together from their slices; left out: {', '.join(shards)}, which have no"
                    " index: consolidating the slices was not finished"
                )
            return sliced
        if shards:
            raise UnreadableError(
                f"{path}: shards without an index ({shards[0]}, {len(shards)} in all)",
                path=path,
                hint="The index is written last: the run may have been interrupted while it was saving.",
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
    sliced = _slices(path, folder)
    if sliced is not None:
        others.append(f"{sliced.files[0]} and the like, which hold slices of the tensors")
    if others:
        notes.append(
            f"{first.index or first.files[0]} is what transformers loads, and what is averaged; "
            f"left out: {', '.join(others)}"
        )
    return first


def _slices(path: Path, folder: str) -> Family | None:
    """The files in which each rank has saved its slices of the tensors: in a folder, or waiting below it."""
    for below in ("", f"{slices.FOLDER}/"):
        place = path / folder / below
        files = slices.slice_files(os.listdir(place)) if place.is_dir() else []
        if files:
            return Family(folder, "model", "safetensors", files=tuple(below + name for name in files))
    return None


def _components(path: Path) -> dict[str, Family]:
    """Models in folders of their own, by folder: a diffusers directory, or several named adapters."""
    found: dict[str, Family] = {}
    for folder, inside in subfolders(path).items():
        is_named = _COMPONENT.fullmatch(folder) or (
            "adapter_config.json" in inside and not re.search(r"\d", folder) and not folder.startswith(".")
        )
        if is_named and any(SINGLE.fullmatch(name) or INDEX.fullmatch(name) for name in inside):
            family = _choose(path, folder, [])
            if family is not None:
                found[folder] = family
    return found


def _modules(path: Path, notes: list[str]) -> list[Family]:
    """The further modules of a sentence-transformers model that have weights."""
    found = []
    if (path / "modules.json").is_file():
        for folder in sorted(os.listdir(path)):
            if _MODULE.fullmatch(folder) and (path / folder).is_dir():
                family = _choose(path, folder, notes)
                if family is not None:
                    found.append(family)
    return found


def _naming(family: Family, components: Mapping[str, Family], *, alone: bool) -> tuple[str, str]:
    """Of the tensors of a family: which copy of the weights they are, and what stands before their names."""
    if alone or not family.folder:
        return "", ""
    if family.folder not in components:
        return "", f"{family.folder}:"
    copies = {name for name in components if name.endswith("_ema") and name.removesuffix("_ema") in components}
    is_copy = family.folder in copies
    base = family.folder.removesuffix("_ema") if is_copy else family.folder
    return family.folder if is_copy else "", f"{base}:" if len(components) - len(copies) > 1 else ""


def _parts(path: Path, family: Family, section: str | None, naming: tuple[str, str], notes: list[str]) -> list[Part]:
    """The files of one family, opened and held against their index."""

    def opened(name: str) -> Part:
        return Part(family.path(name), open_part(path / family.path(name), section), *naming)

    if family.index is None:
        return [opened(name) for name in family.files]
    place = path / family.path(family.index)
    weight_map, metadata = _read_index(place, family.suffix)
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
        notes.append(f"{family.index} states a total size of {int(stated):,} bytes, and the shards hold {total:,}")
    return parts


def _read_index(place: Path, suffix: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The map of an index, tensor to file, and its metadata; every file name is one that may be opened."""
    content = load_json(place)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnreadableError(
            f"{place}: not an index: it has no weight_map", path=place, hint="Copy it again, or save it again."
        )
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _is_plain(name) or not name.endswith(f".{suffix}"):
            raise UnreadableError(
                f"{place}: {tensor} is said to be in {name!r}, which is not the name of a .{suffix} file beside it",
                path=place,
                tensor=tensor,
                hint="A shard is looked for in the directory of its index only.",
            )
    metadata = content.get("metadata")
    return weight_map, metadata if isinstance(metadata, dict) else {}


def _is_plain(name: str) -> bool:
    """Whether a name is a file name and no path: no separator of any system, no drive, not ``..``."""
    return bool(name) and name not in {".", ".."} and not re.search(r"[/\\:\x00]", name)


def _stale(path: Path) -> list[str]:
    """Weights in the directory that are not taken: other formats, other variants, orphaned shards."""
    return [name for name in os.listdir(path) if is_weights(name)]


def _folders(path: Path, families: Sequence[Family]) -> list[str]:
    """Where companions are looked for: the directory, the folders of its models, and those of a pipeline's parts."""
    own = {each.folder for each in families if each.folder}
    further = {
        name
        for name in os.listdir(path)
        if (path / name).is_dir()
        and (
            _MODULE.fullmatch(name)
            or re.fullmatch(r"tokenizer(?:_\d+)?|feature_extractor|image_processor", name)
            or (name == "scheduler" and (path / "model_index.json").is_file())
        )
    }
    return ["", *sorted(own | further)]


IMPLEMENTATION = Implementation(recognise, read, lay_out)
