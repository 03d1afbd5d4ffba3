"""The files in which runs keep metrics: of one checkpoint (sidecars), and of the whole run (tables).

Files are data: YAML is loaded safely, and sizes are limited. A table that a training state holds (ESPnet) is read by
opening that file as any other checkpoint.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpttool.errors import CkpttoolError, UnreadableError
from ckpttool.reading.snapshot import Snapshot
from ckpttool.reading.yaml_text import load_yaml
from ckpttool.tensors import Checkpoint

__all__ = ["FLOAT", "Metrics", "Rows", "Table", "flatten", "number_of", "read_sidecar", "read_tables", "sidecar"]

Metrics = Mapping[str, float]
Rows = dict[int, dict[str, float]]

_MAX_BYTES = 64 << 20
_MAX_NUMBERS = 100_000
FLOAT = r"[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Table:
    """Metrics of a whole run.

    Attributes:
        source: The file, for messages.
        by_step: Metrics by update, or by the number in the names.
        by_epoch: Metrics by epoch.
        before: Whether its rows are numbered by the update before the one that a checkpoint counts.
    """

    source: str
    by_step: Mapping[int, Metrics]
    by_epoch: Mapping[int, Metrics]
    before: bool = False


def number_of(value: object) -> float | None:
    """A plain number as a float; None for anything else, and for whole numbers that no float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested mappings and lists, by dotted key."""
    pending = [(prefix, node)]
    seen: set[int] = set()
    count = 0
    while pending:
        name, value = pending.pop()
        if isinstance(value, (Mapping, list)):
            if id(value) in seen:
                continue
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            pending.extend((f"{name}.{key}" if name else str(key), child) for key, child in items)
        elif (number := number_of(value)) is not None:
            count += 1
            if count > _MAX_NUMBERS:
                return
            yield name, number


# --- Sidecars --------------------------------------------------------------------------------------------------


def sidecar(template: str, name: str) -> str:
    """The file that a row's template means for a checkpoint; see `ckpttool.run_layouts.Layout.sidecars`."""
    digits = re.search(r"\d+", name)
    stem = re.sub(r"\.pth\.tar$|\.[^.]*$", "", name)
    return template.format(name=name, stem=stem, digits=digits.group() if digits else "")


def read_sidecar(path: Path, snapshot: Snapshot) -> dict[str, float]:
    """The numbers of a YAML, JSON or text file, by dotted key. A text file that is one number calls it ``score``.

    Raises:
        UnreadableError: It is not such a file; the message names the line.
    """
    text = _text(path, snapshot)
    if path.suffix == ".json":
        try:
            return dict(flatten(json.loads(text)))
        except (ValueError, RecursionError) as error:
            raise UnreadableError(f"{path}: not valid JSON: {error}", path=path) from error
    if path.suffix == ".txt":
        alone = re.fullmatch(rf"\s*({FLOAT})\s*", text)
        return {"score": float(alone[1])} if alone else dict(_pairs(text, ":"))
    try:
        return dict(flatten(load_yaml(text)))
    except ValueError as error:
        raise UnreadableError(f"{path}: not valid YAML: {error}", path=path) from error


def _text(path: Path, snapshot: Snapshot) -> str:
    try:
        item = snapshot.item(path)
        if item is not None and item.nbytes > _MAX_BYTES:
            raise UnreadableError(f"{path}: too large to be a table of metrics", path=path)
        return snapshot.read(path, _MAX_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"{path}: cannot be read ({error})", path=path) from error


def _pairs(text: str, separator: str) -> Iterator[tuple[str, float]]:
    for key, value in re.findall(rf"([A-Za-z][\w .-]*?)\s*{separator}\s*({FLOAT})(?![\w.])", text):
        yield key.strip(), float(value)


# --- Tables ----------------------------------------------------------------------------------------------------


