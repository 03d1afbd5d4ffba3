"""A checkpoint, opened, whose tensors are numpy arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpttool import formats
from ckpttool.tensors import Checkpoint, TensorId

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OpenCheckpoint", "open_checkpoint"]


@dataclass(frozen=True, repr=False)
class OpenCheckpoint(Checkpoint):
    """A checkpoint whose tensors are read by their names.

    ``checkpoint["encoder.weight"]`` is a numpy array, read when it is asked for, and ``checkpoint["ema", "weight"]``
    the same tensor of a stored copy (`Checkpoint.copies`). ``in``, ``len``, iteration and ``dict(checkpoint)`` are
    about the names of the weights.
    """

    def __getitem__(self, name: str | TensorId) -> NDArray[Any]:
        """Read a tensor: its shape and element type (bfloat16 and float8 by ml_dtypes), in C order, native byte order.

        Raises:
            KeyError: There is no such tensor.
            UnreadableError: The file cannot be read, or has been cut short since.
        """
        from ckpttool.reading.values import read_values

        section, own = ("", name) if isinstance(name, str) else name
        tensors = self.copies.get(section, {}) if section else self.weights
        if own not in tensors:
            close = get_close_matches(own, tensors, n=1)
            raise KeyError(
                f"{self.path.name} has no tensor {name!r}"
                + (f": did you mean {close[0]}?" if close else f", and {len(tensors):,} others")
            )
        return read_values(tensors[own], name=own)

    def __contains__(self, name: object) -> bool:
        return name in self.weights

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def keys(self) -> Iterator[str]:
        """The names of the weights, in the file's own order."""
        return iter(self.weights)


def open_checkpoint(path: str | os.PathLike[str], *, section: str | None = None) -> OpenCheckpoint:
    """Open a checkpoint of any format, recognised by its content. No weight is read before it is asked for.

    Args:
        path: A checkpoint file, a directory that is one checkpoint, or the prefix that names the files of one
            (``run/ckpt-100`` for ``run/ckpt-100.index`` and its data).
        section: Dotted key path of the weights inside the file, where they are not found by themselves.

    Raises:
        NotFoundError: There is no such file.
        UnreadableError: The file is empty, truncated, corrupt, or of a kind that is not known.
    """
    found = formats.open_checkpoint(Path(path), section=section)
    return OpenCheckpoint(**{field.name: getattr(found, field.name) for field in fields(found)})
