"""The keywords of the functions for Python: their types, and answers to misspelt ones.

The implementations have every keyword in their signatures, with what it does. The types here are those of the
overloads, which say what comes back.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Literal, ParamSpec, TypedDict, TypeVar

from ckpttool.coefficients.lengths import Unit
from ckpttool.coefficients.weights import Quadrature
from ckpttool.operations.averaging import AnnealingCurve
from ckpttool.planning.request import IntegerPolicy, KeyPolicy
from ckpttool.selection.metrics import Mode

__all__ = ["AverageKeywords", "DType", "EmaKeywords", "EmaListKeywords", "Source", "explains_keywords"]

Source = str | os.PathLike[str]
"""A model directory, or a checkpoint."""

DType = Literal["same", "float32", "bfloat16", "float16", "float64", "fp32", "bf16", "fp16", "fp64"]
"""Element types of an output, with the short names that `ckpttool.operations.records.DTYPE_ALIASES` explains."""

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


class _Common(TypedDict, total=False):
    """The keywords of every function that writes checkpoints. The implementations say what each does."""

    last: int | None
    every: int | None
    from_step: int | None
    to_step: int | None
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    best: int | None
    metric: str | None
    mode: Mode | None
    layout: str | None
    section: str | None
    config: Source | None
    dtype: DType
    keys: KeyPolicy
    integers: IntegerPolicy
    keep_state: bool
    allow_nonfinite: bool
    max_shard_size: int | str | None
    force: bool
    jobs: int | None
    on_progress: Callable[[int], None] | None


class AverageKeywords(_Common, total=False):
    """The keywords of `average`."""

    weights: Sequence[float] | None
    normalize: bool
    anneal: AnnealingCurve | None
    window_from_running_mean: bool


class _Ema(_Common, total=False):
    """The keywords of `ema_apply` but the lengths."""

    warmup: bool
    slot: str | None
    names_from: Source | None
    unit: Unit | None
    quadrature: Quadrature
    stored_profile: str | Sequence[str]
    update_every: int | None
    segment: tuple[int, int] | None


class EmaKeywords(_Ema, total=False):
    """The keywords of `ema_apply` for one output."""

    decay: float | None
    half_life: float | None
    sigma_rel: float | None
    window: float | None


class EmaListKeywords(_Ema, total=False):
    """The keywords of `ema_apply` for one output of each number."""

    decay: Sequence[float]
    half_life: Sequence[float]
    sigma_rel: Sequence[float]
    window: Sequence[float]


def explains_keywords(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Answer a keyword that the function does not have with the one that was meant."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        for name in kwargs:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                meant = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
                raise TypeError(f"{function.__name__}() has no keyword argument {name!r}: {meant}")
        return function(*args, **kwargs)

    return call
