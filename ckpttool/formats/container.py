"""Containers: the nested mappings and lists that a checkpoint file holds, and key paths in them.

The leaves of a tree are `TensorSpec`s, plain values, and objects of other types, which are not looked into. Pickles may
share containers and hold cycles, and a small file may unfold without end: walks visit each container once, and listings
of tensors have a budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ckpttool.errors import UnreadableError, UnsupportedError
from ckpttool.formats import get_format
from ckpttool.tensors import Checkpoint, TensorSpec

__all__ = [
    "MAX_DEPTH",
    "MAX_NODES",
    "KeyPath",
    "PickledModule",
    "at",
    "children",
    "containers",
    "dotted",
    "is_container",
    "path_of",
    "tensor_paths",
    "tensors_below",
    "tree_of",
    "walk",
]

KeyPath = tuple[str | int, ...]
"""Keys and indices from the root of a tree to a node."""

MAX_DEPTH = 64
"""Containers inside each other that are looked into."""

MAX_NODES = 4_000_000
"""Nodes that a listing of tensors looks at."""


class PickledModule(dict[str, Any]):
    """A module that was pickled whole, in a tree: the tensors of its ``state_dict``, by name."""


def dotted(path: KeyPath) -> str:
    """A key path as users type it.

    >>> dotted(("extra_state", "ema"))
    'extra_state.ema'
    """
    return ".".join(map(str, path))


def is_container(node: Any) -> bool:
    """Whether a node is a mapping or a list."""
    # The abstract class last: asking it takes longest, and most nodes of a checkpoint are tensors.
    return not isinstance(node, TensorSpec) and isinstance(node, (dict, list, tuple, Mapping))


def children(node: Any) -> Iterator[tuple[str | int, Any]]:
    """The children of a container, with keys that a path can hold; none of anything else."""
    if isinstance(node, (dict, Mapping)):
        for key, value in node.items():
            if isinstance(key, (str, int)):
                yield key, value
    elif isinstance(node, (list, tuple)):
        yield from enumerate(node)


def at(tree: Any, path: KeyPath) -> Any:
    """The node at a path; None where there is none. A negative index counts from the end of a list."""
    for key in path:
        if isinstance(tree, (list, tuple)):
            present = isinstance(key, int) and -len(tree) <= key < len(tree)
        else:
            present = isinstance(tree, Mapping) and key in tree
        if not present:
            return None
        tree = tree[key]
    return tree


def walk(node: Any, path: KeyPath = (), seen: set[int] | None = None) -> Iterator[tuple[KeyPath, Any]]:
    """Every node below, parents first, each container once and no deeper than `MAX_DEPTH`.

    Args:
        node: Where to begin; it is not among the nodes.
        path: Its own path.
        seen: The `id` of each container that is left out with all below it; gets those that are visited.
    """
    seen = set() if seen is None else seen
    for key, value in children(node):
        here = (*path, key)
        if is_container(value):
            if id(value) in seen or len(here) > MAX_DEPTH:
                continue
            seen.add(id(value))
            yield here, value
            yield from walk(value, here, seen)
        else:
            yield here, value


def containers(node: Any) -> Iterator[tuple[KeyPath, Any]]:
    """The containers among the nodes of `walk`."""
    return ((path, value) for path, value in walk(node) if is_container(value))


def path_of(tree: Any, where: str) -> KeyPath | None:
    """The path of the first container whose dotted path is `where`; None where there is none."""
    return next((path for path, _ in containers(tree) if dotted(path) == where), None)


def tensor_paths(node: Any, source: str, where: str = "") -> dict[str, KeyPath]:
    """The tensors below a node: name, which is the dotted path from the node, to that path.

    A container's own tensors come before those of the containers in it, else they are in the file's order.

    Args:
        node: The node.
        source: The file, for messages.
        where: The node's own dotted path, for messages.

    Raises:
        UnsupportedError: Two tensors come to have one name.
        UnreadableError: The containers nest without end.
    """
    found: dict[str, KeyPath] = {}
    pending: list[tuple[str, KeyPath, Any]] = [("", (), node)]
    visited = 0
    while pending:
        prefix, here, container = pending.pop()
        deeper = []
        for key, value in children(container):
            visited += 1
            if visited > MAX_NODES or len(here) > MAX_DEPTH:
                raise UnreadableError(
                    f"{source}: the containers in {where or 'the file'} nest without end", path=source
                )
            name = f"{prefix}{key}"
            if isinstance(value, TensorSpec):
                if name in found:
                    raise UnsupportedError(f"{source}: two tensors are called {name}", path=source, tensor=name)
                found[name] = (*here, key)
            elif is_container(value):
                deeper.append((f"{name}.", (*here, key), value))
        pending.extend(reversed(deeper))
    return found


def tensors_below(node: Any, source: str) -> dict[str, TensorSpec]:
    """The tensors below a node by name; see `tensor_paths`."""
    return {name: at(node, path) for name, path in tensor_paths(node, source).items()}


def tree_of(checkpoint: Checkpoint) -> Mapping[Any, Any]:
    """The tree of a checkpoint's container; for formats without one, the flat mapping of its tensors."""
    tree = get_format(checkpoint.format).tree(checkpoint)
    if tree is None:
        return dict(checkpoint.weights)
    if isinstance(tree, list):
        return dict(enumerate(tree))
    return tree if isinstance(tree, Mapping) else {}
