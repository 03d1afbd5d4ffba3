"""Plain means of the weights that training stores, with the count of what each is the mean of.

A mean M over the first n weights gives their sum, n·M; so two of them give the sum, and the mean, of the weights
between them (`ckpttool.operations.running_mean_window`). That takes the count. icefall stores it in batches, as
`batch_idx_train`; torch's AveragedModel, and what is built on it, in updates, as `n_averaged`.

An exponential average has no such count, and the difference of two is not a mean: it is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckpttool.ema.locating import recognise
from ckpttool.ema.stored_average import BATCH_NORM_STATISTICS, StoredAverage
from ckpttool.errors import MismatchError, UsageError
from ckpttool.formats.container import at, containers, path_of, tree_of
from ckpttool.reading.values import read_values
from ckpttool.tensors import Checkpoint, TensorSpec
from ckpttool.text import Message, parameter

__all__ = ["RunningMean", "find_running_mean"]

_ICEFALL = "model_avg"
_COUNT = "n_averaged"
_EXPONENTIAL = re.compile(r"(?:^|[._])ema(?:[._]|$)|^EMA")

_WITHOUT = (
    f"Without {parameter('window_from_running_mean', True)}, the weights of the checkpoints themselves are averaged."
)


@dataclass(frozen=True)
class RunningMean:
    """A plain mean of the weights since averaging began, as a checkpoint holds it.

    Attributes:
        average: The mean, paired with the weights.
        count: How many it is the mean of, in `unit`.
        unit: "batches" or "updates".
        every: Units from one update of the mean to the next; the count is a multiple of it.
        stated: The count as the file states it: of the training, which may have gone on since the last update.
        buffers_averaged: Whether buffers are known to be averaged with the parameters. Where they are not, batch-norm
            statistics may be copies of the newest, and must not be taken for a mean.
        notes: Sentences that a user should read.
    """

    average: StoredAverage
    count: int
    unit: str
    every: int
    stated: int
    buffers_averaged: bool
    notes: tuple[str, ...] = ()

    @property
    def not_averaged(self) -> tuple[str, ...]:
        """Weights of real numbers that are not in the mean: uncovered ones, and copied batch-norm statistics."""
        return (*self.average.uncovered, *self.copied)

    @property
    def copied(self) -> tuple[str, ...]:
        """Batch-norm statistics in the average that may have been copied and not averaged."""
        if self.buffers_averaged:
            return ()
        return tuple(name for name in self.average.averaged if name.endswith(BATCH_NORM_STATISTICS))

    def view(self) -> Checkpoint:
        """The checkpoint with the mean for its weights; what is not in the mean is the trained weight, if any."""
        weights = self.average.weights()
        for name in self.copied:
            weights[name] = self.average.trained.get(name, weights[name])
        return replace(self.average.checkpoint, weights=weights, copies={}, state=())


def find_running_mean(checkpoint: Checkpoint) -> RunningMean:
    """Find the running mean that a checkpoint holds, and what it is the mean of. Of values, only the count is read.

    Raises:
        MismatchError: It holds none, or an average that is not a plain mean, or one without its count.
        UsageError: It holds several averages.
        UnreadableError: The count cannot be read.
    """
    tree = tree_of(checkpoint)
    if isinstance(tree.get(_ICEFALL), Mapping) and _number(tree.get("batch_idx_train")) is not None:
        return _icefall(checkpoint, tree)
    found = _recognised(checkpoint, tree)
    if found is None:
        lacking = "model_avg, the running mean that icefall stores," if "batch_idx_train" in tree else "a running mean"
        raise MismatchError(
            f"{checkpoint.path}: {lacking} is not in it",
            path=checkpoint.path,
            hint=_WITHOUT,
        )
    _refuse_exponential(found, tree)
    count = next((number for value in _counts(found, tree) if (number := _number(value)) is not None), None)
    if count is None:
        raise MismatchError(
            f"{checkpoint.path}: the average at {found.where} ({found.framework}) has no count of what it is the "
            "mean of, as a running mean has (batch_idx_train and average_period, or n_averaged)",
            path=checkpoint.path,
            hint=f"If it is an exponential average: {_segment('decay:0.999')}. {_WITHOUT}",
        )
    note = (
        f"nothing in the file says how {found.where} was averaged: it is taken for a plain mean, as asked. If its "
        "averaging function was another (an exponential one), the result is wrong"
    )
    return RunningMean(found, count, "updates", 1, count, buffers_averaged=False, notes=(note,))


def _icefall(checkpoint: Checkpoint, tree: Mapping[Any, Any]) -> RunningMean:
    """Mean since the first batch, updated in each batch that is a multiple of average_period, buffers and all."""
    period, stated = _number(tree.get("average_period")), _number(tree.get("batch_idx_train"))
    if not period or stated is None:
        raise MismatchError(
            f"{checkpoint.path}: model_avg is in it, and average_period is not, so that it is not known up to which "
            "batch it is the mean",
            path=checkpoint.path,
            hint=_WITHOUT,
        )
    try:
        found = recognise(checkpoint, slot=_ICEFALL, tree=tree)
    except UsageError:  # nothing is at this slot
        found = None
    if found is None or found.where != _ICEFALL:
        raise MismatchError(
            f"{checkpoint.path}: model_avg is not a mean of these weights",
            path=checkpoint.path,
            hint=f"If {parameter('section')} was given, leave it out. {_WITHOUT}",
        )
    return RunningMean(found, stated // period * period, "batches", period, stated, buffers_averaged=True)


def _recognised(checkpoint: Checkpoint, tree: Mapping[Any, Any]) -> StoredAverage | None:
    try:
        return recognise(checkpoint, tree=tree)
    except UsageError as error:
        error.hint = Message(f"Only of a checkpoint with one average is the running mean known. {_WITHOUT}")
        raise


def _refuse_exponential(found: StoredAverage, tree: Mapping[Any, Any]) -> None:
    """Refuse an average that is exponential by its name, its callback's name, or a stored decay."""
    path = found.checkpoint.path
    callbacks = tree.get("callbacks")
    named = map(str, callbacks if isinstance(callbacks, Mapping) else ())
    callback = next((name for name in named if _EXPONENTIAL.search(name)), None)
    own = _own_state(tree) if found.framework == "ckpttool.training" else None
    if own is not None:
        profile = f"{'warmup' if own.get('warmup') else 'decay'}:{own.get('decay')}"
        because, hint = f"it was made with a decay of {own.get('decay')}", _segment(profile)
    elif _EXPONENTIAL.search(found.where):
        because, hint = "its name says so", _segment("decay:0.999")
    elif callback is not None and found.in_place:
        because, hint = f"the callback {callback} made it", _segment("decay:0.999")
    else:
        return
    raise MismatchError(
        f"{path}: the average at {found.where} ({found.framework}) is an exponential one ({because}), not a plain mean",
        path=path,
        hint=f"The same window of it: {hint}.",
    )


