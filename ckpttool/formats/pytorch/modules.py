"""Modules that were pickled whole: their tensors, without their code.

A pickled ``nn.Module`` is an inert object. Its tensors are named here as its ``state_dict`` would name them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ckpttool.errors import UnreadableError
from ckpttool.formats.container import MAX_DEPTH, MAX_NODES, children
from ckpttool.tensors import TensorSpec

__all__ = ["Entry", "is_module", "module_entries", "module_tensors"]


class Entry(NamedTuple):
    """A parameter or buffer of a module: its value, and the mapping and key that hold it."""

    value: Any
    holder: Any
    key: str | int


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


def is_module(node: Any) -> bool:
    """Whether an inert object is a pickled ``nn.Module``."""
    return _module_state(node) is not None


def module_entries(node: Any, source: str) -> dict[str, Entry]:
    """Where the parameters and the persistent buffers of a pickled ``nn.Module`` are, by their names in its state dict.

    Those of a module come before those of its children, in the order of registration. Empty for anything else.

    Args:
        node: The inert object.
        source: The file, for messages.

    Raises:
        UnreadableError: The modules nest without end.
    """
    found: dict[str, Entry] = {}
    _collect_module(node, "", 0, _Budget(source), found)
    return found


def module_tensors(node: Any, read: Callable[[Any], Any], source: str) -> dict[str, TensorSpec]:
    """The tensors of a pickled ``nn.Module`` as its ``state_dict`` names them; empty for anything else.

    Args:
        node: The inert object.
        read: Tells a tensor among inert objects: gives its `TensorSpec`, or something else.
        source: The file, for messages.

    Raises:
        UnreadableError: The modules nest without end.
    """
    specs = {name: read(entry.value) for name, entry in module_entries(node, source).items()}
    return {name: spec for name, spec in specs.items() if isinstance(spec, TensorSpec)}


def _collect_module(node: Any, prefix: str, depth: int, budget: _Budget, found: dict[str, Entry]) -> None:
    budget.spend(depth)
    state = _module_state(node)
    if state is None:
        return
    transient = _members(state.get("_non_persistent_buffers_set"))
    for part in ("_parameters", "_buffers"):
        holder = state.get(part)
        for name, value in children(holder):
            budget.spend(depth)
            if value is not None and (part == "_parameters" or name not in transient):
                found[f"{prefix}{name}"] = Entry(value, holder, name)
    for name, child in children(state.get("_modules")):
        _collect_module(child, f"{prefix}{name}.", depth + 1, budget, found)


def _members(pickled: Any) -> set[Any]:
    """The members of a set, as the protocols write one: itself, a call with a list, or what is added to an object."""
    if isinstance(pickled, (set, frozenset)):
        return set(pickled)
    listed = [member for argument in getattr(pickled, "args", ()) if isinstance(argument, list) for member in argument]
    return {member for member in (*listed, *getattr(pickled, "added", ())) if isinstance(member, str)}
