"""Checksums of what is read, against those that the files state: in the same pass, whatever is read in what order.

Chunks of a tensor are read by several threads. Each notes the checksum of its own bytes, and whoever brings the last
part puts them together and compares. Nothing is published before every chunk was read, so nothing wrong is.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ckpttool.checksums.by_kind import checksum, combined, damaged
from ckpttool.errors import CkpttoolError
from ckpttool.tensors import Checksum
from ckpttool.text import parameter

if TYPE_CHECKING:
    from ckpttool.reading.scratch import Scratch
    from ckpttool.reading.sources import Source

__all__ = ["Verification"]

_STEP = 1 << 20


@dataclass(slots=True, eq=False)
class Verification:
    """Bytes of a file that a checksum is stated for.

    Attributes:
        source: The open file.
        position: Where in it they begin.
        nbytes: How many there are, at least one.
        stated: Their checksum, according to the file.
        label: What they are, for messages.
        reader: The one view or copy that notes what it reads of them; None where no one reads them from end to end in
            the file's order, and they have to be read for the checksum's sake.
    """

    source: Source
    position: int
    nbytes: int
    stated: Checksum
    label: str
    reader: object = None
    _parts: list[tuple[int, int, int]] = field(default_factory=list)
    _left: int = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._left = self.nbytes

    def note(self, start: int, nbytes: int, value: int) -> None:
        """Bytes [start, start + nbytes) have the checksum `value`. Each byte is noted once; any thread may do it.

        Raises:
            UnreadableError: These were the last, and the whole has another checksum than is stated.
        """
        with self._lock:
            self._parts.append((start, value, nbytes))
            self._left -= nbytes
            if self._left:
                return
        parts = sorted(self._parts)
        found = parts[0][1] if len(parts) == 1 else combined(self.stated.kind, (part[1:] for part in parts))
        if found != self.stated.value:
            raise damaged(self.source.path, self.label)

    def check_done(self) -> None:
        """Make sure that all of the bytes were compared.

        Raises:
            CkpttoolError: They were not, or more than once.
        """
        if self._left:
            raise CkpttoolError(
                f"{self.source.path}: the checksum of {self.label} was not checked; nothing was written",
                path=self.source.path,
                tensor=self.label,
                hint=f"This is a defect of ckpttool. Please report it with the plan ({parameter('dry_run', True)}).",
            )

    def read(self, scratch: Scratch) -> None:
        """Read all of the bytes for the checksum's sake alone.

        Raises:
            UnreadableError: They have another checksum than is stated, or cannot be read.
        """
        parts = []
        for start in range(0, self.nbytes, _STEP):
            data = scratch.take("verification", min(_STEP, self.nbytes - start), np.uint8)
            self.source.read_into(data.data, self.position + start, self.label)
            parts.append((checksum(self.stated.kind, data.data), data.nbytes))
        self._left = 0
        if combined(self.stated.kind, parts) != self.stated.value:
            raise damaged(self.source.path, self.label)
