"""Vision, diffusion and others. See `ckpttool.run_layouts`."""

from __future__ import annotations

from ckpttool.run_layouts.reasons import Reason
from ckpttool.run_layouts.table import Layout, Rule

__all__ = ["LAYOUTS"]

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "mmengine",
        (r"epoch_(?P<epoch>\d+)\.pth", r"iter_(?P<step>\d+)\.pth"),
        aliases=(Rule(r"best_.*\.pth", Reason.BEST), Rule(r"latest\.pth", Reason.NEWEST)),
        ignored=(Rule(r"swa_.*\.pth", Reason.AVERAGE),),
        auxiliary=("*.py",),
    ),
    Layout(
        "detectron2",
        (r"model_(?P<step>\d{7})\.pth",),
        aliases=(Rule(r"model_final\.pth", Reason.NEWEST), Rule(r"model_best\.pth", Reason.BEST)),
        auxiliary=("config.yaml",),
    ),
    # With more digits, it is not known what the number counts.
    Layout("torchvision", (r"model_(?P<epoch>\d{1,3})\.pth",), aliases=(Rule(r"checkpoint\.pth", Reason.NEWEST),)),
    Layout("fastai", (r"model_(?P<epoch>\d{1,3})\.pth",), aliases=(Rule(r"model\.pth", Reason.BEST),)),
    Layout(
        "timm",
        (r"checkpoint-(?P<epoch>\d+)\.pth\.tar",),
        aliases=(Rule(r"last\.pth\.tar", Reason.NEWEST), Rule(r"model_best\.pth\.tar", Reason.BEST)),
        ignored=(
            Rule(r"recovery-\d+-\d+\.pth\.tar", Reason.RECOVERY),
            Rule(r"tmp\.pth\.tar", Reason.HALF_WRITTEN),
        ),
        auxiliary=("args.yaml",),
        tables=("summary.csv",),
    ),
    Layout(
        "coqui",
        (r"checkpoint_(?P<step>\d+)\.pth",),
        aliases=(Rule(r"best_model(?:_\d+)?\.pth", Reason.BEST),),
        auxiliary=("config.json",),
    ),
    Layout(
        "ultralytics",
        (r"epoch(?P<epoch>\d+)\.pt",),
        aliases=(Rule(r"last\.pt", Reason.NEWEST), Rule(r"best\.pt", Reason.BEST)),
        auxiliary=("args.yaml",),
        tables=("results.csv", "../results.csv"),
    ),
    Layout(
        "open_clip",
        (r"epoch_(?P<epoch>\d+)\.pt",),
        aliases=(Rule(r"epoch_latest\.pt", Reason.NEWEST),),
        ignored=(Rule(r"_(?:tmp|trash)_latest.*", Reason.HALF_WRITTEN),),
        auxiliary=("params.txt",),
    ),
    Layout(
        "nanochat",
        (r"model_(?P<step>\d{6})\.pt",),
        ignored=(Rule(r"optim_\d{6}(?:_rank\d+)?\.pt", Reason.STATE),),
        auxiliary=("meta_*.json",),
        sidecars=("meta_{digits}.json",),
    ),
    Layout(
        "edm2",
        (r".*-(?P<number>\d+)-(?P<series>\d+\.\d+)\.pkl",),
        ignored=(Rule(r"training-state-.*\.pt", Reason.STATE),),
    ),
    Layout("ema-pytorch", (r"(?P<series>\d+)\.(?P<step>\d+)\.pt",)),
    Layout(
        "guided-diffusion",
        (r"model(?P<step>\d{6})\.pt", r"ema_(?P<series>\d*\.\d+)_(?P<step>\d{6})\.pt"),
        ignored=(Rule(r"opt\d{6}\.pt", Reason.STATE),),
    ),
)
