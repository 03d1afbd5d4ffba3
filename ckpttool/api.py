"""The commands as functions, for those who call ckpttool from Python. The same words, the same defaults.

>>> import ckpttool as ct
>>> ct.average("runs/a", last=5, output="averaged.safetensors")  # doctest: +SKIP

is the same as

>>> found = ct.discover("runs/a").last(5)  # doctest: +SKIP
>>> plan = ct.make_plan(found, "averaged.safetensors")  # doctest: +SKIP
>>> ct.execute(plan)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ckpttool.coefficients.weights import explicit
from ckpttool.engine.run import Result, execute
from ckpttool.errors import UsageError
from ckpttool.operations.running_mean_window import make_window_plan
from ckpttool.planning.planner import make_plan
from ckpttool.planning.request import Policy
from ckpttool.selection.discovery import discover, from_paths

__all__ = ["average"]


def average(
    source: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    last: int | None = None,
    weights: Sequence[float] | None = None,
    normalize: bool = False,
    window_from_running_mean: bool = False,
    layout: str | None = None,
    section: str | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    **policies: Any,
) -> Result:
    """Average checkpoints into one file, as ``ckpttool average`` does.

    Args:
        source: A model directory, or the checkpoints themselves.
        output: The file to write; its suffix chooses the format.
        last: How many of the directory's newest checkpoints, by step; None: as many as there are weights, or the last
            8, or all there are. Not for a list.
        weights: A coefficient for each checkpoint, oldest first in a directory, in the order given for a list; None:
            equal shares.
        normalize: Divide the weights by their sum; otherwise they must sum to 1.
        window_from_running_mean: Average all training from the first checkpoint (itself not in it) to the last, by the
            running means that the two hold. Of a directory, `last` counts the intervals, so that one more checkpoint
            is needed; of a list, there are two.
        layout: Whose checkpoints these are, where it is not recognised. Not for a list.
        section: Dotted key path of the weights inside the files, where they are not found by themselves.
        include: Only names of the directory that match this glob, or one of these. Not for a list.
        exclude: No names of the directory that match this glob, or one of these. Not for a list.
        **policies: Those of `ckpttool.Policy`.

    Returns:
        What was written, and how long it took.

    Raises:
        CkpttoolError: One of its kinds; see `ckpttool.errors`. Nothing has been written then.
    """
    if window_from_running_mean and (weights is not None or normalize):
        raise UsageError(
            "window_from_running_mean and weights both say what the coefficients are", hint="leave out one of the two"
        )
    coefficients = None if weights is None else explicit(weights, normalize=normalize)
    if isinstance(source, (str, Path)):
        found = discover(Path(source), layout=layout, section=section, include=_globs(include), exclude=_globs(exclude))
        if window_from_running_mean:
            found = found.last_with_start(last)
        else:
            count = len(coefficients) if last is None and coefficients is not None else last
            found = found.last_default() if count is None else found.last(count)
    else:
        said = {"last": last, "layout": layout, "include": include or None, "exclude": exclude or None}
        given = ", ".join(name for name, value in said.items() if value is not None)
        if given:
            raise UsageError(f"{given}: a list of checkpoints is taken whole", hint="Give the model directory instead.")
        found = from_paths([Path(path) for path in source], section=section)
    if window_from_running_mean:
        window_plan, _ = make_window_plan(found, str(output), Policy(**policies))
        return execute(window_plan)
    return execute(make_plan(found, output, coefficients=coefficients, policy=Policy(**policies)))


def _globs(said: str | Sequence[str]) -> Sequence[str]:
    return [said] if isinstance(said, str) else said
