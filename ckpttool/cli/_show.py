"""``--show``: a small tensor in every member and in the output, side by side."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ckpttool.cli._output import Output
from ckpttool.errors import UsageError
from ckpttool.tensors import TensorSpec

if TYPE_CHECKING:
    from ckpttool.planning.plan import Plan

__all__ = ["MAX_ELEMENTS", "check_shown", "print_shown", "shown_columns"]

MAX_ELEMENTS = 256
"""Larger tensors are not for reading."""


def check_shown(names: Sequence[str], plan: Plan, *, dry_run: bool) -> None:
    """Refuse tensors that do not exist or are too large to be read, before any work is done."""
    if names and dry_run:
        raise UsageError("--show prints values, and --dry-run reads none", hint="Leave out one of the two.")
    known = plan.artifact.tensors
    for name in names:
        if ("", name) not in known:
            close = difflib.get_close_matches(name, [other for _, other in known], n=3)
            hint = (
                f"Did you mean {' or '.join(close)}?"
                if close
                else "--dry-run --json counts them; names are as in the newest."
            )
            raise UsageError(f"--show: there is no tensor {name!r}", hint=hint)
        numel = known["", name].nbytes // known["", name].dtype.itemsize
        if numel > MAX_ELEMENTS:
            raise UsageError(f"--show: {name} has {numel:,} elements", hint=f"Up to {MAX_ELEMENTS} can be shown.")


def shown_columns(name: str, plan: Plan) -> dict[str, dict[str, str]]:
    """A tensor's elements by their index, in each member and in the output, spelled as they are printed."""
    from ckpttool.formats import open_checkpoint

    output = open_checkpoint(plan.output).tensors()
    source = plan.artifact.ties.get(("", name), ("", name))
    tensor = next(tensor for tensor in plan.tensors if tensor.id == source)
    paths = [plan.members[term.member].checkpoint.path for term in tensor.terms]
    distinct = len({path.name for path in paths}) == len(paths)
    labels = [path.name if distinct else str(path) for path in paths]
    columns = {label: _values(term.tensor) for label, term in zip(labels, tensor.terms, strict=True)}
    return {**columns, "output": _values(output["", name])}


def print_shown(names: Sequence[str], plan: Plan, out: Output) -> None:
    """Print each tensor as a table, one row an element: on stdout, but where that is for the output's path alone."""
    for name in names:
        columns = shown_columns(name, plan)
        rows = [[index, *(column[index] for column in columns.values())] for index in columns["output"]]
        out.table([name, *columns], rows, err=out.quiet)


def _values(spec: TensorSpec) -> dict[str, str]:
    import numpy as np

    from ckpttool.reading.values import read_values

    values: Any = read_values(spec)
    return {"[" + ", ".join(map(str, index)) + "]": _spelled(values[index]) for index in np.ndindex(values.shape)}


def _spelled(value: Any) -> str:
    """The shortest decimal that is this value in its own dtype, as numpy prints it; whole numbers without a point."""
    return str(value).removesuffix(".0")
