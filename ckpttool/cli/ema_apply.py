"""``ckpttool ema-apply``: the weights that the moving average has, stored or computed."""

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
from ckpttool.errors import UsageError

if TYPE_CHECKING:
    from ckpttool.coefficients.lengths import Unit
    from ckpttool.coefficients.weights import Quadrature
    from ckpttool.operations.records import Selection
    from ckpttool.planning.request import Policy


@click.command("ema-apply", short_help="Put the moving average of the weights in their place.")
@checkpoints_argument
@click.option("-o", "--output", type=click.Path(readable=False), help="Output file; '{decay}' is the length's number.")
@click.option("--list", "listing", is_flag=True, help="Say what average is there, and what its numbers say.")
@click.option("--slot", metavar="KEY.PATH", help="Which average, where a checkpoint has several.")
@click.option(
    "--names-from",
    type=click.Path(path_type=Path, readable=False),
    help="A checkpoint with the names that the average lacks.",
)
@click.option("--decay", multiple=True, metavar="D", help="Share that the average keeps each step.  [default: 0.9999]")
@click.option("--no-warmup", is_flag=True, help="The decay from the first step, not min(decay, (1+step)/(10+step)).")
@click.option(
    "--half-life", multiple=True, metavar="STEPS", help="Constant decay that halves a share in so many steps."
)
@click.option("--sigma-rel", multiple=True, metavar="S", help="Power function of this relative width: 0.05 to 0.28.")
@click.option("--window", multiple=True, metavar="F", help="Plain mean of the last fraction F of the run.")
@click.option(
    "--unit", type=click.Choice(["steps", "epochs", "checkpoints"]), help="What an update is.  [default: steps]"
)
@click.option(
    "--quadrature",
    type=click.Choice(["linear", "hold"]),
    default="linear",
    show_default=True,
    help="Between checkpoints, weights moved in a line, or jumped to the next.",
)
@click.option(
    "--stored-profile", multiple=True, metavar="[GLOB=]KIND:X", help="What snapshots are an average of: decay:0.999."
)
@click.option(
    "--update-every", type=click.IntRange(min=1), metavar="N", help="Steps from update to update of the snapshots."
)
@click.option(
    "--segment", metavar="FROM:TO", help="The mean over these steps alone, from two snapshots of one average."
)
@config_option
@selection_options
@policy_options
@run_options
@diagnostics_options
def ema_apply(
    checkpoints: tuple[Path, ...],
    output: str | None,
    listing: bool,
    slot: str | None,
    names_from: Path | None,
    decay: tuple[str, ...],
    no_warmup: bool,
    half_life: tuple[str, ...],
    sigma_rel: tuple[str, ...],
    window: tuple[str, ...],
    unit: Unit | None,
    quadrature: Quadrature,
    stored_profile: tuple[str, ...],
    update_every: int | None,
    segment: str | None,
    config: Path | None,
    selection: Selection,
    policy: Policy,
    run: RunOptions,
    out: Output,
) -> None:
    """Put the moving average of the weights in their place, in a new file.

    Of one CHECKPOINT, the average that it holds or that is stored next to it is taken, wherever its framework keeps it.
    Where the weights are the average already, it says so, and never undoes it.

    Of a model directory, the average that the run would have had is computed from its checkpoints, at one length or
    several in one pass. A decay counts training steps and has the warm-up min(decay, (1+step)/(10+step)).

    Of snapshots of averages (EDM2, ema-pytorch, or --stored-profile), an average of another length is synthesised.

    \b
    Examples:
      ckpttool ema-apply last.ckpt --list
      ckpttool ema-apply last.ckpt -o ema.safetensors
      ckpttool ema-apply runs/a --decay 0.9999 --dry-run
      ckpttool ema-apply runs/a --decay 0.999 --decay 0.9995 -o 'ema-{decay}.safetensors'
      ckpttool ema-apply snapshots/ --sigma-rel 0.12 -o ema-0.12.safetensors
      ckpttool ema-apply runs/a --stored-profile decay:0.999 --half-life 2000 -o ema.pt
    """
    from ckpttool.operations.lengths import wanted_lengths

    lengths = wanted_lengths(decay=decay, half_life=half_life, sigma_rel=sigma_rel, window=window, warmup=not no_warmup)
    if listing:
        from ckpttool.cli._listing import print_averages
        from ckpttool.operations.stored_ema import list_averages

        if lengths or output is not None:
            raise UsageError("--list only says what is there", hint="Leave --list out to write it.")
        listed = list_averages(checkpoints, selection=selection, slot=slot, names_from=names_from)
        print_averages(listed, out, as_json=run.as_json)
        return
    from ckpttool.cli._ema_facts import details_of
    from ckpttool.cli._planned import run_planned
    from ckpttool.coefficients.snapshots import parse_profile
    from ckpttool.operations.ema_apply import plan_ema_apply

    planned = plan_ema_apply(
        checkpoints,
        output,
        lengths=lengths,
        warmup=not no_warmup,
        selection=selection,
        policy=policy,
        slot=slot,
        names_from=names_from,
        unit=unit,
        quadrature=quadrature,
        profiles=[parse_profile(text) for text in stored_profile],
        update_every=update_every,
        segment=None if segment is None else _steps(segment),
        config=config,
    )
    run_planned(planned, "ema-apply", run, out, details_of)


def _steps(text: str) -> tuple[int, int]:
    start, _, stop = text.partition(":")
    try:
        return int(start), int(stop)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not two steps such as 3000:5000", param_hint="--segment") from error
