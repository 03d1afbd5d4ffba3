"""Where each framework keeps the moving average of the weights, as a table and a few rules.

`recognise` goes through them in this order: layouts that have put the average in the weights' place already (copying
their other set of weights over it would undo the average), flags that decide it, sets of their own beside the weights,
names inside the weights' own mapping, lists without names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckpttool.errors import MismatchError, UnsupportedError, UsageError
from ckpttool.matching import first_names
from ckpttool.name_maps import BOOKKEEPING, NameMap, fit, flatten, resolve_flat, strip_wrappers
from ckpttool.nameless import Values, align, numbered
from ckpttool.stored_average import StoredAverage, applied, covering
from ckpttool.tensors import Checkpoint, TensorSpec
from ckpttool.trees import KeyPath, at, dotted, tensors_below, tree_of, walk

__all__ = ["SLOTS", "Slot", "recognise"]

RUNNING_MEAN = "running mean of the whole run"
TEACHER = "teacher (a moving average of the student)"
SWA = "uniform average (SWA)"


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
    kind: str = "moving average"


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

PREFIXES: tuple[str, ...] = (
    "ema_model.module.",
    "ema.ema_model.",
    "ema.module.",
    "ema.model.",
    "ema.shadow.",
    "model_ema.module.",
    "model_ema.",
    "module_ema.",
    "ema_model.",
    "_ema_model.",
    "averaged_model.",
    "avg_model.",
    "_average_model.module.",
    "ema.",
    "teacher.",
    "target_encoder.",
)
"""What stands before the average's names inside the weights' own mapping, longest first where they overlap."""

COMPONENTS: tuple[tuple[str, str], ...] = (
    (r"(.+)_ema", r"\1"),
    (r"ema_(.+)", r"\1"),
    (r"(.*)encoder_k", r"\1encoder_q"),  # MoCo
    (r"target_(.+)", r"online_\1"),  # BYOL
    (r"momentum_(.+)", r"\1"),
    (r"(.*encoder)_m", r"\1"),  # ALBEF, BLIP
)
"""A component of a name that marks the average, and the one that it stands beside. Only what can mean nothing else:
``to_k`` stands beside ``to_q`` in every transformer."""

LISTS: tuple[tuple[str, str], ...] = (
    ("shadow_params", "torch_ema, score_sde, diffusers"),
    ("ema_parameters", "OneTrainer"),
)
"""Keys of lists without names, in the model's order."""


@dataclass(frozen=True)
class _Seen:
    """A checkpoint to look into."""

    checkpoint: Checkpoint
    tree: Mapping[Any, Any]
    weights: Mapping[str, TensorSpec]
    names_from: Checkpoint | None
    values: Values | None

    @property
    def path(self) -> str:
        return str(self.checkpoint.path)


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
    seen = _Seen(checkpoint, tree_of(checkpoint), checkpoint.weights, names_from, values)
    for rule in (_mmengine, _lightning, _composer, _nequip, _stored_map):
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
        _averaged_model,
        _ema_pytorch,
        _lit_ema,
        _mmcv,
        _prefixed,
        _component,
        _numbered,
        _lists,
        _only_average,
    ):
        found = rule(seen)
        if found is not None:
            return found
    return None


# --- Already in the weights' place -----------------------------------------------------------------------------


def _mmengine(seen: _Seen) -> StoredAverage | None:
    other = seen.tree.get("ema_state_dict")
    if not isinstance(other, Mapping) or "state_dict" not in seen.tree:
        return None
    names = [name for name in other if isinstance(name, str)]
    if "steps" not in names or not all(name.startswith("module.") for name in names if name != "steps"):
        return None
    raw = {name.removeprefix("module."): spec for name, spec in other.items() if isinstance(spec, TensorSpec)}
    return applied(
        seen.checkpoint,
        seen.weights,
        framework="mmengine EMAHook",
        where="state_dict",
        why="ema_state_dict has the counter 'steps' and names after 'module.': mmengine swaps the two sets when it "
        "saves, so state_dict is the average and ema_state_dict the trained weights",
        trained={name: raw[name] for name in seen.weights if name in raw},
        drop=(("ema_state_dict",),),
    )


def _lightning(seen: _Seen) -> StoredAverage | None:
    raw = seen.tree.get("current_model_state")
    if not isinstance(raw, Mapping) or "averaging_state" not in seen.tree:
        return None
    specs = tensors_below(raw)
    return applied(
        seen.checkpoint,
        seen.weights,
        framework="Lightning WeightAveraging",
        where="state_dict",
        why="current_model_state and averaging_state are there: Lightning 2.6 and later put the average into "
        "state_dict and the trained weights into current_model_state",
        trained={name: specs[name] for name in seen.weights if name in specs},
        drop=(("current_model_state",), ("averaging_state",)),
    )


