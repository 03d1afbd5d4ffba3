"""Diagnosis of a stored average by its values, which are read in parts, so that memory stays small."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ckpttool.ema.stored_average import StoredAverage
from ckpttool.reading.values import read_values
from ckpttool.tensors import TensorSpec
from ckpttool.text import first_names

__all__ = ["Diagnosis", "Finding", "diagnose"]

ELEMENTS_AT_ONCE = 1 << 17
"""Elements that are read at once: what stays in a core's cache."""

FindingKind = Literal["non-finite", "equal", "frozen", "partial", "in place"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: its kind, a sentence, and the tensors concerned."""

    kind: FindingKind
    text: str
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the values of a stored average show.

    Attributes:
        findings: The findings, the most serious first.
        distance: |average - weights| / |weights| over all that is averaged; None without trained weights.
    """

    findings: tuple[Finding, ...]
    distance: float | None


def diagnose(found: StoredAverage, earlier: StoredAverage | None = None) -> Diagnosis:
    """Read the average and the trained weights, and compare.

    Args:
        found: The average.
        earlier: The same run's average at another step, by which a frozen one is found.

    Raises:
        UnreadableError: A file cannot be read.
    """
    findings: list[Finding] = []
    infinite: list[str] = []
    unlike = False
    square = size = 0.0
    compared = False
    for name, spec in found.averaged.items():
        trained = found.trained.get(name)
        bad = False
        for part, other in _parts(spec, trained):
            values = _wide(part)
            bad = bad or not _finite(values)
            if other is not None:
                raw = _wide(other)
                compared = True
                # An average in float32 of weights in bfloat16 is equal if it rounds to them.
                unlike = unlike or not bool((part.astype(other.dtype, copy=False) == other).all())
                size += _square(raw)
                raw -= values
                square += _square(raw)
        if bad:
            infinite.append(name)
    if infinite:
        text = f"NaN or infinity in {len(infinite):,} tensors of the average: {first_names(infinite)}"
        findings.append(Finding("non-finite", text, tuple(infinite)))
    if compared and not unlike:
        text = "the average is equal to the trained weights: it was never updated, or was copied over them"
        findings.append(Finding("equal", text))
    if earlier is not None and not infinite:
        findings.extend(_frozen(found, earlier))
    if found.uncovered:
        text = f"the average covers {len(found.averaged):,} tensors and not {len(found.uncovered):,}: " + first_names(
            found.uncovered
        )
        findings.append(Finding("partial", text, found.uncovered))
    if found.in_place:
        findings.append(Finding("in place", "the average is stored in the weights' place: nothing has to be applied"))
    finite = compared and not infinite and math.isfinite(square) and size > 0
    return Diagnosis(tuple(findings), math.sqrt(square / size) if finite else None)


def _frozen(found: StoredAverage, earlier: StoredAverage) -> Iterator[Finding]:
    shared = [name for name in found.averaged if name in earlier.averaged]
    if not shared or any(not _equal(found.averaged[name], earlier.averaged[name]) for name in shared):
        return
    trained = [name for name in shared if name in found.trained and name in earlier.trained]
    moved = any(not _equal(found.trained[name], earlier.trained[name]) for name in trained)
    if moved or not trained:
        but = ", while the weights moved" if moved else ""
        text = (
            f"the average is frozen: it is the same in {earlier.source.path.name} and {found.source.path.name}{but}. "
            "An average in half precision does not move at a decay near 1"
        )
        yield Finding("frozen", text)


def _equal(one: TensorSpec, other: TensorSpec) -> bool:
    return one.shape == other.shape and all(bool((a == b).all()) for a, b in _parts(one, other))


def _parts(spec: TensorSpec, other: TensorSpec | None) -> Iterator[tuple[Any, Any]]:
    """Flat parts of a tensor, and the same ones of another; whole tensors where one is not one extent."""
    if any(each is not None and (each.strides is not None or each.pieces) for each in (spec, other)):
        yield read_values(spec).reshape(-1), None if other is None else read_values(other).reshape(-1)
        return
    for start in range(0, spec.numel, ELEMENTS_AT_ONCE):
        count = min(ELEMENTS_AT_ONCE, spec.numel - start)
        yield _part(spec, start, count), None if other is None else _part(other, start, count)


def _part(spec: TensorSpec, start: int, count: int) -> Any:
    part = TensorSpec(spec.dtype, (count,), spec.storage, spec.offset + start, None, spec.big_endian)
    return read_values(part)


def _wide(values: Any) -> Any:
    import numpy as np

    return values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)


def _square(values: Any) -> float:
    import numpy as np

    # Not a BLAS product: its threads wait for each other on a busy machine, and cost more than they save here.
    return float(np.einsum("i,i->", values, values.conj()).real)


def _finite(values: Any) -> bool:
    import numpy as np

    return bool(np.isfinite(values).all())
