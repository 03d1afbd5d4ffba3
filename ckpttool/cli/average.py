"""``ckpttool average``: the last N checkpoints of a model directory, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckpttool.cli._options import (
    RunOptions,
    checkpoints_argument,
    config_option,
    diagnostics_options,
    policy_options,
    run_options,
    selection_options,
)
from ckpttool.cli._output import Output

if TYPE_CHECKING:
    from ckpttool.operations.averaging import AnnealingCurve
    from ckpttool.operations.records import Selection
    from ckpttool.planning.request import Policy


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
@click.option(
    "-o",
    "--output",
    type=click.Path(readable=False),
    help="Output file.  [default: in the directory, avg/ or avg-last-5/]",
)
@config_option
@policy_options
@run_options
@click.option("--show", multiple=True, metavar="TENSOR", help="Print a small tensor in each member and in the average.")
@diagnostics_options
def average(
    checkpoints: tuple[Path, ...],
    selection: Selection,
    weights: str | None,
    normalize: bool,
    anneal: AnnealingCurve | None,
    window_from_running_mean: bool,
    output: str | None,
    config: Path | None,
    policy: Policy,
    run: RunOptions,
    show: tuple[str, ...],
    out: Output,
) -> None:
    """Average the last checkpoints of a run, layer by layer.

    CHECKPOINT is one model directory, or two or more checkpoint files. Of a directory the newest 8 are taken, by
    training step; copies such as last.pt and earlier averages are recognised and left out. The output is a checkpoint
    that the framework loads: the newest one with the weights replaced.

    Averaging checkpoints of a constant learning rate replaces a decay of it: equal shares replace a linear decay,
    --anneal 1-sqrt and cosine those (WSM, arXiv:2507.17634). --dry-run shows the emulated curve.

    With --window-from-running-mean, the last N are the N intervals up to the newest, and the checkpoint before them
    is needed too: the mean over all training in them follows from these two files (icefall's averaged model).

    \b
    Examples:
      ckpttool average runs/a --last 5
      ckpttool average runs/a --last 5 --dry-run
      ckpttool average runs/a --best 5 --metric valid_loss -o best.safetensors
      ckpttool average a.pt b.pt c.pt --weights 0.2,0.3,0.5 -o mix.pt
    """
    from ckpttool.cli._average_facts import details_of
    from ckpttool.cli._planned import run_planned
    from ckpttool.operations.averaging import plan_average

    planned = plan_average(
        checkpoints,
        output,
        selection=selection,
        policy=policy,
        weights=None if weights is None else _numbers(weights),
        normalize=normalize,
        anneal=anneal,
        window_from_running_mean=window_from_running_mean,
        config=config,
    )
    run_planned(planned, "average", run, out, details_of, show=show)


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is not a list of numbers such as 0.2,0.3,0.5", param_hint="--weights"
        ) from error