def _composer(seen: _Seen) -> StoredAverage | None:
    algorithms = at(seen.tree, ("state", "algorithms"))
    entries = list(enumerate(algorithms)) if isinstance(algorithms, list) else []
    for index, entry in entries:
        if not (isinstance(entry, list) and len(entry) == 2 and entry[0] == "EMA" and isinstance(entry[1], Mapping)):
            continue
        state = entry[1]
        drop: tuple[KeyPath, ...] = (("state", "algorithms", index),)
        place = f"state.algorithms.{index}"
        named: dict[str, TensorSpec] = {}
        for part in ("named_parameters_dict", "named_buffers_dict"):
            named.update(tensors_below(at(state, ("ema_model", part)) or {}))
        if state.get("ema_weights_active") is True:
            names = fit(named, seen.weights)
            return applied(
                seen.checkpoint,
                seen.weights,
                framework="Composer EMA",
                where="state.model",
                why=f"{place} has ema_weights_active=True: when this was saved, state.model held the average",
                trained={name: named[own] for name, own in names.pairs.items()} if names else {},
                drop=drop,
            )
        return _covered(
            seen,
            named,
            "Composer EMA",
            f"{place}.1.ema_model",
            f"{place} has ema_weights_active={state.get('ema_weights_active')}: state.model holds the trained weights",
            drop=drop,
        )
    return None


def _nequip(seen: _Seen) -> StoredAverage | None:
    states = [
        (path, node) for path, node in walk(seen.tree) if isinstance(node, Mapping) and "is_holding_ema_weights" in node
    ]
    if not states:
        return None
    path, state = states[0]
    prefix = str(path[-1]).removesuffix("_extra_state")
    ours = [name for name in seen.weights if name.startswith(prefix)]
    listed = next((names for stem in ("ema_weights.", "ema_weight_") if (names := numbered(ours, prefix + stem))), None)
    if not listed:
        return None
    rest = {name: spec for name, spec in seen.weights.items() if name not in ours}
    drop = (path,)
    if state["is_holding_ema_weights"] is not True:
        return applied(
            seen.checkpoint,
            rest,
            framework="nequip",
            where=seen.checkpoint.section or "the weights",
            why=f"{dotted(path)} says is_holding_ema_weights=False: this was saved while the two sets were swapped, "
            "and the model holds the average",
            drop=drop,
        )
    return _aligned(
        seen,
        [seen.weights[name] for name in listed],
        rest,
        "nequip",
        f"{prefix}ema_weight*",
        f"{dotted(path)} says is_holding_ema_weights=True: the model holds the trained weights",
        drop=drop,
    )


# --- Sets of their own -----------------------------------------------------------------------------------------


def _stored_map(seen: _Seen) -> StoredAverage | None:
    """The one layout that writes down which name is which (fme)."""
    for path, node in walk(seen.tree):
        if isinstance(node, Mapping) and {"ema_params", "module_name_to_ema_name"} <= set(node):
            average = tensors_below(node["ema_params"])
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


def _slots(seen: _Seen, chosen: str | None) -> Iterator[StoredAverage]:
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
            path = _path_of(seen.tree, where)
            if names is not None and path is not None:
                why = f"{where} holds tensors of the weights' names and shapes, and its name says average"
                yield _covered(seen, average, "not one of the table", where, why, drop=(path,))


def _path_of(tree: Any, where: str) -> KeyPath | None:
    return next((path for path, _ in walk(tree) if dotted(path) == where), None)


def _slot(seen: _Seen, path: KeyPath, framework: str, kind: str, drop: tuple[KeyPath, ...]) -> StoredAverage | None:
    node = at(seen.tree, path)
    if not isinstance(node, Mapping):
        return None
    average = {name: spec for name, spec in tensors_below(node).items() if not name.startswith("online_model.")}
    if fit(average, seen.weights) is None:
        return None
    others = ", ".join(str(key) for key in seen.tree if key in {"state_dict", "model", "params", "student", "encoder"})
    why = f"{dotted(path)} stands beside {others or 'the weights'} and has their names and shapes"
    return _covered(seen, average, framework, dotted(path), why, drop=drop, kind=kind)


