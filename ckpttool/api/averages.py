"""``average``, ``ema_apply`` and ``list_averages``: the commands on checkpoints, as functions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from ckpttool.api.keywords import AverageKeywords, DType, EmaKeywords, EmaListKeywords, Source, explains_keywords
from ckpttool.coefficients.lengths import Unit
from ckpttool.coefficients.snapshots import parse_profile
from ckpttool.coefficients.weights import Quadrature
from ckpttool.engine.run import Result, execute_together
from ckpttool.errors import UsageError
from ckpttool.operations.averaging import AnnealingCurve, plan_average
from ckpttool.operations.ema_apply import plan_ema_apply
from ckpttool.operations.lengths import wanted_lengths
from ckpttool.operations.records import Selection, byte_count, check_policy, output_dtype
from ckpttool.operations.stored_ema import ListedAverage
from ckpttool.operations.stored_ema import list_averages as _list_averages
from ckpttool.planning.destination import check_destinations, destinations_of
from ckpttool.planning.plan import Plan
from ckpttool.planning.request import IntegerPolicy, KeyPolicy, Policy
from ckpttool.selection.metrics import Mode
from ckpttool.text import parameter

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["average", "ema_apply", "list_averages"]


@overload
def average(
    source: Source | Sequence[Source],
    output: Source | None = None,
    *,
    dry_run: Literal[False] = False,
    **keywords: Unpack[AverageKeywords],
) -> Result: ...
@overload
def average(
    source: Source | Sequence[Source],
    output: Source | None = None,
    *,
    dry_run: Literal[True],
    **keywords: Unpack[AverageKeywords],
) -> Plan: ...
@overload
def average(
    source: Source | Sequence[Source],
    output: Source | None = None,
    *,
    dry_run: bool,
    **keywords: Unpack[AverageKeywords],
) -> Result | Plan: ...
@explains_keywords
def average(
    source: Source | Sequence[Source],
    output: Source | None = None,
    *,
    last: int | None = None,
    every: int | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    best: int | None = None,
    metric: str | None = None,
    mode: Mode | None = None,
    layout: str | None = None,
    section: str | None = None,
    config: Source | None = None,
    weights: Sequence[float] | None = None,
    normalize: bool = False,
    anneal: AnnealingCurve | None = None,
    window_from_running_mean: bool = False,
    dtype: DType = "same",
    keys: KeyPolicy = "strict",
    integers: IntegerPolicy = "newest",
    keep_state: bool = False,
    allow_nonfinite: bool = False,
    max_shard_size: int | str | None = None,
    force: bool = False,
    jobs: int | None = None,
    dry_run: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Result | Plan:
    """Average checkpoints into one, as ``ckpttool average`` does.

    Args:
        source: A model directory, or the checkpoints themselves.
        output: The file or directory to write; its suffix chooses the format. None: in the model directory, ``avg/``
            or, where a choice is made, a name that says it: ``avg-last-5/``.
        last: How many of the directory's newest checkpoints, by step; None: as many as there are weights, or the last
            8, or all there are. For `window_from_running_mean` the number of intervals between checkpoints.
        every: Each k-th checkpoint, counted back from the newest.
        from_step: No checkpoint before this step.
        to_step: No checkpoint after this step.
        include: Only names of the directory that match this glob, or one of these.
        exclude: No names of the directory that match this glob, or one of these.
        best: How many of the best checkpoints by `metric`.
        metric: A metric that the run kept: ``valid_loss``, ``metrics.bleu``.
        mode: Whether a small or a large metric is good; None: as its name says.
        layout: Whose checkpoints these are, where it is not recognised.
        section: Dotted key path of the weights inside the files, where they are not found by themselves.
        config: An OpenNMT-tf configuration. Its ``average_last_checkpoints`` is `last` if no choice is made, and with
            ``moving_average_decay`` the weights are an average already, which is noted.
        weights: A coefficient for each checkpoint, oldest first in a directory, in the order given for a list; None:
            equal shares.
        normalize: Divide the weights by their sum; otherwise they must sum to 1.
        anneal: The decay of the learning rate that the weights shall stand in for.
        window_from_running_mean: Average all training from the first checkpoint (itself not in it) to the last, by the
            running means that the two hold.
        dtype: Element type of the averaged tensors in the output; "same" keeps each tensor's own.
        keys: What to do about tensors that not all have: an error, leave them out, or as in the newest.
        integers: What to do about integer and bool tensors that differ: take the newest's, or an error. They are never
            averaged.
        keep_state: Keep the newest's optimizer, scaler and scheduler state.
        allow_nonfinite: Let NaN and infinity pass.
        max_shard_size: Split the weights of a directory anew, into files of at most so many bytes ("5GB").
        force: Replace an existing output.
        jobs: Number of threads; None: one a core, up to 4.
        dry_run: Return the plan. No weight is read, and nothing is written. What the call itself would refuse is an
            error here, too, also an output that exists.
        on_progress: Is given the number of bytes read since it was called last, in the calling thread.

    Returns:
        What was written, and how long it took; or the plan.

    Raises:
        CkpttoolError: One of its subclasses; see `ckpttool.errors`. Nothing has been written then.
        TypeError: A keyword that there is not; the message names the one that was meant.
    """
    planned = plan_average(
        _paths(source),
        _output(output),
        selection=Selection(
            last=last,
            every=every,
            from_step=from_step,
            to_step=to_step,
            include=_several(include),
            exclude=_several(exclude),
            best=best,
            metric=metric,
            mode=mode,
            layout=layout,
            section=section,
        ),
        policy=_policy(dtype, keys, integers, keep_state, allow_nonfinite, max_shard_size, force),
        weights=weights,
        normalize=normalize,
        anneal=anneal,
        window_from_running_mean=window_from_running_mean,
        config=None if config is None else Path(config),
    )
    if dry_run:
        check_destinations(destinations_of(planned.plans))
        return planned.plans[0]
    return execute_together(planned.plans, jobs=jobs, on_progress=on_progress)[0]


@overload
def ema_apply(
    source: Source | Sequence[Source],
    output: Source | None = None,
    *,
    dry_run: Literal[False] = False,
    **keywords: Unpack[EmaKeywords],
) -> Result: ...
@overload
def ema_apply(
    source: Source | Sequence[Source],
    output: Source | None = None,
    *,
    dry_run: Literal[True],
    **keywords: Unpack[EmaKeywords],
) -> Plan: ...
@overload
def ema_apply(
    source: Source | Sequence[Source],
    output: Source | None = None,
    *,
    dry_run: Literal[False] = False,
    **keywords: Unpack[EmaListKeywords],
) -> list[Result]: ...
@overload
def ema_apply(
    source: Source | Sequence[Source],
    output: Source | None = None,
    *,
    dry_run: Literal[True],
    **keywords: Unpack[EmaListKeywords],
) -> list[Plan]: ...
@explains_keywords
def ema_apply(
    source: Source | Sequence[Source],
    output: Source | None = None,
    *,
    decay: float | Sequence[float] | None = None,
    half_life: float | Sequence[float] | None = None,
    sigma_rel: float | Sequence[float] | None = None,
    window: float | Sequence[float] | None = None,
    warmup: bool = True,
    slot: str | None = None,
    names_from: Source | None = None,
    unit: Unit | None = None,
    quadrature: Quadrature = "linear",
    stored_profile: str | Sequence[str] = (),
    update_every: int | None = None,
    segment: tuple[int, int] | None = None,
    last: int | None = None,
    every: int | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    best: int | None = None,
    metric: str | None = None,
    mode: Mode | None = None,
    layout: str | None = None,
    section: str | None = None,
    config: Source | None = None,
    dtype: DType = "same",
    keys: KeyPolicy = "strict",
    integers: IntegerPolicy = "newest",
    keep_state: bool = False,
    allow_nonfinite: bool = False,
    max_shard_size: int | str | None = None,
    force: bool = False,
    jobs: int | None = None,
    dry_run: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Result | Plan | list[Result] | list[Plan]:
    """Put the moving average of the weights in their place, in a new file, as ``ckpttool ema-apply`` does.

    Of one checkpoint, the average that it holds or that is stored next to it. Of a model directory or a list of
    checkpoints, the average that the run would have had. Of snapshots of averages, an average of another length.

    A number for a length writes one output. Lists of numbers write one output for each number, of checkpoints that are
    read once; `output` then has a placeholder: ``"ema-{decay}.safetensors"``.

    Args:
        source: A checkpoint, a model directory, or a list of checkpoints or snapshots.
        output: The file or directory to write; its suffix chooses the format. None: in the model directory, ``ema/``
            or, where a length is given, a name that says it: ``ema-decay-0.999/``.
        decay: Share that the average keeps at each step, in [0, 1]. Of a run 0.9999 if no length is given.
        half_life: Steps in which a constant decay halves a share.
        sigma_rel: Relative width of a power function, as a share of the run: 0.05 to 0.28.
        window: The plain mean of the last fraction of the run, in (0, 1].
        warmup: Whether a decay is the cap of min(decay, (1 + step) / (10 + step)), and not the decay of every step.
        slot: Which average, where a checkpoint has several: its dotted key path, or the name of its file.
        names_from: A checkpoint with the names that the average lacks.
        unit: What an update is: "steps", "epochs" or "checkpoints"; None: a training step. Where steps are not known,
            `decay` and `half_life` need it; `sigma_rel` and `window` are shares of the run, and do not.
        quadrature: What the weights did between two checkpoints: moved in a line, or jumped to the next.
        stored_profile: What snapshots are averages of: ``"decay:0.999"``, ``"GLOB=sigma-rel:0.05"``, or several.
        update_every: Steps from update to update of the snapshots.
        segment: Two steps: the mean over these steps alone, from two snapshots of one average.
        last: See `average`, like all that follow; without a choice all checkpoints of a directory are taken.
        every: See there.
        from_step: See there.
        to_step: See there.
        include: See there.
        exclude: See there.
        best: See there.
        metric: See there.
        mode: See there.
        layout: See there.
        section: See there.
        config: An OpenNMT-tf configuration, whose ``moving_average_decay`` says that the weights are averages already.
        dtype: See there.
        keys: See there.
        integers: See there.
        keep_state: See there.
        allow_nonfinite: See there.
        max_shard_size: See there.
        force: See there.
        jobs: See there.
        dry_run: See there; several plans for lists of lengths.
        on_progress: See there.

    Returns:
        What was written, and how long it took; or the plan. A list of these where a length is a list.

    Raises:
        CkpttoolError: One of its subclasses; see `ckpttool.errors`. Nothing has been written then.
        TypeError: A keyword that there is not; the message names the one that was meant.
    """
    lengths = {"decay": decay, "half_life": half_life, "sigma_rel": sigma_rel, "window": window}
    several = any(_is_list(length) for length in lengths.values())
    given = [name for name, length in lengths.items() if length is not None]
    if not several and len(given) > 1:
        raise UsageError(
            f"{' and '.join(parameter(name) for name in given)} are several lengths, and numbers ask for one output",
            hint="Give each as a list: decay=[0.999], window=[0.1].",
        )
    planned = plan_ema_apply(
        _paths(source),
        _output(output),
        lengths=wanted_lengths(
            decay=_numbers(decay),
            half_life=_numbers(half_life),
            sigma_rel=_numbers(sigma_rel),
            window=_numbers(window),
            warmup=warmup,
        ),
        warmup=warmup,
        selection=Selection(
            last=last,
            every=every,
            from_step=from_step,
            to_step=to_step,
            include=_several(include),
            exclude=_several(exclude),
            best=best,
            metric=metric,
            mode=mode,
            layout=layout,
            section=section,
        ),
        policy=_policy(dtype, keys, integers, keep_state, allow_nonfinite, max_shard_size, force),
        slot=slot,
        names_from=None if names_from is None else Path(names_from),
        unit=unit,
        quadrature=quadrature,
        profiles=[parse_profile(text) for text in _several(stored_profile)],
        update_every=update_every,
        segment=segment,
        config=None if config is None else Path(config),
    )
    plans = list(planned.plans)
    if dry_run:
        check_destinations(destinations_of(plans))
        return plans if several else plans[0]
    results = execute_together(plans, jobs=jobs, on_progress=on_progress)
    return results if several else results[0]


@explains_keywords
def list_averages(
    source: Source | Sequence[Source],
    *,
    slot: str | None = None,
    names_from: Source | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    layout: str | None = None,
    section: str | None = None,
) -> tuple[ListedAverage, ...]:
    """What moving averages checkpoints hold, and what their numbers say, as ``ckpttool ema-apply --list`` does.

    Args:
        source: Checkpoints of one run, or its model directory, of which the newest two are looked at.
        slot: Which average, where a checkpoint has several.
        names_from: A checkpoint with the names that the average lacks.
        include: See `average`, like all that follow.
        exclude: See there.
        layout: See there.
        section: See there.

    Raises:
        NotFoundError: A checkpoint holds none.
        CkpttoolError: Another of its subclasses; see `ckpttool.errors`.
        TypeError: A keyword that there is not; the message names the one that was meant.
    """
    return _list_averages(
        _paths(source),
        selection=Selection(include=_several(include), exclude=_several(exclude), layout=layout, section=section),
        slot=slot,
        names_from=None if names_from is None else Path(names_from),
    )


def _paths(source: Source | Sequence[Source]) -> list[Path]:
    given = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    if "" in given:
        raise UsageError("a path is empty", hint="Name a model directory, or checkpoint files.")
    return [Path(path) for path in given]


def _output(output: Source | None) -> str | None:
    return None if output is None else os.fspath(output)


def _several(said: str | Sequence[str]) -> tuple[str, ...]:
    return (said,) if isinstance(said, str) else tuple(said)


def _is_list(said: Any) -> bool:
    """Whether several lengths are given: text is one, whatever the annotations say."""
    return isinstance(said, Iterable) and not isinstance(said, str)


def _numbers(said: Any) -> Sequence[float | str]:
    if said is None:
        return ()
    return tuple(said) if _is_list(said) else (said,)


def _policy(
    dtype: str,
    keys: KeyPolicy,
    integers: IntegerPolicy,
    keep_state: bool,
    allow_nonfinite: bool,
    max_shard_size: int | str | None,
    force: bool,
) -> Policy:
    return check_policy(
        Policy(
            dtype=output_dtype(dtype),
            keys=keys,
            integers=integers,
            keep_state=keep_state,
            allow_nonfinite=allow_nonfinite,
            max_shard_size=None if max_shard_size is None else byte_count(max_shard_size),
            force=force,
        )
    )
