"""The chunks of torch.distributed.checkpoint: each a whole torch file inside a ``.distcp`` file."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ckpttool.errors import UnreadableError, UnsupportedError
from ckpttool.formats.archives.zip_reader import Archive, archive_inside
from ckpttool.formats.pickles.inert import load
from ckpttool.formats.pytorch.tensors import Refused, StorageRef, Storages, TensorReader, new_tensor, storage_ref
from ckpttool.formats.pytorch.writer import lay_out_graph
from ckpttool.reading.opened import OpenedFile
from ckpttool.tensors import Artifact, Copy, DType, Extent, OutputFile, OutputTensor, Region, Slot, TensorId, TensorSpec

__all__ = ["ChunkFiles", "FileLayout"]

_PICKLE = "/data.pkl"
_MAX_PICKLE = 1 << 20
_MAX_OPEN = 64
"""Files kept open: a checkpoint of many ranks has more than a process may have."""

_LITTLE = zlib.crc32(b"little")

_INTERRUPTED = "The run may have been interrupted while it was saving, or a copy was not finished."


class ChunkFiles:
    """The files of a directory, open for looking into their chunks. A context manager.

    Args:
        root: The directory of ``.metadata``.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stack = ExitStack()
        self._files: dict[str, OpenedFile] = {}
        # The pickles of equally large chunks are equal, and so are their lengths and checksums.
        self._graphs: dict[tuple[int, int], Any] = {}

    def __enter__(self) -> ChunkFiles:  # noqa: PYI034  # typing.Self came with Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def tensor(
        self, key: str, name: str, offset: int, nbytes: int, shape: tuple[int, ...], dtype: DType
    ) -> TensorSpec | Refused:
        """The tensor in a chunk, or what it is if that is nothing that can be averaged.

        Args:
            key: The tensor that it is a chunk of, for messages.
            name: Path of the file below the root.
            offset: Where the chunk begins.
            nbytes: How long it is.
            shape: The shape that it must have.
            dtype: The element type that it must have.

        Raises:
            UnreadableError: The file is missing or ends before the chunk does, or the chunk is something else.
            UnsupportedError: The chunk is compressed.
        """
        archive = self._archive(key, name, offset, nbytes)
        path = archive.path
        top, graph = self._graph(archive, key)
        storages = Storages(
            path, lambda ref: _plain(archive, top, ref, key), big_endian=_is_big_endian(archive, f"{top}/byteorder")
        )
        spec = TensorReader(storages).read(graph)
        if isinstance(spec, Refused):
            return spec
        if spec is None:
            raise UnreadableError(f"{path}: {key}: there is no tensor at byte {offset:,}", path=path, tensor=key)
        if (spec.shape, spec.dtype) != (shape, dtype):
            raise UnreadableError(
                f"{path}: {key}: the chunk at byte {offset:,} is {spec.dtype} {list(spec.shape)}, and"
                f" .metadata says {dtype} {list(shape)}",
                path=path,
                tensor=key,
                hint="Files of several checkpoints may have been mixed up.",
            )
        return spec

    def pickled(self, key: str, name: str, offset: int, nbytes: int) -> tuple[Any, Storages]:
        """The object of a bytes entry, inert, and where its storages are.

        Raises:
            UnreadableError: It is not one that torch.save wrote.
        """
        archive = self._archive(key, name, offset, nbytes)
        top, graph = self._graph(archive, key)
        return graph, Storages(archive.path, lambda ref: _plain(archive, top, ref, key))

    def check(self, key: str, name: str, offset: int, nbytes: int) -> None:
        """Make sure that a file is there and long enough.

        Raises:
            UnreadableError: It is not.
        """
        file = self._open(key, name)
        if offset + nbytes > file.nbytes:
            raise UnreadableError(
                f"{file.path}: the file is truncated: {key} ends at byte {offset + nbytes:,}, the file at"
                f" {file.nbytes:,}",
                path=file.path,
                tensor=key,
                hint=_INTERRUPTED,
            )

    def _archive(self, key: str, name: str, offset: int, nbytes: int) -> Archive:
        self.check(key, name, offset, nbytes)
        file = self._open(key, name)
        return archive_inside(file.path, file, offset, nbytes)

    def _open(self, key: str, name: str) -> OpenedFile:
        known = self._files.get(name)
        if known is not None:
            return known
        if len(self._files) >= _MAX_OPEN:
            self._stack.close()
            self._files.clear()
        path = self._root / name
        try:
            file = self._stack.enter_context(OpenedFile(path))
        except FileNotFoundError as error:
            raise UnreadableError(
                f"{self._root}: {name} is missing, which holds {key}", path=path, tensor=key, hint=_INTERRUPTED
            ) from error
        self._files[name] = file
        return file

    def _graph(self, archive: Archive, key: str) -> tuple[str, Any]:
        """The top directory of a torch file, and its object."""
        found = next((name for name in archive.names if name.endswith(_PICKLE) and name.count("/") == 1), None)
        if found is None:
            raise UnreadableError(f"{archive.path}: {key} is not a torch file", path=archive.path, tensor=key)
        entry = archive.entry(found)
        if entry.nbytes > _MAX_PICKLE:
            raise UnsupportedError(f"{archive.path}: {key}: too large a pickle", path=archive.path, tensor=key)
        known = self._graphs.get((entry.nbytes, entry.crc32)) if entry.crc32 else None
        if known is None:
            try:
                known, _ = load(archive.read(found), path=archive.path, persistent_load=storage_ref)
            except EOFError as error:
                raise UnreadableError(f"{archive.path}: {key}: cut short", path=archive.path, tensor=key) from error
            self._graphs[entry.nbytes, entry.crc32] = known
        return found[: -len(_PICKLE)], known


