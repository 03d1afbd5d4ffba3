"""The data model: where a tensor's bytes are, and where they are written.

A checkpoint is a map from tensor names to byte extents in files. A format reads a file into a `Checkpoint`
and lays an `Artifact` (what is to be written) out as `OutputFile`s; everything between is arithmetic on
extents. Nothing here opens a file, and nothing here needs numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ckpttool.text import ending, first_names

__all__ = [
    "DTYPES",
    "Artifact",
    "Checkpoint",
    "Checksum",
    "ChecksumKind",
    "Copy",
    "DType",
    "Extent",
    "OtherEntry",
    "OutputFile",
    "OutputTensor",
    "Piece",
    "Region",
    "Skipped",
    "Slot",
    "TensorId",
    "TensorSpec",
    "c_strides",
    "is_dense",
]

Kind = Literal["float", "complex", "integer", "bool", "scale"]

ChecksumKind = Literal["crc32", "crc32c"]
"""Zip archives have the one, TensorFlow the other."""

TensorId = tuple[str, str]
"""(section, name): ``("", name)`` for the weights, ``("ema", name)`` for an average stored next to them."""


@dataclass(frozen=True, slots=True)
class DType:
    """An element type. `kind` decides what happens to it: only float and complex are ever averaged."""

    name: str
    itemsize: int
    kind: Kind

    @property
    def is_averaged(self) -> bool:
        """Whether a mean of such elements means anything."""
        return self.kind in {"float", "complex"}

    def __str__(self) -> str:
        return self.name


DTYPES: Mapping[str, DType] = {
    dtype.name: dtype
    for dtype in (
        DType("float64", 8, "float"),
        DType("float32", 4, "float"),
        DType("float16", 2, "float"),
        DType("bfloat16", 2, "float"),
        DType("float8_e4m3fn", 1, "float"),
        DType("float8_e4m3fnuz", 1, "float"),
        DType("float8_e5m2", 1, "float"),
        DType("float8_e5m2fnuz", 1, "float"),
        # A power of two that scales a block of other numbers: a mean of scales belongs to no block.
        DType("float8_e8m0fnu", 1, "scale"),
        DType("complex128", 16, "complex"),
        DType("complex64", 8, "complex"),
        DType("int64", 8, "integer"),
        DType("int32", 4, "integer"),
        DType("int16", 2, "integer"),
        DType("int8", 1, "integer"),
        DType("uint64", 8, "integer"),
        DType("uint32", 4, "integer"),
        DType("uint16", 2, "integer"),
        DType("uint8", 1, "integer"),
        DType("bool", 1, "bool"),
    )
}
"""Every element type ckpttool knows, by the name that numpy, ml_dtypes and torch share."""


class Checksum(NamedTuple):
    """What a file says the checksum of some of its bytes is.

    Attributes:
        kind: Which checksum.
        value: In [0, 2**32), not masked.
        optional: Whether it is compared only where all of the bytes are read anyway, from end to end: the framework
            that the file is from does not compare it.
    """

    kind: ChecksumKind
    value: int
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Extent:
    """`nbytes` bytes of a file from byte `offset` on.

    `deflated` is None for plain bytes; otherwise the bytes are a raw DEFLATE stream of `deflated` bytes that
    starts at `offset` and inflates to `nbytes`. `checksum` is that of the plain bytes, and whoever reads all of them
    refuses them if it is another.
    """

    path: Path
    offset: int
    nbytes: int
    deflated: int | None = None
    checksum: Checksum | None = None


def c_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides, in elements, of an array of this shape in C order (last dimension fastest)."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements fill one gapless run, in whatever order of dimensions (C, Fortran, channels last)."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


class Region(NamedTuple):
    """A rectangular part of a tensor: where it begins in each dimension, and how long it is there."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class Piece(NamedTuple):
    """A rectangular part of a tensor that is stored apart from the rest: where it begins, and its bytes."""

    offsets: tuple[int, ...]
    spec: TensorSpec


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as it is stored: a view of a storage, or several such views put together.

    Two names whose specs are equal are tied: they are one tensor. `strides` is None for C order and only then,
    so that equal views are equal specs (use `TensorSpec.view` to build one from arbitrary strides).

    Attributes:
        dtype: Its element type.
        shape: Its shape; ``()`` for a scalar.
        storage: The bytes of the whole storage it is a view of.
        offset: Index of its first element in the storage, in elements.
        strides: In elements, one for each dimension; None for C order.
        big_endian: Whether the bytes of an element are in the other order.
        pieces: Of a tensor stored in pieces: these, none of them empty or itself in pieces, which are together the
            whole tensor without a gap or an overlap, sorted by where they begin (`ckpttool.tiling` makes such). Then
            `storage` is that of the first piece, `offset` says nothing and `strides` is None. Empty for all other
            tensors.
    """

    dtype: DType
    shape: tuple[int, ...]
    storage: Extent
    offset: int = 0
    strides: tuple[int, ...] | None = None
    big_endian: bool = False
    # Hundreds of them, of hundreds of tensors: where the first one is tells tensors apart well enough.
    pieces: tuple[Piece, ...] = field(default=(), hash=False)

    @classmethod
    def view(
        cls,
        dtype: DType,
        storage: Extent,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        big_endian: bool = False,
    ) -> TensorSpec:
        """A view with arbitrary strides, in its one normal form (strides of dimensions of size 1 mean nothing)."""
        plain = c_strides(shape)
        is_c = math.prod(shape) <= 1 or all(
            size == 1 or stride == expected for size, stride, expected in zip(shape, strides, plain, strict=True)
        )
        return cls(dtype, shape, storage, offset, None if is_c else strides, big_endian)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes of its elements (not of the storage)."""
        return self.numel * self.dtype.itemsize

    @property
    def is_dense(self) -> bool:
        """Whether its elements fill one gapless run of its storage, in whatever order of dimensions.

        A tensor in pieces counts as one in C order, which is how it is read.
        """
        return self.strides is None or is_dense(self.shape, self.strides)


