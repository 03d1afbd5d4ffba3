"""The library speaks of its parameters; on the command line they are options."""

from __future__ import annotations

from ckpttool.text import render

__all__ = ["option_of", "spoken"]

_OPTIONS = {
    "checkpoints": "CHECKPOINT",
    "framework": "--as",
    "log_x": "--logx",
    "log_y": "--logy",
    "output": "-o",
    "warmup": "--no-warmup",
}
"""Parameters whose options are not called as they are."""


def option_of(name: str, value: str | None = None) -> str:
    """A parameter of the library, and the value to set it to, as they are typed on the command line.

    Example:
        >>> option_of("max_shard_size", "5GB"), option_of("force", "True"), option_of("output", "a b.pt")
        ('--max-shard-size 5GB', '--force', "-o 'a b.pt'")
    """
    option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
    if value is None or value in {"True", "False"}:
        return option
    import shlex

    return f"{option} {shlex.quote(value)}"


def spoken(text: str) -> str:
    """A message of the library in the words of the command line."""
    return render(text, option_of)
