"""What frameworks call the parts of a checkpoint: the tables that `ckpttool.formats.sections` searches a file by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ckpttool.formats.average_keys import SLOTS
from ckpttool.formats.container import KeyPath

__all__ = [
    "JOINED_SECTIONS",
    "OPTIMIZER_KEYS",
    "SCHEDULER_ENTRIES",
    "SCHEDULER_KEYS",
    "STATE_ROWS",
    "STEP_OFFSETS",
    "STEP_PATHS",
    "WEIGHT_SECTIONS",
    "Replacement",
    "StateRow",
]

Replacement = Literal["delete", "none", "empty_list", "empty_dict"]
"""What replaces training state that is left out. "delete" removes the key itself."""

WEIGHT_SECTIONS: tuple[tuple[KeyPath, ...], ...] = (
    (
        ("state", "model"),  # Composer
        ("state_dict",),  # Lightning, mmengine, timm, open_clip, FunASR
        ("model",),  # fairseq, OpenNMT-py, ESPnet 1, THUMT, icefall, detectron2, Coqui, DiT, Megatron
        ("model_state_dict",),  # the PyTorch tutorials
        ("model_state",),  # JoeyNMT, pycls
        ("module",),  # DeepSpeed
    ),
    (
        ("params",),  # BasicSR
        ("net",),
        ("network",),
        ("weights",),
        ("model_weights",),
        ("net_state_dict",),
        ("network_state_dict",),
    ),
    (
        ("generator",),  # HiFi-GAN and other vocoders
        ("student",),  # DINO
        ("encoder",),  # I-JEPA, V-JEPA
    ),
    tuple(slot.path for slot in SLOTS if slot.is_released_alone),
)
"""Where weights stand, in tiers. The first tier with a match decides; two matches in one tier are a question."""

JOINED_SECTIONS: tuple[tuple[KeyPath, KeyPath], ...] = ((("model",), ("generator",)),)
"""(section, further section) that are one model in two pieces: OpenNMT-py keeps the output layer apart."""

STEP_PATHS: tuple[KeyPath, ...] = (
    ("global_step",),
    ("global_steps",),  # DeepSpeed
    ("num_updates",),
    ("optimizer_history", -1, "num_updates"),  # fairseq
    ("train_steps",),
    ("batch_total",),  # FunASR, whose step counts within the epoch
    ("steps",),
    ("step",),
    ("iteration",),
    ("iter",),
    ("iter_num",),  # nanoGPT
    ("trainer", "iteration"),  # detectron2
    ("meta", "iter"),  # mmengine
    ("batch_idx_train",),  # icefall
    ("optim", "training_step"),  # OpenNMT-py; see STEP_OFFSETS
    ("state", "timestamp", "Timestamp", "batch"),  # Composer
    ("state", "timestamp", "batch"),
    ("updates",),
    ("update",),  # F5-TTS
    ("iters",),  # StyleTTS2
)
"""Where the number of updates is stored, best first. Exact paths, so that an optimizer's own counters are not taken."""

STEP_OFFSETS: Mapping[KeyPath, int] = {("optim", "training_step"): -1}
"""What to add where a framework counts otherwise: OpenNMT-py keeps the number of the update that comes next."""


@dataclass(frozen=True, slots=True)
class StateRow:
    """Training state of one framework: `keys` at `parent`, if the root has all keys of `when`; `alone`: no other."""

    keys: tuple[str, ...]
    replacement: Replacement
    when: tuple[str, ...] = ()
    parent: KeyPath = ()
    alone: bool = False


STATE_ROWS: tuple[StateRow, ...] = (
    # The trainer restores it only where it is not None; optimizer_history stays, which the loader reads first.
    StateRow(("last_optimizer_state",), "none"),
    # Lightning raises a KeyError where the key is missing, and pairs the entries with the optimizers one by one.
    StateRow(("optimizer_states", "lr_schedulers"), "empty_list", when=("pytorch-lightning_version",)),
    # What OpenNMT-py's own averaging writes.
    StateRow(("optim",), "none", when=("model", "generator")),
    # What DeepSpeed itself writes when the engine has no optimizer.
    StateRow(("optimizer", "lr_scheduler"), "none", when=("ds_version",)),
    # What ultralytics' strip_optimizer writes.
    StateRow(("optimizer",), "none", when=("train_args",)),
    # fastai takes a file for the bare state dict unless its keys are exactly these.
    StateRow(("opt",), "none", when=("model", "opt"), alone=True),
    StateRow(("optimizers", "schedulers", "scaler"), "delete", parent=("state",)),
    StateRow(("optimizer", "scheduler", "grad_scaler"), "delete", parent=("trainer",)),
    # JoeyNMT's own saver writes None where there is none, and its loader looks the scheduler up before it asks.
    StateRow(("optimizer_state", "scheduler_state", "scaler_state"), "none", when=("model_state",)),
    StateRow(("optimizer_state", "scheduler_state", "scaler_state"), "delete"),
)
"""Known training state; everything else that is named and built like it falls under `_is_state`, and is deleted."""

OPTIMIZER_KEYS = re.compile(
    r"(?:.*_)?(?:optim|optims|optimizer|optimizers|opt|opts)(?:_\w{1,2})?(?:_states?(?:_dicts?)?|_dict)?$"
)
SCHEDULER_KEYS = re.compile(
    r"(?:.*_)?(?:scheduler|schedulers|sched|scheds|scaler|scalers|amp)(?:_\w{1,2})?(?:_states?(?:_dicts?)?|_dict)?$"
)
SCHEDULER_ENTRIES = frozenset({"last_epoch", "_step_count", "base_lrs", "growth_factor", "loss_scaler0"})
