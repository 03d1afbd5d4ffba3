"""Words for messages: lists of names cut short, and what a tensor is called."""

from __future__ import annotations

from collections.abc import Iterable

from ckpttool.tensors import TensorId

__all__ = ["first_names", "tensor_label"]

_SHOWN = 5


def first_names(names: Iterable[str], most: int = _SHOWN) -> str:
    """The first few names, and how many more there are: ``a, b, c, d, e and 12 more``."""
    names = list(names)
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def tensor_label(name: TensorId) -> str:
    """A tensor's name as people read it: ``weight``, or ``weight (ema)`` for a stored copy."""
    return name[1] if not name[0] else f"{name[1]} ({name[0]})"
