"""Averages inside the weights' own mapping, recognised by names: a prefix, no dots, a component of the name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckpttool.ema.candidates import Candidate, pair_by_name
from ckpttool.ema.name_maps import NameMap, flatten, match_names, resolve_flat
from ckpttool.ema.stored_average import Origin, StoredAverage, already_in_place, pair_with_weights
from ckpttool.errors import MismatchError
from ckpttool.formats.average_keys import COMPONENTS, COUNTERS, PREFIXES
from ckpttool.formats.wrappers import strip_wrappers
from ckpttool.tensors import TensorSpec
from ckpttool.text import first_names, parameter

__all__ = ["averaged_model", "component", "ema_pytorch", "lit_ema", "mmcv", "prefixed"]

_INSIDE = "names inside the state dict"


def averaged_model(candidate: Candidate) -> StoredAverage | None:
    """An AveragedModel of torch, plain, compiled or parallel: nothing but the average, and its count."""
    if "n_averaged" not in candidate.weights:
        return None
    inside = {name: spec for name, spec in candidate.weights.items() if name != "n_averaged"}
    if not inside or not all(name.startswith("module.") for name in inside):
        return None
    bare = {strip_wrappers(name): spec for name, spec in inside.items()}
    if len(bare) < len(inside):
        bare = {name.split(".", 1)[1]: spec for name, spec in inside.items()}
    prefix = next(iter(inside)).removesuffix(next(iter(bare)))
    why = "the count n_averaged and names after 'module.': torch's AveragedModel, which holds nothing but the average"
    return already_in_place(
        candidate.checkpoint,
        bare,
        Origin("torch AveragedModel", candidate.checkpoint.section or f"{prefix}*", why),
        renamed=True,
        notes=(f"'{prefix}' was taken off the names",),
    )


def ema_pytorch(candidate: Candidate) -> StoredAverage | None:
    """The state dict of lucidrains' ema-pytorch, which is the whole file or has a prefix."""
    marks = [name for name in candidate.weights if name == "initted" or name.endswith(".initted")]
    if not marks:
        return None
    prefix = marks[0].removesuffix("initted")
    inside = {
        name.removeprefix(f"{prefix}ema_model."): spec
        for name, spec in candidate.weights.items()
        if name.startswith(f"{prefix}ema_model.")
    }
    if not inside:
        return None
    why = f"{prefix}initted and names after '{prefix}ema_model.': the state of ema-pytorch's EMA"
    origin = Origin("ema-pytorch", f"{prefix}ema_model.*", why)
    online = f"{prefix}online_model."
    rest = {name: spec for name, spec in candidate.weights.items() if not name.startswith(prefix or "ema_model.")}
    if prefix and match_names(inside, rest) is not None:
        return pair_by_name(candidate, inside, origin, weights=rest)
    raw = {name.removeprefix(online): spec for name, spec in candidate.weights.items() if name.startswith(online)}
    return already_in_place(
        candidate.checkpoint,
        inside,
        origin,
        trained={name: raw[name] for name in inside if name in raw},
        renamed=True,
        notes=(f"'{prefix}ema_model.' was taken off the names",),
    )


def lit_ema(candidate: Candidate) -> StoredAverage | None:
    """CompVis' LitEma: buffers whose names are those of the parameters without the dots."""
    marks = [name for name in candidate.weights if name.endswith((".decay", ".num_updates"))]
    for mark in marks:
        prefix = mark.rsplit(".", 1)[0] + "."
        flat = {
            name[len(prefix) :]: spec
            for name, spec in candidate.weights.items()
            if name.startswith(prefix) and name[len(prefix) :] not in COUNTERS
        }
        if flat and not any("." in name for name in flat):
            return _unflattened(candidate, prefix, flat)
    return None


