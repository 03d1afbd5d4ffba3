"""Finding the moving average in a checkpoint, by the tables of `ckpttool.formats.average_keys` and a few rules.

`recognise` tries in this order: layouts that store the average in the weights' place (copying their other set of
weights over it would undo the average), flags that decide it, sets of their own next to the weights, names inside the
weights' own mapping, lists without names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ckpttool.ema.alignment import Values
from ckpttool.ema.candidates import Candidate, pair_by_name
from ckpttool.ema.in_place import composer, lightning, mmengine, nequip, only_average
from ckpttool.ema.name_maps import NameMap, match_names
from ckpttool.ema.parameter_lists import flattened_list, plain_list
from ckpttool.ema.state_dicts import averaged_model, component, ema_pytorch, lit_ema, mmcv, prefixed
from ckpttool.ema.stored_average import Origin, StoredAverage, pair_with_weights
from ckpttool.errors import UsageError
from ckpttool.formats.average_keys import LISTS, RUNNING_MEAN, SLOTS, Slot
from ckpttool.formats.container import KeyPath, at, containers, dotted, path_of, tensors_below, tree_of
from ckpttool.formats.wrappers import strip_wrappers
from ckpttool.tensors import Checkpoint
from ckpttool.text import Message, parameter

__all__ = ["recognise"]


_WHOLE_RUN = (
    "this is the plain mean of all training so far, from its beginning; the average of the run with "
    f"{parameter('last', 'N')} and {parameter('window_from_running_mean', True)} is that over the training of the last "
    "N checkpoints alone"
)


def recognise(
    checkpoint: Checkpoint,
    *,
    slot: str | None = None,
    names_from: Checkpoint | None = None,
    values: Values | None = None,
    tree: Mapping[Any, Any] | None = None,
) -> StoredAverage | None:
    """Find the moving average that a checkpoint holds. No weight is read, but for lists that only values align.

    Args:
        checkpoint: The checkpoint, opened.
        slot: Dotted key path of the average, where a file has several.
        names_from: A checkpoint of the same model that has the names, for averages without.
        values: How tensors are read, for lists that only their values align; None: `ckpttool.reading.values`.
        tree: What the checkpoint's container holds, where it is known; see `ckpttool.formats.container.tree_of`.

    Returns:
        None where there is no average.

    Raises:
        UsageError: There are several, and `slot` names none of them.
        MismatchError: An average was found, and it does not answer to the weights.
    """
    tree = tree_of(checkpoint) if tree is None else tree
    candidate = Candidate(checkpoint, tree, checkpoint.weights, names_from, values)
    for rule in (mmengine, lightning, composer, nequip, _own, _stored_map):
        found = rule(candidate)
        if found is not None:
            return found
    candidates = [*_slots(candidate, slot)]
    if len(candidates) > 1:
        places = [found.where for found in candidates]
        raise UsageError(
            f"{checkpoint.path}: there are averages at {' and '.join(places)}",
            path=checkpoint.path,
            hint=f"Say which: {' or '.join(parameter('slot', place) for place in places)}.",
        )
    if candidates:
        return candidates[0]
    if slot is not None:
        raise UsageError(
            f"{checkpoint.path}: {parameter('slot', slot)}: no average of these weights is there",
            path=checkpoint.path,
            hint=f"Leave {parameter('slot')} out to see what is found.",
        )
    for rule in (
        averaged_model,
        ema_pytorch,
        lit_ema,
        mmcv,
        prefixed,
        component,
        flattened_list,
        plain_list,
        only_average,
    ):
        found = rule(candidate)
        if found is not None:
            return found
    return None


def _own(candidate: Candidate) -> StoredAverage | None:
    """What `ckpttool.training.MovingAverage` stores, under any key."""
    for path, node in containers(candidate.tree):
        if isinstance(node, Mapping) and node.get("format") == "ckpttool.MovingAverage" and "shadow" in node:
            decay, step = node.get("decay"), node.get("step")
            why = f"{dotted(path)} says that it is a ckpttool.MovingAverage (decay {decay}, step {step})"
            place = dotted((*path, "shadow"))
            average = tensors_below(node["shadow"], candidate.path)
            return pair_by_name(candidate, average, Origin("ckpttool.training", place, why, (path,)))
    return None


def _stored_map(candidate: Candidate) -> StoredAverage | None:
    """The one layout that stores which name belongs to which (ace / fme)."""
    for path, node in containers(candidate.tree):
        if isinstance(node, Mapping) and {"ema_params", "module_name_to_ema_name"} <= set(node):
            average = tensors_below(node["ema_params"], candidate.path)
            written = node["module_name_to_ema_name"]
            if not isinstance(written, Mapping):
                continue
            bare = {strip_wrappers(name): name for name in candidate.weights}
            pairs = {
                bare[strip_wrappers(name)]: own
                for name, own in written.items()
                if strip_wrappers(name) in bare and own in average
            }
            if not pairs:
                continue
            left = [name for name in average if name not in pairs.values()]
            names = NameMap({name: pairs[name] for name in candidate.weights if name in pairs}, tuple(left))
            why = f"{dotted(path)} holds ema_params, and module_name_to_ema_name maps them to the weights"
            return pair_with_weights(
                candidate.checkpoint,
                candidate.weights,
                average,
                names,
                Origin("ace / fme", dotted((*path, "ema_params")), why, (path,)),
            )
    return None


def _expand(tree: Any, path: KeyPath) -> Iterator[KeyPath]:
    """The paths in the tree that fit a pattern with "*"."""
    if "*" not in path:
        if at(tree, path) is not None:
            yield path
        return
    star = path.index("*")
    node = at(tree, path[:star])
    if isinstance(node, Mapping):
        for key in node:
            if isinstance(key, (str, int)):
                yield from _expand(tree, (*path[:star], key, *path[star + 1 :]))


def _slots(candidate: Candidate, chosen: str | None) -> Iterator[StoredAverage]:
    """Averages in sets of their own: those of the table, else those that were found by names and shapes."""
    taken: list[KeyPath] = []
    section = candidate.checkpoint.section
    for row in SLOTS:
        if not all(key in candidate.tree for key in row.when):
            continue
        for path in _expand(candidate.tree, row.path):
            drop = row.drop or (path,)
            if dotted(path) == section or any(path[: len(above)] == above for above in taken):
                continue
            found = _at_slot(candidate, path, row, drop)
            if found is not None and chosen in {None, found.where}:
                taken.extend(drop)
                yield found
    if taken:
        return
    for where, average in candidate.checkpoint.copies.items():
        if chosen in {None, where} and where.rsplit(".", 1)[-1] not in {key for key, _ in LISTS}:
            names = match_names(average, candidate.weights)
            place = path_of(candidate.tree, where)
            if names is not None and place is not None:
                why = f"{where} holds tensors of the weights' names and shapes, and its name says average"
                yield pair_by_name(candidate, average, Origin("not one of the table", where, why, (place,)))


def _at_slot(candidate: Candidate, path: KeyPath, slot: Slot, drop: tuple[KeyPath, ...]) -> StoredAverage | None:
    node = at(candidate.tree, path)
    if not isinstance(node, Mapping):
        return None
    average = {
        name: spec for name, spec in tensors_below(node, candidate.path).items() if not name.startswith("online_model.")
    }
    if match_names(average, candidate.weights) is None:
        return None
    weights = {"state_dict", "model", "params", "student", "encoder"}
    others = ", ".join(str(key) for key in candidate.tree if key in weights)
    why = f"{dotted(path)} is next to {others or 'the weights'} and has their names and shapes"
    found = pair_by_name(candidate, average, Origin(slot.framework, dotted(path), why, drop, slot.kind))
    return replace(found, notes=(Message(_WHOLE_RUN), *found.notes)) if slot.kind == RUNNING_MEAN else found
