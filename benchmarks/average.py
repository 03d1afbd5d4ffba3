"""How long averaging takes, as whole processes, and the time that reading and writing the same bytes takes.

    python benchmarks/average.py [--data DIRECTORY] [--rounds N] [--keep] [--only NAME ...] [--peers]

Every row averages five checkpoints. Its yardstick is `cat INPUTS > /dev/null; cp ONE OUT` on the same weights: what
it costs to read the inputs and to write the output and do nothing else (and without an fsync, which ckpttool does).
Both run in turn, round after round, from the page cache, each round with no output there yet; the least time of each
counts, since noise only adds. Processor time is given in parentheses: on a busy machine threads do not help.
Memory is the whole process's peak resident size. The data are made first (6 GB for the largest row), and deleted at
the end unless --keep is given; as in checkpoints of one run, a weight differs little from member to member.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

COMMAND = [sys.executable, "-m", "ckpttool", "average", "{inputs}", "-o", "{output}"]
HELP = [sys.executable, "-m", "ckpttool", "--help"]

# As an installed package is: compiled. The environment may say otherwise, and sources take a third of the start-up.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}

MEMBERS = 5
TENSOR_ROWS = 4096

NAIVE = """
import sys, torch
from safetensors.torch import load_file, save_file
*inputs, output = sys.argv[1:]
load = load_file if inputs[0].endswith(".safetensors") else lambda path: torch.load(path, weights_only=True)["model"]
total = load(inputs[0])
for path in inputs[1:]:
    for name, tensor in load(path).items():
        total[name] += tensor
