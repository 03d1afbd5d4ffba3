"""Language models, and trainers of any model. See `ckpttool.run_layouts`."""

from __future__ import annotations

from ckpttool.run_layouts.reasons import Reason
from ckpttool.run_layouts.table import Layout, Rule

__all__ = ["LAYOUTS"]

_HF_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
_SLICES = ("shard-*-model-*.safetensors", "sharded/shard-*-model-*.safetensors")
"""What torch.distributed.checkpoint's HuggingFaceStorageWriter saves, a file for each rank."""

_HF_AUXILIARY = (
    # config.json, generation_config.json, adapter_config.json, special_tokens_map.json, preprocessor_config.json, ...
    "*.json",
    "config*.yaml",
    "tokenizer*",
    "vocab*",
    "merges*.txt",
    "*.model",
    "sentencepiece*",
    "*.jinja",
    "*.py",
    "README.md",
    "LICENSE*",
    "policy_*processor_*.safetensors",  # LeRobot's normalisation
)
_HF_STATE = (
    "optimizer.*",
    "optimizer_*",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*",
    "random_states_*",
    # accelerate's save_state
    "scheduler.bin",
    "scheduler_*.bin",
    "sampler.bin",
    "sampler_*.bin",
    "dl_state_dict*.bin",
    "custom_checkpoint_*.pkl",
    "trainer_state.json",
    "training_args.bin",
    "global_step*",
    "pytorch_model_fsdp*",
    "latest",
    "zero_to_fp32.py",
    "zero_to_torch.py",
    "optim.*",
    "train.pt",
    "recipe_state*",
    "*_results.json",
)

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "huggingface",
        (r"checkpoint-(?P<step>\d+)",),
        "directory",
        weights=_HF_WEIGHTS,
        markers=(
            *_HF_WEIGHTS,
            # Variants and shards.
            "model*.safetensors",
            "pytorch_model*.bin",
            "adapter_model*.safetensors",
            "adapter_model*.bin",
            "global_step*",
            "pytorch_model_fsdp*",
            *_SLICES,
        ),
        ignored=(
            Rule(r"checkpoint-\d+-merged|.*-merged", Reason.MERGED),
            Rule(r"runs", Reason.LOGS),
            Rule(r"tmp-checkpoint-\d+", Reason.HALF_WRITTEN),
        ),
        aliases=(
            Rule(r"(?:model|pytorch_model|adapter_model).*\.(?:safetensors|bin)", Reason.NEWEST),
            Rule(r"training_args\.bin", Reason.STATE),
        ),
        auxiliary=_HF_AUXILIARY,
        state=_HF_STATE,
        sidecars=("{name}/trainer_state.json",),
        tables=("trainer_state.json",),
    ),
    Layout(
        "diffusers",
        (r"checkpoint-(?P<step>\d+)",),
        "directory",
        weights=("unet", "transformer", "pytorch_lora_weights.safetensors"),
        markers=(
            "unet",
            "unet_ema",
            "transformer",
            "controlnet",
            "prior",
            "vqmodel",
            "pytorch_lora_weights.safetensors",
        ),
        state=("optimizer.bin", "scheduler.bin", "random_states_*.pkl", "scaler.pt", "sampler*.bin"),
    ),
    Layout(
        "nemo",
        (r".*--.*=.*-epoch=(?P<epoch>\d+)(?:-step=(?P<step>\d+)(?:\.0)?(?:-.*)?)?\.ckpt",),
        aliases=(Rule(r".*-last\.ckpt", Reason.NEWEST),),
        ignored=(
            Rule(r".*-EMA\.ckpt", Reason.MOVING_AVERAGE),
            Rule(r".*-unfinished", Reason.HALF_WRITTEN_MARKER),
            Rule(r".*-averaged\..*", Reason.AVERAGE),
            Rule(r".*\.nemo", Reason.EXPORTED),
        ),
    ),
    Layout(
        "lightning",
        (
            r"(?:.*[-_])?epoch=(?P<epoch>\d+)(?:[-_].*?)?[-_]step=(?P<step>\d+)(?:[-_.].*)?\.ckpt",
            r"(?:.*[-_])?step=(?P<step>\d+)(?:[-_].*?)?[-_]epoch=(?P<epoch>\d+)(?:[-_.].*)?\.ckpt",
            r"(?:.*[-_])?step=(?P<step>\d+)(?:[-_.].*)?\.ckpt",
            r"(?:.*[-_])?epoch=(?P<epoch>\d+)(?:[-_.].*)?\.ckpt",
        ),
        aliases=(Rule(r"last(?:-v\d+)?\.ckpt|.*-last\.ckpt", Reason.NEWEST),),
        ignored=(Rule(r".*-EMA\.ckpt", Reason.MOVING_AVERAGE),),
        auxiliary=("hparams.yaml",),
    ),
    Layout(
        "megatron",
        (r"iter_(?P<step>\d+)",),
        "directory",
        weights=(".metadata", "mp_rank_*"),
        markers=(".metadata", "mp_rank_*"),
        aliases=(Rule(r"release", Reason.RELEASED),),
        auxiliary=("latest_checkpointed_iteration.txt", "common.pt", "metadata.json"),
        state=("distrib_optim.pt", "*/distrib_optim.pt", "train_state.pt"),
    ),
    Layout(
        "deepspeed",
        (r"global_step(?P<step>\d+)",),
        "directory",
        weights=("mp_rank_*_model_states.pt", "layer_*-model_*-model_states.pt"),
        markers=(
            "mp_rank_*_model_states.pt",
            "layer_*_model_states.pt",
            "layer_*-model_*-model_states.pt",
            "*zero_pp_rank_*",
        ),
        auxiliary=("configs",),
        state=("*_optim_states.pt", "zero_to_fp32.py", "zero_to_torch.py"),
    ),
    Layout(
        "torchtitan",
        (r"step-(?P<step>\d+)",),
        "directory",
        weights=(".metadata", "model.safetensors.index.json", "sharded"),
        markers=(".metadata", "model.safetensors.index.json", *_SLICES),
    ),
    Layout(
        "litgpt",
        (r"step-(?P<step>\d+)",),
        "directory",
        weights=("lit_model.pth", "lit_model.pth.lora"),
        markers=("lit_model.pth", "lit_model.pth.lora"),
        aliases=(Rule(r"final", Reason.NEWEST),),
        auxiliary=("model_config.yaml", "tokenizer*", "hyperparameters.yaml"),
    ),
    Layout(
        "torchtune",
        (r"epoch_(?P<epoch>\d+)", r"step_(?P<step>\d+)"),
        "directory",
        weights=_HF_WEIGHTS,
        markers=(*_HF_WEIGHTS, "model-*-of-*.safetensors", "ft-model-*.safetensors", "adapter_model.pt"),
        ignored=(Rule(r"recipe_state", Reason.STATE),),
        auxiliary=_HF_AUXILIARY,
        state=("recipe_state", "recipe_state.pt"),
    ),
    Layout(
        "olmo-core",
        (r"step(?P<step>\d+)",),
        "directory",
        weights=("model_and_optim",),
        markers=("model_and_optim/.metadata",),
        ignored=(Rule(r"step\d+-merged", Reason.AVERAGE),),
        auxiliary=("config.json", ".metadata.json", "data_paths.txt"),
        state=("train/rank*.pt",),
    ),
    # FSDP and tensor parallelism save a directory where one process saves a file.
    Layout(
        "lightning-sharded",
        (
            r"(?:.*[-_])?epoch=(?P<epoch>\d+)(?:[-_].*?)?[-_]step=(?P<step>\d+)(?:[-_.].*)?",
            r"(?:.*[-_])?step=(?P<step>\d+)(?:[-_.].*)?",
            r"(?:.*[-_])?epoch=(?P<epoch>\d+)(?:[-_.].*)?",
        ),
        "directory",
        # DeepSpeed's files are in a folder called checkpoint.
        weights=(".metadata", "weights", "checkpoint"),
        markers=(".metadata", "weights/.metadata", "checkpoint"),
        aliases=(Rule(r"last(?:-v\d+)?(?:\.ckpt)?|.*-last(?:\.ckpt)?", Reason.NEWEST),),
        auxiliary=("meta.pt",),
    ),
    # Any other trainer's directories of torch.distributed.checkpoint, in its own format or in safetensors.
    Layout(
        "dcp",
        (
            r"(?:[^=]*[-_])?ep(?:och)?[-_]?(?P<epoch>\d+)",
            r"(?:[^=]*[-_])?(?:global_?)?(?:step|iter|iteration|batch)s?[-_]?(?P<step>\d+)(?:\.ckpt)?",
            r"(?:[^=]*[^=\d])?(?P<number>\d+)(?:\.ckpt)?",
        ),
        "directory",
        weights=(".metadata", "sharded"),
        markers=(".metadata", *_SLICES),
        auxiliary=("*.json", "*.yaml"),
    ),
    Layout(
        "olmo",
        (r"step(?P<step>\d+)(?:-unsharded)?",),
        "directory",
        weights=("model.safetensors", "model.pt"),
        markers=("model.safetensors", "model.pt", "model"),
        aliases=(Rule(r"latest(?:-unsharded)?", Reason.NEWEST),),
        auxiliary=("config.yaml",),
        state=("optim.pt", "optim.safetensors", "train.pt"),
    ),
    Layout(
        "fairseq2",
        (r"step_(?P<step>\d+)",),
        "directory",
        weights=("model/pp_*/tp_*/sdp_*.pt", "model"),
        markers=("model",),
        ignored=(
            Rule(r"step_\d+\.tmp", Reason.HALF_WRITTEN),
            Rule(r"hg", Reason.EXPORTED),
        ),
        state=("optimizer", "trainer", "data_reader"),
        sidecars=("scores/{name}.txt",),
    ),
    Layout(
        "composer",
        (r"ep(?P<epoch>\d+)-ba(?P<step>\d+)(?:-rank(?P<rank>\d+))?(?:\.pt)?",),
        aliases=(Rule(r"latest-rank\d+(?:\.pt)?(?:\.symlink)?", Reason.NEWEST),),
    ),
)
