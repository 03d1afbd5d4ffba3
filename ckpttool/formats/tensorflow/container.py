"""What a checkpoint of TensorFlow holds, for reading and for writing one like it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ckpttool.checksums import crc32c
from ckpttool.formats.tensorflow.entries import NOT_PLAIN, Entry, data_file
from ckpttool.tensors import Checksum, Extent, TensorId

__all__ = ["NAME", "PROVENANCE", "Bundle"]

NAME = "tensorflow"

PROVENANCE = "_CKPTTOOL_PROVENANCE"
"""Key of a string that no object claims: TensorFlow reads it when asked, and else ignores it."""


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
        # That of strings goes over their lengths as numbers, and not as they are in the file.
        stated = None if entry.number in NOT_PLAIN else Checksum("crc32c", crc32c.unmask(entry.crc))
        return Extent(self.data_file(entry), entry.offset, entry.nbytes, checksum=stated)
