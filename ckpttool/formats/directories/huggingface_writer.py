"""Lay a Hugging Face directory out: its files, its shards, its index."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ckpttool.formats.directories.common import (
    Directory,
    copied_files,
    json_file,
    lay_out_part,
    shares,
    with_copied,
)
from ckpttool.tensors import Artifact, Checkpoint, OutputFile, TensorId

__all__ = ["INDEX", "NAME", "SHARD", "SINGLE", "TOTAL_SIZE", "ModelFiles", "is_weights", "lay_out", "split"]

NAME = "huggingface"
TOTAL_SIZE = "total_size"

SINGLE = re.compile(
    r"(?P<stem>model|pytorch_model|adapter_model|diffusion_pytorch_model|pytorch_lora_weights|pytorch_model_fsdp)"
    r"(?:\.(?P<variant>[A-Za-z0-9_-]+))?\.(?P<suffix>safetensors|bin)"
)
INDEX = re.compile(r"(?P<stem>.+)\.(?P<suffix>safetensors|bin)\.index(?:\.(?P<variant>[A-Za-z0-9_-]+))?\.json")
SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}(?:\.(?P<variant>[A-Za-z0-9_-]+))?\.(?P<suffix>safetensors|bin)")


def is_weights(name: str) -> bool:
    """Whether a file's name is that of weights, of a shard of them, or of their index."""
    return any(pattern.fullmatch(name) for pattern in (SINGLE, INDEX, SHARD))


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model in one folder.

    Attributes:
        folder: Path in the directory; "" is the directory itself.
        stem: ``model``, ``pytorch_model``, ``adapter_model``, ...
        suffix: ``safetensors`` or ``bin``.
        variant: ``fp16`` in ``model.fp16.safetensors``.
        index: Name of the index, if it has one.
        files: Names of the files with tensors, in order.
    """

    folder: str
    stem: str
    suffix: str
    variant: str = ""
    index: str | None = None
    files: tuple[str, ...] = ()

    def path(self, name: str) -> str:
        """A file's path in the directory."""
        return f"{self.folder}/{name}" if self.folder else name

    def shard(self, number: int, count: int) -> str:
        """What transformers calls a shard, or the only file."""
        stem = f"{self.stem}.{self.variant}" if self.variant else self.stem
        return f"{stem}.{self.suffix}" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.{self.suffix}"

    def index_name(self) -> str:
        """What transformers calls the index."""
        variant = f".{self.variant}" if self.variant else ""
        return self.index or f"{self.stem}.{self.suffix}.index{variant}.json"


def lay_out(artifact: Artifact) -> tuple[OutputFile, ...]:
    """Lay a directory out: the newest member's files and shards, a new index, and the auxiliary files.

    With `artifact.max_shard_bytes` the weights are split anew; see `split`.
    """
    template = artifact.template
    if template is None or template.format != NAME:
        names = {identity: identity for identity in artifact.tensors if not identity[0]}
        return tuple(split(artifact, ModelFiles("", "model", "safetensors"), "safetensors", None, names))
    directory: Directory = template.container
    files: list[OutputFile] = []
    everything = shares(artifact, directory.parts)
    kept = {part.name.rpartition("/")[0] for part, _ in everything}
    models: Sequence[ModelFiles] = directory.extra
    copied = copied_files(directory, artifact, {model.folder for model in models} - kept - {""})
    artifact = with_copied(artifact, copied)
    for model in models:
        own = [(part, share) for part, share in everything if part.name.rpartition("/")[0] == model.folder]
        if not own:
            continue
        if artifact.max_shard_bytes is None:
            laid = [lay_out_part(artifact, p.name, p.checkpoint.format, p.checkpoint, share) for p, share in own]
            files += laid
            if model.index is not None:
                files.append(_index(artifact, model, laid, [share for _, share in own]))
        else:
            share = {whole: inner for _, each in own for whole, inner in each.items()}
            order = {whole: share[whole] for whole in artifact.tensors if whole in share}
            checkpoints = [part.checkpoint for part, _ in own]
            files += split(artifact, model, checkpoints[0].format, _joined(checkpoints), order)
    return (*files, *copied)


def _joined(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """Shards as one template: the metadata of the first, and which of tied names are stored in any of them."""
    first = checkpoints[0]
    if first.format != "safetensors":
        return None
    return replace(first, container=tuple(name for each in checkpoints for name in each.container))


def split(
    artifact: Artifact,
    model: ModelFiles,
    format_name: str,
    template: Checkpoint | None,
    share: Mapping[TensorId, TensorId],
) -> list[OutputFile]:
    """Split tensors over shards as huggingface_hub does.

    Greedily in their order: a tensor that does not fit any more begins the next shard, and one that is larger than a
    shard gets one of its own. Tied tensors are one tensor. One shard alone needs no index.
    """
    sizes = {whole: artifact.tensors[whole].nbytes for whole in share if whole not in artifact.ties}
    limit = artifact.max_shard_bytes or sum(sizes.values())
    shards: list[dict[TensorId, TensorId]] = [{}]
    filled = 0
    shard_of: dict[TensorId, int] = {}
    for whole, nbytes in sizes.items():
        if shards[-1] and filled + nbytes > limit:
            shards.append({})
            filled = 0
        filled += nbytes
        shards[-1][whole] = share[whole]
        shard_of[whole] = len(shards) - 1
    for whole, inner in share.items():
        if whole in artifact.ties:
            shards[shard_of[artifact.ties[whole]]][whole] = inner
    names = [model.path(model.shard(number + 1, len(shards))) for number in range(len(shards))]
    files = [
        lay_out_part(artifact, name, format_name, template, each) for name, each in zip(names, shards, strict=True)
    ]
    return files if len(shards) == 1 else [*files, _index(artifact, model, files, shards)]


def _index(
    artifact: Artifact, model: ModelFiles, files: Sequence[OutputFile], contents: Sequence[Mapping[TensorId, TensorId]]
) -> OutputFile:
    """The index of shards. Its size counts the bytes of tensors, of tied ones once, and no headers."""
    weight_map: dict[str, str] = {}
    total = 0
    for file, share in zip(files, contents, strict=True):
        total += sum(artifact.tensors[whole].nbytes for whole in share if whole not in artifact.ties)
        names = _stored(file) if model.suffix == "safetensors" else [name for _, name in share.values()]
        weight_map.update((name, file.name.rpartition("/")[2]) for name in names)
    elements = sum(math.prod(artifact.tensors[w].shape) for share in contents for w in share if w not in artifact.ties)
    metadata = {"total_parameters": elements, TOTAL_SIZE: total}
    content = {"metadata": metadata, "weight_map": weight_map}
    return json_file(model.path(model.index_name()), content)


def _stored(file: OutputFile) -> list[str]:
    """The names in the header of a safetensors file that is laid out: of tied names, those that have bytes."""
    header = file.literals[0][1]
    (length,) = struct.unpack_from("<Q", header)
    return [name for name in json.loads(header[8 : 8 + length]) if name != "__metadata__"]
