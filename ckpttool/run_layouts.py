r"""What each framework calls the files of a model directory: one table, a row a framework.

Adding a framework is adding a row to `LAYOUTS`. An entry pattern is a regular expression for the whole name, in which
the number that orders the checkpoints is a named group: ``step``, ``epoch``, or ``date`` (digits that sort). The
number is compared as a number: padding, separators and its place in the name differ from framework to framework.
`ckpttool.selection.detection` decides which row a directory follows; `ckpttool.formats.sections` knows the inside of a
file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "COMMON_ALIASES",
    "COMMON_LEAVINGS",
    "EARLIER_AVERAGE",
    "LAYOUTS",
    "MARKED_FOLDERS",
    "WEIGHT_FILES",
    "WEIGHT_SUFFIXES",
    "Layout",
    "Rule",
]


@dataclass(frozen=True, slots=True)
class Rule:
    """Names that are left out: a regular expression for the whole name, and why.

    Attributes:
        pattern: The regular expression.
        reason: Why, as a phrase.
        owner: Name of what it belongs to, with the groups of the pattern; if that is missing, it is said.
    """

    pattern: str
    reason: str
    owner: str = ""


@dataclass(frozen=True)
class Layout:
    """One framework's model directory.

    Attributes:
        name: What `--layout` calls it.
        entries: Patterns of a checkpoint's name, with the group ``step``, ``epoch`` or ``date``.
        kind: Whether a checkpoint is a file or a directory.
        aliases: Further names of a checkpoint that has a number as well.
        leavings: Names that are no checkpoints of this run: averages, state without weights, pieces.
        section: Where the weights are inside a file; empty for a bare state dict. The content decides; this is for
            documentation and messages.
        weights: For directories: globs of the files that hold the weights, best first.
        markers: For directories: globs of which one must be inside, or the directory is unfinished. With a slash: in a
            folder of that name.
        carry: Globs of companions that a copy of the model needs.
        never: Globs of companions that do not belong to an average.
        sidecars: Where metrics stand beside a checkpoint; ``{stem}`` and ``{name}`` are the entry's.
    """

    name: str
    entries: tuple[str, ...]
    kind: Literal["file", "directory"] = "file"
    aliases: tuple[Rule, ...] = ()
    leavings: tuple[Rule, ...] = ()
    section: str = ""
    weights: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    carry: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    sidecars: tuple[str, ...] = ()


WEIGHT_SUFFIXES = (
    ".pt",
    ".pth",
    ".ckpt",
    ".bin",
    ".safetensors",
    ".pth.tar",
    ".tar",
    ".npz",
    ".pdparams",
    ".pkl",
    ".index",
    ".nemo",
    ".th",
)
"""Endings of files that may be checkpoints: what is worth a word when no row knows the name."""

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

HIDDEN = Rule(r"[._~].*", "a hidden or temporary name")
UNFINISHED = Rule(
    r".*[._-](?:tmp|temp|part|partial|incomplete|unfinished|crdownload|swp|lock)(?:[._-]?\d*)?|tmp(?:[._-].*)?"
    r"|.*_temp_[0-9a-f]+(?:\..*)?",
    "a temporary name: a half-written checkpoint",
)
COMMON_LEAVINGS: tuple[Rule, ...] = (
    Rule(
        r"(?:.*[._-])?(?:optim|optimizer|scheduler|lr_scheduler|scaler|rng_state|random_states|rng|training_args"
        r"|trainer_state|training-state|optim_states?|optimizer_states?|trainer)(?:[._-].*)?",
        "training state, not weights",
    ),
    Rule(
        r".*-\d{5}-of-\d{5}\..*|.*[._-](?:shard|part|rank)[_-]?\d+\..*|zero_pp_rank_\d+_.*_model_states\.pt",
        "one piece of a checkpoint in several files",
    ),
)
"""Left out in every layout, unless an entry pattern says otherwise."""

EARLIER_AVERAGE = Rule(
    r"(?:.*[._-])?(?:avg|ave|averaged?|swa|soup|merged|unsharded-avg)(?:[._-]?\d.*|[._-].*)?(?:\..*)?",
    "an earlier average, by its name",
)
COMMON_ALIASES: tuple[Rule, ...] = (
    Rule(
        r"(?:.*[._=-])?(?:last|latest|best|final|newest|init|initial)(?:[._=-].*|\d+.*|(?:model|checkpoint)[._-].*)?"
        r"|(?:best|last|final|latest)(?:model|checkpoint)?(?:[._-].*)?",
        "a further name of a checkpoint",
    ),
)
"""Left out in every layout, unless an entry pattern says otherwise."""

_BEST = "the best checkpoint under a further name"
_LAST = "the newest checkpoint under a further name"
_AVERAGE = "an earlier average, by its name"
_STATE = "training state, not weights"
_PIECE = "one piece of a checkpoint in several files"
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

_HF_CARRY = (
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
)
_HF_NEVER = (
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
    # --- machine translation
    Layout(
        "fairseq",
        # In several files, by FSDP or model parallelism, the first stands for all.
        (
            r"checkpoint(?P<epoch>\d+)(?:-shard0|_part0|-model_part-0)?\.pt",
            r"checkpoint_(?P<epoch>\d+)_(?P<step>\d+)(?:-shard0|_part0|-model_part-0)?\.pt",
        ),
        aliases=(
            Rule(r"checkpoint_best(?:-shard\d+|_part\d+|-model_part-\d+)?\.pt", _BEST),
            Rule(r"checkpoint_last(?:-shard\d+|_part\d+|-model_part-\d+)?\.pt", _LAST),
            Rule(r"checkpoint\.best_.*\.pt", _BEST),
        ),
        leavings=(Rule(r"checkpoint.*(?:-shard|_part|-part|-model_part-)(?!0\.)\d+\.pt", _PIECE),),
        section="model",
        carry=("dict.*.txt",),
    ),
    Layout(
        "opennmt-py",
        (r".*_step_(?P<step>\d+)\.pt",),
        section="model+generator",
        leavings=(Rule(r"(.*_step_\d+)\.safetensors", "the weights of the .pt of the same name", r"\1.pt"),),
    ),
    Layout(
        "eole",
        (r"step_(?P<step>\d+)",),
        "directory",
        weights=("model.*.safetensors",),
        markers=("model.00.safetensors",),
        aliases=(Rule(r"model\.\d+\.safetensors", _LAST),),
        carry=("config.json", "vocab.json"),
        never=("optimizer.pt",),
    ),
    Layout(
        "opennmt-tf",
        (r"ckpt-(?P<step>\d+)\.index",),
        leavings=(
            Rule(r"avg", _AVERAGE),
            Rule(r"(ckpt-\d+)\.data-.*", "belongs to the .index of the same name", r"\1.index"),
        ),
        carry=("checkpoint",),
    ),
    Layout(
        "tensor2tensor",
        (r"model\.ckpt-(?P<step>\d+)\.index",),
        leavings=(
            Rule(r"(model\.ckpt-\d+)\.(?:data-.*|meta)", "belongs to the .index of the same name", r"\1.index"),
            Rule(r".*_temp_.*", "a temporary name: a half-written checkpoint"),
            Rule(r"avg", _AVERAGE),
        ),
        carry=("flags.txt", "flags_t2t.txt", "hparams.json", "checkpoint"),
    ),
    Layout(
        "sockeye",
        (r"params\.(?P<step>\d+)",),
        aliases=(Rule(r"params\.best", _BEST),),
        leavings=(Rule(r"training_state", _STATE),),
        carry=("config", "version", "vocab.*.json"),
        never=("training_state",),
        sidecars=("metrics",),
    ),
    Layout(
        "marian",
        (r".*\.iter(?P<step>\d+)\.npz",),
        aliases=(Rule(r".*\.best-.*\.npz", _BEST), Rule(r"(?!.*\.iter\d+\.npz).*\.npz", _LAST)),
        leavings=(Rule(r".*\.optimizer\.npz", _STATE),),
        carry=("*.npz.decoder.yml", "*.yml", "*.spm"),
        never=("*.progress.yml", "*.optimizer.npz"),
    ),
    Layout(
        "joeynmt",
        (r"(?P<step>\d+)\.ckpt",),
        aliases=(Rule(r"latest\.ckpt", _LAST), Rule(r"best\.ckpt", _BEST)),
        section="model_state",
        carry=("config.yaml", "*vocab*"),
        sidecars=("validations.txt",),
    ),
    Layout(
        "thumt",
        (r"model-(?P<step>\d+)\.pt",),
        leavings=(Rule(r"average-\d+\.pt", _AVERAGE),),
        section="model",
        carry=("*.json",),
    ),
    # --- speech
    Layout(
        "espnet1",
        (r"snapshot\.ep\.(?P<epoch>\d+)", r"snapshot\.iter\.(?P<step>\d+)"),
        aliases=(Rule(r"model\..*\.best", _BEST), Rule(r"snapshot\.best.*", _BEST)),
        leavings=(Rule(r"model\..*\.avg\.best", _AVERAGE),),
        section="model",
        carry=("model.json",),
    ),
    Layout(
        "espnet2",
        (r"(?P<epoch>\d+)epoch\.pth",),
        aliases=(Rule(r"latest\.pth", _LAST), Rule(r".*\.best\.pth", _BEST)),
        leavings=(Rule(r".*\.ave(?:_.*)?\.pth", _AVERAGE), Rule(r"checkpoint\.pth", _STATE)),
        carry=("config.yaml",),
    ),
    Layout(
        "wenet",
        (r"epoch_(?P<epoch>\d+)\.pt", r"step_(?P<step>\d+)\.pt", r"(?P<epoch>\d+)\.pt"),
        aliases=(Rule(r"final\.pt", _LAST),),
        leavings=(Rule(r"avg_.*\.pt", _AVERAGE), Rule(r"init\.pt", "the weights before training")),
        carry=("train.yaml",),
        sidecars=("{stem}.yaml",),
    ),
    Layout(
        "wespeaker",
        (r"model_(?P<epoch>\d{1,5})\.pt",),
        aliases=(Rule(r"final_model\.pt", _LAST),),
        leavings=(Rule(r"avg_model\.pt", _AVERAGE), Rule(r"convert_model\.pt", "a converted model")),
        section="model",
        carry=("config.yaml",),
    ),
    Layout(
        "paddlespeech",
        (r"(?P<epoch>\d+)\.pdparams",),
        leavings=(Rule(r"avg_.*\.pdparams", _AVERAGE),),
        never=("*.pdopt",),
        sidecars=("{stem}.json",),
    ),
    Layout(
        "funasr",
        (r"model\.pt\.ep(?P<epoch>\d+)(?:\.(?P<step>\d+))?",),
        aliases=(Rule(r"model\.pt", _LAST), Rule(r"model\.pt\.best", _BEST)),
        leavings=(Rule(r"model\.pt\.avg\d+", _AVERAGE),),
        section="state_dict",
        carry=("config.yaml",),
    ),
    Layout(
        "icefall",
        (r"epoch-(?P<epoch>\d+)\.pt", r"checkpoint-(?P<step>\d+)\.pt"),
        aliases=(Rule(r"best-.*-loss\.pt", _BEST), Rule(r"pretrained(?:-.*)?\.pt", "an exported model")),
        leavings=(
            Rule(r"(?:epoch|iter)-\d+-avg-\d+.*\.pt", _AVERAGE),
            Rule(r"(?:jit|cpu_jit).*\.pt", "an exported model"),
        ),
        section="model",
    ),
    Layout(
        "speechbrain",
        (r"CKPT\+(?P<date>\d{4}-\d\d-\d\d\+\d\d-\d\d-\d\d\+\d+)",),
        "directory",
        weights=("model.ckpt", "*.ckpt"),
        markers=("CKPT.yaml",),
        # Its loader wants a file for every object that the recipe registered; the optimizer and the data loaders are
        # registered by training alone.
        carry=("*",),
        never=("optimizer.ckpt", "*opt*.ckpt", "dataloader-*.ckpt"),
        sidecars=("{name}/CKPT.yaml",),
    ),
    # --- language models and trainers
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
        leavings=(
            Rule(r"checkpoint-\d+-merged|.*-merged", "a merged model"),
            Rule(r"runs", "logs"),
            Rule(r"tmp-checkpoint-\d+", "a temporary name: a half-written checkpoint"),
        ),
        aliases=(
            Rule(r"(?:model|pytorch_model|adapter_model).*\.(?:safetensors|bin)", _LAST),
            Rule(r"training_args\.bin", _STATE),
        ),
        carry=_HF_CARRY,
        never=_HF_NEVER,
        sidecars=("{name}/trainer_state.json", "trainer_state.json"),
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
        never=("optimizer.bin", "scheduler.bin", "random_states_*.pkl", "scaler.pt", "sampler*.bin"),
    ),
    Layout(
        "nemo",
        (r".*--.*=.*-epoch=(?P<epoch>\d+)(?:-step=(?P<step>\d+)(?:\.0)?(?:-.*)?)?\.ckpt",),
        aliases=(Rule(r".*-last\.ckpt", _LAST),),
        leavings=(
            Rule(r".*-EMA\.ckpt", "the moving average of the checkpoint of the same name"),
            Rule(r".*-unfinished", "a marker: the checkpoint of this name is half-written"),
            Rule(r".*-averaged\..*", _AVERAGE),
            Rule(r".*\.nemo", "an exported model"),
        ),
        section="state_dict",
    ),
    Layout(
        "lightning",
        (
            r"(?:.*[-_])?epoch=(?P<epoch>\d+)(?:[-_].*?)?[-_]step=(?P<step>\d+)(?:[-_.].*)?\.ckpt",
            r"(?:.*[-_])?step=(?P<step>\d+)(?:[-_].*?)?[-_]epoch=(?P<epoch>\d+)(?:[-_.].*)?\.ckpt",
            r"(?:.*[-_])?step=(?P<step>\d+)(?:[-_.].*)?\.ckpt",
            r"(?:.*[-_])?epoch=(?P<epoch>\d+)(?:[-_.].*)?\.ckpt",
        ),
        aliases=(Rule(r"last(?:-v\d+)?\.ckpt|.*-last\.ckpt", _LAST),),
        leavings=(Rule(r".*-EMA\.ckpt", "the moving average of the checkpoint of the same name"),),
        section="state_dict",
        carry=("hparams.yaml",),
    ),
    Layout(
        "megatron",
        (r"iter_(?P<step>\d+)",),
        "directory",
        weights=(".metadata", "mp_rank_*"),
        markers=(".metadata", "mp_rank_*"),
        aliases=(Rule(r"release", "the released model, without an iteration"),),
        section="model",
        carry=("latest_checkpointed_iteration.txt", "common.pt", "metadata.json"),
        never=("distrib_optim.pt", "*/distrib_optim.pt"),
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
        section="module",
        carry=("configs",),
        never=("*_optim_states.pt", "zero_to_fp32.py", "zero_to_torch.py"),
    ),
    Layout(
        "torchtitan",
        (r"step-(?P<step>\d+)",),
        "directory",
        weights=(".metadata", "model.safetensors.index.json", "sharded"),
        markers=(".metadata", "model.safetensors.index.json", *_SLICES),
    ),
    Layout(
        "torchtune",
        (r"epoch_(?P<epoch>\d+)", r"step_(?P<step>\d+)"),
        "directory",
        weights=_HF_WEIGHTS,
        markers=(*_HF_WEIGHTS, "model-*-of-*.safetensors", "ft-model-*.safetensors", "adapter_model.pt"),
        leavings=(Rule(r"recipe_state", _STATE),),
        carry=_HF_CARRY,
        never=("recipe_state", "recipe_state.pt"),
    ),
    Layout(
        "olmo-core",
        (r"step(?P<step>\d+)",),
        "directory",
        weights=("model_and_optim",),
        markers=("model_and_optim/.metadata",),
        leavings=(Rule(r"step\d+-merged", _AVERAGE),),
        carry=("config.json", ".metadata.json", "data_paths.txt"),
        never=("train",),
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
        aliases=(Rule(r"last(?:-v\d+)?(?:\.ckpt)?|.*-last(?:\.ckpt)?", _LAST),),
        section="state_dict",
        carry=("meta.pt", "context/*"),
    ),
    # Any other trainer's directories of torch.distributed.checkpoint, in its own format or in safetensors.
    Layout(
        "dcp",
        (r"(?:[^=]*[-_])?ep(?:och)?[-_]?(?P<epoch>\d+)", r"(?:[^=]*[^=\d])?(?P<step>\d+)(?:\.ckpt)?"),
        "directory",
        weights=(".metadata", "sharded"),
        markers=(".metadata", *_SLICES),
        carry=("*.json", "*.yaml"),
    ),
    Layout(
        "olmo",
        (r"step(?P<step>\d+)(?:-unsharded)?",),
        "directory",
        weights=("model.safetensors", "model.pt"),
        markers=("model.safetensors", "model.pt", "model"),
        aliases=(Rule(r"latest(?:-unsharded)?", _LAST),),
        carry=("config.yaml",),
        never=("optim.pt", "optim.safetensors", "train.pt"),
    ),
    Layout(
        "fairseq2",
        (r"step_(?P<step>\d+)",),
        "directory",
        weights=("model/pp_*/tp_*/sdp_*.pt", "model"),
        markers=("model",),
        leavings=(
            Rule(r"step_\d+\.tmp", "a temporary name: a half-written checkpoint"),
            Rule(r"hg", "an exported model"),
        ),
        never=("optimizer", "trainer", "data_reader"),
        sidecars=("scores/{name}.txt",),
    ),
    Layout(
        "composer",
        (r"ep(?P<epoch>\d+)-ba(?P<step>\d+)(?:-rank(?P<rank>\d+))?(?:\.pt)?",),
        aliases=(Rule(r"latest-rank\d+(?:\.pt)?(?:\.symlink)?", _LAST),),
        section="state.model",
    ),
    # --- vision, diffusion, others
    Layout(
        "mmengine",
        (r"epoch_(?P<epoch>\d+)\.pth", r"iter_(?P<step>\d+)\.pth"),
        aliases=(Rule(r"best_.*\.pth", _BEST), Rule(r"latest\.pth", _LAST)),
        leavings=(Rule(r"swa_.*\.pth", _AVERAGE),),
        section="state_dict",
        carry=("*.py",),
        never=("last_checkpoint",),
    ),
    Layout(
        "detectron2",
        (r"model_(?P<step>\d{7})\.pth",),
        aliases=(Rule(r"model_final\.pth", _LAST), Rule(r"model_best\.pth", _BEST)),
        section="model",
        carry=("config.yaml",),
        never=("last_checkpoint",),
    ),
    Layout(
        "timm",
        (r"checkpoint-(?P<epoch>\d+)\.pth\.tar",),
        aliases=(Rule(r"last\.pth\.tar", _LAST), Rule(r"model_best\.pth\.tar", _BEST)),
        leavings=(
            Rule(r"recovery-\d+-\d+\.pth\.tar", "a recovery checkpoint from the middle of an epoch"),
            Rule(r"tmp\.pth\.tar", "a temporary name: a half-written checkpoint"),
        ),
        section="state_dict",
        carry=("args.yaml",),
        sidecars=("summary.csv",),
    ),
    Layout(
        "coqui",
        (r"checkpoint_(?P<step>\d+)\.pth",),
        aliases=(Rule(r"best_model(?:_\d+)?\.pth", _BEST),),
        section="model",
        carry=("config.json",),
    ),
    Layout(
        "ultralytics",
        (r"epoch(?P<epoch>\d+)\.pt",),
        aliases=(Rule(r"last\.pt", _LAST), Rule(r"best\.pt", _BEST)),
        section="ema",
        carry=("args.yaml",),
        sidecars=("results.csv",),
    ),
    Layout(
        "open_clip",
        (r"epoch_(?P<epoch>\d+)\.pt",),
        aliases=(Rule(r"epoch_latest\.pt", _LAST),),
        leavings=(Rule(r"_(?:tmp|trash)_latest.*", "a temporary name: a half-written checkpoint"),),
        section="state_dict",
        carry=("params.txt",),
    ),
    Layout(
        "nanochat",
        (r"model_(?P<step>\d{6})\.pt",),
        leavings=(Rule(r"optim_\d{6}(?:_rank\d+)?\.pt", _STATE),),
        carry=("meta_*.json",),
        sidecars=("meta_{step}.json",),
    ),
    Layout(
        "edm2",
        (r".*-(?P<step>\d+)-(?P<series>\d+\.\d+)\.pkl",),
        leavings=(Rule(r"training-state-.*\.pt", _STATE),),
        section="ema",
    ),
    Layout("ema-pytorch", (r"(?P<series>\d+)\.(?P<step>\d+)\.pt",)),
    Layout(
        "guided-diffusion",
        (r"model(?P<step>\d{6})\.pt", r"ema_(?P<series>\d*\.\d+)_(?P<step>\d{6})\.pt"),
        leavings=(Rule(r"opt\d{6}\.pt", _STATE),),
    ),
)
"""Every framework's model directory. Of rows that fit a directory equally well and alike, the first one names it."""

MARKED_FOLDERS = frozenset(glob.split("/")[0] for row in LAYOUTS for glob in row.markers if "/" in glob)
"""Names of folders inside of checkpoints in which a marker may be."""
