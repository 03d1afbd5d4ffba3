"""Names that lead to the same checkpoint: links, copies, and what an unnumbered name is a copy of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from ckpttool.reading.snapshot import Snapshot
from ckpttool.reading.storage import Identity, RangedFile, storage_of
from ckpttool.run_layouts import Reason
from ckpttool.selection.opening import Entry, Ignored, Opener

__all__ = ["Originals", "equal_files", "identity_of", "without_links"]

_SAMPLES, _SAMPLE_BYTES = 32, 1 << 16
_BLOCK = 1 << 20


def identity_of(path: Path, snapshot: Snapshot) -> Identity:
    """What tells a file from all others; see `ckpttool.reading.storage.Identity`."""
    item = snapshot.item(path)
    return item.identity if item is not None and item.identity else (str(path),)


def _size(path: Path, snapshot: Snapshot) -> int | None:
    """Size in bytes of a file; None of anything else."""
    item = snapshot.item(path)
    return item.nbytes if item is not None and item.kind == "file" else None


def _is_link(path: Path, snapshot: Snapshot) -> bool:
    item = snapshot.item(path)
    return item is not None and item.is_link


def _same_file(path: Path, other: Path, snapshot: Snapshot) -> Ignored:
    link = "symbolic link" if _is_link(path, snapshot) else "hard link"
    return Ignored.because(path, Reason.SAME_FILE, other=other.name, link=link)


def without_links(entries: Sequence[Entry], snapshot: Snapshot) -> tuple[list[Entry], list[Ignored]]:
    """Leave out numbered names that are links to other numbered names."""
    kept: dict[Identity, Entry] = {}
    skipped = []
    for entry in sorted(entries, key=lambda entry: _is_link(entry.path, snapshot)):
        first = kept.setdefault(identity_of(entry.path, snapshot), entry)
        if first is not entry:
            skipped.append(_same_file(entry.path, first.path, snapshot))
    chosen = set(map(id, kept.values()))
    return [entry for entry in entries if id(entry) in chosen], skipped


class Originals:
    """The numbered checkpoints of a directory, to tell what other names in it are further names of.

    Args:
        entries: The numbered checkpoints, oldest first.
        opener: Opens the other names.
    """

    def __init__(self, entries: Sequence[Entry], opener: Opener) -> None:
        self._opener = opener
        self._snapshot = opener.snapshot
        self._identities = {identity_of(entry.path, self._snapshot): entry for entry in entries}
        self._sizes: dict[int, list[Entry]] = {}
        for entry in entries:
            size = _size(entry.path, self._snapshot)
            if size is not None:
                self._sizes.setdefault(size, []).append(entry)

    def twin_of(self, path: Path) -> Ignored | None:
        """That a path is one of the checkpoints, or a copy of one; None where it is neither."""
        twin = self._identities.get(identity_of(path, self._snapshot))
        if twin is not None:
            return _same_file(path, twin.path, self._snapshot)
        size = _size(path, self._snapshot)
        copies = [] if size is None else self._sizes.get(size, [])
        if not copies:
            return None
        step = self._opener.stated_step(path)
        stepped = [entry for entry in copies if step is not None and entry.unit == "step" and entry.step == step]
        # The newest first: that is what most further names are of.
        twin = next((entry for entry in stepped or reversed(copies) if _same_samples(path, entry.path)), None)
        return None if twin is None else Ignored.because(path, Reason.COPY, other=twin.name)


def equal_files(paths: Sequence[Path], snapshot: Snapshot) -> Iterator[tuple[Path, Path]]:
    """Pairs of files that hold the same bytes: each with the first that holds them."""
    sizes: dict[int, list[Path]] = {}
    for path in paths:
        size = _size(path, snapshot)
        if size is None:
            continue
        others = sizes.setdefault(size, [])
        twin = next((other for other in others if _same_bytes(other, path)), None)
        if twin is not None:
            yield twin, path
        others.append(path)


def _same_samples(first: Path, second: Path) -> bool:
    """Whether two files of equal size agree in evenly spread samples, from the first to the last byte.

    Enough to say what a name that is left out anyway is a copy of, without reading gigabytes for it.
    """

    def offsets(nbytes: int) -> Iterable[int]:
        last = max(nbytes - _SAMPLE_BYTES, 0)
        return sorted({last * index // (_SAMPLES - 1) for index in range(_SAMPLES)})

    return _equal_at(first, second, offsets, _SAMPLE_BYTES)


def _same_bytes(first: Path, second: Path) -> bool:
    """Whether two files of equal size hold the same bytes; the first difference ends it."""
    return _equal_at(first, second, lambda nbytes: range(0, nbytes, _BLOCK), _BLOCK)


def _equal_at(first: Path, second: Path, offsets: Callable[[int], Iterable[int]], size: int) -> bool:
    """Whether two files agree; one that cannot be read is no twin, and is an error where it is selected."""
    with suppress(OSError), ExitStack() as stack:
        a, b = (stack.enter_context(closing(storage_of(path).open(path))) for path in (first, second))
        return _agree(a, b, offsets(a.nbytes), size)
    return False


def _agree(a: RangedFile, b: RangedFile, offsets: Iterable[int], size: int) -> bool:
    left, right = memoryview(bytearray(size)), memoryview(bytearray(size))
    for offset in offsets:
        count = a.read_into(left, offset)
        if count != b.read_into(right, offset) or left[:count] != right[:count]:
            return False
    return True
