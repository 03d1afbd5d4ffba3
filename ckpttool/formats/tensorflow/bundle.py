"""TensorFlow 2 checkpoints ("tensor bundles"), read and written without TensorFlow.

    ckpt-100.index                   a sorted table: the header, and for each tensor its type, shape, place, checksum
    ckpt-100.data-00000-of-00001     the tensors' bytes, little-endian, C order
    checkpoint                       text: which checkpoints the directory has (written, not needed for reading)

A checkpoint is named by its prefix (``run/ckpt-100``), its index (``run/ckpt-100.index``) or, where it is alone in
there, its directory. Names are the keys of the index without the ending ``/.ATTRIBUTES/VARIABLE_VALUE`` that each
variable of an object-based checkpoint has; the keys themselves are kept for writing.

What is not a weight stays out of the average: the slots of an optimizer (``…/.OPTIMIZER_SLOT/…``, and by TensorFlow 1
``variable/Adam``), everything in an optimizer or a Keras metric, and counters. ``variable/ExponentialMovingAverage``
is the variable's moving average, and becomes a stored EMA.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckpttool.checksums import crc32c
from ckpttool.checksums.by_kind import damaged
from ckpttool.errors import UnreadableError, UnsupportedError, UsageError
from ckpttool.formats.description import Implementation
from ckpttool.formats.tensorflow.container import NAME, PROVENANCE, Bundle
from ckpttool.formats.tensorflow.entries import Entry, read_bytes, read_index, read_string, sizes
from ckpttool.formats.tensorflow.leveldb import FOOTER_BYTES, MAGIC
from ckpttool.formats.tensorflow.variables import ITERATIONS, names_of, sort_out
from ckpttool.formats.tensorflow.writer import lay_out
from ckpttool.reading.opened import OpenedFile
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import Checkpoint, TensorId, TensorSpec

__all__ = ["IMPLEMENTATION", "NAME", "Bundle", "lay_out", "read", "recognise"]

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


def recognise(path: Path, head: bytes, snapshot: Snapshot) -> bool:
    """Whether this is an index, or a directory with exactly one in it."""
    if snapshot.is_dir(path):
        return _only_index(path, snapshot) is not None
    return _is_index(path, head)


def _is_index(path: Path, head: bytes) -> bool:
    # The first entry has the key "" (nothing shared, nothing own) and starts with field 1 of the header.
    if head[:2] != b"\0\0" or head[3:4] != b"\x08":
        return False
    with OpenedFile(path) as file:
        return file.read_at(max(0, file.nbytes - 8), 8) == MAGIC.to_bytes(8, "little")


def _only_index(directory: Path, snapshot: Snapshot) -> Path | None:
    found = []
    for name, item in snapshot.list(directory).items():
        if name.endswith(".index") and item.kind == "file":
            path = directory / name
            with suppress(OSError, UnreadableError):
                if _is_index(path, snapshot.read(path, FOOTER_BYTES)):
                    found.append(path)
    return found[0] if len(found) == 1 else None


def _index_of(path: Path, snapshot: Snapshot) -> Path:
    if snapshot.is_dir(path):
        found = _only_index(path, snapshot)
        if found is None:
            raise UnreadableError(
                f"{path}: does not hold exactly one TensorFlow checkpoint",
                path=path,
                hint=f"Name the one that is meant, such as {path / 'ckpt-100'}.",
            )
        return found
    return path if path.suffix == ".index" else path.with_name(f"{path.name}.index")


def read(path: Path, *, section: str | None = None, snapshot: Snapshot | None = None) -> Checkpoint:
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
    snapshot = snapshot or Snapshot()
    index_path = _index_of(path, snapshot)
    index = read_index(index_path)
    bundle = Bundle(index_path.with_suffix(""), index.shards, index.big_endian, index.entries, {}, frozenset())
    files = sorted({bundle.data_file(entry) for entry in index.entries.values()})
    lengths = sizes(files, snapshot)
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


IMPLEMENTATION = Implementation(recognise, read, lay_out)
