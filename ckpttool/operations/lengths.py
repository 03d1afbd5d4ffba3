"""The lengths that a moving average shall have, as they are asked for, and the names of their outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckpttool.coefficients.lengths import Kind, Wanted
from ckpttool.errors import UsageError
from ckpttool.operations.names import default_output, folder_name
from ckpttool.operations.records import Selection
from ckpttool.reading.snapshot import Snapshot
from ckpttool.text import parameter

__all__ = ["DEFAULT_DECAY", "FOLDER", "default_lengths", "output_names", "wanted_lengths"]

DEFAULT_DECAY = 0.9999
"""The decay of the rule min(decay, (1+step)/(10+step)) if no length is said."""

FOLDER = "ema"
"""Where a computed average goes if nothing is said, in the model directory: this, and what was asked for."""


def wanted_lengths(
    *,
    decay: Sequence[float | str] = (),
    half_life: Sequence[float | str] = (),
    sigma_rel: Sequence[float | str] = (),
    window: Sequence[float | str] = (),
    warmup: bool = True,
) -> tuple[Wanted, ...]:
    """The lengths that are asked for, in this order of kinds.

    Args:
        decay: Shares that the average keeps at each step.
        half_life: Steps in which a constant decay halves a share.
        sigma_rel: Relative widths of power functions.
        window: Last fractions of the run.
        warmup: Whether a decay is the cap of min(decay, (1+step)/(10+step)), and not the decay of every step.

    Numbers may be text, which then is what they are called in the names of outputs.

    Raises:
        UsageError: Text is not a number, or there is no decay that could be without its warm-up.
    """
    said: list[tuple[Kind, Sequence[float | str]]] = [
        ("decay", decay),
        ("half-life", half_life),
        ("sigma-rel", sigma_rel),
        ("window", window),
    ]
    wanted = tuple(Wanted(kind, *_number(kind, number), warmup) for kind, numbers in said for number in numbers)
    if not warmup and wanted and not decay:
        raise UsageError(
            f"{parameter('warmup', False)} goes with {parameter('decay')}: the other lengths have no warm-up",
            hint="Leave it out.",
        )
    return wanted


def default_lengths(*, warmup: bool = True) -> tuple[Wanted, ...]:
    """The default length: a decay of `DEFAULT_DECAY`."""
    return (Wanted("decay", DEFAULT_DECAY, str(DEFAULT_DECAY), warmup, is_default=True),)


def _number(kind: Kind, number: float | str) -> tuple[float, str]:
    text = number if isinstance(number, str) else f"{number!r}".removesuffix(".0")
    try:
        return float(number), text
    except ValueError as error:
        raise UsageError(f"{parameter(kind.replace('-', '_'))}: {text!r} is not a number") from error


def output_names(
    sources: Sequence[Path], output: str | None, wanted: Sequence[Wanted], selection: Selection, snapshot: Snapshot
) -> list[str]:
    """The output of each length: '{decay}' and the like stand for its number, '{length}' for what it is and its number.

    If no output is said, each length has a folder of its own in the model directory.

    Raises:
        UsageError: A length is asked for twice, several would be written to one output, a placeholder has no number, or
            there is no name.
    """
    repeated = next((one for index, one in enumerate(wanted) if one in wanted[:index]), None)
    if repeated is not None:
        raise UsageError(f"a length is asked for twice: {repeated}", hint="Leave one of the two out.")
    if output is None:
        return [
            default_output(sources, None, folder_name(FOLDER, selection, *_told_apart(one)), snapshot) for one in wanted
        ]
    names = []
    for one in wanted:
        fields = {one.kind: one.text, one.kind.replace("-", "_"): one.text, "length": f"{one.kind}-{one.text}"}
        name = _filled(output, fields)
        if re.search(r"\{(decay|half.life|sigma.rel|window|length)\}", name):
            raise UsageError(
                f"{parameter('output', output)}: the length {one} has no number for it",
                hint="'{length}' is replaced by any of them.",
            )
        names.append(name)
    if len(set(names)) < len(names):
        raise UsageError(
            f"{len(wanted)} lengths would be written to one file, {output}",
            hint=f"Say where the number goes: {parameter('output', _example(wanted))}.",
        )
    return names


def _told_apart(one: Wanted) -> tuple[str, ...]:
    """The part of an output's name that a length gives; empty for the default length."""
    if one.is_default:
        return ()
    return (f"{one.kind}-{one.text}", *(["constant"] if one.kind == "decay" and not one.warmup else []))


def _filled(name: str, fields: Mapping[str, str]) -> str:
    return re.sub(r"\{([a-z_-]+)\}", lambda match: fields.get(match[1], match[0]), name)


def _example(wanted: Sequence[Wanted]) -> str:
    kinds = {one.kind for one in wanted}
    return f"ema-{{{kinds.pop() if len(kinds) == 1 else 'length'}}}.safetensors"
