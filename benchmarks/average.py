"""How long averaging takes, as whole processes, next to the time that reading and writing the same bytes takes.

    python benchmarks/average.py [--only NAME ...] [--rounds N] [--peers PYTHON] [--plot FILE.svg] [--keep]

The yardstick of every row is `cat INPUTS > /dev/null; cp ONE OUT` on the same weights: what it costs to read the inputs
and to write the output and do nothing else (and without an fsync, which ckpttool does). All commands of a row run in
turn, round after round, each round with no output there yet; the ratios are medians over the rounds, so that a machine
whose speed drifts spoils none of them. Memory is the whole process's greatest resident size. "cold": the inputs are put
out of the page cache before each command, and the yardstick ends with `sync`.

--peers: a Python of an environment that has torch and safetensors, and what others average with: mergekit and
OpenNMT-py, where installed; see peers.py. (timm's and fairseq's scripts for it are in no package.)
The data are made first, and deleted at the end of a row unless --keep is given.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = ("numpy-loop", "AveragedModel", "mergekit", "OpenNMT-py")
NOT_HERE = 3

# As an installed package is: compiled. The environment may say otherwise, and sources take a third of the start-up.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}

YARDSTICK = 'out="$1"; shift; find "$@" -type f -exec cat {} + > /dev/null; cp -r "$1" "$out"'


@dataclass(frozen=True)
class Row:
    """What is averaged: `megabytes` of weights in each of `members`."""

    name: str
    megabytes: int
    dtype: str = "float32"
    kind: str = "safetensors"
    members: int = 5
    tensors: int = 64
    cold: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    peers: bool = False

    @property
    def suffix(self) -> str:
        """What its checkpoints' names end in."""
        return {"safetensors": ".safetensors", "torch": ".pt"}.get(self.kind, "")

    @property
    def data(self) -> str:
        """Name of its data, which rows may share."""
        return f"{self.kind}-{self.dtype}-{self.megabytes}MB-{self.tensors}-{self.members}"


NUMPY = (("CKPTTOOL_KERNEL", "no"),)
SIZES = (10, 100, 300, 1000, 2000)
COUNTS = (2, 5, 20, 100)
TENSORS = (100, 1_000, 10_000, 100_000, 200_000)