def _unflattened(candidate: Candidate, prefix: str, flat: Mapping[str, TensorSpec]) -> StoredAverage:
    rest = {name: spec for name, spec in candidate.weights.items() if not name.startswith(prefix)}
    names = candidate.names_from.weights if candidate.names_from is not None else rest
    names = {name: spec for name, spec in names.items() if not name.startswith(prefix)}
    # The diffusion models average `self.model`, whose names lack it; the autoencoders average themselves.
    roots = [
        root
        for root in ("model.", "")
        if any(flatten(name[len(root) :]) in flat for name in names if name.startswith(root))
    ]
    maps = {root: resolve_flat(flat, names, root=root, where=candidate.path) for root in roots}
    maps = {
        root: found
        for root, found in maps.items()
        if len(found) == max(map(len, maps.values())) and 2 * len(found) > len(flat)
    }
    if not maps:
        raise MismatchError(
            f"{candidate.path}: the names after {prefix!r} have no dots, and no trained weights are here that could "
            f"restore them: {first_names(flat)}",
            path=candidate.path,
            hint=f"{parameter('names_from')} takes the names from another checkpoint of this model.",
        )
    if len(maps) > 1 and len({tuple(found.items()) for found in maps.values()}) > 1:
        raise MismatchError(
            f"{candidate.path}: the names after {prefix!r} match two sets of weights, with and without 'model.' before "
            "them",
            path=candidate.path,
            hint="Which of the two was averaged cannot be told from the file.",
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
    note = f"the dots of {len(found):,} names were found from the weights' own" + (f" (after {root!r})" if root else "")
    weights = {**rest, **{name: names[name] for name in found if name not in rest}}
    return pair_with_weights(
        candidate.checkpoint,
        weights,
        flat,
        fitted,
        Origin("Stable Diffusion, latent diffusion (LitEma)", f"{prefix}*", why),
        renamed=any(name not in rest for name in found),
        notes=(note,),
    )


def mmcv(candidate: Candidate) -> StoredAverage | None:
    """Of mmcv 1: buffers at the root, and the two sets are swapped after each epoch, before the file is saved."""
    buffers = {name for name in candidate.weights if name.startswith("ema_") and "." not in name}
    if not buffers:
        return None
    rest = {name: spec for name, spec in candidate.weights.items() if name not in buffers}
    found = resolve_flat([name.removeprefix("ema_") for name in buffers], rest, dot="_", where=candidate.path)
    if len(found) != len(buffers) or len(buffers) < 2:
        return None
    raw = {name: candidate.weights[f"ema_{own}"] for name, own in found.items()}
    if any(spec.shape != rest[name].shape for name, spec in raw.items()):
        return None
    why = (
        "names that begin with 'ema_' and have '_' for each dot: mmcv 1 swaps the two sets before it saves, so the "
        "plain names are the average and the 'ema_' names the trained weights"
    )
    return already_in_place(
        candidate.checkpoint,
        rest,
        Origin("mmcv 1 EMAHook", candidate.checkpoint.section or "the weights", why),
        trained={name: raw.get(name, spec) for name, spec in rest.items()},
    )


def prefixed(candidate: Candidate) -> StoredAverage | None:
    """A second model under a prefix, next to the first: ``ema_model.conv.weight`` and ``net.conv.weight``."""
    for prefix in PREFIXES:
        inside = {name[len(prefix) :]: spec for name, spec in candidate.weights.items() if name.startswith(prefix)}
        if not any(name not in COUNTERS for name in inside):
            continue
        rest = {name: spec for name, spec in candidate.weights.items() if not name.startswith(prefix)}
        marks = {name: spec for name, spec in rest.items() if name.rsplit(".", 1)[-1] == "initted"}
        rest = {name: spec for name, spec in rest.items() if name not in marks}
        if match_names(inside, rest) is None:
            continue
        why = f"names after {prefix!r} match the others by name and shape"
        return pair_by_name(candidate, inside, Origin(_INSIDE, f"{prefix}*", why), weights=rest)
    return None


def component(candidate: Candidate) -> StoredAverage | None:
    """Names with a component that marks an average: ``generator_ema.x`` next to ``generator.x``."""
    split = {name: name.split(".") for name in candidate.weights}
    distinct = {word for words in split.values() for word in words[:-1]}  # few, of very many names
    for pattern, trained, kind in COMPONENTS:
        marks = {word: match for word in distinct if (match := re.fullmatch(pattern, word))}
        if not marks:
            continue
        pairs = {}
        for name, words in split.items():
            for place, word in enumerate(words[:-1]):
                match = marks.get(word)
                other = ".".join([*words[:place], match.expand(trained), *words[place + 1 :]]) if match else ""
                if other in candidate.weights and other != name:
                    pairs[other] = name
                    break
        marked = set(pairs.values())
        if not pairs or any(
            spec.shape != candidate.weights[pairs[name]].shape for name in pairs for spec in [candidate.weights[name]]
        ):
            continue
        if marked & set(pairs):
            continue
        average = {name: candidate.weights[name] for name in candidate.weights if name in marked}
        weights = {name: spec for name, spec in candidate.weights.items() if name not in marked}
        first = next(iter(pairs))
        why = f"each of {len(pairs):,} names such as {pairs[first]} is next to {first} in the same shape"
        return pair_with_weights(
            candidate.checkpoint,
            weights,
            average,
            NameMap({name: pairs[name] for name in weights if name in pairs}),
            Origin(_INSIDE, f"{pairs[first]} and {len(pairs) - 1} more", why, kind=kind),
        )
    return None
