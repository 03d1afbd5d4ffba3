"""Looking into a checkpoint's container: the tree that its file holds, down to pickled modules.

A tree is nested mappings and lists whose leaves are `TensorSpec`s and plain values. A pickled ``nn.Module`` is an inert
object in it; its tensors are named here as its ``state_dict`` would name them, without its code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ckpttool.errors import UnreadableError
from ckpttool.formats import get_format
from ckpttool.formats.section_names import KeyPath
from ckpttool.formats.sections import children, dotted
from ckpttool.tensors import Checkpoint, TensorSpec

__all__ = ["KeyPath", "at", "dotted", "module_tensors", "tensors_below", "tree_of", "walk"]

_MAX_DEPTH = 64
_MAX_NODES = 4_000_000


def tree_of(checkpoint: Checkpoint) -> Mapping[Any, Any]:
    """The tree of a checkpoint's container; for formats without one, the flat mapping of its tensors."""
    tree = get_format(checkpoint.format).tree(checkpoint)
    if tree is None:
        return dict(checkpoint.weights)
    if isinstance(tree, list):
        return dict(enumerate(tree))
    return tree if isinstance(tree, Mapping) else {}


def at(tree: Any, path: KeyPath) -> Any:
    """The node at a path; None where there is none."""
    for key in path:
        if isinstance(tree, (list, tuple)):
            if not isinstance(key, int) or not 0 <= key < len(tree):
                return None
        elif not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def walk(node: Any, path: KeyPath = (), seen: set[int] | None = None) -> Iterator[tuple[KeyPath, Any]]:
    """Every container below, parents first, each once (pickles may share containers and hold cycles)."""
    seen = set() if seen is None else seen
    for key, value in children(node):
        if isinstance(value, (Mapping, list, tuple)) and id(value) not in seen and len(path) < _MAX_DEPTH:
            seen.add(id(value))
            yield (*path, key), value
            yield from walk(value, (*path, key), seen)


class _Budget:
    """How many nodes may still be looked at. Pickles share containers, so that a small one may unfold without end."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.left = _MAX_NODES

    def spend(self, depth: int) -> None:
        self.left -= 1
        if self.left < 0 or depth > _MAX_DEPTH:
            raise UnreadableError(f"{self.path}: the containers in it nest without end", path=self.path)


def tensors_below(node: Any, path: str) -> dict[str, TensorSpec]:
    """The tensors below a node, by their dotted path from it, in the file's own order.

    Args:
        node: The node.
        path: The file, for messages.

    Raises:
        UnreadableError: The containers nest without end.
    """
    found: dict[str, TensorSpec] = {}
    _collect(node, "", 0, _Budget(path), found)
    return found


def _collect(node: Any, prefix: str, depth: int, budget: _Budget, found: dict[str, TensorSpec]) -> None:
    for key, value in children(node):
        budget.spend(depth)
        if isinstance(value, TensorSpec):
            found[f"{prefix}{key}"] = value
        elif isinstance(value, (Mapping, list, tuple)):
            _collect(value, f"{prefix}{key}.", depth + 1, budget, found)


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
