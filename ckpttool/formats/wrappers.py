"""Prefixes that wrappers of a model put in front of every tensor's name: one table, and what is done with it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["ALL_WRAPPERS", "AVERAGE_WRAPPERS", "TRAINING_WRAPPERS", "strip_wrappers", "wrapper_prefix"]

TRAINING_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.")
"""DDP and DataParallel, torch.compile, FSDP, Lightning Fabric. Checkpoints of one run may differ by these."""

AVERAGE_WRAPPERS = (*TRAINING_WRAPPERS, "ema_model.", "online_model.", "shadow.", "averaged_model.")
"""Also what EMA implementations put in front of the names of an average."""

ALL_WRAPPERS = (*AVERAGE_WRAPPERS, "model.")
"""Also the attribute that training modules hold the model at: for the names of two sets of weights in one file."""


def wrapper_prefix(names: Collection[str], wrappers: Sequence[str] = TRAINING_WRAPPERS) -> str:
    """The longest chain of wrapper prefixes that every one of the names begins with.

    >>> wrapper_prefix(["module._orig_mod.a", "module._orig_mod.b"])
    'module._orig_mod.'
    """
    prefix = ""
    while names:
        following = next((w for w in wrappers if all(name.startswith(prefix + w) for name in names)), None)
        if following is None:
            break
        prefix += following
    return prefix


def strip_wrappers(name: str, wrappers: Sequence[str] = AVERAGE_WRAPPERS) -> str:
    """A name without the prefixes of wrappers: at its beginning only, as often as they are there.

    >>> strip_wrappers("module._orig_mod.encoder.module.weight")
    'encoder.module.weight'
    """
    while True:
        following = next((wrapper for wrapper in wrappers if name.startswith(wrapper)), None)
        if following is None:
            return name
        name = name[len(following) :]
