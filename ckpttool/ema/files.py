"""Opening what holds a moving average, and averages in files and folders of their own.

Some trainers write the average next to the weights: ``X-EMA.ckpt``, ``unet_ema/``, ``ema_0.9999_500000.pt``. Given the
weights, the average next to them is found; given the average itself, there is nothing to apply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ckpttool.ema.alignment import Values
from ckpttool.ema.locating import recognise
from ckpttool.ema.name_maps import match_names
from ckpttool.ema.stored_average import Origin, StoredAverage, already_in_place, pair_with_weights
from ckpttool.errors import CkpttoolError, MismatchError, NotFoundError, UnsupportedError, UsageError
from ckpttool.formats import open_checkpoint, weights_file
from ckpttool.formats.average_keys import LISTS
from ckpttool.formats.container import PickledModule, at, tree_of
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import Checkpoint
from ckpttool.text import first_names, parameter

__all__ = ["find_stored_average", "folder_average"]

_AVERAGE_FILES = (
    (r"(?P<stem>.+)-EMA(?P<suffix>\.ckpt)", "{stem}{suffix}", "NeMo"),
    (r"ema_\d*\.\d+_(?P<stem>\d+)(?P<suffix>\.pt)", "model{stem}{suffix}", "guided-diffusion, improved-diffusion"),
    (r"(?P<stem>.+)[-_.]ema(?P<suffix>\.[A-Za-z]+)", "{stem}{suffix}", "a file of its own"),
    (r"ema[-_](?P<stem>.+)(?P<suffix>\.[A-Za-z]+)", "{stem}{suffix}", "a file of its own"),
    (r"(?P<stem>.+)[-_]ema", "{stem}", "a folder of its own (diffusers, SwissArmyTransformer, Open-Sora)"),
)
"""(pattern of the average's name, name of the weights it belongs to, framework)."""

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def _weights_of(path: Path) -> tuple[Path, str] | None:
    """For a name that says that this is an average: the path of its weights, there or not, and the framework."""
    for pattern, weights, framework in _AVERAGE_FILES:
        match = re.fullmatch(pattern, path.name)
        if match:
            return path.with_name(weights.format(**match.groupdict())), framework
    return None


def _averages_next_to(path: Path, snapshot: Snapshot) -> list[tuple[Path, str]]:
    """The averages of these weights in the same directory, by name."""
    found = []
    directory = snapshot.resolve(path).parent if path.name in {"", ".", ".."} else path.parent
    for name, item in snapshot.list(directory).items():
        other = directory / name
        if other == path or (item.kind == "directory") != snapshot.is_dir(path):
            continue
        belongs = _weights_of(other)
        if belongs is not None and belongs[0].name == path.name:
            found.append((other, belongs[1]))
    return found


def folder_average(directory: Path, snapshot: Snapshot | None = None) -> tuple[Path, Path] | None:
    """The weights and their average where a directory holds both: ``unet/`` and ``unet_ema/``.

    Args:
        directory: The directory.
        snapshot: The operation's view of the storage; None: a new one.

    Raises:
        UsageError: It holds several such pairs.
    """
    snapshot = snapshot or Snapshot()
    pairs: list[tuple[Path, Path]] = []
    for name, item in snapshot.list(directory).items():
        inner = directory / name
        belongs = _weights_of(inner) if item.kind == "directory" else None
        if belongs is not None and _has_weights(inner, snapshot) and _has_weights(belongs[0], snapshot):
            pairs.append((belongs[0], inner))
    if len(pairs) > 1:
        raise UsageError(
            f"{directory}: there are averages of {' and of '.join(pair[0].name for pair in pairs)}",
            path=directory,
            hint=f"Name one: {pairs[0][0]}.",
        )
    return pairs[0] if pairs else None


def _has_weights(directory: Path, snapshot: Snapshot) -> bool:
    """Whether a directory holds files of weights itself (a model's, and not a run's)."""
    return snapshot.is_dir(directory) and any(
        item.kind == "file" and name.endswith(_WEIGHTS) for name, item in snapshot.list(directory).items()
    )


def find_stored_average(
    path: str | Path,
    *,
    section: str | None = None,
    slot: str | None = None,
    names_from: str | Path | None = None,
    values: Values | None = None,
    snapshot: Snapshot | None = None,
) -> StoredAverage:
    """Find the moving average that a checkpoint holds, or that is next to it. No weight is read where names decide.

    Args:
        path: A checkpoint file or directory: the weights, or the average itself.
        section: Dotted key path of the trained weights, where they are not found by themselves.
        slot: Which average, where there are several: a dotted key path, or the name of a file next to the weights.
        names_from: A checkpoint of the same model, for averages without names.
        values: How tensors are read, for lists that only their values align; None: `ckpttool.reading.values`.
        snapshot: The operation's view of the storage; None: a new one.

    Raises:
        NotFoundError: There is none.
        UsageError: There are several, and `slot` does not say which.
        MismatchError: It does not match the weights.
        UnreadableError: A file cannot be read.
    """
    path, snapshot = Path(path), snapshot or Snapshot()
    names = None if names_from is None else open_checkpoint(weights_file(Path(names_from), snapshot), snapshot=snapshot)
    pair = folder_average(path, snapshot) if snapshot.is_dir(path) else None
    if pair is not None:
        return _from_files(pair[0], pair[1], "folders of their own (diffusers)", section, values, snapshot)
    file = weights_file(path, snapshot)
    try:
        checkpoint = _open(file, section, snapshot)
    except UnsupportedError:
        pickled = _pickled(file) if section is None else None
        if pickled is None:
            raise
        return pickled
    if section is None and isinstance(at(tree_of(checkpoint), (checkpoint.section,)), PickledModule):
        pickled = _pickled(file)
        if pickled is not None:
            return pickled
    others = _averages_next_to(path, snapshot)
    chosen = [item for item in others if slot == item[0].name]
    if not chosen:
        found = recognise(checkpoint, slot=slot, names_from=names, values=values)
        if found is not None:
            return found
        belongs = _weights_of(path)
        if belongs is not None:
            return _itself(checkpoint, path, *belongs, snapshot)
    if len(chosen or others) > 1:
        raise UsageError(
            f"{path}: there are several averages of it: {', '.join(item[0].name for item in others)}",
            path=path,
            hint=f"Name the one you want itself, or say {parameter('slot', others[0][0].name)}.",
        )
    for other, framework in chosen or others:
        return _from_files(path, other, framework, section, values, snapshot)
    raise NotFoundError(
        f"{path}: no moving average in it or next to it{_holds(checkpoint)}",
        path=path,
        hint="Did the run's configuration ask for one? From the checkpoints of a whole run, one can be computed: name "
        f"the model directory, with {parameter('decay', 0.9999)}.",
    )


def _holds(checkpoint: Checkpoint) -> str:
    place = f"at {checkpoint.section}" if checkpoint.section else "at the top level"
    return f" (it holds {len(checkpoint.weights):,} tensors {place}: {first_names(checkpoint.weights)})"


def _open(path: Path, section: str | None, snapshot: Snapshot) -> Checkpoint:
    """Open a checkpoint, also one that holds nothing but a list without names."""
    try:
        return open_checkpoint(path, section=section, snapshot=snapshot)
    except (UnsupportedError, UsageError):
        if section is not None:
            raise
        for key in [key for name, _ in LISTS for key in (name, f"ema.{name}")]:
            with suppress(CkpttoolError):
                return open_checkpoint(path, section=key, snapshot=snapshot)
        raise


def _pickled(path: Path) -> StoredAverage | None:
    """Modules that were pickled whole, as YOLOv5 and Ultralytics do: their tensors need none of their code."""
    from ckpttool.formats.pytorch.file import read_graph
    from ckpttool.formats.pytorch.modules import module_tensors
    from ckpttool.formats.pytorch.tensors import TensorReader

    with read_graph(path) as (graph, storages, provenance):
        if not isinstance(graph, Mapping):
            return None
        reader = TensorReader(storages)
        average = module_tensors(graph.get("ema"), reader.read, str(path))
        model = module_tensors(graph.get("model"), reader.read, str(path))
    if average:
        where, why = "ema", "ema is a pickled module, read without its code"
        trained = model if set(model) == set(average) else {}
    elif model and "ema" in graph:
        where, trained = "model", {}
        why = "ema is None and model a pickled module: strip_optimizer has put the average there"
    else:
        return None
    tensors = average or model
    checkpoint = Checkpoint(path, "torch", tensors, section=where, provenance=provenance, files=(path,))
    note = "only the tensors can be written, under the names of its state_dict: the module's code is not here"
    origin = Origin("YOLOv5, Ultralytics", where, why)
    return already_in_place(checkpoint, tensors, origin, trained=trained, renamed=True, notes=(note,))


def _itself(checkpoint: Checkpoint, path: Path, trained: Path, framework: str, snapshot: Snapshot) -> StoredAverage:
    missing = "" if snapshot.exists(trained) else ", which is not there"
    why = f"its name says that it is the average itself, the average of {trained.name}{missing}"
    return already_in_place(checkpoint, checkpoint.weights, Origin(framework, path.name, why))


def _from_files(
    path: Path, other: Path, framework: str, section: str | None, values: Values | None, snapshot: Snapshot
) -> StoredAverage:
    """An average in a file or directory of its own."""
    weights = open_checkpoint(weights_file(path, snapshot), section=section, snapshot=snapshot)
    average = _open(weights_file(other, snapshot), section, snapshot)
    stored = recognise(average, names_from=weights, values=values)
    if stored is not None and stored.source is average and stored.checkpoint is weights:
        return stored  # a list without names, or names without their dots
    if stored is not None and stored.renamed:
        average = replace(average, weights=stored.weights())
    names = match_names(average.weights, weights.weights)
    if names is None:
        raise MismatchError(
            f"{other}: its tensors do not match those of {path.name} by name and shape",
            path=other,
            hint="Are both of one model? Name the file that you want itself.",
        )
    why = f"{other.name} is next to {path.name}, and its tensors have the same names and shapes"
    return pair_with_weights(
        weights, weights.weights, average.weights, names, Origin(framework, other.name, why), source=average
    )
