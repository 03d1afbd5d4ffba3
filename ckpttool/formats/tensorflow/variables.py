"""What the variables of a TensorFlow checkpoint are, told from their names: weights, averages of them, training state.

TensorFlow writes no types into a checkpoint. Its conventions are that the slots of a Keras optimizer are
``model/w/.OPTIMIZER_SLOT/optimizer/m``, the variables of newer ones ``optimizer/_variables/3``, those of metrics
``keras_api/metrics/0/total``. A Keras 3 optimizer holds the weights that it trains under a name of its own, and
TensorFlow saves them there alone: ``optimizer/_trainable_variables/3``. By TensorFlow 1 slots are ``w/Adam`` next to
``w``. A scalar called ``step`` or the like is a counter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from ckpttool.formats.tensorflow.entries import STRING, Entry

__all__ = ["ITERATIONS", "MOVING_AVERAGE", "SortedOut", "names_of", "sort_out"]

MOVING_AVERAGE = "ExponentialMovingAverage"
"""The slot of TensorFlow 1 that is not training state."""

ITERATIONS = ("iter", "iterations", "_iterations")
"""What optimizers call their counter of steps."""

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = "/.OPTIMIZER_SLOT/"
_TRAINED = re.compile(r"(.+)/_trainable_variables/(\d+)")
_STATE_PARTS = {"optimizer", "optimizers", "keras_api"}
_COUNTERS = {*ITERATIONS, "save_counter", "global_step", "step", "epoch"}
_BETA_POWER = re.compile(r"beta[12]_power(?:_\d+)?")
_TF1_SLOT = re.compile(r"(.+)/([A-Z]\w*)")


def names_of(entries: Mapping[str, Entry]) -> dict[str, str]:
    """The name of each key; the key itself where two would get the same name."""
    names: dict[str, str] = {}
    for key in entries:
        name = key.removesuffix(_VALUE)
        names[key if name in names or (name != key and name in entries) else name] = key
    return names


@dataclass(frozen=True)
class SortedOut:
    """What the variables are: weights and moving averages of them (name to key), training state (key to owner)."""

    weights: dict[str, str]
    copies: dict[str, dict[str, str]]
    state: dict[str, str]


def sort_out(names: Mapping[str, str], entries: Mapping[str, Entry]) -> SortedOut:
    """Tell the variables of these names apart. Strings are none of all.

    Args:
        names: Name to key, see `names_of`.
        entries: What the index says about each key.
    """
    optimizers = _optimizers(names, entries)
    out = SortedOut({}, {}, {})
    for name, key in names.items():
        if entries[key].number == STRING:
            continue
        variable, slot = _tf1_slot(name, names)
        if slot == MOVING_AVERAGE:
            out.copies.setdefault(MOVING_AVERAGE, {})[variable] = key
            continue
        if _TRAINED.fullmatch(name):
            out.weights[name] = key
            continue
        owner = slot or _owner(name, optimizers)
        if not owner and not entries[key].shape:
            last = name.split("/")[-1]
            owner = name if last in _COUNTERS or _BETA_POWER.fullmatch(last) else ""
        if owner:
            out.state[key] = owner
        else:
            out.weights[name] = key
    return out


def _owner(name: str, optimizers: AbstractSet[str]) -> str:
    """The optimizer or metric that a variable belongs to, by its own name; "" for none."""
    _, is_slot, slot = name.partition(_SLOT)
    if is_slot:
        return slot.rpartition("/")[0] or slot  # optimizer/m
    parts = name.split("/")
    for depth, part in enumerate(parts, start=1):
        path = "/".join(parts[:depth])
        if part in _STATE_PARTS or part.endswith("_optimizer") or (path in optimizers and depth < len(parts)):
            return path
    return ""


def _optimizers(names: Mapping[str, str], entries: Mapping[str, Entry]) -> set[str]:
    """Objects that are optimizers, whatever their attribute is called: they have a counter and a learning rate."""
    found = set()
    for name, key in names.items():
        owner, _, last = name.rpartition("/")
        if owner and last in ITERATIONS and not entries[key].shape:
            others = ("learning_rate", "_learning_rate", "_current_learning_rate", "_variables/0", "_variables/1")
            if any(f"{owner}/{other}" in names for other in others):
                found.add(owner)
    return found


def _tf1_slot(name: str, names: Mapping[str, str]) -> tuple[str, str]:
    """(variable, slot) of ``scope/variable/Adam``, where ``variable`` is one and no scope; ("", "") else."""
    match = _TF1_SLOT.fullmatch(name)
    if match is None or names[name] != name:
        return "", ""
    parts = match[1].split("/")
    for start in range(len(parts)):
        variable = "/".join(parts[start:])
        if variable in names:
            return variable, match[2]
    return "", ""