class OtherEntry(NamedTuple):
    """An entry of a state dict that is not a tensor.

    Attributes:
        kind: What it is, as a phrase.
        value: A text that is the same for two entries only if they are.
    """

    kind: str
    value: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, opened: what tensors it has and where their bytes are. No weight has been read.

    Attributes:
        path: The file or directory as the user named it.
        format: Name of its format in the registry of `ckpttool.formats`.
        weights: The model's weights: name to spec, in the file's own order.
        copies: Further sets of the same weights that the file holds next to them (a stored moving average),
            by their dotted key path: ``{"ema": {...}}``, ``{"extra_state.ema": {...}}``.
        section: Dotted key path(s) where the weights were found; empty for a bare state dict.
        step: The training step that the content states, or None.
        values: The small plain values of the container (numbers, strings, booleans), by dotted key path:
            ``{"epoch": 3, "metrics.loss": 1.5}``. Where steps and metrics are looked up.
        metadata: String-to-string metadata, where the format has such (safetensors).
        provenance: What an earlier run of ckpttool wrote into this file; None for all others.
        files: Every file that belongs to the checkpoint.
        identities: What the files were when their headers were read (`ckpttool.reading.storage.Identity`), as far as
            that is known. What is read of them later must be of the same.
        state: Dotted key paths of training state (optimizer, scaler, scheduler) that the container holds.
        other_entries: Entries of the weights' mappings that are not tensors (``_extra_state``, NumPy arrays, numbers):
            name to what each is. An output with this container has them as they are, others do not have them.
        configurations: The model's configurations next to the weights, of a checkpoint that is a directory: path in it
            (``config.json``, ``unet/config.json``, ``adapter_config.json``) to the parsed JSON object.
        left_out: What is in the directory of the checkpoint and not copied into an output like it, with the reasons;
            but for training state.
        notes: Sentences about this file that a user should read.
        container: The format's own view of the file, which it needs to write the same kind of file again.
    """

    path: Path
    format: str
    weights: Mapping[str, TensorSpec]
    copies: Mapping[str, Mapping[str, TensorSpec]] = field(default_factory=dict)
    section: str = ""
    step: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] | None = None
    files: tuple[Path, ...] = ()
    identities: Mapping[Path, tuple[int | str, ...]] = field(default_factory=dict)
    state: tuple[str, ...] = ()
    other_entries: Mapping[str, OtherEntry] = field(default_factory=dict)
    configurations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    left_out: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    container: Any = None

    def __repr__(self) -> str:
        step = "" if self.step is None else f", step {self.step}"
        copies = f", copies at {first_names(self.copies, 2)}" if self.copies else ""
        tensors = f"{len(self.weights):,} tensor" + ("" if len(self.weights) == 1 else "s")
        return f"<{type(self).__name__} {ending(self.path)}: {self.format}, {tensors}{step}{copies}>"

    def tensors(self) -> dict[TensorId, TensorSpec]:
        """Weights and copies together, by (section, name)."""
        both = {("", name): spec for name, spec in self.weights.items()}
        for section, tensors in self.copies.items():
            both.update({(section, name): spec for name, spec in tensors.items()})
        return both


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or directory that was seen and left out, with the reason as a phrase."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor as it shall be written: dense, in the order of dimensions that `strides` (None: C order) gives."""

    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Artifact:
    """What shall be written, before it has a place in a file. A format's `lay_out` turns it into OutputFiles.

    Attributes:
        tensors: Every tensor to be written, by (section, name), in output order. Tied names are all present.
        ties: Of tied names, each but the first maps to the first: one set of bytes serves them all.
        template: The checkpoint whose container is kept, everything but `tensors` as it is in there. None, or a
            checkpoint of another format: a plain file of the weights.
        drop: Key paths of the template's container that are left out, with all that is below them. Weights and copies
            of the template that are not among `tensors` are left out as well.
        keep_state: Whether the training state in the template's container is kept as well.
        provenance: What the output was made of, JSON-able; written into the file where the format can hold it.
        stem: The output's file name without its suffix.
        max_shard_bytes: Split the weights anew into files of at most so many bytes of tensors; None keeps the
            template's files. For formats that have shards.
    """

    tensors: Mapping[TensorId, OutputTensor]
    ties: Mapping[TensorId, TensorId] = field(default_factory=dict)
    template: Checkpoint | None = None
    drop: tuple[tuple[str | int, ...], ...] = ()
    keep_state: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)
    stem: str = "archive"
    max_shard_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in an output file that a tensor of the artifact fills, or a region of one.

    Every slot of a tensor has a region, or there is one slot and it has none.
    """

    offset: int
    nbytes: int
    tensor: TensorId
    region: Region | None = None


@dataclass(frozen=True, slots=True)
class Copy:
    """A place in an output file that is filled with an input's bytes as they are."""

    offset: int
    source: Extent


@dataclass(frozen=True)
class OutputFile:
    """One file of the output, laid out to the byte before any weight is read.

    Attributes:
        name: Path relative to the output; empty when the output is this one file.
        nbytes: Its final size.
        literals: (offset, bytes) that are known already: headers, pickles, padding that is not zero.
        slots: Places to be filled with tensors. Slots and copies do not overlap; gaps are zero.
        copies: Places to be filled with bytes of an input.
        seal: Given the checksum of each slot and copy by its offset, the last (offset, bytes) pieces: what can only be
            written once the contents of all files are known. None when the format has no checksums.
        checksum: Which checksum the slots and copies of this file need, where some file's `seal` asks for them.
        checksums_of: Name of the file whose checksums `seal` is given, where that is another one: an index that
            states what the data file holds. None: this file's own.
    """

    name: str
    nbytes: int
    literals: tuple[tuple[int, bytes], ...] = ()
    slots: tuple[Slot, ...] = ()
    copies: tuple[Copy, ...] = ()
    seal: Callable[[Mapping[int, int]], Sequence[tuple[int, bytes]]] | None = None
    checksum: ChecksumKind = "crc32"
    checksums_of: str | None = None
