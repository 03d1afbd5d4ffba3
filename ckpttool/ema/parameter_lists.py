"""Averages that are lists without names, as such or flattened into numbered names."""

from __future__ import annotations

from ckpttool.ema.alignment import numbered
from ckpttool.ema.candidates import Candidate, pair_list
from ckpttool.ema.stored_average import Origin, StoredAverage
from ckpttool.formats.average_keys import COUNTERS, FLATTENED_LISTS, LISTS
from ckpttool.formats.container import containers, dotted
from ckpttool.formats.wrappers import strip_wrappers
from ckpttool.tensors import TensorSpec

__all__ = ["flattened_list", "plain_list"]


def flattened_list(candidate: Candidate) -> StoredAverage | None:
    """Lists that were flattened into names: ``shadow_params.0``, ``ema_weight_0``."""
    for stem in FLATTENED_LISTS:
        listed = numbered(tuple(candidate.weights), stem)
        if not listed:
            continue
        head = stem.split(".")[0] + "."
        rest = {
            name: s
            for name, s in candidate.weights.items()
            if name not in listed and not (stem.startswith("ema.") and name.startswith(head))
        }
        rest = {name: spec for name, spec in rest.items() if strip_wrappers(name) not in COUNTERS and spec.shape}
        average = [candidate.weights[name] for name in listed]
        origin = Origin("SimpleTuner and others", f"{stem}*", f"names {stem}0 to {stem}{len(listed) - 1}")
        return pair_list(candidate, average, origin, weights=rest)
    return None


def plain_list(candidate: Candidate) -> StoredAverage | None:
    """Lists of tensors under a known key, and NeMo's in its optimizers' states."""
    for path, node in containers(candidate.tree):
        if not isinstance(node, list) or not node or not all(isinstance(value, TensorSpec) for value in node):
            continue
        named = next((row for row in LISTS if path[-1] == row[0]), None)
        if named is not None:
            drop = (path[:-1],) if len(path) > 1 else (path,)
            why = f"{dotted(path)} is a list of {len(node)} tensors"
            return pair_list(candidate, node, Origin(named[1], dotted(path), why, drop))
        if path[-1] == "ema" and len(path) > 1 and path[0] == "optimizer_states":
            why = f"{dotted(path)} is a list of {len(node)} tensors, in the order of the optimizer's parameter groups"
            return pair_list(candidate, node, Origin("NeMo", dotted(path), why, (path,)), ordered=False)
    return None
