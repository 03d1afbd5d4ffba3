"""What each framework calls things: the files of a model directory, and the sections inside a file."""

from __future__ import annotations

from ckpttool.sections import KeyPath, Located, Replacement, StatePart, dotted, locate

__all__ = ["KeyPath", "Located", "Replacement", "StatePart", "dotted", "locate"]
