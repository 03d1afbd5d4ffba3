"""The registry of formats: which module reads and writes which kind of checkpoint.

Each format is one row of `FORMATS`, a `Format`: its suffixes, what it writes, and what its files and directories look
like. Its module has the functions (`Implementation`), and is imported when the first of them is called: a run on
safetensors files imports the module of no other format.

Inputs are recognised by content, never by suffix; outputs are chosen by suffix.

description     what a format is: `Format`, `Implementation`
container       nested containers: key paths, walking, looking up
sections        where the weights are in a state dict
section_names   what frameworks call the parts of a state dict
average_keys    what frameworks call averages of the weights
wrappers        prefixes that wrappers of a model put in front of names
foreign         formats that are not read, and what to do instead
safetensors     safetensors files
pytorch         files of torch.save, and NeMo's archives of them
dcp             directories of torch.distributed.checkpoint
directories     directories of safetensors and torch files
tensorflow      TensorFlow's checkpoints
npz             NumPy's archives
pickles         pickles, which torch files and DCP directories contain
archives        zip archives, which torch files and .npz are
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from ckpttool.errors import CkpttoolError, NotFoundError, UnreadableError, UnsupportedError, UsageError
from ckpttool.formats.description import Format, Implementation
from ckpttool.formats.foreign import foreign_directory, foreign_file
from ckpttool.reading.opened import not_a_file
from ckpttool.reading.snapshot import Snapshot
from ckpttool.run_layouts import WEIGHT_FILES
from ckpttool.tensors import Checkpoint
from ckpttool.text import first_names

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "FORMATS",
    "HEAD_BYTES",
    "Format",
    "Implementation",
    "first_file",
    "format_for_output",
    "format_of_directory",
    "get_format",
    "hint_for_unknown",
    "open_checkpoint",
    "refuse_pipe",
    "weights_file",
]

HEAD_BYTES = 4096


# --- What files start with -------------------------------------------------------------------------------------


def _is_zip(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04")


def _is_pickle(head: bytes) -> bool:
    return len(head) > 1 and head[0] == 0x80


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _is_torch(head: bytes) -> bool:
    return _is_zip(head) or _is_pickle(head) or _is_tar(head)


def _is_nemo(head: bytes) -> bool:
    return _is_tar(head) or head.startswith(b"\x1f\x8b")


def _is_safetensors(head: bytes) -> bool:
    # Eight bytes of a length, then JSON.
    return len(head) > 8 and head[4:8] == bytes(4) and head[8:].lstrip(b" \t\r\n")[:1] in {b"{", b""}


def _is_bundle_index(head: bytes) -> bool:
    # The first entry has the key "" and starts with field 1 of the header.
    return head[:2] == bytes(2) and head[3:4] == b"\x08"


# --- The formats -----------------------------------------------------------------------------------------------

FORMATS: Mapping[str, Format] = {
    row.name: row
    for row in (
        Format(
            "distributed",
            "torch.distributed.checkpoint",
            "ckpttool.formats.dcp.directory",
            output="directory",
            file_names=(".metadata", "*.distcp"),
            directory_names=(
                *(".metadata", "*.metadata.tmp", "*.distcp"),
                *("model_and_optim", "weights", "model_weights", "pytorch_model_fsdp_0"),
            ),
        ),
        Format(
            "parts",
            "PyTorch in several files",
            "ckpttool.formats.directories.parts",
            output="directory",
            is_partitioned=True,
            heads=_is_torch,
            directory_names=(
                *("CKPT.yaml", "mp_rank_*", "tp_rank_*", "*_states.pt", "*-model_states.pt", "checkpoint", "model"),
                *("*-shard*.pt", "*_part*.pt", "*-model_part-*.pt", "*-part*.pt"),
                *("model.pt", "model.pth", "model.ckpt", "pytorch_model.pt", "model_weights.ckpt", "lit_model.pth*"),
            ),
        ),
        Format(
            "huggingface",
            "Hugging Face directories",
            "ckpttool.formats.directories.huggingface",
            output="directory",
            writes_shards=True,
            file_names=("shard-*-model-*-of-*.safetensors",),
            directory_names=("*",),
        ),
        Format(
            "safetensors",
            "safetensors",
            "ckpttool.formats.safetensors",
            suffixes=(".safetensors",),
            keeps_order=False,
            heads=_is_safetensors,
        ),
        Format("nemo", "NeMo", "ckpttool.formats.pytorch.nemo", suffixes=(".nemo",), heads=_is_nemo),
        Format(
            "zero",
            "DeepSpeed ZeRO",
            "ckpttool.formats.directories.zero",
            output="directory",
            writes_shards=True,
            writes_as="huggingface",
            file_names=("*_states.pt",),
            directory_names=("*_states.pt", "global_step*", "checkpoint", "pytorch_model"),
        ),
        Format(
            "torch",
            "PyTorch",
            "ckpttool.formats.pytorch.file",
            suffixes=(".pt", ".pth", ".ckpt", ".bin", ".tar"),
            other_suffixes=(".pth.tar", ".th", ".pkl"),
            heads=_is_torch,
        ),
        Format(
            "tensorflow",
            "TensorFlow",
            "ckpttool.formats.tensorflow.bundle",
            output="model directory",
            other_suffixes=(".index",),
            heads=_is_bundle_index,
            directory_names=("*.index",),
        ),
        Format("npz", "NumPy", "ckpttool.formats.npz.archive", suffixes=(".npz",), heads=_is_zip),
    )
}
"""By name, in the order in which they are asked. Directories before the formats of the files in them;
safetensors before torch: where its header has 640 bytes, the file begins with 80 02, as a pickle does, but no pickle
has eight bytes of a plausible length and a brace after them. ZeRO before torch: its files are torch files,
and parts of a checkpoint."""

CHECKPOINT_SUFFIXES: tuple[str, ...] = (
    *(suffix for row in FORMATS.values() for suffix in (*row.suffixes, *row.other_suffixes)),
    ".pdparams",
)
"""Suffixes of files that may be checkpoints, of all formats and of PaddlePaddle."""


def get_format(name: str) -> Format:
    """The format of this name."""
    return FORMATS[name]


# --- Opening ---------------------------------------------------------------------------------------------------


def format_of_directory(path: Path, snapshot: Snapshot | None = None) -> Format | None:
    """The format that takes a directory for one checkpoint; None if none does. Weights are not opened."""
    snapshot = snapshot or Snapshot()
    with _reading(path):
        if not snapshot.is_dir(path):
            return None
        names = snapshot.names(path)
        asked = (row for row in FORMATS.values() if row.may_be_directory(names))
        return next((row for row in asked if row.recognise(path, b"", snapshot)), None)


def weights_file(path: Path, snapshot: Snapshot | None = None, globs: Sequence[str] = ()) -> Path:
    """What is opened of a checkpoint: the path itself for a file, and for a directory that a format knows.

    In any other directory it is the single file that its layout, or custom, calls the weights.

    Args:
        path: A checkpoint.
        snapshot: The operation's view of the storage; None: a new one.
        globs: What its layout calls the weights, best first.
    """
    snapshot = snapshot or Snapshot()
    if not snapshot.is_dir(path) or format_of_directory(path, snapshot) is not None:
        return path
    return _lone_file(path, snapshot, globs) or path


def _lone_file(path: Path, snapshot: Snapshot, globs: Sequence[str]) -> Path | None:
    """The single file of weights in a directory that no format knows."""
    with _reading(path):
        inside = [name for name in snapshot.names(path) if name.lower().endswith((*CHECKPOINT_SUFFIXES, ".index.json"))]
        if any(name.endswith(".index.json") for name in inside):
            return None
        for glob in (*globs, *WEIGHT_FILES):
            matches = [name for name in inside if fnmatchcase(name, glob)]
            if len(matches) == 1 and not snapshot.is_dir(path / matches[0]):
                return path / matches[0]
    return None


def open_checkpoint(
    path: str | Path,
    *,
    section: str | None = None,
    snapshot: Snapshot | None = None,
    weights: Sequence[str] = (),
) -> Checkpoint:
    """Open a checkpoint of any format, recognised by its content. No weight is read.

    Args:
        path: A checkpoint file, a directory that is one checkpoint or has one file of weights in it, or the prefix that
            names the files of one (``run/ckpt-100`` for ``run/ckpt-100.index`` and its data).
        section: Dotted key path of the weights inside the file, where they are not found by themselves.
        snapshot: The operation's view of the storage, where several checkpoints are opened; None: a new one.
        weights: For a directory that no format knows: globs of the file that holds the weights, best first.

    Raises:
        NotFoundError: There is no such file.
        UnreadableError: The file is empty, truncated, corrupt, or of a kind that is not supported.
    """
    path = Path(path)
    snapshot = snapshot or Snapshot()
    with _reading(path):
        if snapshot.is_dir(path):
            row = format_of_directory(path, snapshot)
            if row is not None:
                return _identified(row.read(path, section=section, snapshot=snapshot), snapshot)
            file = _lone_file(path, snapshot, weights)
            if file is None:
                raise _unknown_directory(path, snapshot)
            return open_checkpoint(file, section=section, snapshot=snapshot)
        refuse_pipe(path, snapshot)
        first = first_file(path, snapshot)
        if not snapshot.exists(first):
            raise NotFoundError(f"{path}: no such file or directory", path=path)
        head = snapshot.read(first, HEAD_BYTES)
        if not head:
            raise UnreadableError(
                f"{path}: the file is empty",
                path=path,
                hint="The run may have been interrupted while it was saving.",
            )
        for row in FORMATS.values():
            if row.may_be_file(first.name, head) and row.recognise(first, head, snapshot):
                return _identified(row.read(path, section=section, snapshot=snapshot), snapshot)
    foreign = foreign_file(head)
    what = "not a checkpoint of a known format" if foreign is None else f"{foreign.title}, which is not read"
    raise UnsupportedError(f"{path}: {what} (it starts with {head[:8]!r})", path=path, hint=hint_for_unknown(head))


def _identified(checkpoint: Checkpoint, snapshot: Snapshot) -> Checkpoint:
    """The checkpoint with what its files were when their headers were read."""
    items = {file: snapshot.item(file) for file in checkpoint.files}
    return replace(checkpoint, identities={file: item.identity for file, item in items.items() if item is not None})


def _unknown_directory(path: Path, snapshot: Snapshot) -> UnsupportedError:
    names = [name for name in snapshot.names(path) if not name.startswith(".")]
    foreign = foreign_directory(names)
    if foreign is not None:
        return UnsupportedError(f"{path}: {foreign.title}, which is not read", path=path, hint=foreign.advice)
    return UnsupportedError(
        f"{path}: no checkpoint of a known layout "
        + (f"(it contains {first_names(names, 8)})" if names else "(it is empty)"),
        path=path,
        hint="Name the files with the weights themselves, if they are in there.",
    )


def hint_for_unknown(head: bytes) -> str:
    """What to do about a file that is of no known format and starts like this."""
    if head.startswith(b"version https://git-lfs"):
        return "It is a pointer of Git LFS, and not the file itself: git lfs pull fetches that."
    foreign = foreign_file(head)
    if foreign is not None:
        return foreign.advice
    known = [
        f"{row.title} ({', '.join(row.suffixes or row.other_suffixes)})"
        for row in FORMATS.values()
        if row.suffixes or row.other_suffixes
    ]
    return f"ckpttool reads {', '.join(known[:-1])} and {known[-1]} files."


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the errors of the storage into ours: any directory on the way may be one that must not be listed."""
    try:
        yield
    except CkpttoolError:
        raise
    except OSError as error:
        place = Path(error.filename) if isinstance(error.filename, str) else path
        raise UnreadableError(
            f"{place}: cannot be read ({error.strerror})",
            path=place,
            hint="Does it belong to another user, or is its disk away?",
        ) from error