def _covered(
    seen: _Seen,
    average: Mapping[str, TensorSpec],
    framework: str,
    where: str,
    why: str,
    *,
    weights: Mapping[str, TensorSpec] | None = None,
    drop: Sequence[KeyPath] = (),
    kind: str = "moving average",
) -> StoredAverage:
    weights = seen.weights if weights is None else weights
    names = fit(average, weights)
    if names is None:
        raise MismatchError(
            f"{seen.path}: the average at {where} does not answer to the weights by name and shape: "
            f"{first_names(average)}",
            path=seen.path,
            hint="--section says where the weights are, where another set was taken for them.",
        )
    return covering(
        seen.checkpoint, weights, average, names, framework=framework, where=where, why=why, drop=drop, kind=kind
    )


# --- Inside the weights' own mapping ---------------------------------------------------------------------------


def _averaged_model(seen: _Seen) -> StoredAverage | None:
    if "n_averaged" not in seen.weights:
        return None
    inside = {name: spec for name, spec in seen.weights.items() if name != "n_averaged"}
    if not inside or not all(name.startswith("module.") for name in inside):
        return None
    return _unwrapped(
        seen,
        inside,
        "torch AveragedModel",
        "the count n_averaged and names after 'module.': torch's AveragedModel, which holds nothing but the average",
    )


def _ema_pytorch(seen: _Seen) -> StoredAverage | None:
    """The state dict of lucidrains' EMA, which may be the whole file or stand under a prefix."""
    marks = [name for name in seen.weights if name == "initted" or name.endswith(".initted")]
    if not marks:
        return None
    prefix = marks[0].removesuffix("initted")
    inside = {
        name.removeprefix(f"{prefix}ema_model."): spec
        for name, spec in seen.weights.items()
        if name.startswith(f"{prefix}ema_model.")
    }
    if not inside:
        return None
    why = f"{prefix}initted and names after '{prefix}ema_model.': the state of ema-pytorch's EMA"
    online = f"{prefix}online_model."
    rest = {name: spec for name, spec in seen.weights.items() if not name.startswith(prefix or "ema_model.")}
    if prefix and fit(inside, rest) is not None:
        return _covered(seen, inside, "ema-pytorch", f"{prefix}ema_model.*", why, weights=rest)
    raw = {name.removeprefix(online): spec for name, spec in seen.weights.items() if name.startswith(online)}
    return applied(
        seen.checkpoint,
        inside,
        framework="ema-pytorch",
        where=f"{prefix}ema_model.*",
        why=why,
        trained={name: raw[name] for name in inside if name in raw},
        renamed=True,
        notes=(f"'{prefix}ema_model.' was taken off the names",),
    )


def _unwrapped(seen: _Seen, inside: Mapping[str, TensorSpec], framework: str, why: str) -> StoredAverage:
    bare = {strip_wrappers(name): spec for name, spec in inside.items()}
    if len(bare) < len(inside):
        bare = {name.split(".", 1)[1]: spec for name, spec in inside.items()}
    prefix = next(iter(inside)).removesuffix(next(iter(bare)))
    return applied(
        seen.checkpoint,
        bare,
        framework=framework,
        where=seen.checkpoint.section or f"{prefix}*",
        why=why,
        renamed=True,
        notes=(f"'{prefix}' was taken off the names",),
    )


def _lit_ema(seen: _Seen) -> StoredAverage | None:
    """CompVis' LitEma: buffers whose names are those of the parameters without the dots."""
    marks = [name for name in seen.weights if name.endswith((".decay", ".num_updates"))]
    for mark in marks:
        prefix = mark.rsplit(".", 1)[0] + "."
        flat = {
            name[len(prefix) :]: spec
            for name, spec in seen.weights.items()
            if name.startswith(prefix) and name[len(prefix) :] not in BOOKKEEPING
        }
        if flat and not any("." in name for name in flat):
            return _unflattened(seen, prefix, flat)
    return None


