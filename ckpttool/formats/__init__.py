"""The registry of formats: which module reads and writes which kind of file.

A format is a module with four names:

    NAME: str                                        "safetensors"
    SUFFIXES: tuple[str, ...]                        output suffixes that choose it: (".safetensors",)
    recognise(path: Path, head: bytes) -> bool       from the first HEAD_BYTES bytes of a file (b"" for a directory)
    read(path: Path, *, section: str | None = None) -> Checkpoint
    lay_out(artifact: Artifact) -> tuple[OutputFile, ...]

A format whose output is a directory, and not one file, has ``WRITES_DIRECTORY = True`` as well; and where the
checkpoint has a name of its own in that directory, ``WRITES_MODEL_DIRECTORY = True``. One that can split the weights
into files of a chosen size has ``WRITES_SHARDS = True``. One that writes another format's directories has that one's
name in ``WRITES_AS``.

Files are recognised by content, never by suffix; outputs are chosen by suffix. Modules are imported as they
are asked, in the order of the registry, and those after the one that knows the file are not.

safetensors_file          one file is one module
pytorch/, tensorflow/     and each a folder: npz/, dcp/ (torch.distributed.checkpoint)
folders/                  checkpoints that are directories of such files
pickles/, archives/       what several of them are made of
sections, section_names   what frameworks call the parts of a state dict
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ckpttool.errors import CkpttoolError, NotFoundError, UnreadableError, UnsupportedError, UsageError
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import Artifact, Checkpoint, OutputFile

__all__ = [
    "HEAD_BYTES",
    "Format",
    "format_for_output",
    "format_of_directory",
    "get_format",
    "hint_for_unknown",
    "open_checkpoint",
    "refuse_pipe",
    "writes_directory",
    "writes_model_directory",
    "writes_shards",
    "written_format",
]

HEAD_BYTES = 4096


class Format(Protocol):
    """What a format module offers; see the module docstring."""

    NAME: str
    SUFFIXES: tuple[str, ...]

    def recognise(self, path: Path, head: bytes) -> bool:
        """Whether a file that starts like this is of this format."""

    def read(self, path: Path, *, section: str | None = None) -> Checkpoint:
        """Open a checkpoint without reading any weight."""

    def lay_out(self, artifact: Artifact) -> tuple[OutputFile, ...]:
        """Give every byte of the output its place."""


_MODULES = {
    "distributed": "ckpttool.formats.dcp.directory",
    "parts": "ckpttool.formats.directories.parts",
    "huggingface": "ckpttool.formats.directories.huggingface",
    "safetensors": "ckpttool.formats.safetensors",
    "nemo": "ckpttool.formats.pytorch.nemo",
    "zero": "ckpttool.formats.directories.zero",
    "torch": "ckpttool.formats.pytorch.file",
    "tensorflow": "ckpttool.formats.tensorflow.bundle",
    "npz": "ckpttool.formats.npz.archive",
}
"""Name to module, in the order in which they are asked. Directories before the formats of the files in them;
safetensors before torch: where its header has 640 bytes, the file begins with 80 02, as a pickle does, but no pickle
has eight bytes of a plausible length and a brace after them. ZeRO before torch: its files are torch files,
and pieces."""


def get_format(name: str) -> Format:
    """The format of this name, imported now."""
    module: Format = importlib.import_module(_MODULES[name])
    return module


def writes_directory(writer: Format) -> bool:
    """Whether the output of a format is a directory."""
    return bool(getattr(writer, "WRITES_DIRECTORY", False))


def writes_model_directory(writer: Format) -> bool:
    """Whether that directory is a model directory with a named checkpoint in it, and not the checkpoint itself."""
    return bool(getattr(writer, "WRITES_MODEL_DIRECTORY", False))


def writes_shards(writer: Format) -> bool:
    """Whether a format can split the weights into files of a chosen size."""
    return bool(getattr(writer, "WRITES_SHARDS", False))


def written_format(writer: Format) -> str:
    """Name of the format of what a format writes: its own, or another one's."""
    return str(getattr(writer, "WRITES_AS", writer.NAME))


def format_of_directory(path: Path) -> str | None:
    """Name of the format that takes a directory for one checkpoint; None if none does. Weights are not opened."""
    if not path.is_dir():
        return None
    with _reading(path):
        return next((name for name in _MODULES if get_format(name).recognise(path, b"")), None)


