"""What a row of the table of layouts says, and what holds for the names of all frameworks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ckpttool.run_layouts.reasons import Reason

__all__ = [
    "COMMON_ALIASES",
    "COMMON_IGNORED",
    "COMMON_SIDECARS",
    "COMMON_TABLES",
    "EARLIER_AVERAGE",
    "HIDDEN",
    "UNFINISHED",
    "WEIGHT_FILES",
    "Layout",
    "Rule",
]


@dataclass(frozen=True, slots=True)
class Rule:
    """Names that are left out: a regular expression for the whole name, and why.

    Attributes:
        pattern: The regular expression.
        reason: Why.
        owner: Name of what it belongs to, with the groups of the pattern; if that is missing, it is said.
    """

    pattern: str
    reason: Reason
    owner: str = ""


@dataclass(frozen=True)
class Layout:
    """One framework's model directory.

    Attributes:
        name: What the parameter `layout` calls it.
        entries: Patterns of a checkpoint's name, with a group for the number that orders the checkpoints: ``step``,
            ``epoch``, ``date`` (digits that sort), or ``number`` where the name does not tell what it counts. A group
            ``series`` tells several averages or networks of one run apart.
        kind: Whether a checkpoint is a file or a directory.
        aliases: Further names of a checkpoint that has a number as well.
        ignored: Names that are not checkpoints of this run: averages, state without weights, pieces.
        weights: For directories: globs of the files that hold the weights, best first.
        markers: For directories: globs of which one must be inside, or the directory is unfinished. With a slash: in a
            folder of that name.
        auxiliary: Globs of files that this framework stores next to its weights. They tell which framework a directory
            is of; and in any checkpoint that is a directory they are copied even where they look like weights.
        state: For directories: globs of training state, or of folders of it, which is copied only where that is asked
            for. In any checkpoint that is a directory, whatever its framework.
        sidecars: Files with the metrics of one checkpoint, relative to the model directory. ``{name}`` is the
            checkpoint's name, ``{stem}`` that without its suffix, ``{digits}`` the first number in it.
        tables: Files with the metrics of the whole run, relative to the model directory.
    """

    name: str
    entries: tuple[str, ...]
    kind: Literal["file", "directory"] = "file"
    aliases: tuple[Rule, ...] = ()
    ignored: tuple[Rule, ...] = ()
    weights: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    auxiliary: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    sidecars: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "diffusion_pytorch_model.safetensors",
    "model.??.safetensors",
    "model.pt",
    "model.pth",
    "model.ckpt",
    "pytorch_model.pt",
)
"""Globs of the one file that holds the weights of a checkpoint that is a directory, best first."""

HIDDEN = Rule(r"[._~].*", Reason.HIDDEN)
UNFINISHED = Rule(
    r".*[._-](?:tmp|temp|part|partial|incomplete|unfinished|crdownload|swp|lock)(?:[._-]?\d*)?|tmp(?:[._-].*)?"
    r"|.*_temp_[0-9a-f]+(?:\..*)?",
    Reason.HALF_WRITTEN,
)
COMMON_IGNORED: tuple[Rule, ...] = (
    Rule(r".+[._-]state", Reason.STATE),  # Kohya's and accelerate's directories
    Rule(
        r"(?:.*[._-])?(?:optim|optimizer|scheduler|lr_scheduler|scaler|rng_state|random_states|rng|training_args"
        r"|trainer_state|training-state|optim_states?|optimizer_states?|trainer)(?:[._-].*)?",
        Reason.STATE,
    ),
    Rule(
        r".*-\d{5}-of-\d{5}\..*|.*[._-](?:shard|part|rank)[_-]?\d+\..*|zero_pp_rank_\d+_.*_model_states\.pt",
        Reason.PIECE,
    ),
)
"""Left out in every layout, unless an entry pattern says otherwise."""

EARLIER_AVERAGE = Rule(
    r"(?:.*[._-])?(?:avg|ave|averaged?|swa|soup|merged|unsharded-avg)(?:[._-]?\d.*|[._-].*)?(?:\..*)?",
    Reason.AVERAGE,
)
COMMON_ALIASES: tuple[Rule, ...] = (
    Rule(
        r"(?:.*[._=-])?(?:last|latest|best|final|newest|init|initial)(?:[._=-].*|\d+.*|(?:model|checkpoint)[._-].*)?"
        r"|(?:best|last|final|latest)(?:model|checkpoint)?(?:[._-].*)?",
        Reason.ALIAS,
    ),
)
"""Left out in every layout, unless an entry pattern says otherwise."""

COMMON_SIDECARS = ("{stem}.yaml", "{stem}.yml", "{stem}.json", "{name}/CKPT.yaml", "{name}/trainer_state.json")
"""Looked for in every layout, before the row's own: see `Layout.sidecars`."""

COMMON_TABLES = (
    *("trainer_state.json", "summary.csv", "results.csv", "metrics.csv", "../metrics.csv", "../results.csv"),
    *("log.txt", "metrics.json", "results.jsonl"),
)
"""Looked for in every layout, after the row's own: see `Layout.tables`."""
