"""``ckpttool average``: the last N checkpoints of a model directory, layer by layer."""

from __future__ import annotations

from pathlib import Path

import click

from ckpttool.cli._options import (
    PolicyOptions,
    RunOptions,
    SelectionOptions,
    checkpoints_argument,
    conversation_options,
    policy_options,
    run_options,
    selection_options,
)
from ckpttool.cli._output import Output
from ckpttool.errors import UsageError


@click.command(short_help="Average the last checkpoints of a run.")
@checkpoints_argument
@selection_options
@click.option("--weights", metavar="W,W,...", help="Coefficients instead of equal shares: oldest first, or as listed.")
@click.option("--normalize", is_flag=True, help="Divide the --weights by their sum; otherwise it must be 1.")
@click.option(
    "--anneal",
    type=click.Choice(["linear", "1-sqrt", "cosine"]),
    help="Weights that stand in for decaying the learning rate so; equal shares are the linear decay.",
)
@click.option(
    "--window-from-running-mean",
    is_flag=True,
    help="Average all training between the checkpoints, by the running means that they hold (icefall's model_avg).",
)
@click.option("-o", "--output", type=click.Path(), help="Output file.  [default: avg/ in the directory]")
@policy_options
@run_options
@click.option("--show", multiple=True, metavar="TENSOR", help="Print a small tensor in each member and in the average.")
@conversation_options
def average(
    checkpoints: tuple[Path, ...],
    selection: SelectionOptions,
    weights: str | None,
    normalize: bool,
    anneal: str | None,
    window_from_running_mean: bool,
    output: str | None,
    policy: PolicyOptions,
    run: RunOptions,
    show: tuple[str, ...],
    out: Output,
) -> None:
    """Average the last checkpoints of a run, layer by layer.

    CHECKPOINT is one model directory, or two or more checkpoint files. Of a directory the newest 8 are taken, by
    training step; copies such as last.pt and earlier averages are recognised and left out. The output is a checkpoint
    that the framework loads: the newest one with the weights replaced.

    Averaging checkpoints of a constant learning rate stands in for decaying it: equal shares for a linear decay,
    --anneal 1-sqrt and cosine for those (WSM, arXiv:2507.17634). --dry-run shows the emulated curve.

    With --window-from-running-mean, the last N are the N intervals up to the newest, and the checkpoint before them
    is needed too: the mean over all training in them follows from these two files (icefall's averaged model).

    \b
    Examples:
      ckpttool average runs/a --last 5
      ckpttool average runs/a --last 5 --dry-run
      ckpttool average runs/a --best 5 --metric valid_loss -o best.safetensors
      ckpttool average a.pt b.pt c.pt --weights 0.2,0.3,0.5 -o mix.pt
    """
    if window_from_running_mean:
        from ckpttool.cli._running_mean import average_window

        for option, given in (("--weights", weights), ("--normalize", normalize or None), ("--anneal", anneal)):
            if given is not None:
                raise UsageError(
                    f"--window-from-running-mean and {option} both say what the coefficients are",
                    hint="Leave out one of the two.",
                )
        average_window(checkpoints, selection, output, policy=policy, run=run, show=show, out=out)
        return
    from ckpttool.cli._anneal import annealing
    from ckpttool.cli._show import check_shown
    from ckpttool.cli._steps import default_output, policy_of, run_plans, select
    from ckpttool.coefficients.weights import explicit
    from ckpttool.planning.planner import make_plan
    from ckpttool.planning.request import Operation

    if anneal is not None and weights is not None:
        raise UsageError("--anneal and --weights both say what the coefficients are", hint="Leave out one of the two.")
    coefficients = None if weights is None else explicit(_numbers(weights), normalize=normalize)
    found = select(checkpoints, selection, shares=len(coefficients) if coefficients else None)
    annealed = None if anneal is None else annealing(found, anneal)
    if annealed is not None:
        found, coefficients = annealed.found, annealed.coefficients
    plan = make_plan(
        found,
        default_output(checkpoints, output, "avg"),
        coefficients=coefficients,
        policy=policy_of(policy, run),
        operation=Operation(details=annealed.provenance) if annealed else Operation(),
    )
    check_shown(show, plan, dry_run=run.dry_run)
    run_plans([plan], "average", run, out, [annealed.details if annealed else None], show=show)


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is not a list of numbers such as 0.2,0.3,0.5", param_hint="--weights"
        ) from error
