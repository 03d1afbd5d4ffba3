"""Averages that are stored in the weights' place, and flags that say whether they are.

Copying the other set of weights over them would undo the average.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckpttool.ema.alignment import numbered
from ckpttool.ema.candidates import Candidate, pair_by_name, pair_list
from ckpttool.ema.name_maps import match_names
from ckpttool.ema.stored_average import Origin, StoredAverage, already_in_place
from ckpttool.formats.average_keys import SLOTS
from ckpttool.formats.container import KeyPath, at, containers, dotted, tensors_below
from ckpttool.tensors import TensorSpec

__all__ = ["composer", "lightning", "mmengine", "nequip", "only_average"]


def mmengine(candidate: Candidate) -> StoredAverage | None:
    """EMAHook swaps the two sets when it saves, and back when it resumes."""
    other = candidate.tree.get("ema_state_dict")
    if not isinstance(other, Mapping) or "state_dict" not in candidate.tree:
        return None
    names = [name for name in other if isinstance(name, str)]
    if "steps" not in names or not all(name.startswith("module.") for name in names if name != "steps"):
        return None
    raw = {name.removeprefix("module."): spec for name, spec in other.items() if isinstance(spec, TensorSpec)}
    return already_in_place(
        candidate.checkpoint,
        candidate.weights,
        Origin(
            "mmengine EMAHook",
            "state_dict",
            "ema_state_dict has the counter 'steps' and names after 'module.': mmengine swaps the two sets when it "
            "saves, so state_dict is the average and ema_state_dict the trained weights",
            drop=(("ema_state_dict",),),
        ),
        trained={name: raw[name] for name in candidate.weights if name in raw},
    )


def lightning(candidate: Candidate) -> StoredAverage | None:
    """WeightAveraging of Lightning 2.6 and later moves the trained weights aside when it saves."""
    raw = candidate.tree.get("current_model_state")
    if not isinstance(raw, Mapping) or "averaging_state" not in candidate.tree:
        return None
    specs = tensors_below(raw, candidate.path)
    return already_in_place(
        candidate.checkpoint,
        candidate.weights,
        Origin(
            "Lightning WeightAveraging",
            "state_dict",
            "current_model_state and averaging_state are there: Lightning 2.6 and later put the average into "
            "state_dict and the trained weights into current_model_state",
            drop=(("current_model_state",), ("averaging_state",)),
        ),
        trained={name: specs[name] for name in candidate.weights if name in specs},
    )


def composer(candidate: Candidate) -> StoredAverage | None:
    """The EMA algorithm swaps the two sets at evaluation; a checkpoint of that moment says so in a flag."""
    algorithms = at(candidate.tree, ("state", "algorithms"))
    entries = list(enumerate(algorithms)) if isinstance(algorithms, list) else []
    for index, entry in entries:
        if not (isinstance(entry, list) and len(entry) == 2 and entry[0] == "EMA" and isinstance(entry[1], Mapping)):
            continue
        state = entry[1]
        drop: tuple[KeyPath, ...] = (("state", "algorithms", index),)
        place = f"state.algorithms.{index}"
        named: dict[str, TensorSpec] = {}
        for part in ("named_parameters_dict", "named_buffers_dict"):
            named.update(tensors_below(at(state, ("ema_model", part)) or {}, candidate.path))
        if state.get("ema_weights_active") is True:
            names = match_names(named, candidate.weights)
            why = f"{place} has ema_weights_active=True: when this was saved, state.model held the average"
            return already_in_place(
                candidate.checkpoint,
                candidate.weights,
                Origin("Composer EMA", "state.model", why, drop),
                trained={name: named[own] for name, own in names.pairs.items()} if names else {},
            )
        flag = state.get("ema_weights_active")
        why = f"{place} has ema_weights_active={flag}: state.model holds the trained weights"
        return pair_by_name(candidate, named, Origin("Composer EMA", f"{place}.1.ema_model", why, drop))
    return None


def nequip(candidate: Candidate) -> StoredAverage | None:
    """The list of parameters is swapped with the model at validation; a checkpoint of that moment says so in a flag."""
    states = [
        (path, node)
        for path, node in containers(candidate.tree)
        if isinstance(node, Mapping) and "is_holding_ema_weights" in node
    ]
    if not states:
        return None
    path, state = states[0]
    prefix = str(path[-1]).removesuffix("_extra_state")
    ours = [name for name in candidate.weights if name.startswith(prefix)]
    listed = next((names for stem in ("ema_weights.", "ema_weight_") if (names := numbered(ours, prefix + stem))), None)
    if not listed:
        return None
    rest = {name: spec for name, spec in candidate.weights.items() if name not in ours}
    drop = (path,)
    if state["is_holding_ema_weights"] is not True:
        where = candidate.checkpoint.section or "the weights"
        why = (
            f"{dotted(path)} says is_holding_ema_weights=False: this was saved while the two sets were swapped, and "
            "the model holds the average"
        )
        return already_in_place(candidate.checkpoint, rest, Origin("nequip", where, why, drop))
    why = f"{dotted(path)} says is_holding_ema_weights=True: the model holds the trained weights"
    return pair_list(
        candidate,
        [candidate.weights[name] for name in listed],
        Origin("nequip", f"{prefix}ema_weight*", why, drop),
        weights=rest,
    )


def only_average(candidate: Candidate) -> StoredAverage | None:
    """Files whose only set of weights is named as an average (BasicSR, DINOv2), and trainers that save only it."""
    section = candidate.checkpoint.section
    kind = next((slot.kind for slot in SLOTS if slot.key == section), None)
    if kind is not None and section is not None:
        why = f"the file's only set of weights is called {section}"
        origin = Origin("not said", section, why, kind=kind)
        return already_in_place(candidate.checkpoint, candidate.weights, origin)
    decay = candidate.checkpoint.values.get("opt.average_decay")
    if isinstance(decay, (int, float)) and decay > 0:
        why = f"opt.average_decay is {decay:g}: OpenNMT-py saves the average in place of the trained weights"
        origin = Origin("OpenNMT-py", section or "the weights", why)
        return already_in_place(candidate.checkpoint, candidate.weights, origin)
    return None
