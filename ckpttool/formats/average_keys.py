"""Keys and names by which checkpoints store averages of the weights: one table.

`ckpttool.formats.sections` tells by it which set of tensors is an average and not the weights, and `ckpttool.ema`
finds the averages by it. Layouts that a flag decides, and those that store the average in the weights' place, need
rules of their own (`ckpttool.ema.in_place`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "COMPONENTS",
    "COPY_KEYS",
    "COUNTERS",
    "FLATTENED_LISTS",
    "LISTS",
    "MOVING_AVERAGE",
    "PREFIXES",
    "RUNNING_MEAN",
    "SLOTS",
    "SWA",
    "TEACHER",
    "AverageKind",
    "Slot",
]

AverageKind = Literal[
    "moving average",
    "running mean of the whole run",
    "teacher (a moving average of the student)",
    "uniform average (SWA)",
]

MOVING_AVERAGE: AverageKind = "moving average"
RUNNING_MEAN: AverageKind = "running mean of the whole run"
TEACHER: AverageKind = "teacher (a moving average of the student)"
SWA: AverageKind = "uniform average (SWA)"


@dataclass(frozen=True, slots=True)
class Slot:
    """A set of named tensors next to the weights that is their average.

    Attributes:
        framework: Who writes it.
        path: Its key path; "*" is any one key.
        when: Keys at the top that must be there as well.
        drop: Key paths that are left out with it; the path itself by default.
        kind: What it is.
        is_released_alone: Whether files with nothing but this set are published, and loaded as the weights.
    """

    framework: str
    path: tuple[str | int, ...]
    when: tuple[str, ...] = ()
    drop: tuple[tuple[str | int, ...], ...] = ()
    kind: AverageKind = MOVING_AVERAGE
    is_released_alone: bool = False

    @property
    def key(self) -> str | None:
        """Its key, where it is at the top of the file."""
        return str(self.path[0]) if len(self.path) == 1 else None


SLOTS: tuple[Slot, ...] = (
    Slot("timm, open_clip", ("state_dict_ema",), ("state_dict",), (("state_dict_ema",), ("task_state_ema",))),
    Slot("torchvision, DeiT, k-diffusion", ("model_ema",), ("model",), (("model_ema",), ("ema_sched",))),
    Slot("d2go", ("model_ema",), ("state_dict",)),
    Slot("RF-DETR", ("ema_model",), ("model",)),
    Slot("RT-DETR, D-FINE, DEIM", ("ema", "module"), ("model",), (("ema",),)),
    Slot("OpenFold", ("ema", "params"), (), (("ema",),)),
    Slot("deepmd-kit", ("ema", "model"), ("model",), (("ema",),)),
    Slot(
        "fairseq (float32 copy)",
        ("extra_state", "ema_fp32_params"),
        ("model",),
        (("extra_state", "ema"), ("extra_state", "ema_fp32_params")),
    ),
    Slot("fairseq", ("extra_state", "ema"), ("model",)),
    Slot("DiT and others", ("ema",), ("model",)),
    Slot("state_dict and ema", ("ema",), ("state_dict",)),
    Slot("BasicSR", ("params_ema",), ("params",), is_released_alone=True),
    Slot("pycls, d2go", ("ema_state",), (), (("ema_state",), ("ema_err",))),
    Slot("icefall", ("model_avg",), ("model",), kind=RUNNING_MEAN),
    Slot("DINO", ("teacher",), ("student",), kind=TEACHER, is_released_alone=True),  # DINOv2 exports it alone
    Slot("I-JEPA, V-JEPA", ("target_encoder",), ("encoder",), kind=TEACHER),
    Slot("AllenNLP", ("moving_average", "shadows"), (), (("moving_average",),)),
    Slot("a Lightning callback", ("callbacks", "*", "ema_state_dict")),
    Slot("a Lightning callback", ("ema_state_dict",), ("state_dict",)),
    Slot("Lightning's StochasticWeightAveraging", ("callbacks", "*", "average_model_state"), kind=SWA),
)
"""Sets of their own, the first that fits first. More are found by their names and shapes (`Checkpoint.copies`)."""

PREFIXES: tuple[str, ...] = (
    "ema_model.module.",
    "ema.ema_model.",
    "ema.module.",
    "ema.model.",
    "ema.shadow.",
    "model_ema.module.",
    "model_ema.",
    "module_ema.",
    "ema_model.",
    "_ema_model.",
    "averaged_model.",
    "avg_model.",
    "_average_model.module.",
    "ema.",
    "teacher.",
    "target_encoder.",
)
"""Prefixes of an average's names inside the weights' own mapping, the longest first where they overlap."""

COMPONENTS: tuple[tuple[str, str, AverageKind], ...] = (
    (r"(.+)_ema", r"\1", MOVING_AVERAGE),
    (r"ema_(.+)", r"\1", MOVING_AVERAGE),
    (r"(.*)encoder_k", r"\1encoder_q", TEACHER),  # MoCo
    (r"target_(.+)", r"online_\1", TEACHER),  # BYOL
    (r"momentum_(.+)", r"\1", TEACHER),
    (r"(.*encoder)_m", r"\1", TEACHER),  # ALBEF, BLIP
)
"""(component of a name that marks an average, the trained one, its kind). Only components without another meaning:
every transformer has ``to_k`` next to ``to_q``."""

LISTS: tuple[tuple[str, str], ...] = (
    ("shadow_params", "torch_ema, score_sde, diffusers"),
    ("ema_parameters", "OneTrainer"),
)
"""(key of a list without names, in the model's order; framework)."""

FLATTENED_LISTS: tuple[str, ...] = (
    "shadow_params.",
    "ema.shadow_params.",
    "ema.ema_weight_",
    "ema.ema_weights.",
    "ema_parameters.",
)
"""Prefixes of numbers, where such a list was flattened into names: ``shadow_params.0``."""

COUNTERS = frozenset({"n_averaged", "initted", "step", "steps", "decay", "num_updates", "updates", "iteration"})
"""Tensors of EMA implementations that are not weights: counters and settings."""

COPY_KEYS = re.compile(
    r"(?:^|_|\.)(?:ema|emas|avg|average|averaged|averaging|swa|shadows?|teacher|polyak|target)(?:_|\.|$)"
    r"|^current_model_state$"  # Lightning's WeightAveraging: the trained weights, while state_dict holds the average
    r"|^emamodel",
    re.IGNORECASE,
)
"""A key on the way to another set of the weights. It counts only if its names and shapes fit those of the weights.

A test holds that every key of the tables above is such a key.
"""