def open_checkpoint(path: str | Path, *, section: str | None = None) -> Checkpoint:
    """Open a checkpoint of any format, recognised by its content. No weight is read.

    Args:
        path: A checkpoint file, a directory that is one checkpoint, or the prefix that names the files of one
            (``run/ckpt-100`` for ``run/ckpt-100.index`` and its data).
        section: Dotted key path of the weights inside the file, where they are not found by themselves.

    Raises:
        NotFoundError: There is no such file.
        UnreadableError: The file is empty, truncated, corrupt, or of a kind that nobody here knows.
    """
    path = Path(path)
    snapshot = Snapshot()
    try:
        refuse_pipe(path)
        first = path if path.exists() else _first_of(path)
        if path.is_dir():
            snapshot.list(path)
        snapshot.item(first)  # what is read later must be what these headers are of
        head = b""
        if not path.is_dir():
            with first.open("rb") as file:
                head = file.read(HEAD_BYTES)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file or directory", path=path) from error
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})", path=path) from error
    if not head and not path.is_dir():
        raise UnreadableError(
            f"{path}: the file is empty",
            path=path,
            hint="The run may have been interrupted while it was saving.",
        )
    with _reading(path):
        for name in _MODULES:
            candidate = get_format(name)
            if candidate.recognise(first, head):
                return _identified(candidate.read(path, section=section), snapshot)
    if path.is_dir():
        inside = sorted(name for name in os.listdir(path) if not name.startswith("."))
        raise UnsupportedError(
            f"{path}: no checkpoint of a known layout ("
            + (f"in it are {', '.join(inside[:8])}{', ...' if len(inside) > 8 else ''})" if inside else "it is empty)"),
            path=path,
            hint="Name the files with the weights themselves, if they are in there.",
        )
    raise UnsupportedError(
        f"{path}: not a checkpoint of a known format (it starts with {head[:8]!r})",
        path=path,
        hint=hint_for_unknown(head),
    )


def _identified(checkpoint: Checkpoint, snapshot: Snapshot) -> Checkpoint:
    """The checkpoint with what its files were when their headers were read."""
    items = {file: snapshot.item(file) for file in checkpoint.files}
    return replace(checkpoint, identities={file: item.identity for file, item in items.items() if item is not None})


def hint_for_unknown(head: bytes) -> str:
    """What to do about a file that is of no known format and starts like this."""
    if head.startswith(b"version https://git-lfs"):
        return "It is a pointer of Git LFS, and not the file itself: git lfs pull fetches that."
    return "ckpttool reads safetensors, PyTorch (.pt, .pth, .ckpt, .bin), TensorFlow (.index), .npz and .nemo files."


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say what cannot be read: a directory is listed in many places, and may be one that must not be listed."""
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


def refuse_pipe(path: Path) -> None:
    """Refuse what would be waited for without end when it is opened.

    Raises:
        UnsupportedError: It is a pipe.
    """
    if path.is_fifo():
        raise UnsupportedError(
            f"{path}: a pipe, and no file: a checkpoint is read from many places at once",
            path=path,
            hint="Save it to a file, and name that.",
        )


def _first_of(prefix: Path) -> Path:
    """The file to recognise a checkpoint by whose files all start with `prefix`; the prefix itself for none."""
    index = prefix.with_name(f"{prefix.name}.index") if prefix.name else prefix
    return index if index.is_file() else prefix


def format_for_output(path: Path, newest: Checkpoint) -> Format:
    """The format that an output path asks for by its suffix; the newest member's own where that says nothing.

    Raises:
        UsageError: Nothing can write such a file.
    """
    own = get_format(newest.format)
    suffix = path.suffix.lower()
    if path.name == newest.path.name or not suffix or suffix in own.SUFFIXES:
        return own
    for name in _MODULES:
        candidate = get_format(name)
        if suffix in candidate.SUFFIXES:
            return candidate
    if writes_directory(own) and not suffix[1:].isalpha():
        return own  # the point is in a directory's name: llama-3.1-averaged
    if not writes_directory(own) and newest.path.suffix.lower() not in own.SUFFIXES:
        return own  # a framework whose names end otherwise: params.00012 makes params.best
    raise UsageError(
        f"{path}: no format is known for files that end in {suffix!r}",
        hint="End the output's name in .safetensors, .pt, .pth, .ckpt, .bin or .npz"
        + ("; for a directory, name it without a suffix." if writes_directory(own) else "."),
        path=path,
    )