ROWS = (
    Row("float32", 1100, peers=True),
    Row("bfloat16", 1100, "bfloat16", peers=True),
    Row("float16", 1100, "float16"),
    Row("float32-cold", 1100, cold=True),
    Row("bfloat16-numpy", 1100, "bfloat16", environment=NUMPY),
    Row("float16-numpy", 1100, "float16", environment=NUMPY),
    Row("torch-adam", 400, kind="torch", tensors=24, peers=True),
    Row("shards", 1100, "bfloat16", "shards", peers=True),
    Row("dcp", 400, kind="dcp"),
    Row("small", 10, tensors=10),
    *(Row(f"size-{size}", size, tensors=max(10, size // 16)) for size in SIZES),
    *(Row(f"members-{count}", 50, members=count) for count in COUNTS),
    *(Row(f"tensors-{count}", max(1, count // 4000), tensors=count) for count in TENSORS),
)


@dataclass
class Cost:
    """What a process took."""

    seconds: float
    megabytes: float
    processor: float


def measure(command: Sequence[str], environment: Sequence[tuple[str, str]] = ()) -> Cost | None:
    """Run a command to its end; None where it says that it cannot do this.

    Raises:
        SystemExit: It failed.
    """
    began = time.perf_counter()
    with subprocess.Popen(
        command, env={**ENVIRONMENT, **dict(environment)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode == NOT_HERE:
        return None
    if process.returncode:
        raise SystemExit(f"{' '.join(command)[:200]}\nfailed with {process.returncode}: {errors.decode()[-2000:]}")
    scale = 1 if sys.platform == "darwin" else 1024
    return Cost(seconds, usage.ru_maxrss * scale / 1e6, usage.ru_utime + usage.ru_stime)


def make(row: Row, directory: Path, python: str) -> list[Path]:
    """The row's members; those that are not there yet are made, in a process of its own."""
    numbers = map(str, (row.members, row.megabytes, row.tensors))
    script = str(HERE / "make_data.py")
    subprocess.run([python, script, str(directory), row.kind, row.dtype, *numbers], check=True)
    return sorted(directory.glob(f"checkpoint-*{row.suffix}"), key=lambda path: int(path.stem.split("-")[1]))


def forget(paths: Sequence[Path]) -> None:
    """Put files out of the page cache."""
    for path in paths:
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file():
                descriptor = os.open(file, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def remove(path: Path) -> None:
    """Remove an output."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def run(row: Row, data: Path, rounds: int, peers: str | None) -> dict[str, list[Cost]]:
    """The costs of every command of a row."""
    directory = data / row.data
    inputs = make(row, directory, peers or sys.executable)
    output = directory / f"out{row.suffix}"
    files = [path.with_suffix(".weights") for path in inputs] if row.kind == "torch" else inputs
    yardstick = ["sh", "-c", YARDSTICK + ("; sync" if row.cold else ""), "sh", str(output), *map(str, files)]
    own = [sys.executable, "-m", "ckpttool", "average", *map(str, inputs), "-o", str(output)]
    commands = {"cat and cp": yardstick, "ckpttool": own}
    if peers is not None and row.peers:
        words = [str(output), *map(str, inputs)]
        commands.update({name: [peers, str(HERE / "peers.py"), name, *words] for name in PEERS})
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name in list(commands):
            if number > 1 and name in PEERS:
                continue  # they take long, and their ratios are not close
            remove(output)
            os.sync()  # what the last one left to be written must not be paid by the next
            if row.cold:
                forget(inputs)
            cost = measure(commands[name], row.environment)
            if cost is None:
                del commands[name], costs[name]
            elif number:
                costs[name].append(cost)
    remove(output)
    return costs


def cells(row: Row, costs: dict[str, list[Cost]]) -> list[str]:
    """A line of the table for each command."""
    plain = costs["cat and cp"]
    lines = []
    for name, each in costs.items():
        ratio = statistics.median(a.seconds / b.seconds for a, b in zip(each, plain, strict=False))
        seconds = statistics.median(cost.seconds for cost in each)
        processor = statistics.median(cost.processor for cost in each)
        memory = max(cost.megabytes for cost in each)
        lines.append(f"| {row.name} | {name} | {seconds:.2f} | {ratio:.2f} | {processor:.2f} | {memory:,.0f} |")
    return lines


def plot(results: dict[str, dict[str, list[Cost]]], path: Path) -> None:
    """Time against bytes, and memory against the number of members."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    for name, marker in (("ckpttool", "o"), ("cat and cp", "x")):
        points = [
            (row.megabytes * row.members / 1000, statistics.median(c.seconds for c in results[row.name][name]))
            for row in ROWS
            if row.name.startswith("size-") and row.name in results
        ]
        time_axes.plot(*zip(*points, strict=True), marker=marker, label=name)
    time_axes.set(xlabel="bytes read (GB)", ylabel="seconds", xscale="log", yscale="log")
    time_axes.legend()
    points = [
        (row.members, max(c.megabytes for c in results[row.name]["ckpttool"]))
        for row in ROWS
        if row.name.startswith("members-") and row.name in results
    ]
    memory_axes.plot(*zip(*points, strict=True), marker="o")
    memory_axes.set(xlabel="members", ylabel="peak memory (MB)", xscale="log", ylim=(0, None))
    figure.savefig(path)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in ROWS]
    parser.add_argument("--data", type=Path, default=HERE / "data", help="where the data are made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--keep", action="store_true", help="keep the data for the next time")
    parser.add_argument("--peers", help="the Python of an environment with what others average with")
    parser.add_argument("--plot", type=Path, help="draw time against bytes and memory against members (.svg, .png)")
    options = parser.parse_args()
    results = {}
    print("| averaged | by | seconds | ratio | processor | peak MB |\n|---|---|---|---|---|---|", flush=True)
    for row in ROWS:
        if row.name not in options.only:
            continue
        results[row.name] = run(row, options.data, options.rounds, options.peers)
        print("\n".join(cells(row, results[row.name])), flush=True)
        if not options.keep:
            shutil.rmtree(options.data / row.data)
    if options.plot is not None:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