def _unflattened(seen: _Seen, prefix: str, flat: Mapping[str, TensorSpec]) -> StoredAverage:
    rest = {name: spec for name, spec in seen.weights.items() if not name.startswith(prefix)}
    names = seen.names_from.weights if seen.names_from is not None else rest
    names = {name: spec for name, spec in names.items() if not name.startswith(prefix)}
    # The diffusion models average `self.model`, whose names lack it; the autoencoders average themselves.
    roots = [
        root
        for root in ("model.", "")
        if any(flatten(name[len(root) :]) in flat for name in names if name.startswith(root))
    ]
    maps = {root: resolve_flat(flat, names, root=root, where=seen.path) for root in roots}
    maps = {
        root: found
        for root, found in maps.items()
        if len(found) == max(map(len, maps.values())) and 2 * len(found) > len(flat)
    }
    if not maps:
        raise MismatchError(
            f"{seen.path}: the names after {prefix!r} have no dots, and there are no trained weights here that tell "
            f"where the dots were: {first_names(flat)}",
            path=seen.path,
            hint="--names-from takes the names from another checkpoint of this model.",
        )
    if len(maps) > 1 and len({tuple(found.items()) for found in maps.values()}) > 1:
        raise MismatchError(
            f"{seen.path}: the names after {prefix!r} answer to two sets of weights, with and without 'model.' before "
            "them",
            path=seen.path,
            hint="Nobody can tell which of the two was averaged.",
        )
    root, found = next(iter(maps.items()))
    placed = set(found.values())
    wrong = tuple((name, own) for name, own in found.items() if names[name].shape != flat[own].shape)
    fitted = NameMap(
        {name: own for name, own in found.items() if names[name].shape == flat[own].shape},
        tuple(name for name in flat if name not in placed),
        misshapen=wrong,
    )
    why = f"names after {prefix!r} without dots, and a counter or a decay among them: LitEma"
    told = f"the dots of {len(found):,} names were found from the weights' own" + (f" (after {root!r})" if root else "")
    weights = {**rest, **{name: names[name] for name in found if name not in rest}}
    return covering(
        seen.checkpoint,
        weights,
        flat,
        fitted,
        framework="Stable Diffusion, latent diffusion (LitEma)",
        where=f"{prefix}*",
        why=why,
        renamed=any(name not in rest for name in found),
        notes=(told,),
    )


def _mmcv(seen: _Seen) -> StoredAverage | None:
    """Of mmcv 1: buffers at the root, and the two sets are swapped after each epoch, before the file is saved."""
    buffers = {name for name in seen.weights if name.startswith("ema_") and "." not in name}
    if not buffers:
        return None
    rest = {name: spec for name, spec in seen.weights.items() if name not in buffers}
    found = resolve_flat([name.removeprefix("ema_") for name in buffers], rest, dot="_", where=seen.path)
    if len(found) != len(buffers) or len(buffers) < 2:
        return None
    raw = {name: seen.weights[f"ema_{own}"] for name, own in found.items()}
    if any(spec.shape != rest[name].shape for name, spec in raw.items()):
        return None
    return applied(
        seen.checkpoint,
        rest,
        framework="mmcv 1 EMAHook",
        where=seen.checkpoint.section or "the weights",
        why="names that begin with 'ema_' and have '_' for each dot: mmcv 1 swaps the two sets before it saves, so the "
        "plain names are the average and the 'ema_' names the trained weights",
        trained={name: raw.get(name, spec) for name, spec in rest.items()},
    )


def _prefixed(seen: _Seen) -> StoredAverage | None:
    for prefix in PREFIXES:
        inside = {name[len(prefix) :]: spec for name, spec in seen.weights.items() if name.startswith(prefix)}
        if not any(name not in BOOKKEEPING for name in inside):
            continue
        rest = {name: spec for name, spec in seen.weights.items() if not name.startswith(prefix)}
        marks = {name: spec for name, spec in rest.items() if name.rsplit(".", 1)[-1] == "initted"}
        rest = {name: spec for name, spec in rest.items() if name not in marks}
        if fit(inside, rest) is None:
            continue
        return _covered(
            seen,
            inside,
            "names inside the state dict",
            f"{prefix}*",
            f"names after {prefix!r} answer to the others by name and shape",
            weights=rest,
        )
    return None


def _component(seen: _Seen) -> StoredAverage | None:
    """Names of which one component says what they are: ``generator_ema.x`` beside ``generator.x``."""
    for pattern, beside in COMPONENTS:
        pairs = {}
        for name in seen.weights:
            words = name.split(".")
            for place, word in enumerate(words[:-1]):
                match = re.fullmatch(pattern, word)
                other = ".".join([*words[:place], match.expand(beside), *words[place + 1 :]]) if match else ""
                if other in seen.weights and other != name:
                    pairs[other] = name
                    break
        marked = set(pairs.values())
        if not pairs or any(
            spec.shape != seen.weights[pairs[name]].shape for name in pairs for spec in [seen.weights[name]]
        ):
            continue
        if marked & set(pairs):
            continue
        average = {name: seen.weights[name] for name in seen.weights if name in marked}
        weights = {name: spec for name, spec in seen.weights.items() if name not in marked}
        first = next(iter(pairs))
        return covering(
            seen.checkpoint,
            weights,
            average,
            NameMap({name: pairs[name] for name in weights if name in pairs}),
            framework="names inside the state dict",
            where=f"{pairs[first]} and {len(pairs) - 1} more",
            why=f"each of {len(pairs):,} names such as {pairs[first]} stands beside {first} in the same shape",
            kind="moving average" if "ema" in pattern else TEACHER,
        )
    return None