def _is_big_endian(archive: Archive, name: str) -> bool:
    if name not in archive.names or archive.entry(name).crc32 == _LITTLE:
        return False
    return archive.read(name) == b"big"


def _plain(archive: Archive, top: str, ref: StorageRef, key: str) -> Extent:
    extent = archive.extent(f"{top}/data/{ref.key}")
    if extent.deflated is not None:
        raise UnsupportedError(
            f"{archive.path}: {key} is compressed, which torch.distributed.checkpoint never writes",
            path=archive.path,
            tensor=key,
            hint="Load it with torch.distributed.checkpoint and save it again.",
        )
    return extent


class FileLayout:
    """A ``.distcp`` file in the making: chunks and copies get their places one after the other.

    Args:
        name: Its path in the output.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._parts: list[tuple[int, OutputFile]] = []
        self._at = 0

    def add_chunk(self, tensor: TensorId, like: OutputTensor, region: Region | None) -> tuple[int, int]:
        """A chunk that a tensor, or a region of it, fills.

        Returns:
            Its offset and length.
        """
        shape = like.shape if region is None else region.sizes
        chunk = OutputTensor(like.dtype, shape, like.strides if region is None else None)
        file = lay_out_graph(new_tensor(tensor, chunk), Artifact({tensor: chunk}), None, None, {})
        slots = tuple([replace(slot, region=region) for slot in file.slots])
        return self._add(replace(file, slots=slots))

    def add_copy(self, source: Extent) -> tuple[int, int]:
        """Bytes of an input, as they are.

        Returns:
            Their offset and length.
        """
        copies = (Copy(0, source),) if source.nbytes else ()
        return self._add(OutputFile("", source.nbytes, copies=copies))

    def _add(self, part: OutputFile) -> tuple[int, int]:
        offset = self._at
        self._parts.append((offset, part))
        self._at += part.nbytes
        return offset, part.nbytes

    def finish(self) -> OutputFile:
        """The file."""
        parts = self._parts

        def seal(crcs: Mapping[int, int]) -> Sequence[tuple[int, bytes]]:
            pieces = []
            for base, part in parts:
                if part.seal is not None:
                    own = {slot.offset: crcs[base + slot.offset] for slot in part.slots}
                    pieces += [(base + offset, data) for offset, data in part.seal(own)]
            return pieces

        return OutputFile(
            self._name,
            self._at,
            literals=tuple([(base + offset, data) for base, part in parts for offset, data in part.literals]),
            slots=tuple(
                [Slot(base + s.offset, s.nbytes, s.tensor, s.region) for base, part in parts for s in part.slots]
            ),
            copies=tuple([Copy(base + copy.offset, copy.source) for base, part in parts for copy in part.copies]),
            seal=seal if any(part.seal is not None for _, part in parts) else None,
        )
