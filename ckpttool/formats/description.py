"""What a format is: the facts that the rest of the package asks for, and the functions that its module has.

A `Format` is a row of the registry. It says what can be known without the format's module: its suffixes, what its
output is, which files and directories may be of it. Its module exports one `Implementation`, called ``IMPLEMENTATION``,
and is imported when one of its functions is called for the first time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import Artifact, Checkpoint, OutputFile

__all__ = ["Format", "Implementation", "Output"]

Output = Literal["file", "directory", "model directory"]
"""What a format writes: one file; a directory that is the checkpoint; or a directory in which the checkpoint has a
name of its own (``avg/ckpt-100.index``)."""


class _Recognise(Protocol):
    def __call__(self, path: Path, head: bytes, snapshot: Snapshot) -> bool:
        """Whether a path is a checkpoint of this format; see `Format.recognise`."""


class _Read(Protocol):
    def __call__(self, path: Path, *, section: str | None = None, snapshot: Snapshot | None = None) -> Checkpoint:
        """Open a checkpoint; see `Format.read`."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """The functions of a format's module. `Format` has them under the same names, documented there.

    Attributes:
        recognise: See `Format.recognise`.
        read: See `Format.read`.
        lay_out: See `Format.lay_out`.
        tree: See `Format.tree`; None for a format whose checkpoints are flat maps of tensors.
    """

    recognise: _Recognise
    read: _Read
    lay_out: Callable[[Artifact], tuple[OutputFile, ...]]
    tree: Callable[[Checkpoint], Any] | None = None


@dataclass(frozen=True)
class Format:
    """A format that ckpttool reads and writes.

    Attributes:
        name: How plans, messages and JSON call it.
        title: How people call it, for messages.
        module: Full name of the module that has its `Implementation`.
        suffixes: Suffixes of output files that choose it, the usual one first. Empty if its output is a directory.
        other_suffixes: Further suffixes that its input files usually have.
        output: What it writes.
        writes_shards: Whether it can split the weights into files of a chosen size.
        writes_as: Name of the format of its output, where that is another one; empty for its own.
        is_partitioned: Whether its files hold parts of tensors or of a model that no single file can hold.
        keeps_order: Whether a file keeps the order in which the model has its tensors.
        heads: Whether a file that starts with these bytes may be of this format; None: the head says nothing.
        file_names: Globs of the names of files that may be of this format, whatever they start with.
        directory_names: Globs of which a directory of this format has at least one name. Empty for a format whose
            checkpoints are files only.
    """

    name: str
    title: str
    module: str
    suffixes: tuple[str, ...] = ()
    other_suffixes: tuple[str, ...] = ()
    output: Output = "file"
    writes_shards: bool = False
    writes_as: str = ""
    is_partitioned: bool = False
    keeps_order: bool = True
    heads: Callable[[bytes], bool] | None = None
    file_names: tuple[str, ...] = ()
    directory_names: tuple[str, ...] = ()

    @property
    def writes_directory(self) -> bool:
        """Whether its output is a directory."""
        return self.output != "file"

    @property
    def writes_model_directory(self) -> bool:
        """Whether that directory is a model directory with a named checkpoint in it, and not the checkpoint itself."""
        return self.output == "model directory"

    @property
    def written_format(self) -> str:
        """Name of the format of its output: its own, or another one's."""
        return self.writes_as or self.name

    def may_be_file(self, name: str, head: bytes) -> bool:
        """Whether a file of this name that starts with `head` may be of this format. Imports nothing."""
        by_head = self.heads is not None and self.heads(head)
        return by_head or any(fnmatchcase(name, glob) for glob in self.file_names)

    def may_be_directory(self, names: Iterable[str]) -> bool:
        """Whether a directory in which these names are may be of this format. Imports nothing."""
        return any(fnmatchcase(name, glob) for glob in self.directory_names for name in names)

    @cached_property
    def _implementation(self) -> Implementation:
        found = importlib.import_module(self.module).IMPLEMENTATION
        assert isinstance(found, Implementation)
        return found

    def recognise(self, path: Path, head: bytes, snapshot: Snapshot) -> bool:
        """Whether a path is a checkpoint of this format.

        Args:
            path: A file or a directory for which `may_be_file` or `may_be_directory` holds.
            head: The first bytes of the file, up to `ckpttool.formats.HEAD_BYTES`; empty for a directory.
            snapshot: The operation's view of the storage.
        """
        return self._implementation.recognise(path, head, snapshot)

    def read(self, path: Path, *, section: str | None = None, snapshot: Snapshot | None = None) -> Checkpoint:
        """Open a checkpoint of this format without reading any weight.

        Args:
            path: What `recognise` takes.
            section: Dotted key path of the weights, where they are not found by themselves.
            snapshot: The operation's view of the storage; None: a new one.
        """
        return self._implementation.read(path, section=section, snapshot=snapshot or Snapshot())

    def lay_out(self, artifact: Artifact) -> tuple[OutputFile, ...]:
        """Give every byte of the output its place."""
        return self._implementation.lay_out(artifact)

    def tree(self, checkpoint: Checkpoint) -> Any:
        """The container of a checkpoint of this format: nested mappings and lists of `TensorSpec`s and plain values.

        None for a format, or a checkpoint, that has no container.
        """
        of_format = self._implementation.tree
        return None if of_format is None else of_format(checkpoint)