def refuse_pipe(path: Path, snapshot: Snapshot) -> None:
    """Refuse what is neither a file nor a directory.

    Raises:
        UnsupportedError: It is a pipe, a socket or a device.
    """
    item = snapshot.item(path)
    if item is not None and item.kind == "other":
        raise not_a_file(path)


def first_file(path: Path, snapshot: Snapshot) -> Path:
    """The path, or the index of the checkpoint whose files all start with it: ``ckpt-100.index`` of ``ckpt-100``."""
    if snapshot.exists(path) or not path.name:
        return path
    index = path.with_name(f"{path.name}.index")
    return index if snapshot.is_file(index) else path


# --- Writing ---------------------------------------------------------------------------------------------------


def format_for_output(path: Path, newest: Checkpoint) -> Format:
    """The format that an output path asks for by its suffix; the newest member's own where that says nothing.

    Raises:
        UsageError: Nothing can write such a file.
    """
    own = get_format(newest.format)
    suffix = path.suffix.lower()
    if path.name == newest.path.name or not suffix or suffix in own.suffixes:
        return own
    for row in FORMATS.values():
        if suffix in row.suffixes:
            return row
    if own.writes_directory and not suffix[1:].isalpha():
        return own  # the point is in a directory's name: llama-3.1-averaged
    if not own.writes_directory and newest.path.suffix.lower() not in own.suffixes:
        return own  # a framework whose names end otherwise: params.00012 makes params.best
    known = [suffix for row in FORMATS.values() for suffix in row.suffixes]
    raise UsageError(
        f"{path}: no format is known for files that end in {suffix!r}",
        hint=f"End the output's name in {', '.join(known[:-1])} or {known[-1]}"
        + ("; for a directory, name it without a suffix." if own.writes_directory else "."),
        path=path,
    )
