"""TensorFlow 2 checkpoints ("tensor bundles"), read and written without TensorFlow.

    ckpt-100.index                   a sorted table: the header, and for each tensor its type, shape, place, checksum
    ckpt-100.data-00000-of-00001     the tensors' bytes, little-endian, C order
    checkpoint                       text: which checkpoints the directory has (written, not needed for reading)

A checkpoint is named by its prefix (``run/ckpt-100``), its index (``run/ckpt-100.index``) or, where it is alone in
there, its directory. Names are the keys of the index without the ending ``/.ATTRIBUTES/VARIABLE_VALUE`` that each
variable of an object-based checkpoint has; the keys themselves are kept for writing.

What is not a weight stays out of the average: the slots of an optimizer (``…/.OPTIMIZER_SLOT/…``, and by TensorFlow 1
``variable/Adam``), everything in an optimizer or a Keras metric, and counters. ``variable/ExponentialMovingAverage``
is the variable's moving average and becomes a copy of the weights.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckpttool.checksums import crc32c
from ckpttool.checksums.by_kind import damaged
from ckpttool.errors import UnreadableError, UnsupportedError, UsageError
from ckpttool.formats.description import Implementation
from ckpttool.formats.tensorflow.entries import (
    NOT_PLAIN,
    STRING,
    TF_NUMBERS,
    Entry,
    check_strings,
    data_file,
    encode_string,
    index_bytes,
    read_bytes,
    read_index,
    read_string,
    sizes,
)
from ckpttool.formats.tensorflow.leveldb import FOOTER_BYTES, MAGIC
from ckpttool.formats.tensorflow.object_graph import OBJECT_GRAPH, prune_object_graph
from ckpttool.formats.tensorflow.variables import ITERATIONS, names_of, sort_out
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import Artifact, Checkpoint, Checksum, Copy, Extent, OutputFile, Slot, TensorId, TensorSpec

__all__ = ["IMPLEMENTATION", "NAME", "Bundle", "lay_out", "read", "recognise"]

NAME = "tensorflow"

PROVENANCE = "_CKPTTOOL_PROVENANCE"
"""Key of a string that no object claims: TensorFlow reads it when asked, and else passes over it."""

_STEP_IN_NAME = re.compile(r"ckpt-(\d+)$")
_MAX_SCALARS = 1000
_SCALARS = {
    "float32": "f",
    "float64": "d",
    "float16": "e",
    "int64": "q",
    "int32": "i",
    "int16": "h",
    "int8": "b",
    "uint64": "Q",
    "uint32": "I",
    "uint16": "H",
    "uint8": "B",
    "bool": "?",
}


@dataclass(frozen=True)
class Bundle:
    """The container of a checkpoint of this format.

    Attributes:
        prefix: Path of the checkpoint without an ending.
        shards: Number of its data files.
        big_endian: Byte order of its tensors.
        entries: Every tensor that the index has, by key.
        keys: The key of each tensor that can be averaged.
        state: The keys of training state: slots, the variables of optimizers and metrics, counters.
    """

    prefix: Path
    shards: int
    big_endian: bool
    entries: Mapping[str, Entry]
    keys: Mapping[TensorId, str]
    state: frozenset[str]

    def data_file(self, entry: Entry) -> Path:
        """The data file that holds this tensor."""
        return data_file(self.prefix, entry.shard, self.shards)

    def extent(self, entry: Entry) -> Extent:
        """The bytes of this tensor, with the checksum that TensorFlow compares when it restores them."""
        # That of strings goes over their lengths as numbers, and not as they stand in the file.
        stated = None if entry.number in NOT_PLAIN else Checksum("crc32c", crc32c.unmask(entry.crc))
        return Extent(self.data_file(entry), entry.offset, entry.nbytes, checksum=stated)


def recognise(path: Path, head: bytes, snapshot: Snapshot) -> bool:  # noqa: ARG001  # the same question to all formats
    """Whether this is an index, or a directory with exactly one in it."""
    if path.is_dir():
        return _only_index(path) is not None
    return _is_index(path, head)


def _is_index(path: Path, head: bytes) -> bool:
    # The first entry has the key "" (nothing shared, nothing own) and starts with field 1 of the header.
    if head[:2] != b"\0\0" or head[3:4] != b"\x08":
        return False
    try:
        with path.open("rb") as file:
            file.seek(-8, 2)
            return file.read(8) == MAGIC.to_bytes(8, "little")
    except OSError:
        return False


def _only_index(directory: Path) -> Path | None:
    found = []
    for path in sorted(directory.glob("*.index")):
        try:
            with path.open("rb") as file:
                head = file.read(FOOTER_BYTES)
        except OSError:
            continue
        if _is_index(path, head):
            found.append(path)
    return found[0] if len(found) == 1 else None


def _index_of(path: Path) -> Path:
    if path.is_dir():
        found = _only_index(path)
        if found is None:
            raise UnreadableError(
                f"{path}: does not hold exactly one TensorFlow checkpoint",
                path=path,
                hint=f"Name the one that is meant, such as {path / 'ckpt-100'}.",
            )
        return found
    return path if path.suffix == ".index" else path.with_name(f"{path.name}.index")


def read(path: Path, *, section: str | None = None, snapshot: Snapshot | None = None) -> Checkpoint:  # noqa: ARG001
    """Open a bundle. The index, the sizes of the data files and the values of counters are read, no weight is.

    Args:
        path: Prefix, index, or a directory with one bundle in it.
        section: Only variables below this key are weights (``model``, ``model/encoder``); by default all that are not
            training state.
        snapshot: The operation's view of the storage; None: a new one.

    Raises:
        UnreadableError: Index or data files are missing, truncated or damaged.
        UnsupportedError: It has partitioned variables, types or a compression that ckpttool does not know.
        UsageError: Nothing is below `section`.
    """
    index_path = _index_of(path)
    index = read_index(index_path)
    bundle = Bundle(index_path.with_suffix(""), index.shards, index.big_endian, index.entries, {}, frozenset())
    files = sorted({bundle.data_file(entry) for entry in index.entries.values()})
    lengths = sizes(files)
    for key, entry in index.entries.items():
        file = bundle.data_file(entry)
        if entry.offset + entry.nbytes > lengths[file]:
            raise UnreadableError(
                f"{file}: truncated: {key} ends at byte {entry.offset + entry.nbytes}, the file at {lengths[file]}",
                path=file,
                tensor=key,
                hint="The run may have been interrupted while it was saving. Leave this checkpoint out.",
            )
    names = names_of(index.entries)
    sorted_out = sort_out(names, index.entries)
    if not sorted_out.weights:
        raise UnsupportedError(f"{path}: holds no weights, only {len(index.entries)} other entries", path=path)
    weights = sorted_out.weights if section is None else _below(path, sorted_out.weights, section)
    keys = {("", name): key for name, key in weights.items()}
    for copy, copy_keys in sorted_out.copies.items():
        keys.update({(copy, name): key for name, key in copy_keys.items() if name in weights})
    bundle = replace(bundle, keys=_in_file_order(bundle, keys), state=frozenset(sorted_out.state))
    specs = {tensor: _spec(index_path, bundle, key) for tensor, key in bundle.keys.items()}
    scalars = _scalars(bundle, {name: key for name, key in names.items() if key in bundle.state})
    provenance = index.entries.get(PROVENANCE)
    return Checkpoint(
        path=path,
        format=NAME,
        weights={name: spec for (copy, name), spec in specs.items() if not copy},
        copies={
            copy: {name: spec for (of, name), spec in specs.items() if of == copy}
            for copy in sorted({copy for copy, _ in specs if copy})
        },
        section=section or "",
        step=_step(scalars, bundle.prefix),
        values={name.replace("/", "."): value for name, value in scalars.items()},
        provenance=None if provenance is None else _decode_provenance(bundle.data_file(provenance), provenance),
        files=(index_path, *files),
        state=tuple(dict.fromkeys(owner for key, owner in sorted_out.state.items() if index.entries[key].shape)),
        container=bundle,
    )


def _below(path: Path, weights: Mapping[str, str], section: str) -> dict[str, str]:
    start = section.strip("/") + "/"
    found = {name: key for name, key in weights.items() if name.startswith(start)}
    if not found:
        tops = ", ".join(sorted({name.split("/")[0] for name in weights})[:8])
        raise UsageError(
            f"{path}: has no weights below {section!r}", path=path, hint=f"There are weights below: {tops}."
        )
    return found


def _in_file_order(bundle: Bundle, keys: Mapping[TensorId, str]) -> dict[TensorId, str]:
    def place(item: tuple[TensorId, str]) -> tuple[int, int, str]:
        entry = bundle.entries[item[1]]
        return entry.shard, entry.offset, item[1]

    return dict(sorted(keys.items(), key=place))


def _spec(path: Path, bundle: Bundle, key: str) -> TensorSpec:
    entry = bundle.entries[key]
    if entry.dtype is None:
        raise UnsupportedError(
            f"{path}: {key} has TensorFlow's element type {entry.number}, which is not supported", path=path, tensor=key
        )
    return TensorSpec(entry.dtype, entry.shape, bundle.extent(entry), big_endian=bundle.big_endian)


def _scalars(bundle: Bundle, names: Mapping[str, str]) -> dict[str, Any]:
    """The values of counters and the like."""
    scalars: dict[str, Any] = {}
    for name, key in names.items():
        entry = bundle.entries[key]
        code = _SCALARS.get(entry.dtype.name) if entry.dtype else None
        if entry.shape or code is None or len(scalars) == _MAX_SCALARS:
            continue
        path = bundle.data_file(entry)
        data = read_bytes(path, key, entry)
        if crc32c.mask(crc32c.extend(0, data)) != entry.crc:
            raise damaged(path, key)
        (scalars[name],) = struct.unpack((">" if bundle.big_endian else "<") + code, data)
    return scalars


def _step(scalars: Mapping[str, Any], prefix: Path) -> int | None:
    """The step: an optimizer's counter, a global step, the number in the name, or how often was saved."""
    for counters in (ITERATIONS, ("global_step", "step")):
        found = [int(value) for name, value in scalars.items() if name.split("/")[-1] in counters]
        if found:
            return max(found)
    match = _STEP_IN_NAME.search(prefix.name)
    if match:
        return int(match[1])
    saves = scalars.get("save_counter")
    return None if saves is None else int(saves)


def _decode_provenance(path: Path, entry: Entry) -> dict[str, Any]:
    try:
        provenance = json.loads(read_string(path, PROVENANCE, entry))
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{path}: {PROVENANCE} is damaged", path=path, tensor=PROVENANCE) from error
    return provenance if isinstance(provenance, dict) else {}


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
                hint="Write another format: end the output's name in .safetensors.",
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
            hint="Write another format: end the output's name in .safetensors.",
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


IMPLEMENTATION = Implementation(recognise, read, lay_out)