def _trainer_state(path: Path, text: str) -> Table:
    """The log of a Hugging Face Trainer; later rows of a step add to earlier ones."""
    try:
        rows: Rows = {}
        for row in json.loads(text).get("log_history", []):
            rows.setdefault(int(row["step"]), {}).update(flatten(row))
    except (ValueError, AttributeError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UnreadableError(f"{path}: not a trainer state: {error}", path=path) from error
    return Table(path.name, rows, {})


def _sockeye(path: Path, text: str) -> Table:
    """Sockeye's ``1<TAB>bleu-val=0.3<TAB>...`` for each checkpoint."""
    rows = {}
    for line in text.splitlines():
        number, _, rest = line.partition("\t")
        if re.fullmatch(r"\s*\d{1,18}\s*", number):
            rows[int(number)] = dict(_pairs(rest, "="))
    return Table(path.name, rows, {})


def _joeynmt(path: Path, text: str) -> Table:
    """JoeyNMT's ``Steps: 1000<TAB>Loss: 2.3<TAB>PPL: 9.1<TAB>bleu: 20.1`` for each validation."""
    rows = {}
    for line in text.splitlines():
        values = dict(_pairs(line.replace("\t", " ; "), ":"))
        step = values.pop("Steps", None)
        if step is not None and step.is_integer():
            rows[int(step)] = values
    return Table(path.name, rows, {})


def _csv(path: Path, text: str) -> Table:
    """A table with a column ``epoch`` or ``step``: timm's, ultralytics', Lightning's CSVLogger's.

    Lightning numbers a row by the update before, and leaves cells empty that were not logged then.
    """
    try:
        read = list(csv.DictReader(text.splitlines()))
    except csv.Error as error:
        raise UnreadableError(f"{path}: not a table: {error}", path=path) from error
    rows = [
        {
            key.strip(): float(cell)
            for key, cell in row.items()
            if key and isinstance(cell, str) and re.fullmatch(rf"\s*(?:{FLOAT}|nan|inf)\s*", cell)
        }
        for row in read
    ]
    return _table(path, rows, before=path.name == "metrics.csv")


def _json_lines(path: Path, text: str) -> Table:
    """A JSON object a line: the logs of DETR, MAE, detectron2 and open_clip. Anything else is not a table."""
    rows = []
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        try:
            rows.append(dict(flatten(json.loads(line))))
        except (ValueError, RecursionError):
            continue
    return _table(path, rows)


def _table(path: Path, rows: Iterable[Mapping[str, float]], *, before: bool = False) -> Table:
    by_step: Rows = {}
    by_epoch: Rows = {}
    for row in rows:
        step = next((row[key] for key in ("step", "iteration", "iter", "global_step") if key in row), None)
        for number, table in ((step, by_step), (row.get("epoch"), by_epoch)):
            if number is not None and number.is_integer():
                table.setdefault(int(number), {}).update(row)
    return Table(path.name, by_step, by_epoch, before)


_READERS: Mapping[str, Callable[[Path, str], Table]] = {
    "trainer_state.json": _trainer_state,
    "metrics": _sockeye,
    "validations.txt": _joeynmt,
    "summary.csv": _csv,
    "results.csv": _csv,
    "metrics.csv": _csv,
    "log.txt": _json_lines,
    "metrics.json": _json_lines,
    "results.jsonl": _json_lines,
}
"""How a table is read, by the name of its file."""


def read_tables(
    directory: Path, names: Iterable[str], snapshot: Snapshot, open_state: Callable[[Path], Checkpoint]
) -> list[Table]:
    """The tables of metrics of a run.

    Args:
        directory: The model directory.
        names: Paths of tables, relative to it, whether they are there or not.
        snapshot: The view of the storage.
        open_state: Opens a training state that holds a table.

    Raises:
        UnreadableError: One that is there cannot be read.
    """
    found = []
    for name in dict.fromkeys(names):
        path = directory.parent / name[3:] if name.startswith("../") else directory / name
        if not snapshot.is_file(path):
            continue
        reader = _READERS.get(path.name)
        if reader is not None:
            found.append(reader(path, _text(path, snapshot)))
        else:
            found += _inside(path, open_state)
    return found


_ESPNET = re.compile(r"reporter\.stats\.(\d+)\.(.+)")


def _inside(path: Path, open_state: Callable[[Path], Checkpoint]) -> list[Table]:
    """ESPnet's reporter in ``checkpoint.pth``: metrics by epoch, of training and of validation."""
    try:
        values = open_state(path).values
    except CkpttoolError:
        return []
    rows: Rows = {}
    for key, value in values.items():
        match = _ESPNET.fullmatch(key)
        number = number_of(value)
        if match and number is not None:
            rows.setdefault(int(match[1]), {})[match[2]] = number
    return [Table(path.name, {}, rows)] if rows else []