def _segment(profile: str) -> str:
    return (
        f"the post-hoc EMA of the two checkpoints with {parameter('stored_profile', profile)} and "
        f"{parameter('segment', 'FROM:TO')}, with its own decay and the two steps"
    )


def _own_state(tree: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    return next((node for _, node in containers(tree) if isinstance(node, Mapping) and "shadow" in node), None)


def _counts(found: StoredAverage, tree: Mapping[Any, Any]) -> Iterator[Any]:
    """Candidates for an average's count, nearest first: in it, next to it, under its prefix, at Lightning's key."""
    path = path_of(tree, found.where)
    if path is not None:
        yield from (at(tree, (*parent, _COUNT)) for parent in (path, path[:-1]))
    weights = found.checkpoint.weights
    if found.where.endswith("*"):
        prefix = found.where.removesuffix("*")
        yield weights.get(f"{prefix}{_COUNT}")
        yield weights.get(f"{prefix.removesuffix('module.')}{_COUNT}")
    yield weights.get(_COUNT)
    yield at(tree, ("averaging_state", _COUNT))


def _number(value: Any) -> int | None:
    """A count: a whole number of 0 or more, plain or as a tensor of one element."""
    if isinstance(value, TensorSpec) and value.numel == 1 and value.dtype.kind == "integer":
        value = int(read_values(value).reshape(-1)[0])
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
