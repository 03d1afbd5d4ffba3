"""Where the weights are inside a checkpoint: weights, copies of them, training state, step.

Training loops save one nested mapping, and each calls its parts something else. The names are data (the tables
of `ckpttool.formats.section_names`); `locate` applies them to a tree whose tensors are `TensorSpec`s. No file is opened
here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckpttool.errors import UnsupportedError, UsageError
from ckpttool.formats.average_keys import COPY_KEYS, COUNTERS
from ckpttool.formats.container import KeyPath, at, children, dotted, is_container, tensor_paths, walk
from ckpttool.formats.section_names import (
    JOINED_SECTIONS,
    OPTIMIZER_KEYS,
    SCHEDULER_ENTRIES,
    SCHEDULER_KEYS,
    STATE_ROWS,
    STEP_OFFSETS,
    STEP_PATHS,
    WEIGHT_SECTIONS,
    Replacement,
)
from ckpttool.formats.wrappers import ALL_WRAPPERS, strip_wrappers
from ckpttool.tensors import TensorSpec
from ckpttool.text import first_names, parameter

__all__ = ["Located", "Replacement", "StatePart", "locate"]


@dataclass(frozen=True, slots=True)
class StatePart:
    """A piece of training state (optimizer, scheduler, scaler), and what its framework's loader wants in its place."""

    path: KeyPath
    replacement: Replacement


@dataclass(frozen=True)
class Located:
    """What is where in a checkpoint's tree.

    Attributes:
        weights: Weight name to its key path, in the file's own order. Never empty.
        copies: Further sets of the same weights (a stored moving average) by dotted section, under their own names;
            the elements of a nameless list are named "0", "1", ... in its order.
        section: Dotted key path of the weights; empty for a bare state dict; several are joined with "+".
        state: Training state, in the file's own order.
        step: The number of updates that the content states, >= 0. An epoch is not a step: it is in `values`.
        values: The small plain values of the tree (numbers, strings, booleans) by dotted key path, training state
            and weights apart.
        others: What is in the mappings of the weights and is not a tensor, by name: an object, a plain value, or a
            container without tensors.
        notes: Sentences that a user should read.
    """

    weights: Mapping[str, KeyPath]
    copies: Mapping[str, Mapping[str, KeyPath]] = field(default_factory=dict)
    section: str = ""
    state: tuple[StatePart, ...] = ()
    step: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


_MAX_VALUES = 4_000
_MAX_TEXT = 400


# --- Walking ---------------------------------------------------------------------------------------------------


def _tensors(node: Any, path: KeyPath, source: str) -> dict[str, KeyPath]:
    """The tensors below the node at a path, named by their dotted path from it; their paths from the root."""
    return {name: (*path, *place) for name, place in tensor_paths(node, source, dotted(path)).items()}


def _has_tensors(node: Any) -> bool:
    return any(isinstance(value, TensorSpec) for _, value in walk(node))


def _mappings(value: Any) -> Iterator[Mapping[Any, Any]]:
    """A value and what is in it, as far as these are mappings: one state, a list of states, or states by name."""
    for node in (value, *(inner for _, inner in walk(value))):
        if isinstance(node, Mapping):
            yield node


# --- Training state, step, values ------------------------------------------------------------------------------


def _is_state(key: str, value: Any) -> bool:
    """Whether a value is evidently optimizer, scheduler or scaler state, and not a configuration of that name."""
    if value is None or isinstance(value, (str, int, float, TensorSpec)):
        return False
    nested = is_container(value)
    if OPTIMIZER_KEYS.fullmatch(key):
        if any("param_groups" in part for part in _mappings(value)) or _has_tensors(value):
            return True
        # A pickled optimizer object; but "opt" is what many call their options.
        return not nested and not key.endswith(("opt", "opts"))
    if SCHEDULER_KEYS.fullmatch(key) and not COPY_KEYS.search(key):
        keyed = any(not SCHEDULER_ENTRIES.isdisjoint(part) for part in _mappings(value))
        return keyed or key.endswith(("_state", "_state_dict")) or (nested and _has_tensors(value))
    return False


def _find_state(tree: Mapping[Any, Any], root: KeyPath) -> tuple[StatePart, ...]:
    base = at(tree, root)
    parts: dict[KeyPath, StatePart] = {}
    for row in STATE_ROWS:
        if not all(key in base for key in row.when) or (row.alone and len(base) > len(row.when)):
            continue
        parent = at(base, row.parent)
        for key in row.keys:
            if isinstance(parent, Mapping) and parent.get(key) is not None:
                path = (*root, *row.parent, key)
                parts.setdefault(path, StatePart(path, row.replacement))
    for key, value in base.items():
        if isinstance(key, str) and _is_state(key, value):
            parts.setdefault((*root, key), StatePart((*root, key), "delete"))
    order = {key: index for index, key in enumerate(base)}
    return tuple(sorted(parts.values(), key=lambda part: order[part.path[len(root)]]))


