"""Where each framework keeps the moving average of the weights, as a table and a few rules.

`recognise` goes through them in this order: layouts that have put the average in the weights' place already (copying
their other set of weights over it would undo the average), flags that decide it, sets of their own beside the weights,
names inside the weights' own mapping, lists without names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckpttool.ema.alignment import Values
from ckpttool.ema.candidates import MOVING_AVERAGE, RUNNING_MEAN, SWA, TEACHER, Seen, covered
from ckpttool.ema.in_place import composer, lightning, mmengine, nequip, only_average
from ckpttool.ema.name_maps import NameMap, fit
from ckpttool.ema.parameter_lists import LISTS, flattened_list, plain_list
from ckpttool.ema.state_dicts import averaged_model, component, ema_pytorch, lit_ema, mmcv, prefixed
from ckpttool.ema.stored_average import StoredAverage, covering
from ckpttool.ema.trees import at, tensors_below, tree_of, walk
from ckpttool.errors import UsageError
from ckpttool.formats.section_names import KeyPath
from ckpttool.formats.sections import dotted
from ckpttool.formats.wrappers import strip_wrappers
from ckpttool.tensors import Checkpoint

__all__ = ["SLOTS", "Slot", "recognise"]


@dataclass(frozen=True, slots=True)
class Slot:
    """A set of named tensors beside the weights that is their average.

    Attributes:
        framework: Who writes it.
        path: Its key path; "*" stands for any one key.
        when: Keys at the top that must be there as well.
        drop: Key paths that go with it; the path itself by default.
        kind: What it is.
    """

    framework: str
    path: KeyPath
    when: tuple[str, ...] = ()
    drop: tuple[KeyPath, ...] = ()
    kind: str = MOVING_AVERAGE


SLOTS: tuple[Slot, ...] = (
    Slot("timm, open_clip", ("state_dict_ema",), ("state_dict",), (("state_dict_ema",), ("task_state_ema",))),
    Slot("torchvision, DeiT, k-diffusion", ("model_ema",), ("model",), (("model_ema",), ("ema_sched",))),
    Slot("d2go", ("model_ema",), ("state_dict",)),
    Slot("RF-DETR", ("ema_model",), ("model",)),
    Slot("RT-DETR, D-FINE, DEIM", ("ema", "module"), ("model",), (("ema",),)),
    Slot("OpenFold", ("ema", "params"), (), (("ema",),)),
    Slot("deepmd-kit", ("ema", "model"), ("model",), (("ema",),)),
    Slot(
        "fairseq (float32 copy)",
        ("extra_state", "ema_fp32_params"),
        ("model",),
        (("extra_state", "ema"), ("extra_state", "ema_fp32_params")),
    ),
    Slot("fairseq", ("extra_state", "ema"), ("model",)),
    Slot("DiT and others", ("ema",), ("model",)),
    Slot("state_dict and ema", ("ema",), ("state_dict",)),
    Slot("BasicSR", ("params_ema",), ("params",)),
    Slot("pycls, d2go", ("ema_state",), (), (("ema_state",), ("ema_err",))),
    Slot("icefall", ("model_avg",), ("model",), kind=RUNNING_MEAN),
    Slot("DINO", ("teacher",), ("student",), kind=TEACHER),
    Slot("I-JEPA, V-JEPA", ("target_encoder",), ("encoder",), kind=TEACHER),
    Slot("AllenNLP", ("moving_average", "shadows"), (), (("moving_average",),)),
    Slot("a Lightning callback", ("callbacks", "*", "ema_state_dict")),
    Slot("a Lightning callback", ("ema_state_dict",), ("state_dict",)),
    Slot("Lightning's StochasticWeightAveraging", ("callbacks", "*", "average_model_state"), kind=SWA),
)
"""Sets of their own. More of them are found by their names and shapes when a file is opened (`Checkpoint.copies`)."""


_WHOLE_RUN = (
    "this is the plain mean of all training so far, its beginning with it; ckpttool average MODEL_DIR --last N "
    "--window-from-running-mean takes the mean over the last N checkpoints' training alone"
)


def recognise(
    checkpoint: Checkpoint,
    *,
    slot: str | None = None,
    names_from: Checkpoint | None = None,
    values: Values | None = None,
) -> StoredAverage | None:
    """Find the moving average that a checkpoint holds.

    Args:
        checkpoint: The checkpoint, opened.
        slot: Dotted key path of the average, where a file has several.
        names_from: A checkpoint of the same model that has the names, for averages without.
        values: How tensors are read, for lists that only their values align; None: by the engine.

    Returns:
        None where there is no average.

    Raises:
        UsageError: There are several, and `slot` names none of them.
        MismatchError: An average was found, and it does not answer to the weights.
    """
    seen = Seen(checkpoint, tree_of(checkpoint), checkpoint.weights, names_from, values)
    for rule in (mmengine, lightning, composer, nequip, _own, _stored_map):
        found = rule(seen)
        if found is not None:
            return found
    candidates = [*_slots(seen, slot)]
    if len(candidates) > 1:
        places = [found.where for found in candidates]
        raise UsageError(
            f"{checkpoint.path}: there are averages at {' and '.join(places)}",
            path=checkpoint.path,
            hint=f"Say which: {' or '.join(f'--slot {place}' for place in places)}.",
        )
    if candidates:
        return candidates[0]
    if slot is not None:
        raise UsageError(
            f"{checkpoint.path}: --slot {slot}: no average of these weights is there",
            path=checkpoint.path,
            hint="Leave --slot out to see what is found.",
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
        found = rule(seen)
        if found is not None:
            return found
    return None


def _own(seen: Seen) -> StoredAverage | None:
    """What `ckpttool.training.MovingAverage` stores, under any key."""
    for path, node in walk(seen.tree):
        if isinstance(node, Mapping) and node.get("format") == "ckpttool.MovingAverage" and "shadow" in node:
            decay, step = node.get("decay"), node.get("step")
            why = f"{dotted(path)} says that it is a ckpttool.MovingAverage (decay {decay}, step {step})"
            place = dotted((*path, "shadow"))
            return covered(
                seen, tensors_below(node["shadow"], seen.path), "ckpttool.training", place, why, drop=(path,)
            )
    return None


def _stored_map(seen: Seen) -> StoredAverage | None:
    """The one layout that writes down which name is which (fme)."""
    for path, node in walk(seen.tree):
        if isinstance(node, Mapping) and {"ema_params", "module_name_to_ema_name"} <= set(node):
            average = tensors_below(node["ema_params"], seen.path)
            written = node["module_name_to_ema_name"]
            if not isinstance(written, Mapping):
                continue
            bare = {strip_wrappers(name): name for name in seen.weights}
            pairs = {
                bare[strip_wrappers(name)]: own
                for name, own in written.items()
                if strip_wrappers(name) in bare and own in average
            }
            if not pairs:
                continue
            left = [name for name in average if name not in pairs.values()]
            names = NameMap({name: pairs[name] for name in seen.weights if name in pairs}, tuple(left))
            return covering(
                seen.checkpoint,
                seen.weights,
                average,
                names,
                framework="ace / fme",
                where=dotted((*path, "ema_params")),
                why=f"{dotted(path)} holds ema_params, and module_name_to_ema_name says whose they are",
                drop=(path,),
            )
    return None


def _expand(tree: Any, path: KeyPath) -> Iterator[KeyPath]:
    """The paths that a pattern with "*" means."""
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


def _slots(seen: Seen, chosen: str | None) -> Iterator[StoredAverage]:
    """Averages in sets of their own: those of the table, else those that were found by names and shapes."""
    taken: list[KeyPath] = []
    section = seen.checkpoint.section
    for row in SLOTS:
        if not all(key in seen.tree for key in row.when):
            continue
        for path in _expand(seen.tree, row.path):
            drop = row.drop or (path,)
            if dotted(path) == section or any(path[: len(above)] == above for above in taken):
                continue
            found = _slot(seen, path, row.framework, row.kind, drop)
            if found is not None and chosen in {None, found.where}:
                taken.extend(drop)
                yield found
    if taken:
        return
    for where, average in seen.checkpoint.copies.items():
        if chosen in {None, where} and where.rsplit(".", 1)[-1] not in {key for key, _ in LISTS}:
            names = fit(average, seen.weights)
            place = _path_of(seen.tree, where)
            if names is not None and place is not None:
                why = f"{where} holds tensors of the weights' names and shapes, and its name says average"
                yield covered(seen, average, "not one of the table", where, why, drop=(place,))


def _path_of(tree: Any, where: str) -> KeyPath | None:
    return next((path for path, _ in walk(tree) if dotted(path) == where), None)


def _slot(seen: Seen, path: KeyPath, framework: str, kind: str, drop: tuple[KeyPath, ...]) -> StoredAverage | None:
    node = at(seen.tree, path)
    if not isinstance(node, Mapping):
        return None
    average = {
        name: spec for name, spec in tensors_below(node, seen.path).items() if not name.startswith("online_model.")
    }
    if fit(average, seen.weights) is None:
        return None
    others = ", ".join(str(key) for key in seen.tree if key in {"state_dict", "model", "params", "student", "encoder"})
    why = f"{dotted(path)} stands beside {others or 'the weights'} and has their names and shapes"
    found = covered(seen, average, framework, dotted(path), why, drop=drop, kind=kind)
    return replace(found, notes=(_WHOLE_RUN, *found.notes)) if kind == RUNNING_MEAN else found
