"""Speech recognition and synthesis. See `ckpttool.run_layouts`."""

from __future__ import annotations

from ckpttool.run_layouts.reasons import Reason
from ckpttool.run_layouts.table import Layout, Rule

__all__ = ["LAYOUTS"]

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "espnet1",
        (r"snapshot\.ep\.(?P<epoch>\d+)", r"snapshot\.iter\.(?P<step>\d+)"),
        aliases=(Rule(r"model\..*\.best", Reason.BEST), Rule(r"snapshot\.best.*", Reason.BEST)),
        ignored=(Rule(r"model\..*\.avg\.best", Reason.AVERAGE),),
        auxiliary=("model.json",),
    ),
    Layout(
        "espnet2",
        (r"(?P<epoch>\d+)epoch\.pth",),
        aliases=(Rule(r"latest\.pth", Reason.NEWEST), Rule(r".*\.best\.pth", Reason.BEST)),
        ignored=(Rule(r".*\.ave(?:_.*)?\.pth", Reason.AVERAGE), Rule(r"checkpoint\.pth", Reason.STATE)),
        auxiliary=("config.yaml",),
        tables=("checkpoint.pth",),
    ),
    Layout(
        "wenet",
        (r"epoch_(?P<epoch>\d+)\.pt", r"step_(?P<step>\d+)\.pt", r"(?P<number>\d{1,4})\.pt"),
        aliases=(Rule(r"final\.pt", Reason.NEWEST),),
        ignored=(Rule(r"avg_.*\.pt", Reason.AVERAGE), Rule(r"init\.pt", Reason.INITIAL)),
        auxiliary=("train.yaml",),
        sidecars=("{stem}.yaml",),
    ),
    Layout(
        "wespeaker",
        (r"model_(?P<number>\d{1,5})\.pt",),
        aliases=(Rule(r"final_model\.pt", Reason.NEWEST),),
        ignored=(Rule(r"avg_model\.pt", Reason.AVERAGE), Rule(r"convert_model\.pt", Reason.CONVERTED)),
        auxiliary=("config.yaml",),
    ),
    Layout(
        "paddlespeech",
        (r"(?P<epoch>\d+)\.pdparams",),
        ignored=(Rule(r"avg_.*\.pdparams", Reason.AVERAGE),),
        sidecars=("{stem}.json",),
    ),
    Layout(
        "funasr",
        (r"model\.pt\.ep(?P<epoch>\d+)(?:\.(?P<part>\d+))?",),
        aliases=(Rule(r"model\.pt", Reason.NEWEST), Rule(r"model\.pt\.best", Reason.BEST)),
        ignored=(Rule(r"model\.pt\.avg\d+", Reason.AVERAGE),),
        auxiliary=("config.yaml",),
    ),
    Layout(
        "icefall",
        (r"epoch-(?P<epoch>\d+)\.pt", r"checkpoint-(?P<step>\d+)\.pt"),
        aliases=(Rule(r"best-.*-loss\.pt", Reason.BEST), Rule(r"pretrained(?:-.*)?\.pt", Reason.EXPORTED)),
        ignored=(
            Rule(r"(?:epoch|iter)-\d+-avg-\d+.*\.pt", Reason.AVERAGE),
            Rule(r"(?:jit|cpu_jit).*\.pt", Reason.EXPORTED),
        ),
    ),
    # --- Synthesis. The discriminator's files are another network's.
    Layout(
        "hifi-gan",
        (r"g_(?P<step>\d{8})",),
        ignored=(Rule(r"do_\d{8}", Reason.STATE),),
        auxiliary=("config.json",),
    ),
    Layout(
        "vits",
        (r"G_(?P<step>\d+)\.pth",),
        ignored=(Rule(r"(?:D|DUR|WD)_\d+\.pth", Reason.OTHER_NETWORK),),
        auxiliary=("config.json",),
    ),
    Layout("tacotron2", (r"(?:checkpoint|waveglow)_(?P<step>\d+)",)),
    Layout("styletts2", (r"epoch_(?P<series>1st|2nd)_(?P<epoch>\d+)\.pth",), auxiliary=("config*.yml",)),
    Layout(
        "speechbrain",
        (r"CKPT\+(?P<date>\d{4}-\d\d-\d\d\+\d\d-\d\d-\d\d\+\d+)",),
        "directory",
        weights=("model.ckpt", "*.ckpt"),
        markers=("CKPT.yaml",),
        # Its loader wants a file for every object that the recipe registered; the optimizer and the data loaders are
        # registered by training alone.
        state=("optimizer.ckpt", "*opt*.ckpt", "dataloader-*.ckpt"),
        sidecars=("{name}/CKPT.yaml",),
    ),
)