def _find_step(tree: Mapping[Any, Any], roots: tuple[KeyPath, ...]) -> int | None:
    for root in roots:
        for path in STEP_PATHS:
            value = at(tree, (*root, *path))
            if isinstance(value, int) and not isinstance(value, bool):
                step = value + STEP_OFFSETS.get(path, 0)
                if step >= 0:
                    return step
    return None


def _find_values(tree: Mapping[Any, Any], apart: set[int]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path, value in walk(tree, seen=set(apart)):
        if len(values) >= _MAX_VALUES:
            break
        if isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= _MAX_TEXT):
            values[dotted(path)] = value
    return values


def _find_others(tree: Mapping[Any, Any], sections: tuple[KeyPath, ...], apart: set[int]) -> dict[str, Any]:
    """Entries of the mappings of the weights that are not tensors, except for training state; see `Located.others`."""
    others: dict[str, Any] = {}
    seen = set(apart)

    def look(node: Any, prefix: str) -> None:
        for key, value in children(node):
            if isinstance(value, TensorSpec) or id(value) in seen:
                continue
            if not is_container(value):
                others[f"{prefix}{key}"] = value
                continue
            seen.add(id(value))
            if _has_tensors(value):
                look(value, f"{prefix}{key}.")
            elif value:
                others[f"{prefix}{key}"] = value

    for index, where in enumerate(sections):
        look(at(tree, where), f"{dotted(where)}." if index else "")
    return others


# --- Weights ---------------------------------------------------------------------------------------------------


def _candidates(tree: Mapping[Any, Any], state: tuple[StatePart, ...]) -> list[KeyPath]:
    """Every mapping that holds tensors itself, training state apart."""
    apart = {id(at(tree, part.path)) for part in state}
    places = [((), tree), *((path, node) for path, node in walk(tree, seen=apart) if isinstance(node, Mapping))]
    return [path for path, node in places if any(isinstance(value, TensorSpec) for _, value in children(node))]


def _list_candidates(tree: Mapping[Any, Any], candidates: list[KeyPath]) -> str:
    def describe(path: KeyPath) -> str:
        count = sum(isinstance(value, TensorSpec) for _, value in children(at(tree, path)))
        return f"{dotted(path) or '(top level)'} ({count} tensor{'s' * (count != 1)})"

    return first_names(map(describe, sorted(candidates, key=lambda path: -len(at(tree, path)))), 8)


def _resolve(tree: Any, text: str, path: KeyPath = ()) -> KeyPath | None:
    """The path that a dotted text means. Keys may hold dots themselves, so every split is tried, longest key first."""
    if not text:
        return path
    words = text.split(".")
    for end in range(len(words), 0, -1):
        key: str | int = ".".join(words[:end])
        if isinstance(tree, (list, tuple)) and str(key).isdigit():
            key = int(key)
        if at(tree, (key,)) is not None:
            found = _resolve(at(tree, (key,)), ".".join(words[end:]), (*path, key))
            if found is not None:
                return found
    return None


def _chosen(tree: Mapping[Any, Any], section: str, source: str, candidates: list[KeyPath]) -> tuple[KeyPath, ...]:
    """The sections that the user named."""
    whole = _resolve(tree, section)
    texts = [section] if whole is not None else section.split("+")
    paths = []
    for text in texts:
        path = _resolve(tree, text)
        node = None if path is None else at(tree, path)
        if path is None or not is_container(node) or not _has_tensors(node):
            what = "nothing there" if path is None else "no tensors there"
            raise UsageError(
                f"{source}: section {text!r}: {what}",
                path=source,
                hint=f"Tensors are at: {_list_candidates(tree, candidates)}."
                if candidates
                else "The file holds no tensors.",
            )
        paths.append(path)
    return tuple(paths)


