"""Modules that were pickled whole: their tensors, without their code.

A pickled ``nn.Module`` is an inert object. Its tensors are named here as its ``state_dict`` would name them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckpttool.errors import UnreadableError
from ckpttool.formats.container import MAX_DEPTH, MAX_NODES, children
from ckpttool.tensors import TensorSpec

__all__ = ["module_tensors"]


class _Budget:
    """How many nodes may still be looked at. Pickles share containers, so that a small one may unfold without end."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.left = MAX_NODES

    def spend(self, depth: int) -> None:
        self.left -= 1
        if self.left < 0 or depth > MAX_DEPTH:
            raise UnreadableError(f"{self.path}: the containers in it nest without end", path=self.path)


def _module_state(node: Any) -> Mapping[str, Any] | None:
    """What a pickled module keeps in its ``__dict__``; None for anything else.

    `torch.nn.Module` has it set by BUILD; the persistence of EDM hands it to the function that rebuilds the object.
    """
    states = getattr(node, "states", ())
    arguments = getattr(node, "args", ())
    candidates = [*states, *(argument.get("state") for argument in arguments if isinstance(argument, Mapping))]
    for state in candidates:
        if isinstance(state, Mapping) and "_parameters" in state and "_modules" in state:
            return state
    return None


def module_tensors(node: Any, read: Callable[[Any], Any], path: str) -> dict[str, TensorSpec]:
    """The tensors of a pickled ``nn.Module`` as its ``state_dict`` names them; empty for anything else.

    Parameters and persistent buffers of a module come before those of its children, in the order of registration.

    Args:
        node: The inert object.
        read: Tells a tensor among inert objects: gives its `TensorSpec`, or something else.
        path: The file, for messages.

    Raises:
        UnreadableError: The modules nest without end.
    """
    found: dict[str, TensorSpec] = {}
    _collect_module(node, "", 0, _Budget(path), read, found)
    return found


def _collect_module(
    node: Any, prefix: str, depth: int, budget: _Budget, read: Callable[[Any], Any], found: dict[str, TensorSpec]
) -> None:
    budget.spend(depth)
    state = _module_state(node)
    if state is None:
        return
    transient = _members(state.get("_non_persistent_buffers_set"))
    for part in ("_parameters", "_buffers"):
        for name, value in children(state.get(part)):
            budget.spend(depth)
            spec = None if part == "_buffers" and name in transient else read(value)
            if isinstance(spec, TensorSpec):
                found[f"{prefix}{name}"] = spec
    for name, child in children(state.get("_modules")):
        _collect_module(child, f"{prefix}{name}.", depth + 1, budget, read, found)


def _members(pickled: Any) -> set[Any]:
    """The members of a set, as the protocols write one: itself, a call with a list, or what is added to an object."""
    if isinstance(pickled, (set, frozenset)):
        return set(pickled)
    listed = [member for argument in getattr(pickled, "args", ()) if isinstance(argument, list) for member in argument]
    return {member for member in (*listed, *getattr(pickled, "added", ())) if isinstance(member, str)}
