"""Machine translation. See `ckpttool.run_layouts`."""

from __future__ import annotations

from ckpttool.run_layouts.reasons import Reason
from ckpttool.run_layouts.table import Layout, Rule

__all__ = ["LAYOUTS"]

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "fairseq",
        # In several files, by FSDP or model parallelism, the first represents all.
        (
            r"checkpoint(?P<epoch>\d+)(?:-shard0|_part0|-model_part-0)?\.pt",
            r"checkpoint_(?P<epoch>\d+)_(?P<step>\d+)(?:-shard0|_part0|-model_part-0)?\.pt",
        ),
        aliases=(
            Rule(r"checkpoint_best(?:-shard\d+|_part\d+|-model_part-\d+)?\.pt", Reason.BEST),
            Rule(r"checkpoint_last(?:-shard\d+|_part\d+|-model_part-\d+)?\.pt", Reason.NEWEST),
            Rule(r"checkpoint\.best_.*\.pt", Reason.BEST),
        ),
        ignored=(Rule(r"checkpoint.*(?:-shard|_part|-part|-model_part-)(?!0\.)\d+\.pt", Reason.PIECE),),
        auxiliary=("dict.*.txt",),
    ),
    Layout(
        "opennmt-py",
        (r".*_step_(?P<step>\d+)\.pt",),
        ignored=(Rule(r"(.*_step_\d+)\.safetensors", Reason.SAME_AS_PT, r"\1.pt"),),
    ),
    Layout(
        "eole",
        (r"step_(?P<step>\d+)",),
        "directory",
        weights=("model.*.safetensors",),
        markers=("model.00.safetensors",),
        aliases=(Rule(r"model\.\d+\.safetensors", Reason.NEWEST),),
        auxiliary=("config.json", "vocab.json"),
        state=("optimizer.pt",),
    ),
    Layout(
        "opennmt-tf",
        (r"ckpt-(?P<number>\d+)\.index",),
        ignored=(
            Rule(r"avg", Reason.AVERAGE),
            Rule(r"(ckpt-\d+)\.data-.*", Reason.WITH_INDEX, r"\1.index"),
        ),
        auxiliary=("checkpoint",),
    ),
    Layout(
        "tensor2tensor",
        (r"model\.ckpt-(?P<step>\d+)\.index",),
        ignored=(
            Rule(r"(model\.ckpt-\d+)\.(?:data-.*|meta)", Reason.WITH_INDEX, r"\1.index"),
            Rule(r".*_temp_.*", Reason.HALF_WRITTEN),
            Rule(r"avg", Reason.AVERAGE),
        ),
        auxiliary=("flags.txt", "flags_t2t.txt", "hparams.json", "checkpoint"),
    ),
    Layout(
        "sockeye",
        (r"params\.(?P<number>\d+)",),
        aliases=(Rule(r"params\.best", Reason.BEST),),
        ignored=(Rule(r"training_state", Reason.STATE),),
        auxiliary=("config", "version", "vocab.*.json"),
        tables=("metrics",),
    ),
    Layout(
        "marian",
        (r".*\.iter(?P<step>\d+)\.npz",),
        aliases=(Rule(r".*\.best-.*\.npz", Reason.BEST), Rule(r"(?!.*\.iter\d+\.npz).*\.npz", Reason.NEWEST)),
        ignored=(Rule(r".*\.optimizer\.npz", Reason.STATE),),
        auxiliary=("*.npz.decoder.yml", "*.yml", "*.spm"),
    ),
    Layout(
        "joeynmt",
        (r"(?P<number>\d+)\.ckpt",),
        aliases=(Rule(r"latest\.ckpt", Reason.NEWEST), Rule(r"best\.ckpt", Reason.BEST)),
        auxiliary=("config.yaml", "*vocab*"),
        tables=("validations.txt",),
    ),
    Layout(
        "thumt",
        (r"model-(?P<number>\d+)\.pt",),
        ignored=(Rule(r"average-\d+\.pt", Reason.AVERAGE),),
        auxiliary=("*.json",),
    ),
)
