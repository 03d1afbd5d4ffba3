"""Draw the pictures of docs/figures again: the learning-rate figures of the article, each by the command it shows.

Run it as ``python docs/make_figures.py [DIRECTORY]``.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

FIGURES = {
    "lr-figure-2.svg": "--learning-rate 2 --model-dim 768 --warmup-steps 8000",
    "lr-figure-3.svg": "--learning-rate 6 --model-dim 768 --warmup-steps 8000 --compare learning_rate=2",
    "lr-figure-4.svg": "--learning-rate 2 --model-dim 768 --warmup-steps 8000 "
    "--start-decay-steps 10000 --minimum-learning-rate 0.0001",
    "lr-figure-5.svg": "--learning-rate 2 --model-dim 768 --warmup-steps 8000 --compare decay_step_duration=2",
}
"""File -> the options that draw it. The article does not state figure 5's duration; 2 is used here."""


def main(directory: Path) -> None:
    """Draw every figure into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, options in FIGURES.items():
        command = [sys.executable, "-m", "ckpttool", "lr-plot-table", *shlex.split(options)]
        subprocess.run([*command, "-f", "-o", str(directory / name)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "figures")
