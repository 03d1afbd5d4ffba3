"""What the fixture ``run`` returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ran:
    """The result of a command."""

    exit_code: int
    stdout: str
    stderr: str
