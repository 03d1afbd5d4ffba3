"""Lay a TensorFlow checkpoint out: index, one data file, and the state file ``checkpoint``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ckpttool.checksums import crc32c
from ckpttool.errors import UnreadableError, UnsupportedError
from ckpttool.formats.tensorflow.container import NAME, PROVENANCE, Bundle
from ckpttool.formats.tensorflow.entries import (
    STRING,
    TF_NUMBERS,
    Entry,
    check_strings,
    data_file,
    encode_string,
    index_bytes,
    read_string,
)
from ckpttool.formats.tensorflow.object_graph import OBJECT_GRAPH, prune_object_graph
from ckpttool.tensors import Artifact, Copy, Extent, OutputFile, Slot, TensorId

__all__ = ["lay_out"]

_OTHER_FORMAT = "Write another format: end the output's name in .safetensors."


def lay_out(artifact: Artifact) -> tuple[OutputFile, ...]:
    """Lay a directory out: index, one data file, and the state file ``checkpoint``.

    With a template of this format the checkpoint keeps its name (``ckpt-100``), its counters, strings and object graph,
    so that TensorFlow restores it into the same objects. Of the optimizer, the scalars are kept (the step among them)
    and the slots are left out, unless `artifact.keep_state`: they belong to none of the averaged weights. The graph is
    told so, and a restored optimizer starts afresh. Without a template the names become keys, which
    ``tf.train.load_checkpoint`` reads.

    Raises:
        UnsupportedError: An element type that a bundle cannot hold, or a template in the other byte order.
    """
    bundle: Bundle | None = None
    if artifact.template is not None and artifact.template.format == NAME:
        bundle = artifact.template.container
    prefix = bundle.prefix.name if bundle is not None else artifact.stem
    data_name = data_file(Path(prefix), 0, 1).name
    data = _DataFile()
    if bundle is not None:
        _lay_out_like(data, artifact, bundle)
    else:
        for tensor in artifact.tensors:
            data.add_tensor(_new_key(tensor), tensor, artifact)
    if artifact.provenance:
        text = json.dumps(artifact.provenance, ensure_ascii=False, sort_keys=True).encode()
        data.add_string(PROVENANCE, text)

    def seal(checksums: Mapping[int, int]) -> list[tuple[int, bytes]]:
        return [(0, index_bytes(data.sealed(checksums)))]

    name = json.dumps(prefix, ensure_ascii=False)  # quoted as a text proto is
    state = f"model_checkpoint_path: {name}\nall_model_checkpoint_paths: {name}\n".encode()
    return (
        OutputFile(
            data_name,
            data.nbytes,
            literals=tuple(data.literals),
            slots=tuple(data.slots),
            copies=tuple(data.copies),
            checksum="crc32c",
        ),
        OutputFile(f"{prefix}.index", len(index_bytes(data.entries)), seal=seal, checksums_of=data_name),
        OutputFile("checkpoint", len(state), literals=((0, state),)),
    )


class _DataFile:
    """A data file that grows at its end, and what the index says about it."""

    def __init__(self) -> None:
        self.nbytes = 0
        self.entries: dict[str, Entry] = {}
        self.slots: list[Slot] = []
        self.copies: list[Copy] = []
        self.literals: list[tuple[int, bytes]] = []
        self._slot_of: dict[TensorId, Entry] = {}
        self._waiting: dict[str, int] = {}
        """Key to offset of the slot whose checksum is not known yet."""

    def add_tensor(self, key: str, tensor: TensorId, artifact: Artifact) -> None:
        """A tensor of the artifact; tied ones share one place."""
        output = artifact.tensors[tensor]
        if output.strides is not None:
            raise ValueError(f"{tensor}: a bundle stores C order only, not strides {output.strides}")
        number = TF_NUMBERS.get(output.dtype.name)
        if number is None:
            raise UnsupportedError(
                f"{tensor[1]}: a TensorFlow checkpoint cannot hold elements of type {output.dtype}",
                tensor=tensor[1],
                hint=_OTHER_FORMAT,
            )
        first = artifact.ties.get(tensor, tensor)
        if first not in self._slot_of:
            # The checksum of nothing is 0. An empty tensor has no slot: its offset would be that of the next one too.
            self._slot_of[first] = Entry(number, output.shape, 0, self.nbytes, output.nbytes, crc32c.mask(0))
            if output.nbytes:
                self.slots.append(Slot(self.nbytes, output.nbytes, first))
            self.nbytes += output.nbytes
        self.entries[key] = self._slot_of[first]
        if output.nbytes:
            self._waiting[key] = self.entries[key].offset

    def add_copy(self, key: str, entry: Entry, source: Extent) -> None:
        """A tensor of the template as it is. Its checksum is taken over, so that damage is found by the next reader."""
        self.entries[key] = replace(entry, shard=0, offset=self.nbytes)
        if entry.nbytes:
            self.copies.append(Copy(self.nbytes, source))
        self.nbytes += entry.nbytes

    def add_string(self, key: str, value: bytes) -> None:
        """A scalar string."""
        data, crc = encode_string(value)
        self.entries[key] = Entry(STRING, (), 0, self.nbytes, len(data), crc)
        self.literals.append((self.nbytes, data))
        self.nbytes += len(data)

    def sealed(self, checksums: Mapping[int, int]) -> dict[str, Entry]:
        """The entries with their checksums, given those of the slots by offset."""
        return {
            key: replace(entry, crc=crc32c.mask(checksums[self._waiting[key]])) if key in self._waiting else entry
            for key, entry in self.entries.items()
        }


def _new_key(tensor: TensorId) -> str:
    section, name = tensor
    return f"{name}/{section}" if section else name


def _lay_out_like(data: _DataFile, artifact: Artifact, bundle: Bundle) -> None:
    if bundle.big_endian:
        raise UnsupportedError(
            f"{bundle.prefix}: is big-endian; ckpttool reads such checkpoints, but does not write them",
            path=bundle.prefix,
            hint=_OTHER_FORMAT,
        )
    averaged = {key: tensor for tensor, key in bundle.keys.items()}
    kept: dict[str, Entry] = {}
    for key, entry in sorted(bundle.entries.items(), key=lambda item: (item[1].shard, item[1].offset, item[0])):
        if key in averaged:
            drop = averaged[key] not in artifact.tensors
        elif key in bundle.state and entry.shape:
            drop = not artifact.keep_state
        else:
            drop = key == PROVENANCE or _is_below(key, artifact.drop)
        if not drop:
            kept[key] = entry
    for key, entry in kept.items():
        if key in averaged:
            data.add_tensor(key, averaged[key], artifact)
        elif key == OBJECT_GRAPH and len(kept) + (PROVENANCE in bundle.entries) < len(bundle.entries):
            path = bundle.data_file(entry)
            try:
                graph = prune_object_graph(read_string(path, key, entry), kept.keys())
            except ValueError as error:
                raise UnreadableError(f"{path}: {key} is damaged: {error}", path=path, tensor=key) from error
            data.add_string(key, graph)
        else:
            if entry.number == STRING:
                check_strings(bundle.data_file(entry), key, entry)
            data.add_copy(key, entry, bundle.extent(entry))
    for tensor in artifact.tensors:
        if tensor not in bundle.keys:
            data.add_tensor(_new_key(tensor), tensor, artifact)


def _is_below(key: str, paths: tuple[tuple[str | int, ...], ...]) -> bool:
    starts = tuple("/".join(str(part) for part in path) + "/" for path in paths)
    return f"{key}/".startswith(starts)
