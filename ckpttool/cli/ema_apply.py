"""``ckpttool ema-apply``: the weights that the moving average has, stored or computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from ckpttool.coefficients.weights import Quadrature


@click.command("ema-apply", short_help="Put the moving average of the weights in their place.")
@checkpoints_argument
@click.option("-o", "--output", type=click.Path(), help="Output file; '{decay}' is the length's number.")
@click.option("--list", "listing", is_flag=True, help="Say what average is there, and what its numbers say.")
@click.option("--slot", metavar="KEY.PATH", help="Which average, where a checkpoint has several.")
@click.option(
    "--names-from", type=click.Path(path_type=Path), help="A checkpoint with the names that the average lacks."
)
@click.option("--decay", multiple=True, metavar="D", help="Share that the average keeps each step.  [default: 0.9999]")
@click.option("--no-warmup", is_flag=True, help="The decay from the first step, not min(decay, (1+step)/(10+step)).")
@click.option(
    "--half-life", multiple=True, metavar="STEPS", help="Constant decay that halves a share in so many steps."
)
@click.option("--sigma-rel", multiple=True, metavar="S", help="Power function of this relative width: 0.05 to 0.28.")
@click.option("--window", multiple=True, metavar="F", help="Plain mean of the last fraction F of the run.")
@click.option(
    "--unit", type=click.Choice(["steps", "checkpoints"]), help="What an update is.  [default: steps if known]"
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
@selection_options
@policy_options
@run_options
@conversation_options
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
    unit: str | None,
    quadrature: Quadrature,
    stored_profile: tuple[str, ...],
    update_every: int | None,
    segment: str | None,
    selection: SelectionOptions,
    policy: PolicyOptions,
    run: RunOptions,
    out: Output,
) -> None:
    """Put the moving average of the weights in their place, in a new file.

    Of one CHECKPOINT, the average that it holds or that stands beside it is taken, wherever its framework keeps it.
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
    from ckpttool.cli._computed import DEFAULT_DECAY, apply_computed, wanted_lengths
    from ckpttool.cli._posthoc import apply_posthoc, is_posthoc
    from ckpttool.cli._stored import apply_stored, list_stored

    wanted = wanted_lengths(decay, half_life, sigma_rel, window, warmup=not no_warmup)
    if listing:
        if wanted or output is not None:
            raise UsageError("--list only says what is there", hint="Leave --list out to write it.")
        paths = _newest_two(checkpoints, selection)
        list_stored(paths, section=selection.section, slot=slot, names_from=names_from, as_json=run.as_json, out=out)
    elif stored_profile or segment or is_posthoc(checkpoints):
        from ckpttool.coefficients.snapshots import parse_profile

        apply_posthoc(
            checkpoints,
            selection,
            wanted,
            output,
            profiles=[parse_profile(text) for text in stored_profile],
            update_every=update_every,
            segment=None if segment is None else _segment(segment),
            policy=policy,
            run=run,
            out=out,
        )
    elif len(checkpoints) == 1 and _is_one(checkpoints[0]):
        if wanted or unit or no_warmup:
            raise UsageError(
                f"{checkpoints[0]} is one checkpoint, and a length needs the checkpoints of a run",
                hint="Name the model directory, or leave the length out to take the average that the checkpoint holds.",
            )
        apply_stored(
            checkpoints[0],
            output,
            section=selection.section,
            slot=slot,
            names_from=names_from,
            policy=policy,
            run=run,
            out=out,
        )
    else:
        if slot or names_from:
            raise UsageError("--slot and --names-from are about the average that one checkpoint holds")
        if not wanted:
            wanted = wanted_lengths((DEFAULT_DECAY,), (), (), (), warmup=not no_warmup)
        apply_computed(
            checkpoints,
            selection,
            wanted,
            output,
            unit=unit,
            quadrature=quadrature,
            policy=policy,
            run=run,
            out=out,
        )


def _is_one(path: Path) -> bool:
    """Whether a path is one checkpoint: a file, a folder with weights in it, or two folders: weights and average."""
    from ckpttool.ema.files import folder_average
    from ckpttool.selection.choice import weights_file

    if not path.is_dir():
        return path.exists()
    return weights_file(path) != path or folder_average(path) is not None


def _newest_two(checkpoints: tuple[Path, ...], selection: SelectionOptions) -> list[Path]:
    """What --list looks at: the checkpoints named, or the newest two of a model directory."""
    from ckpttool.selection.discovery import discover

    if len(checkpoints) != 1 or not checkpoints[0].is_dir() or _is_one(checkpoints[0]):
        return list(checkpoints)
    found = discover(
        checkpoints[0],
        layout=selection.layout,
        section=selection.section,
        include=selection.include,
        exclude=selection.exclude,
    )
    return [entry.path for entry in found.entries[-2:]]


def _segment(text: str) -> tuple[int, int]:
    start, _, stop = text.partition(":")
    try:
        return int(start), int(stop)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not two steps such as 3000:5000", param_hint="--segment") from error
