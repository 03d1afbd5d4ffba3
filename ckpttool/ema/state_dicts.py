"""Averages inside the weights' own mapping, told by their names: under a prefix, without dots, beside a component."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckpttool.ema.candidates import MOVING_AVERAGE, TEACHER, Seen, covered
from ckpttool.ema.name_maps import BOOKKEEPING, NameMap, fit, flatten, resolve_flat
from ckpttool.ema.stored_average import StoredAverage, applied, covering
from ckpttool.errors import MismatchError
from ckpttool.formats.wrappers import strip_wrappers
from ckpttool.tensors import TensorSpec
from ckpttool.text import first_names

__all__ = ["averaged_model", "component", "ema_pytorch", "lit_ema", "mmcv", "prefixed"]

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


def averaged_model(seen: Seen) -> StoredAverage | None:
    """An AveragedModel of torch, plain, compiled or parallel: nothing but the average, and its count."""
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


def ema_pytorch(seen: Seen) -> StoredAverage | None:
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
        return covered(seen, inside, "ema-pytorch", f"{prefix}ema_model.*", why, weights=rest)
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


def _unwrapped(seen: Seen, inside: Mapping[str, TensorSpec], framework: str, why: str) -> StoredAverage:
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


def lit_ema(seen: Seen) -> StoredAverage | None:
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


def _unflattened(seen: Seen, prefix: str, flat: Mapping[str, TensorSpec]) -> StoredAverage:
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


def mmcv(seen: Seen) -> StoredAverage | None:
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


def prefixed(seen: Seen) -> StoredAverage | None:
    """A second model under a prefix, beside the first: ``ema_model.conv.weight`` and ``net.conv.weight``."""
    for prefix in PREFIXES:
        inside = {name[len(prefix) :]: spec for name, spec in seen.weights.items() if name.startswith(prefix)}
        if not any(name not in BOOKKEEPING for name in inside):
            continue
        rest = {name: spec for name, spec in seen.weights.items() if not name.startswith(prefix)}
        marks = {name: spec for name, spec in rest.items() if name.rsplit(".", 1)[-1] == "initted"}
        rest = {name: spec for name, spec in rest.items() if name not in marks}
        if fit(inside, rest) is None:
            continue
        return covered(
            seen,
            inside,
            "names inside the state dict",
            f"{prefix}*",
            f"names after {prefix!r} answer to the others by name and shape",
            weights=rest,
        )
    return None


def component(seen: Seen) -> StoredAverage | None:
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
            kind=MOVING_AVERAGE if "ema" in pattern else TEACHER,
        )
    return None
