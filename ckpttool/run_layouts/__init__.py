r"""What each framework calls the files of a model directory: one table, a row for each framework.

Adding a framework is adding a row to the module of its field. An entry pattern is a regular expression for the whole
name; the number that orders the checkpoints is a named group: ``step``, ``epoch``, ``date`` or ``number``. Numbers are
compared as numbers: padding, separators and position in the name differ between frameworks.
`ckpttool.selection.detection` decides which row a directory follows; `ckpttool.formats.sections` knows the inside of a
file.

table                 what a row says, and the rules for all frameworks
reasons               why a name is not a checkpoint of the run
machine_translation   rows of OpenNMT, fairseq, Marian, ...
speech                rows of ESPnet, icefall, WeNet, ...
language_models       rows of Hugging Face, Megatron-LM, OLMo, ...
vision                rows of timm, mmengine, ...
"""

from __future__ import annotations

from ckpttool.run_layouts import language_models, machine_translation, speech, vision
from ckpttool.run_layouts.reasons import GUESSES, Reason
from ckpttool.run_layouts.table import (
    COMMON_ALIASES,
    COMMON_IGNORED,
    COMMON_SIDECARS,
    COMMON_TABLES,
    EARLIER_AVERAGE,
    HIDDEN,
    UNFINISHED,
    WEIGHT_FILES,
    Layout,
    Rule,
)

__all__ = [
    "COMMON_ALIASES",
    "COMMON_IGNORED",
    "COMMON_SIDECARS",
    "COMMON_TABLES",
    "EARLIER_AVERAGE",
    "GUESSES",
    "HIDDEN",
    "LAYOUTS",
    "MARKED_FOLDERS",
    "UNFINISHED",
    "WEIGHT_FILES",
    "Layout",
    "Reason",
    "Rule",
]

LAYOUTS: tuple[Layout, ...] = (
    *machine_translation.LAYOUTS,
    *speech.LAYOUTS,
    *language_models.LAYOUTS,
    *vision.LAYOUTS,
)
"""Every framework's model directory. Of rows that fit a directory equally well and alike, the first one names it."""

MARKED_FOLDERS = frozenset(glob.split("/")[0] for row in LAYOUTS for glob in row.markers if "/" in glob)
"""Names of folders inside of checkpoints in which a marker may be."""
