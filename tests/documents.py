"""The commands that the documents show, and the files that those commands name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/**/*.md"))]

NOT_RUN = ("make", ".ci/run", "pip", "python examples/digits/train.py", "gzip")
"""What needs a network, an environment of its own, or scikit-learn."""


@dataclass(frozen=True)
class Example:
    """A command in a block of a page.

    Attributes:
        words: The command.
        shown: The lines that follow it, which are its output; empty where the page does not show any.
    """

    words: tuple[str, ...]
    shown: tuple[str, ...]

    @property
    def is_run(self) -> bool:
        return not " ".join(self.words).startswith(NOT_RUN)


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in these languages."""
    pattern = rf"^```(?:{'|'.join(languages)})\n(.*?)^```$"
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def examples(block: str) -> list[Example]:
    """The commands of a block. In a block without prompts every line is one."""
    lines = re.sub(r" *\\\n\s*", " ", block).splitlines()
    prompted = any(line.startswith("$ ") for line in lines)
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("$ ") or (line and not prompted):
            found.append((line.removeprefix("$ "), []))
        elif found:
            found[-1][1].append(line)
    return [
        Example(tuple(shlex.split(command, comments=True)), tuple(_without_empty_ends(shown)))
        for command, shown in found
    ]


def _without_empty_ends(lines: list[str]) -> list[str]:
    return "\n".join(lines).strip("\n").split("\n") if any(lines) else []


def blocks_of_commands() -> Iterator[tuple[Path, list[Example]]]:
    """Each block of commands, with its page. docs/lr-plot-table.md has tests of its own (test_lr_docs.py)."""
    for page in PAGES:
        if page.name != "lr-plot-table.md":
            yield from ((page, examples(block)) for block in blocks(page, "console", "sh"))


# --- Files -----------------------------------------------------------------------------------------------------


def weights(value: float = 1.0) -> dict[str, torch.Tensor]:
    """526 kB of weights, and batch-norm statistics."""
    grid = torch.arange(512 * 256, dtype=torch.float32).reshape(512, 256)
    return {
        "layer.weight": (grid % 17 - 8 + value) / 64,
        "layer.bias": torch.full((512,), value / 16),
        "norm.running_mean": torch.full((256,), value / 8),
    }


def parameters(value: float = 1.0) -> dict[str, torch.Tensor]:
    """The weights without the batch-norm statistics."""
    return {name: tensor for name, tensor in weights(value).items() if name.startswith("layer")}


def small_weights(value: float) -> dict[str, torch.Tensor]:
    return {"encoder.weight": torch.full((4, 3), value), "encoder.bias": torch.full((4,), 1.0 + value)}


def write_files(directory: Path, page: str = "README.md") -> None:
    """Make what the examples of a page name, in a directory."""
    run = directory / "runs" / "a"
    run.mkdir(parents=True)
    for name in ("last.ckpt", "last.pth.tar"):
        content = {"state_dict": weights(2.0), "state_dict_ema": parameters(2.1), "arch": "net", "epoch": 3}
        torch.save({**content, "optimizer": {"state": {0: torch.zeros(3)}}}, directory / name)
    (directory / "examples").symlink_to(ROOT / "examples")
    for name in "abc":
        torch.save(small_weights(1.0), directory / f"{name}.pt")
    _write_snapshots(directory)
    _write_hugging_face(directory / "hf")
    if page == "docs/ema-apply.md":
        for step in range(5_000, 50_001, 5_000):
            save_with_step(run / f"checkpoint_{step}.pt", weights(step / 10_000), step)
        swapped = {f"module.{name}": tensor for name, tensor in weights(1.5).items()}
        content = {"state_dict": weights(1.0), "ema_state_dict": {"steps": torch.tensor(9), **swapped}}
        torch.save({**content, "meta": {"iter": 9}}, directory / "iter_9.pth")
        _write_icefall(directory / "exp")
    else:
        for step in range(200, 2_001, 200):
            save_with_step(run / f"checkpoint-{step}.pt", small_weights(float(step)), step)


def save_with_step(path: Path, state: dict[str, torch.Tensor], step: int) -> None:
    torch.save({"model": state, "step": step, "valid_loss": 1 / step}, path)


def _write_snapshots(directory: Path) -> None:
    """Averages as EDM2 names them, and as ema-pytorch does."""
    (directory / "snapshots").mkdir()
    (directory / "ema-pytorch").mkdir()
    for step in (1_000, 2_000, 3_000, 4_000):
        for index, width in enumerate(("0.050", "0.100")):
            torch.save(small_weights(float(step)), directory / "snapshots" / f"snapshot-{step:07d}-{width}.pt")
            named = {f"ema_model.{name}": tensor for name, tensor in small_weights(float(step)).items()}
            torch.save(named, directory / "ema-pytorch" / f"{index}.{step}.pt")


def _write_hugging_face(directory: Path) -> None:
    """Two checkpoints, the newer one with logs."""
    for step in (100, 200):
        folder = directory / f"checkpoint-{step}"
        (folder / "runs").mkdir(parents=True)
        save_file(small_weights(float(step)), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text("{}")


def _write_icefall(directory: Path) -> None:
    directory.mkdir()
    for epoch in range(18, 31):
        batch = 3_127 * epoch
        content: dict[str, Any] = {"model": parameters(epoch), "model_avg": parameters(epoch / 2)}
        content |= {"optimizer": {"state": {}}, "batch_idx_train": batch, "average_period": 200}
        torch.save(content, directory / f"epoch-{epoch}.pt")