def _found(tree: Mapping[Any, Any], source: str, state: tuple[StatePart, ...]) -> tuple[KeyPath, ...]:
    """The sections that hold the weights, by the tables and then by the shape of the tree."""
    apart = {part.path for part in state}
    inner = [(key,) for key, value in children(tree) if isinstance(value, Mapping) and (key,) not in apart]
    for roots in ([()], inner):
        for tier in WEIGHT_SECTIONS:
            paths = [(*root, *path) for root in roots for path in tier]
            paths = [path for path in paths if isinstance(at(tree, path), Mapping) and _has_tensors(at(tree, path))]
            if len(paths) > 1:
                raise UsageError(
                    f"{source}: the weights may be at {' or '.join(map(dotted, paths))}",
                    path=source,
                    hint=f"Say which: {' or '.join(parameter('section', dotted(path)) for path in paths)}.",
                )
            if paths:
                joined = [more for first, more in JOINED_SECTIONS if paths[0] == first and _has_tensors(at(tree, more))]
                return (_unwrap(tree, paths[0]), *joined)
        if roots == [()]:
            bare = _bare(tree, state)
            if bare is not None:
                return (bare,)
    candidates = _candidates(tree, state)
    if len(candidates) == 1:
        return (candidates[0],)
    if not candidates:
        if {"state", "param_groups"} <= {key for key, _ in children(tree)}:
            raise UnsupportedError(
                f"{source}: the state of an optimizer, and no weights",
                path=source,
                hint="The weights are in another file of the same checkpoint: name that, or their directory.",
            )
        raise UnsupportedError(
            f"{source}: no weights in it{_pickled_objects(tree)}",
            path=source,
            hint="Only its keys are here: " + ", ".join(str(key) for key, _ in list(children(tree))[:12]) + "."
            if tree
            else "The file holds an empty mapping.",
        )
    raise UsageError(
        f"{source}: the weights may be at {_list_candidates(tree, candidates)}",
        path=source,
        hint=f"Say which, for instance {parameter('section', dotted(candidates[0]) or dotted(candidates[1]))}; "
        "several parts of one model are joined with +.",
    )


def _bare(tree: Mapping[Any, Any], state: tuple[StatePart, ...]) -> KeyPath | None:
    """Whether the file itself is the state dict: most tensors are at the top, or nothing but tensors is in it."""
    direct = sum(isinstance(value, TensorSpec) for _, value in children(tree))
    nested = [path for path in _candidates(tree, state) if path]
    if direct and direct >= sum(len(at(tree, path)) for path in nested):
        return ()
    leaves = [value for _, value in walk(tree) if not is_container(value)]
    only_tensors = not state and all(isinstance(leaf, TensorSpec) for leaf in leaves)
    has_copies = any(COPY_KEYS.search(str(key)) for path in nested for key in path)
    return () if len(nested) > 1 and only_tensors and not has_copies else None


def _unwrap(tree: Mapping[Any, Any], path: KeyPath) -> KeyPath:
    """Go one level further where a section holds nothing but another one (``model.state_dict``)."""
    node = at(tree, path)
    inner = [key for key, value in children(node) if isinstance(value, TensorSpec) or _has_tensors(value)]
    known = {tier_path for tier in WEIGHT_SECTIONS[:2] for tier_path in tier}
    if len(inner) == 1 and (inner[0],) in known and isinstance(node[inner[0]], Mapping):
        return (*path, inner[0])
    return path


def _pickled_objects(tree: Mapping[Any, Any]) -> str:
    known = {path[0] for tier in WEIGHT_SECTIONS for path in tier} | {"ema"}
    plain = (Mapping, list, tuple, str, int, float, bytes, type(None), TensorSpec)
    objects = [str(key) for key, value in children(tree) if key in known and not isinstance(value, plain)]
    return f" ({', '.join(objects)}: a pickled object, not a state dict)" if objects else ""


# --- Copies ----------------------------------------------------------------------------------------------------


def _find_copies(
    tree: Mapping[Any, Any], weights: Mapping[str, KeyPath], apart: set[int], source: str
) -> dict[str, dict[str, KeyPath]]:
    places = [
        (path, node)
        for path, node in walk(tree, seen=set(apart))
        if is_container(node) and any(isinstance(key, str) and COPY_KEYS.search(key) for key in path)
    ]
    if not places:
        return {}
    # A copy may hold a part of the model under that part's own names, so every dotted ending of a name counts.
    known: set[tuple[str, tuple[int, ...]]] = set()
    shapes: dict[tuple[int, ...], int] = {}
    for name, where in weights.items():
        shape = at(tree, where).shape
        shapes[shape] = shapes.get(shape, 0) + 1
        words = strip_wrappers(name, ALL_WRAPPERS).split(".")
        known.update((".".join(words[start:]), shape) for start in range(len(words)))
    copies: dict[str, dict[str, KeyPath]] = {}
    taken: list[KeyPath] = []
    for path, node in places:
        if any(path[: len(above)] == above for above in taken):
            continue
        names = _tensors(node, path, source)
        if not names:
            continue
        depth = len(path)
        if isinstance(node, Mapping) and len({place[depth] for place in names.values()}) == 1:
            child = node[next(iter(names.values()))[depth]]
            if is_container(child):
                continue  # The EMA is further down: ``ema.module`` next to ``ema.updates``.
        specs = {name: at(tree, where) for name, where in names.items()}
        if isinstance(node, Mapping):
            fitting = sum((strip_wrappers(name, ALL_WRAPPERS), spec.shape) in known for name, spec in specs.items())
        else:
            left = dict(shapes)
            fitting = 0
            for spec in specs.values():
                if left.get(spec.shape, 0):
                    left[spec.shape] -= 1
                    fitting += 1
            fitting = fitting if fitting == len(specs) else 0
        counted = sum(name.rpartition(".")[2] not in COUNTERS for name in specs)
        if fitting and 2 * fitting > counted:
            copies[dotted(path)] = names
            taken.append(path)
    return copies