mean = {name: tensor / len(inputs) for name, tensor in total.items()}
save_file(mean, output) if output.endswith(".safetensors") else torch.save({"model": mean}, output)
"""

MAKE_SAFETENSORS = """
import json, struct, sys
import ml_dtypes, numpy as np
path, seed, tensors, columns, name = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
code = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[name]
dtype = ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)
shape = (4096, columns)
values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32) * np.float32(0.02)
values += np.random.default_rng(seed + 1).standard_normal(shape, dtype=np.float32) * np.float32(0.0005)
block = values.astype(dtype).tobytes()  # the same for every tensor
header = {
    f"layers.{index:03d}.weight": {
        "dtype": code,
        "shape": [4096, columns],
        "data_offsets": [index * len(block), (index + 1) * len(block)],
    }
    for index in range(tensors)
}
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open(path, "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    for _ in range(tensors):
        file.write(block)
"""

MAKE_TORCH = """
import sys, torch
path, seed, tensors, columns, name = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
base = torch.randn(4096, columns, generator=torch.Generator().manual_seed(0)) * 0.02
block = base + torch.randn(4096, columns, generator=torch.Generator().manual_seed(seed + 1)) * 0.0005
block = block.to(getattr(torch, name))
model = {f"layers.{index:03d}.weight": block.clone() for index in range(tensors)}
state = {
    index: {"step": torch.tensor(1000.0), "exp_avg": tensor.clone(), "exp_avg_sq": tensor.clone()}
    for index, tensor in enumerate(model.values())
}
optimizer = {"state": state, "param_groups": [{"lr": 1e-3, "params": list(state)}]}
torch.save({"model": model, "optimizer": optimizer, "step": 1000 * (seed + 1)}, path)
"""


@dataclass(frozen=True)
class Row:
    """One row of the table: what is averaged, and how much of its bytes is weights."""

    name: str
    title: str
    suffix: str
    tensors: int
    bound: str
    dtype: str = "float32"
    columns: int = 1024
    """Of each tensor; it has 4096 rows."""


ROWS = (
    Row("float32", "five 1.1 GB float32 safetensors", ".safetensors", 67, "at most 1.3"),
    Row("bfloat16", "the same weights in bfloat16", ".safetensors", 67, "at most 2", "bfloat16"),
    Row("float16", "the same weights in float16", ".safetensors", 67, "at most 2", "float16"),
    Row("torch", "five .pt, 0.4 GB of weights next to Adam's 0.8 GB", ".pt", 24, "at most 1.5"),
    Row("small", "five safetensors of 10 MB", ".safetensors", 10, "at most 0.5 s", columns=64),
)


@dataclass
class Cost:
    """What a process took."""

    seconds: float
    megabytes: float
    processor: float
    """Seconds of processor time, its children's included."""


def measure(command: Sequence[str]) -> Cost:
    """Run a command to its end.

    Raises:
        SystemExit: It failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)[:200]}\nfailed with {process.returncode}: {errors.decode()[-2000:]}")
    scale = 1 if sys.platform == "darwin" else 1024
    return Cost(seconds, usage.ru_maxrss * scale / 1e6, usage.ru_utime + usage.ru_stime)


def expand(command: Sequence[str], inputs: Sequence[Path], output: Path) -> list[str]:
    """A command with the paths in their places."""
    words: list[str] = []
    for word in command:
        words += map(str, inputs) if word == "{inputs}" else [word.replace("{output}", str(output))]
    return words


def make(row: Row, directory: Path) -> list[Path]:
    """Make a row's members, those that are not there yet."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"step{1000 * (index + 1)}{row.suffix}" for index in range(MEMBERS)]
    for seed, path in enumerate(paths):
        if path.exists():
            continue
        # In a process of its own: what this one holds, a child's peak memory would be charged with.
        script = MAKE_SAFETENSORS if row.suffix == ".safetensors" else MAKE_TORCH
        arguments = [str(path), str(seed), str(row.tensors), str(row.columns), row.dtype]
        subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    return paths


def yardstick(row: Row, inputs: Sequence[Path], directory: Path) -> tuple[list[Path], Path]:
    """Files of exactly the weights' bytes: the inputs themselves, or files of that size if they hold state as well."""
    if row.suffix == ".safetensors":
        return list(inputs), inputs[0]
    files = []
    for path in inputs:
        part = directory / f"{path.stem}.weights"
        if not part.exists():
            with path.open("rb") as source, part.open("wb") as target:
                for _ in range(row.tensors):
                    target.write(source.read(TENSOR_ROWS * row.columns * 4))
        files.append(part)
    return files, files[0]


def alternate(commands: dict[str, Callable[[], list[str]]], output: Path, rounds: int) -> dict[str, list[Cost]]:
    """Run commands in turn, `rounds` times after one for warming up."""
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, build in commands.items():
            output.unlink(missing_ok=True)
            if hasattr(os, "sync"):
                os.sync()  # what the last one left to be written must not be paid by the next
            cost = measure(build())
            if number:
                costs[name].append(cost)
    output.unlink(missing_ok=True)
    return costs


def supported(row: Row, inputs: Sequence[Path], output: Path) -> str:
    """Why a row cannot be measured yet; empty if it can."""
    command = expand(COMMAND, inputs[:2], output)
    done = subprocess.run(command, env=ENVIRONMENT, check=False, capture_output=True, text=True)
    output.unlink(missing_ok=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()
        return f"{row.name}: skipped: {reason[-1] if reason else done.returncode}"
    return ""


def run_row(row: Row, data: Path, rounds: int, *, peers: bool, keep: bool) -> str:
    """Make, measure and (unless kept) delete one row's data; the row as Markdown."""
    directory = data / row.name
    inputs = make(row, directory)
    output = directory / f"out{row.suffix}"
    reason = supported(row, inputs, output)
    if reason:
        print(reason, file=sys.stderr)
        line = f"| {row.title} | skipped | | | | | |"
    else:
        files, one = yardstick(row, inputs, directory)
        shell = 'out="$1"; shift; cat "$@" > /dev/null; cp "$1" "$out"'
        commands: dict[str, Callable[[], list[str]]] = {
            "cat and cp": lambda: ["sh", "-c", shell, "sh", str(output), *map(str, [one, *files[1:]])],
            "ckpttool": lambda: expand(COMMAND, inputs, output),
        }
        if peers:
            commands["naive"] = lambda: [sys.executable, "-c", NAIVE, *map(str, inputs), str(output)]
        costs = alternate(commands, output, rounds)
        line = markdown(row, costs)
    if not keep:
        shutil.rmtree(directory)
    return line


def markdown(row: Row, costs: dict[str, list[Cost]]) -> str:
    """A row of the table."""
    least = {name: min(cost.seconds for cost in each) for name, each in costs.items()}
    processor = {name: min(cost.processor for cost in each) for name, each in costs.items()}
    memory = {name: max(cost.megabytes for cost in each) for name, each in costs.items()}
    ratios = [own.seconds / plain.seconds for own, plain in zip(costs["ckpttool"], costs["cat and cp"], strict=True)]
    naive = f"{least['naive']:.1f} s, {memory['naive']:,.0f} MB" if "naive" in least else ""
    return (
        f"| {row.title} | {least['cat and cp']:.2f} s ({processor['cat and cp']:.2f})"
        f" | {least['ckpttool']:.2f} s ({processor['ckpttool']:.2f})"
        f" | {least['ckpttool'] / least['cat and cp']:.2f}, median {statistics.median(ratios):.2f} | {row.bound}"
        f" | {memory['ckpttool']:.0f} MB | {naive} |"
    )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "data", help="where the data are made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[row.name for row in ROWS], default=[row.name for row in ROWS])
    parser.add_argument("--keep", action="store_true", help="keep the data for the next time")
    parser.add_argument("--peers", action="store_true", help="measure a plain torch loop as well")
    options = parser.parse_args()
    lines = [
        "| averaged | cat and cp | ckpttool | ratio | goal | peak memory | plain torch loop |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        run_row(row, options.data, options.rounds, peers=options.peers, keep=options.keep)
        for row in ROWS
        if row.name in options.only
    ]
    helped = [measure(HELP) for _ in range(options.rounds)]
    lines.append(
        f"| `--help` | | {min(cost.seconds for cost in helped):.2f} s | | |"
        f" {max(cost.megabytes for cost in helped):.0f} MB | |"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
