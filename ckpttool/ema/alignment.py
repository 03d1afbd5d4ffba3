"""Moving averages that are stored as a list without names: which tensor of the list belongs to which weight.

Three ways, the surest first. (1) The list is as long as the model has parameters, and the shapes agree one by one: the
list is in the model's order. (2) There is exactly one way to leave out weights (frozen ones) so that they do. (3) By
value: an average is near its own weight. For each tensor of the list, the distances |e-w|/(|e|+|w|) to all weights of
its shape are compared; the margin is how many times further the second nearest is. What stays ambiguous is refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckpttool.errors import MismatchError
from ckpttool.planning.matching import ties
from ckpttool.tensors import TensorSpec
from ckpttool.text import first_names, parameter

__all__ = ["MIN_MARGIN", "Alignment", "align", "parameters"]

MIN_MARGIN = 2.0
"""How many times further than the nearest weight the second nearest must be."""

SAMPLE = 8192
"""Elements of a tensor that are compared: its first ones."""

_BUFFERS = (".running_mean", ".running_var", ".num_batches_tracked")
_BARE_BUFFERS = frozenset(name[1:] for name in _BUFFERS)

Values = Callable[[TensorSpec], Any]
"""Reads a tensor's values: a numpy array of its shape."""


@dataclass(frozen=True)
class Alignment:
    """Which tensor of a list belongs to which weight.

    Attributes:
        indices: Weight name to index in the list, in the order of the weights.
        why: How it was found, as a phrase.
    """

    indices: Mapping[str, int]
    why: str


def parameters(weights: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The tensors of ``model.parameters()``, as far as a state dict tells: no known buffers, tied tensors once."""
    tied = ties({("", name): spec for name, spec in weights.items()})
    return {
        name: spec
        for name, spec in weights.items()
        if spec.dtype.is_averaged
        and ("", name) not in tied
        and not name.endswith(_BUFFERS)
        and name not in _BARE_BUFFERS
    }


def align(
    average: Sequence[TensorSpec],
    weights: Mapping[str, TensorSpec],
    *,
    ordered: bool,
    where: str,
    values: Values | None = None,
) -> Alignment:
    """Find the weight of each tensor in a list.

    Args:
        average: The list.
        weights: The trained weights.
        ordered: Whether list and weights both are in the model's order (safetensors sorts its names, and optimizers
            group their parameters).
        where: Where the list is, for messages.
        values: How values are read; only called where the order does not answer.

    Raises:
        MismatchError: The list is longer than the model, has shapes that the model has not, or stays ambiguous.
    """
    candidates = parameters(weights)
    shapes = [spec.shape for spec in average]
    if len(average) > len(candidates):
        raise MismatchError(
            f"{where}: the list has {len(average)} tensors, and the model {len(candidates)} parameters",
            path=where,
            hint=f"Is it this model's average? {parameter('names_from')} takes the names from another checkpoint.",
        )
    if ordered:
        by_order = _in_order(shapes, candidates)
        if by_order is not None:
            left = len(candidates) - len(by_order)
            frozen = f"; {left} parameters are not in it, and there is only one way to leave them out" if left else ""
            return Alignment(by_order, f"by the order of the parameters: the shapes agree{frozen}")
    _check_shapes(shapes, candidates, where)
    return _by_value(average, candidates, where, values or _read)


def _in_order(shapes: Sequence[tuple[int, ...]], candidates: Mapping[str, TensorSpec]) -> dict[str, int] | None:
    """The only way to leave weights out so that the shapes agree one by one; None if there is none, or several."""
    names = list(candidates)
    earliest = _subsequence(shapes, [candidates[name].shape for name in names])
    if earliest is None:
        return None
    latest = _subsequence(shapes[::-1], [candidates[name].shape for name in reversed(names)])
    # Every embedding is between the earliest and the latest: where they agree, it is the only one.
    if latest is None or [len(names) - 1 - place for place in reversed(latest)] != earliest:
        return None
    return {names[place]: index for index, place in enumerate(earliest)}


def _subsequence(wanted: Sequence[tuple[int, ...]], there: Sequence[tuple[int, ...]]) -> list[int] | None:
    places: list[int] = []
    for place, shape in enumerate(there):
        if len(places) < len(wanted) and shape == wanted[len(places)]:
            places.append(place)
    return places if len(places) == len(wanted) else None


def _check_shapes(shapes: Sequence[tuple[int, ...]], candidates: Mapping[str, TensorSpec], where: str) -> None:
    left: dict[tuple[int, ...], int] = defaultdict(int)
    for spec in candidates.values():
        left[spec.shape] += 1
    for index, shape in enumerate(shapes):
        left[shape] -= 1
        if left[shape] < 0:
            raise MismatchError(
                f"{where}: the model has no parameter left for tensor {index} of the list, of shape {list(shape)}",
                path=where,
                tensor=str(index),
                hint=f"Is it this model's average? {parameter('names_from')} takes the names from another checkpoint.",
            )


def _by_value(
    average: Sequence[TensorSpec], candidates: Mapping[str, TensorSpec], where: str, values: Values
) -> Alignment:
    """Each tensor of the list to its nearest weight of the same shape."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, spec in enumerate(average):
        groups[spec.shape].append(index)
    found: dict[str, int] = {}
    margin = float("inf")
    for shape, indices in groups.items():
        names = [name for name, spec in candidates.items() if spec.shape == shape]
        if len(names) == 1:
            found[names[0]] = indices[0]
            continue
        matched, worst = _assign(
            [_sample(average[index], values) for index in indices],
            [_sample(candidates[name], values) for name in names],
        )
        if worst < MIN_MARGIN:
            raise MismatchError(
                f"{where}: {len(names)} weights have shape {list(shape)}, and values do not tell which tensor of the "
                f"list belongs to which (the second nearest is only {worst:.2f} times as far): {first_names(names)}",
                path=where,
                tensor=names[0],
                hint="The order of the list is not known; a torch checkpoint of the model keeps it, safetensors does "
                f"not. {parameter('names_from')} takes the names from such a file.",
            )
        margin = min(margin, worst)
        for index, place in zip(indices, matched, strict=True):
            found[names[place]] = index
    indices_by_name = {name: found[name] for name in candidates if name in found}
    said = "by shape, as every shape occurs once"
    if margin != float("inf"):
        said = f"by shape and value: each has a weight at least {margin:.1f} times nearer than the second nearest"
    return Alignment(indices_by_name, said)


