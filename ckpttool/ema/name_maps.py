"""Which tensor of a stored average belongs to which weight, where both have names.

Training code renames on the way: wrappers put prefixes before every name, some layouts take the dots out. The map is
always built forward, from the weights' names to those that the average would have, and never by guessing where a dot
was; two weights with one name are refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from ckpttool.errors import MismatchError
from ckpttool.formats.average_keys import COUNTERS
from ckpttool.formats.wrappers import AVERAGE_WRAPPERS, wrapper_prefix
from ckpttool.tensors import TensorSpec
from ckpttool.text import first_names

__all__ = [
    "NameMap",
    "describe_unmatched",
    "flatten",
    "match_names",
    "resolve_flat",
]


@dataclass(frozen=True)
class NameMap:
    """Which name of an average belongs to which weight.

    Attributes:
        pairs: Weight name to name in the average, in the order of the weights.
        unmatched: Names of the average that belong to no weight.
        changed: What was done to the average's names, as a phrase; empty if they are the weights' own.
        misshapen: (weight name, name in the average) of pairs whose shapes differ.
    """

    pairs: Mapping[str, str]
    unmatched: tuple[str, ...] = ()
    changed: str = ""
    misshapen: tuple[tuple[str, str], ...] = ()


def match_names(average: Mapping[str, TensorSpec], weights: Mapping[str, TensorSpec]) -> NameMap | None:
    """Match the names of an average with those of the weights.

    Tried in this order: the names as they are; without the wrappers' prefixes on either side; as a part of the model
    (the average of ``encoder`` calls ``encoder.layer.weight`` ``layer.weight``); as more than the model (the reverse).
    The first way that matches the most is taken.

    Args:
        average: Its tensors; counters such as ``n_averaged`` are ignored.
        weights: The trained weights.

    Returns:
        None where half of the average or less is matched: then it is not an average of these weights.
    """
    names = [name for name in average if name not in COUNTERS]
    if not names:
        return None
    own, theirs = wrapper_prefix(names, AVERAGE_WRAPPERS), wrapper_prefix(weights, AVERAGE_WRAPPERS)
    bare_weights = {name[len(theirs) :]: name for name in weights}
    bare = {name: name[len(own) :] for name in names}
    ways: list[tuple[str, Callable[[str], str | None]]] = [
        ("", lambda name: name if name in weights else None),
        (_said(own, theirs), lambda name: bare_weights.get(bare[name])),
    ]
    inner = _inner_prefix(bare.values(), bare_weights)
    if inner:
        ways.append((f"{inner!r} put in front of them", lambda name: bare_weights.get(inner + bare[name])))
    outer = _inner_prefix(bare_weights, set(bare.values()))
    if outer:
        ways.append((f"{outer!r} taken off", lambda name: bare_weights.get(bare[name].removeprefix(outer))))
    best: NameMap | None = None
    for changed, place in ways:
        placed = {target: name for name in names if (target := place(name)) is not None}
        fitting = {target: name for target, name in placed.items() if weights[target].shape == average[name].shape}
        if best is None or len(fitting) > len(best.pairs):
            answered = set(placed.values())
            best = NameMap(
                pairs={name: fitting[name] for name in weights if name in fitting},
                unmatched=tuple(name for name in names if name not in answered),
                changed=changed,
                misshapen=tuple(item for item in placed.items() if item[0] not in fitting),
            )
    return best if best is not None and 2 * len(best.pairs) > len(names) else None


def _said(own: str, theirs: str) -> str:
    parts = [f"{own!r} taken off"] if own else []
    return " and ".join([*parts, f"{theirs!r} put in front of them"] if theirs else parts)


def _inner_prefix(inner: Iterable[str], whole: Collection[str]) -> str:
    """The prefix with which most inner names are names of the whole; empty if there is none, or two are as good."""
    endings: dict[str, list[str]] = defaultdict(list)
    for name in whole:
        words = name.split(".")
        for start in range(1, len(words)):
            endings[".".join(words[start:])].append(".".join(words[:start]) + ".")
    counts: dict[str, int] = defaultdict(int)
    for name in inner:
        for prefix in endings.get(name, ()):
            counts[prefix] += 1
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    if not ranked or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        return ""
    return ranked[0][0]


def flatten(name: str, dot: str = "") -> str:
    """A name as layouts without dots write it.

    >>> flatten("model.diffusion_model.out.weight"), flatten("conv1.weight", "_")
    ('modeldiffusion_modeloutweight', 'conv1_weight')
    """
    return name.replace(".", dot)


def resolve_flat(
    flat: Collection[str], names: Iterable[str], *, dot: str = "", root: str = "", where: str
) -> dict[str, str]:
    """Find the names that were flattened, forward.

    Args:
        flat: What the average is called.
        names: What the weights are called.
        dot: What replaced each dot.
        root: A prefix of the weights' names that was taken off before.
        where: The file, for messages.

    Returns:
        Weight name to flat name.

    Raises:
        MismatchError: Two weights have one flat name. The EMA implementation then mixed the two up, and neither value
            can be trusted.
    """
    wanted = set(flat)
    found: dict[str, str] = {}
    for name in names:
        if not name.startswith(root):
            continue
        key = flatten(name[len(root) :], dot)
        if key not in wanted:
            continue
        if key in found:
            raise MismatchError(
                f"{where}: {found[key]} and {name} are both called {key!r} in the average, so one of them was lost",
                path=where,
                tensor=name,
                hint="The EMA implementation mixed the two tensors up; use the trained weights, or another file.",
            )
        found[key] = name
    return {name: key for key, name in found.items()}


def describe_unmatched(names: Collection[str]) -> str:
    """What to say of tensors that belong to no weight."""
    return f"{len(names)} tensors of the average belong to no weight and are left out: {first_names(names)}"
