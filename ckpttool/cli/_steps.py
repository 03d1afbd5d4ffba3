"""The steps that every command on checkpoints takes: select, then run a plan. Commands are recipes of these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckpttool.cli import _report
from ckpttool.cli._options import PolicyOptions, RunOptions, SelectionOptions
from ckpttool.cli._output import Output
from ckpttool.cli._show import print_shown
from ckpttool.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from ckpttool.planning.plan import Plan
    from ckpttool.planning.request import Policy
    from ckpttool.selection.choice import Discovery

__all__ = ["default_output", "policy_of", "run_plans", "select"]


def select(
    checkpoints: Sequence[Path],
    options: SelectionOptions,
    *,
    shares: int | None = None,
    take_all: bool = False,
    with_start: bool = False,
) -> Discovery:
    """Find the checkpoints that the arguments and options mean: a model directory, or a list as given.

    Args:
        checkpoints: What the user named.
        options: The selection options.
        shares: How many coefficients were given, if any: so many are taken of a directory where nothing else says it.
        take_all: Whether all of a directory are taken where nothing else says it.
        with_start: Whether --last counts the intervals between checkpoints, so that the one before them is taken too.

    Raises:
        NotFoundError: Fewer than two were found, and --last 1 did not ask for one.
    """
    from ckpttool.selection.discovery import discover, from_paths

    if len(checkpoints) == 1 and (checkpoints[0].is_dir() or not checkpoints[0].exists()):
        found = discover(
            checkpoints[0],
            layout=options.layout,
            section=options.section,
            include=options.include,
            exclude=options.exclude,
        )
        if with_start:
            return _narrow_with_start(found, options)
        found = _narrow(found, options, shares, take_all=take_all)
        if len(found.entries) == 1 and options.last != 1 and options.best != 1:
            raise NotFoundError(
                f"{checkpoints[0]}: only one checkpoint, {found.entries[0].name}, and one is no average",
                hint="--last 1 writes it as it is, in another format if -o says so.",
                path=checkpoints[0],
            )
        return found
    given = _selecting(options)
    if len(checkpoints) == 1 and options.last != 1:
        raise UsageError(
            f"{checkpoints[0]} is one checkpoint, and one is no average",
            hint="Name a model directory, or two checkpoints or more. --last 1 converts a single one.",
        )
    if given and not (len(checkpoints) == 1 and given == ["--last"]):
        raise UsageError(
            f"{', '.join(given)}: a list of checkpoints is taken whole",
            hint="Name the model directory to select from it, or leave out the option.",
        )
    return from_paths(checkpoints, section=options.section)


def _selecting(options: SelectionOptions) -> list[str]:
    """The options given that choose among the checkpoints of a directory."""
    named = {
        "--last": options.last,
        "--every": options.every,
        "--from-step": options.from_step,
        "--to-step": options.to_step,
        "--include": options.include or None,
        "--exclude": options.exclude or None,
        "--best": options.best,
        "--metric": options.metric,
        "--mode": options.mode,
        "--layout": options.layout,
    }
    return [name for name, value in named.items() if value is not None]


def _narrow(found: Discovery, options: SelectionOptions, shares: int | None, *, take_all: bool) -> Discovery:
    if (options.best is None) != (options.metric is None):
        raise UsageError("--best and --metric go together", hint="For example: --best 5 --metric valid_loss")
    if options.mode is not None and options.best is None:
        raise UsageError("--mode says which metric is good and goes with --best")
    found = _thinned(found, options)
    if options.last is not None:
        found = found.last(options.last)
    if options.best is not None and options.metric is not None:
        return found.best(options.best, options.metric, options.mode)
    if options.last is not None:
        return found
    if take_all and shares is None:
        return found.open()
    return found.last_default() if shares is None else found.last(shares)


def _narrow_with_start(found: Discovery, options: SelectionOptions) -> Discovery:
    """The checkpoints of the last intervals; where --from-step alone says it, all from the first one on."""
    found = _thinned(found, options)
    if options.last is None and options.from_step is not None:
        # The two ends say the window, and nothing is counted: of which kinds they are makes no difference.
        opened = found.open(mixed=True)
        return opened if len(opened.entries) > 1 else opened.last_with_start(1)
    return found.last_with_start(options.last)


def _thinned(found: Discovery, options: SelectionOptions) -> Discovery:
    if options.from_step is not None or options.to_step is not None:
        found = found.between(options.from_step, options.to_step)
    return found if options.every is None else found.every(options.every)


def default_output(checkpoints: Sequence[Path], output: str | None, folder: str) -> str:
    """Where the output goes: as said, or `folder` in the model directory under the newest member's own name."""
    if output is not None:
        return output
    if len(checkpoints) == 1 and checkpoints[0].is_dir():
        return f"{checkpoints[0] / folder}/"
    raise UsageError("a list of checkpoints needs an output", hint="For example: -o averaged.safetensors")


def policy_of(policy: PolicyOptions, run: RunOptions) -> Policy:
    """The policy that the options say."""
    from ckpttool.planning.request import Policy

    return Policy(
        dtype=policy.dtype,
        keys=policy.keys,
        integers=policy.integers,
        keep_state=policy.keep_state,
        allow_nonfinite=policy.allow_nonfinite,
        max_shard_size=policy.max_shard_size,
        force=run.force,
    )


def run_plans(
    plans: Sequence[Plan],
    command: str,
    run: RunOptions,
    out: Output,
    details: Sequence[_report.Details | None] | None = None,
    *,
    show: Sequence[str] = (),
) -> None:
    """Print the plans (--dry-run), or execute them together and say what became of them and of the tensors to show."""
    from ckpttool.engine.run import execute_together, expected_memory

    memory = expected_memory(plans, run.jobs)
    told = [None] * len(plans) if details is None else details
    if run.dry_run:
        documents = [
            _report.document(plan, command, result=None, peak_memory=memory, details=more)
            for plan, more in zip(plans, told, strict=True)
        ]
        if run.as_json:
            out.json(documents[0] if len(plans) == 1 else {"schema": _report.SCHEMA_VERSION, "outputs": documents})
            return
        for plan, more in zip(plans, told, strict=True):
            _report.print_plan(plan, out, peak_memory=memory, details=more)
        return
    _report.print_start(plans[0], out, told[0])
    for plan in plans[1:]:
        for warning in plan.warnings:
            out.warn(f"{warning}.")
    with out.progress(plans[0].bytes_to_read) as on_progress:
        results = execute_together(plans, jobs=run.jobs, on_progress=on_progress)
    documents = [
        _report.document(plan, command, result=result, peak_memory=memory, details=more, show=show)
        for plan, result, more in zip(plans, results, told, strict=True)
    ]
    if run.as_json:
        out.json(documents[0] if len(plans) == 1 else {"schema": _report.SCHEMA_VERSION, "outputs": documents})
        return
    for plan, result in zip(plans, results, strict=True):
        print_shown(show, plan, out)
        _report.print_result(result, out)