# --- The whole -------------------------------------------------------------------------------------------------


def locate(
    tree: Mapping[Any, Any], section: str | None = None, *, path: str | os.PathLike[str] = "checkpoint"
) -> Located:
    """Find the weights, their copies, the training state and the step in a checkpoint's tree.

    Args:
        tree: Nested mappings, lists and tuples; leaves are `TensorSpec`s, plain values, or objects of any other type,
            which are not looked into.
        section: Dotted key path of the weights, where the user says it; several pieces of one model are joined with
            "+", and the names of all but the first get their section as a prefix.
        path: The file, for messages.

    Raises:
        UsageError: The weights may be in several places, or not where `section` says.
        UnsupportedError: There are no tensors, or two have one name.
        UnreadableError: The containers nest without end.
    """
    source = os.fspath(path)
    state = _find_state(tree, ())
    if section is None:
        sections = _found(tree, source, state)
    else:
        sections = _chosen(tree, section, source, _candidates(tree, state))
    wrapper = sections[0][:1] if len(sections[0]) > 1 and sections[0] != ("state", "model") else ()
    if wrapper and isinstance(at(tree, wrapper), Mapping):
        state += tuple(part for part in _find_state(tree, wrapper) if part.path not in {known.path for known in state})
    state = tuple(part for part in state if not any(part.path == where[: len(part.path)] for where in sections))

    weights: dict[str, KeyPath] = {}
    for index, where in enumerate(sections):
        prefix = f"{dotted(where)}." if index else ""
        for name, place in _tensors(at(tree, where), where, source).items():
            if prefix + name in weights:
                raise UnsupportedError(f"{source}: two tensors are called {prefix + name}", tensor=prefix + name)
            weights[prefix + name] = place

    apart = {id(at(tree, part.path)) for part in state}
    if sections == ((),):
        copies: dict[str, dict[str, KeyPath]] = {}
        inside = {place[:1] for part in state for place in (part.path,)}
        weights = {name: place for name, place in weights.items() if place[:1] not in inside}
    else:
        copies = _find_copies(tree, weights, apart | {id(at(tree, where)) for where in sections}, source)
    # data2vec keeps its average as a mapping inside the state dict.
    for where in sections:
        for key, value in children(at(tree, where)):
            if isinstance(key, str) and key.endswith("_ema") and isinstance(value, Mapping):
                inner = {name: place for name, place in weights.items() if place[: len(where) + 1] == (*where, key)}
                rest = {name: place for name, place in weights.items() if name not in inner}
                if inner and rest:
                    weights = rest
                    copies[dotted((*where, key))] = _tensors(value, (*where, key), source)

    roots = ((), wrapper) if wrapper else ((),)
    containers = {id(at(tree, where)) for where in sections if where}
    return Located(
        weights=weights,
        copies=copies,
        section="+".join(map(dotted, sections)),
        state=state,
        step=_find_step(tree, roots),
        values=_find_values(tree, apart | containers),
        others=_find_others(tree, sections, apart),
        notes=_leftovers(tree, weights, copies, apart, sections),
    )


def _leftovers(
    tree: Mapping[Any, Any],
    weights: Mapping[str, KeyPath],
    copies: Mapping[str, Mapping[str, KeyPath]],
    apart: set[int],
    sections: tuple[KeyPath, ...],
) -> tuple[str, ...]:
    """What else could be averaged in this file, and is not. A single number (a meter, a metric) is not a weight."""
    known = {place for names in (weights, *copies.values()) for place in names.values()}
    counts: dict[str | int, int] = {}
    for path, node in walk(tree, seen=set(apart)):
        if isinstance(node, TensorSpec) and node.numel > 1 and node.dtype.is_averaged and path not in known:
            counts[path[0]] = counts.get(path[0], 0) + 1
    if not counts or not sections[0]:
        return ()
    listed = ", ".join(f"{key} ({count})" for key, count in counts.items())
    return (f"the weights are at {'+'.join(map(dotted, sections))}; tensors elsewhere are not averaged: {listed}",)
