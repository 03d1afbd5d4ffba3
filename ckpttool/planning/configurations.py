"""Members of one model have one configuration: where theirs differ in what the weights mean, that is said.

Two members can have the same names and shapes and be two functions: other heads over the same matrix, another rope,
another scale of an adapter. A mean of such weights is not a model. Their tensors do not show it; what is stored next to
them does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpttool.errors import MismatchError
from ckpttool.tensors import Checkpoint
from ckpttool.text import Message, parameter

__all__ = ["compare_configurations"]

_MOST = 5
"""So many differences are said one by one."""

IGNORED = re.compile(
    r"_.*|transformers_version|.*_version|(?:torch_)?dtype|.*_dtype|use_cache|inference_mode|auto_mapping|revision|"
    r".*dropout.*|.*(?:path|dir|file)|gradient_checkpointing|output_(?:attentions|hidden_states)|return_dict.*|"
    r"init_.*|initializer_.*|quantization_config|model_init|torchscript|use_flash_attn|.*attn_implementation|"
    r"problem_type|finetuning_task|task_specific_params|runtime_config|layer_replication|eva_config|corda_config"
)
"""Keys of a model's configuration that may differ between checkpoints of one model."""

SCALES = frozenset(
    {"lora_alpha", "r", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora", "fan_in_fan_out", "peft_type"}
)
"""Keys of an adapter's configuration by which its tensors are multiplied, or what they are."""

MODEL_KEYS = re.compile(
    r"(?:.*_)?(?:n_?heads?|nheads?|num_heads|heads|kv_heads|query_groups|attention_heads|lora_alpha|lora_r|rope\w*|"
    r"rotary\w*|activation\w*|hidden_act|act_fn|activation_function|\w*norm_eps|layer_norm_epsilon|norm_eps|"
    r"normalize_before|prenorm|causal|window_size|sliding_window|logit_softcapping|position_encoding\w*|"
    r"position_embedding_type|max_relative_positions|tie_\w+|share_\w+embed\w*)"
)
"""Keys by which a training program's arguments say what the weights mean. Its others (paths, rates, sizes of batches)
may differ within a run."""

METADATA = ("ss_network_alpha", "ss_network_dim", "ss_network_module")
"""What kohya's scripts write into the metadata of a LoRA."""


def compare_configurations(checkpoints: Sequence[Checkpoint]) -> tuple[str, ...]:
    """Compare the configurations of members with the newest's.

    Args:
        checkpoints: The members that count; the last is the newest.

    Returns:
        Warnings, one for each of the first few keys that differ and matter.

    Raises:
        MismatchError: Adapters are multiplied by different scales.
    """
    newest = checkpoints[-1]
    warnings: dict[tuple[str, str], str] = {}
    for checkpoint in checkpoints[:-1]:
        for place, key, own, newer in _differences(checkpoint, newest):
            said = (
                f"{place}: {key} is {_shown(own)} in {checkpoint.path.name} and {_shown(newer)} in {newest.path.name}"
            )
            if (place.endswith("adapter_config.json") and key.partition(".")[0] in SCALES) or key in METADATA:
                raise MismatchError(
                    f"{checkpoint.path}: {said}: the adapters' tensors are not on one scale",
                    path=checkpoint.path,
                    hint=Message(
                        "Merge each adapter into its model and average those, or leave one out with "
                        f"{parameter('exclude')}."
                    ),
                )
            warnings.setdefault((place, key), f"{said}: at equal shapes the weights may mean something else")
    shown = list(warnings.values())
    if len(shown) > _MOST:
        more = ", ".join(key for _, key in list(warnings)[_MOST:][:_MOST])
        shown = [*shown[:_MOST], f"{len(warnings) - _MOST} more keys of the configurations differ: {more}"]
    return tuple(shown)


def _differences(checkpoint: Checkpoint, newest: Checkpoint) -> Iterator[tuple[str, str, Any, Any]]:
    """Place, key, and the two values."""
    for place, newer in newest.configurations.items():
        own = checkpoint.configurations.get(place)
        if own is not None:
            for key, one, other in _unlike(own, newer, ""):
                yield place, key, one, other
    for key in METADATA:
        if key in checkpoint.metadata and key in newest.metadata and checkpoint.metadata[key] != newest.metadata[key]:
            yield "metadata", key, checkpoint.metadata[key], newest.metadata[key]
    for key, value in newest.values.items():
        place, _, name = key.rpartition(".")
        if not place or not MODEL_KEYS.fullmatch(name):
            continue
        if key in checkpoint.values and checkpoint.values[key] != value:
            yield place, name, checkpoint.values[key], value


def _unlike(own: Mapping[str, Any], newer: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any, Any]]:
    # A key that one of the two lacks may be one that another version of the library does not write.
    for key in newer:
        if key not in own or IGNORED.fullmatch(key):
            continue
        one, other = own[key], newer[key]
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _unlike(one, other, f"{above}{key}.")
        elif _normal(one) != _normal(other):
            yield f"{above}{key}", one, other


def _normal(value: Any) -> Any:
    """Lists of names are sets, which libraries write in any order."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return sorted(value)
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
