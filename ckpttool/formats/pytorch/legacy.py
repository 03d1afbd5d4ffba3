"""The torch format before 1.6: five pickles in a row, then the storages, one after the other.

    magic number, protocol version, {little_endian, ...}, the object, [storage keys]
    for each key: the number of elements (8 bytes), then the elements

The numbers of elements are those of the persistent ids in the object, so every storage is found without reading any.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckpttool.errors import UnreadableError, UnsupportedError
from ckpttool.formats.foreign import foreign_pickle
from ckpttool.formats.pickles.inert import Inert, InertType, load
from ckpttool.formats.pytorch.tensors import STORAGE_ITEMSIZES, StorageRef, Storages, storage_ref
from ckpttool.reading.opened import OpenedFile
from ckpttool.tensors import Extent

__all__ = ["is_legacy", "is_legacy_tar", "read_legacy"]

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_FIRST_READ = 1 << 20


def is_legacy(head: bytes) -> bool:
    """Whether a file that starts like this is a pickle of protocol 2 or later: torch's own, or any."""
    return len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5


def is_legacy_tar(head: bytes) -> bool:
    """Whether a file that starts like this is of torch 0.1: a tar archive with members of these names."""
    name = head[:100].rstrip(b"\0")
    return head[257:262] == b"ustar" and name.removeprefix(b"./") in {b"sys_info", b"pickle", b"tensors", b"storages"}


class _Pickles:
    """The pickles at the start of a file, whose lengths are not stated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = 0
        self.refs: dict[str, StorageRef] = {}
        self._file = OpenedFile(path)
        self.size = self._file.nbytes
        self._data = self.read_at(0, min(self.size, _FIRST_READ))

    def close(self) -> None:
        self._file.close()

    def read_at(self, offset: int, nbytes: int) -> bytes:
        return self._file.read_at(offset, nbytes)

    def next(self) -> Any:
        """The next one. Reads more of the file as long as that is what is missing."""
        while True:
            found = self._try_next()
            if found is not None:
                return found[0]
            have = len(self._data)
            more = self.read_at(have, min(self.size - have, max(have, _FIRST_READ)))
            if not more:
                raise UnreadableError(
                    f"{self.path}: the file is truncated ({self.size} bytes)",
                    path=self.path,
                    hint="The run may have been interrupted while it was saving.",
                )
            self._data += more

    def _try_next(self) -> tuple[Any] | None:
        try:
            graph, self.at = load(self._data, path=self.path, start=self.at, persistent_load=self._storage)
        except EOFError:
            return None
        return (graph,)

    def _storage(self, pid: Any) -> Any:
        ref = storage_ref(pid)
        if type(ref) is StorageRef:
            self.refs.setdefault(ref.key, ref)
        return ref


def read_legacy(path: Path) -> tuple[Any, Storages]:
    """The object in a file, and where its storages are.

    Raises:
        UnsupportedError: A pickle that torch.save did not write.
        UnreadableError: The file is truncated or damaged.
    """
    pickles = _Pickles(path)
    try:
        return _read(pickles)
    finally:
        pickles.close()


def _read(pickles: _Pickles) -> tuple[Any, Storages]:
    path = pickles.path
    magic = pickles.next()
    if type(magic) is not int or magic != _MAGIC:
        foreign = foreign_pickle(magic if isinstance(magic, dict) else (), path.suffix.lower())
        if foreign is not None:
            raise UnsupportedError(f"{path}: {foreign.title}, which is not read", path=path, hint=foreign.advice)
        raise UnsupportedError(
            f"{path}: a pickle of {_described(magic)}, not a torch file",
            path=path,
            hint="Save the weights with torch.save or safetensors. Nothing in the file was executed.",
        )
    version = pickles.next()
    if type(version) is not int or version != _VERSION:
        raise _damaged(path, "the version of the torch file is unknown")
    system = pickles.next()
    graph = pickles.next()
    keys = pickles.next()
    if type(keys) is not list or not all(type(key) is str for key in keys) or len(set(keys)) != len(keys):
        raise _damaged(path, "the list of storages is missing")
    extents: dict[str, Extent] = {}
    at = pickles.at
    for key in keys:
        ref = pickles.refs.get(key)
        itemsize = None if ref is None else STORAGE_ITEMSIZES.get(ref.cls.name)
        if ref is None or itemsize is None:
            raise _damaged(path, f"nothing says what the storage {key[:40]} is")
        count = int.from_bytes(pickles.read_at(at, 8), "little")
        nbytes = ref.numel * itemsize
        if at + 8 + nbytes > pickles.size:
            raise _damaged(path, f"the storage {key[:40]} ends beyond the end of the file")
        if count != ref.numel:
            raise _damaged(path, f"the storage {key[:40]} has {count} elements where {ref.numel} should be")
        extents[key] = Extent(path, at + 8, nbytes)
        at += 8 + nbytes

    def extent(ref: StorageRef) -> Extent:
        found = extents.get(ref.key)
        if found is None:
            raise _damaged(path, f"the storage {ref.key[:40]} is missing")
        return found

    is_little = not isinstance(system, dict) or system.get("little_endian") is not False
    return graph, Storages(path, extent, big_endian=not is_little)


def _described(graph: Any) -> str:
    if isinstance(graph, InertType):
        return f"the name {graph.qualified}"
    if isinstance(graph, Inert):
        return f"an object of {graph.qualified}"
    if isinstance(graph, dict):
        keys = ", ".join(str(key)[:40] for key in list(graph)[:4] if isinstance(key, str))
        return f"a dict of {len(graph)}" + (f" ({keys}{', ...' if len(graph) > 4 else ''})" if keys else "")
    return f"a value of type {type(graph).__name__}"


def _damaged(path: Path, what: str) -> UnreadableError:
    return UnreadableError(
        f"{path}: {what}",
        path=path,
        hint="The file is damaged or incomplete: the run may have been interrupted while it was saving.",
    )