def _assign(average: Sequence[Any], weights: Sequence[Any]) -> tuple[list[int], float]:
    """For each of the averages its weight, and the smallest margin; a margin of 0 where two claim one weight.

    Of averages that hold the same values it does not matter which is whose.
    """
    distances = [[_distance(e, w) for w in weights] for e in average]
    same: dict[bytes, list[int]] = defaultdict(list)
    for index, sample in enumerate(average):
        same[sample.tobytes()].append(index)
    matched = [-1] * len(average)
    margin = float("inf")
    taken: set[int] = set()
    for members in same.values():
        ranked = sorted(range(len(weights)), key=distances[members[0]].__getitem__)
        mine, others = ranked[: len(members)], ranked[len(members) :]
        if taken & set(mine):
            return matched, 0.0
        taken.update(mine)
        if others:
            near, far = distances[members[0]][mine[-1]], distances[members[0]][others[0]]
            margin = min(margin, far / near if near else (float("inf") if far else 1.0))
        for index, place in zip(members, sorted(mine), strict=True):
            matched[index] = place
    return matched, margin


def _distance(one: Any, other: Any) -> float:
    import numpy as np

    size = float(np.linalg.norm(one)) + float(np.linalg.norm(other))
    return float(np.linalg.norm(one - other)) / size if size else 0.0


def _sample(spec: TensorSpec, values: Values) -> Any:
    """The first elements of a tensor, in float64."""
    import numpy as np

    if spec.strides is None and not spec.pieces and spec.numel > SAMPLE:
        spec = TensorSpec(spec.dtype, (SAMPLE,), spec.storage, spec.offset, None, spec.big_endian)
    read = np.asarray(values(spec)).reshape(-1)[:SAMPLE]
    return read.astype(np.complex128 if np.iscomplexobj(read) else np.float64)


def _read(spec: TensorSpec) -> Any:
    from ckpttool.reading.values import read_values

    return read_values(spec)


def numbered(names: Collection[str], prefix: str) -> list[str] | None:
    """The names ``prefix0``, ``prefix1``, ... in numeric order; None if a number is missing."""
    inside = [name for name in names if name.startswith(prefix) and name[len(prefix) :].isdecimal()]
    inside.sort(key=lambda name: int(name[len(prefix) :]))
    return inside if inside and [int(name[len(prefix) :]) for name in inside] == list(range(len(inside))) else None
