"""Pictures of learning-rate schedules as SVG and PNG, by matplotlib (the extra ``ckpttool[plot]``).

The bytes depend on the picture and on matplotlib's version alone: no date, no random ids, no user's style sheet.
"""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from ckpttool.errors import UsageError
from ckpttool.schedules.picture import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLUMNS", "check_matplotlib", "save_figure"]

COLUMNS = 800
"""How many columns a picture should be sampled in: finer than the lines are wide."""

_STYLES = ("-", "--", "-.", ":")

_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "ckpttool",
    "svg.fonttype": "none",  # text stays text: smaller, searchable, readable aloud
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-3, 6),
}


def check_matplotlib() -> None:
    """Fail at once where matplotlib is missing.

    Raises:
        UsageError: With the command that installs it.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise UsageError(
            "SVG and PNG need matplotlib, which is not installed",
            hint="Run: pip install 'ckpttool[plot]'. Tables (.csv) need nothing.",
        )


def save_figure(picture: Picture, file: BinaryIO, format_: Literal["svg", "png"]) -> None:
    """Draw a picture into a file."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        metadata = {"Date": None} if format_ == "svg" else {}
        make_figure(picture).savefig(file, format=format_, dpi=144, metadata=metadata)


def make_figure(picture: Picture) -> Figure:
    """The picture as a matplotlib figure."""
    # Figure, and never pyplot: no window system is looked for, and no state is left behind.
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for index, line in enumerate(picture.lines):
        points = line.points
        axes.plot(
            [step for step, _rate in points],
            [rate for _step, rate in points],
            linestyle=_STYLES[index % len(_STYLES)],
            linewidth=1.8,
            # Where every step is there, each holds until the next one.
            drawstyle="steps-post" if len(points) == picture.last - picture.first + 1 else "default",
            label="\n".join(textwrap.wrap(f"{line.letter}:  {line.label}", 90)) if line.letter else None,
            gid=f"curve{index}",
        )
        near, right, height = (picture.last - picture.first) / 50, math.inf, math.inf
        for (step, rate), text in sorted(line.marked, reverse=True):
            if right - step < near and abs(height - rate) < picture.highest / 25:
                continue  # one label would cover the other
            right, height = step, rate
            axes.plot([step], [rate], marker="o", color=axes.lines[-1].get_color(), markersize=5)
            axes.annotate(text, (step, rate), xytext=(6, 4), textcoords="offset points", fontsize=9)
    axes.set_title("\n".join(textwrap.wrap(picture.title, 80)), fontsize=10, loc="left")
    axes.set_xlabel(picture.x_label)
    axes.set_ylabel(picture.y_label)
    if picture.log_x:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if picture.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(visible=True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    if len(picture.lines) > 1:
        figure.legend(loc="outside lower left", frameon=False)  # never over a curve
    return figure