# --- Lists without names ---------------------------------------------------------------------------------------


def _numbered(seen: _Seen) -> StoredAverage | None:
    """Lists that were flattened into names: ``shadow_params.0``, ``ema_weight_0``."""
    for stem in ("shadow_params.", "ema.shadow_params.", "ema.ema_weight_", "ema.ema_weights.", "ema_parameters."):
        listed = numbered(tuple(seen.weights), stem)
        if not listed:
            continue
        head = stem.split(".")[0] + "."
        rest = {
            name: s
            for name, s in seen.weights.items()
            if name not in listed and not (stem.startswith("ema.") and name.startswith(head))
        }
        rest = {name: spec for name, spec in rest.items() if strip_wrappers(name) not in BOOKKEEPING and spec.shape}
        average = [seen.weights[name] for name in listed]
        return _aligned(
            seen, average, rest, "SimpleTuner and others", f"{stem}*", f"names {stem}0 to {stem}{len(listed) - 1}"
        )
    return None


def _lists(seen: _Seen) -> StoredAverage | None:
    for path, node in walk(seen.tree):
        if not isinstance(node, list) or not node or not all(isinstance(value, TensorSpec) for value in node):
            continue
        named = next((row for row in LISTS if path[-1] == row[0]), None)
        if named is not None:
            drop = (path[:-1],) if len(path) > 1 else (path,)
            return _aligned(
                seen,
                node,
                seen.weights,
                named[1],
                dotted(path),
                f"{dotted(path)} is a list of {len(node)} tensors",
                drop=drop,
            )
        if path[-1] == "ema" and len(path) > 1 and path[0] == "optimizer_states":
            why = f"{dotted(path)} is a list of {len(node)} tensors, in the order of the optimizer's parameter groups"
            return _aligned(seen, node, seen.weights, "NeMo", dotted(path), why, ordered=False, drop=(path,))
    return None


def _aligned(
    seen: _Seen,
    average: Sequence[TensorSpec],
    weights: Mapping[str, TensorSpec],
    framework: str,
    where: str,
    why: str,
    *,
    ordered: bool = True,
    drop: Sequence[KeyPath] = (),
) -> StoredAverage:
    owner = seen.names_from if seen.names_from is not None else seen.checkpoint
    if seen.names_from is not None:
        weights = seen.names_from.weights
    if not weights or {id(spec) for spec in weights.values()} <= {id(spec) for spec in average}:
        raise UnsupportedError(
            f"{seen.path}: the average at {where} is a list without names, and there are no weights beside it",
            path=seen.path,
            hint="--names-from CHECKPOINT takes the names, and what the average does not cover, from the model's file.",
        )
    keeps_order = ordered and owner.format != "safetensors"
    found = align(average, weights, ordered=keeps_order, where=f"{seen.path}: {where}", values=seen.values)
    tensors = {str(index): spec for index, spec in enumerate(average)}
    names = NameMap({name: str(index) for name, index in found.indices.items()})
    return covering(
        owner,
        weights,
        tensors,
        names,
        framework=framework,
        where=where,
        why=why,
        source=seen.checkpoint,
        drop=drop if owner is seen.checkpoint else (),
        notes=(f"the list was aligned {found.why}",),
    )


# --- Nothing but the average -----------------------------------------------------------------------------------


def _only_average(seen: _Seen) -> StoredAverage | None:
    """Files whose one set of weights is called an average (BasicSR, DINOv2), and trainers that save only it."""
    section = seen.checkpoint.section
    if section in {"params_ema", "teacher", "ema", "model_ema", "state_dict_ema", "ema_model", "target_encoder"}:
        kind = TEACHER if section in {"teacher", "target_encoder"} else "moving average"
        why = f"the file's only set of weights is called {section}"
        return applied(seen.checkpoint, seen.weights, framework="not said", where=section, why=why, kind=kind)
    decay = seen.checkpoint.values.get("opt.average_decay")
    if isinstance(decay, (int, float)) and decay > 0:
        why = f"opt.average_decay is {decay:g}: OpenNMT-py saves the average in place of the trained weights"
        return applied(seen.checkpoint, seen.weights, framework="OpenNMT-py", where=section, why=why)
    return None
