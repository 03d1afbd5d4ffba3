"""PyTorch's checkpoint files, read and written without PyTorch.

Reads what torch.save writes since 0.4 (the zip format since 1.6, and the older one) under any file name, and writes
the zip format. Nothing that a file names is imported or called; see `inert_pickle`. With a template of this format,
the output is the template's own object with other tensors in it: whatever a framework stores next to the weights stays.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckpttool.errors import CkpttoolError, MismatchError, UnreadableError, UnsupportedError
from ckpttool.formats.archives.zip_reader import Archive, first_name, open_archive
from ckpttool.formats.container import KeyPath, at, dotted
from ckpttool.formats.description import Implementation
from ckpttool.formats.pickles.emitter import dump
from ckpttool.formats.pickles.inert import Inert, load
from ckpttool.formats.pytorch.legacy import is_legacy, is_legacy_tar, read_legacy
from ckpttool.formats.pytorch.tensors import Refused, Storages, TensorReader, storage_ref
from ckpttool.formats.pytorch.tree import Opaque, in_words, items_of, plain_tree
from ckpttool.formats.pytorch.writer import lay_out_graph, plain_graph
from ckpttool.formats.sections import Located, locate
from ckpttool.reading.opened import OpenedFile
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import Artifact, Checkpoint, OtherEntry, OutputFile, TensorSpec
from ckpttool.text import parameter

__all__ = [
    "IMPLEMENTATION",
    "NAME",
    "PROVENANCE",
    "TorchContainer",
    "lay_out",
    "no_garbage",
    "read",
    "read_graph",
    "read_inside",
    "recognise",
]

NAME = "torch"

PROVENANCE = "ckpttool.json"
"""The record of the archive that says what an output was made of. torch.load does not look at it."""

_PICKLE = "data.pkl"
_BARE = "tensor"
"""Name of the tensor of a file that holds nothing else."""
_MAX_PROVENANCE = 1 << 24


@dataclass(frozen=True)
class TorchContainer:
    """What a torch file holds, for writing one like it.

    Attributes:
        graph: The object, inert.
        reader: Tells its tensors, and where their bytes are.
        located: What is where in it.
        is_bare: Whether the file holds one tensor and nothing else. `graph` is a list of it then.
    """

    graph: Any
    reader: TensorReader
    located: Located
    is_bare: bool = False


def recognise(path: Path, head: bytes, snapshot: Snapshot) -> bool:  # noqa: ARG001  # the head decides
    """Whether a file that starts like this is one of torch's, or a pickle at all (of which `read` says what it is)."""
    if is_legacy(head) or is_legacy_tar(head):
        return True
    name = first_name(head)
    if not name:
        return False
    if name.endswith((f"/{_PICKLE}", ".npy")):
        return not name.endswith(".npy")
    try:
        return _top(open_archive(path)) is not None
    except UnreadableError:
        # A zip archive without its end. NumPy's were told apart by the name of their first record.
        return True


@contextmanager
def no_garbage() -> Iterator[None]:
    """Let the collector rest: all objects of a pickle stay, and looking through them again and again costs a third."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@no_garbage()
def read(path: Path, *, section: str | None = None, snapshot: Snapshot | None = None) -> Checkpoint:  # noqa: ARG001
    """Open a torch file without reading any weight.

    Args:
        path: The file.
        section: Dotted key path of the weights, where they are not found by themselves.
        snapshot: The operation's view of the storage; None: a new one.

    Raises:
        UsageError: The weights may be in several places, or are not where `section` says.
        UnreadableError: The file is truncated, damaged or malicious.
        UnsupportedError: TorchScript, the format of torch 0.1, a pickle that torch did not write, or weights that
            cannot be averaged (quantized, sparse, nested, on the meta device).
    """
    with read_graph(path) as (graph, storages, provenance):
        return _checkpoint(path, section, graph, storages, provenance)


@contextmanager
def read_graph(path: Path) -> Iterator[tuple[Any, Storages, Mapping[str, Any] | None]]:
    """The object that a torch file holds, inert; where its storages are; and what an earlier run wrote into it.

    For what is not a tree of tensors: a pickled module, which `read` has to refuse.

    Args:
        path: The file, which stays open inside the ``with``: looking a storage up is cheap there.

    Raises:
        UnreadableError: As `read`.
        UnsupportedError: As `read`, but for weights.
    """
    with OpenedFile(path) as file:
        head = file.read_at(0, 512)
    if is_legacy_tar(head):
        raise UnsupportedError(
            f"{path}: the tar format of PyTorch 0.1",
            path=path,
            hint="Load it with an old torch (weights_only=False) and save it again, if you trust the file.",
        )
    if head[:2] != b"PK":
        yield (*read_legacy(path), None)
        return
    with _graph_in(open_archive(path)) as found:
        yield found


@no_garbage()
def read_inside(path: Path, base: int, nbytes: int, *, section: str | None = None) -> Checkpoint:
    """Open a torch file of the zip format that is a part of another file, as `read` does.

    Args:
        path: The other file.
        base: Where in it the torch file begins.
        nbytes: How long that is.
        section: As for `read`.

    Raises:
        UsageError: As `read`.
        UnreadableError: As `read`.
        UnsupportedError: As `read`, and for the format before PyTorch 1.6.
    """
    with OpenedFile(path) as file:
        if file.read_at(base, 2) != b"PK":
            raise UnsupportedError(
                f"{path}: what it holds is not in the zip format of PyTorch 1.6 and newer", path=path
            )
    with _graph_in(open_archive(path, base=base, nbytes=nbytes)) as (graph, storages, provenance):
        return _checkpoint(path, section, graph, storages, provenance)


@contextmanager
def _graph_in(archive: Archive) -> Iterator[tuple[Any, Storages, Mapping[str, Any] | None]]:
    path = archive.path
    with archive.opened():
        top = _top(archive)
        if top is None:
            raise UnsupportedError(f"{path}: a zip archive that torch.save did not write", path=path)
        if f"{top}/constants.pkl" in archive.names or any(name.startswith(f"{top}/code/") for name in archive.names):
            raise UnsupportedError(
                f"{path}: a TorchScript program, not a checkpoint",
                path=path,
                hint="Average the checkpoints that it was exported from, or save torch.jit.load(...).state_dict().",
            )
        try:
            graph, _ = load(archive.read(f"{top}/{_PICKLE}"), path=path, persistent_load=storage_ref)
        except EOFError as error:
            raise UnreadableError(
                f"{path}: the record {_PICKLE} is cut short",
                path=path,
                hint="The run may have been interrupted while it was saving, or a copy was not finished.",
            ) from error
        storages = Storages(
            path, lambda ref: archive.extent(f"{top}/data/{ref.key}"), big_endian=_is_big_endian(archive, top)
        )
        yield graph, storages, _provenance(archive, top)


def _top(archive: Archive) -> str | None:
    """The directory inside the archive that everything is in: that of the first data.pkl."""
    for name in archive.names:
        if name.endswith(f"/{_PICKLE}") and name.count("/") == 1:
            return name[: -len(_PICKLE) - 1]
    return None


def _is_big_endian(archive: Archive, top: str) -> bool:
    name = f"{top}/byteorder"
    if name not in archive.names:
        return False
    order = archive.read(name)
    if order not in {b"little", b"big"}:
        raise UnreadableError(f"{archive.path}: unknown byte order {order[:20]!r}", path=archive.path)
    return order == b"big"


def _provenance(archive: Archive, top: str) -> Mapping[str, Any] | None:
    name = f"{top}/{PROVENANCE}"
    if name not in archive.names or archive.entry(name).nbytes > _MAX_PROVENANCE:
        return None
    try:
        said = json.loads(archive.read(name))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"{archive.path}: the record {PROVENANCE} is not JSON", path=archive.path) from error
    return said if isinstance(said, dict) else None


def tree(checkpoint: Checkpoint) -> Any:
    """The object of a checkpoint that `read` opened, as nested containers; None for one without its container."""
    container = checkpoint.container
    return plain_tree(container.graph, container.reader, []) if isinstance(container, TorchContainer) else None


def _checkpoint(
    path: Path, section: str | None, graph: Any, storages: Storages, provenance: Mapping[str, Any] | None
) -> Checkpoint:
    refused: list[tuple[KeyPath, Refused]] = []
    reader = TensorReader(storages)
    tree = plain_tree(graph, reader, refused)
    is_bare = isinstance(tree, TensorSpec)
    if is_bare:
        graph, tree = [graph], [tree]
    if isinstance(tree, list):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        if refused:
            raise _refusal(path, *refused[0])
        kind = tree.kind if isinstance(tree, Opaque) else f"a single {type(tree).__name__}"
        raise UnsupportedError(
            f"{path}: the file holds {kind}, not a state dict",
            path=path,
            hint="Save model.state_dict() instead of the model: its class is needed to look into it.",
        )
    try:
        located = locate(tree, section, path=path)
    except UnsupportedError as error:
        if refused:
            raise _refusal(path, *refused[0]) from error
        raise
    if is_bare:
        located = replace(located, weights={_BARE: (0,)})
    places = [located.weights, *located.copies.values()]
    parents = {place[:-1] for names in places for place in names.values()}
    for place, what in refused:
        if place[:-1] in parents:
            raise _refusal(path, place, what)

    def specs(places: Mapping[str, KeyPath]) -> dict[str, TensorSpec]:
        return {name: at(tree, place) for name, place in places.items()}

    return Checkpoint(
        path=path,
        format=NAME,
        weights=specs(located.weights),
        copies={section: specs(names) for section, names in located.copies.items()},
        section=located.section,
        step=located.step,
        values={**_arguments(graph), **located.values},
        provenance=provenance,
        files=(path,),
        state=tuple(dotted(part.path) for part in located.state),
        other_entries={
            name: OtherEntry(in_words(value), _fingerprint(value)) for name, value in located.others.items()
        },
        notes=located.notes,
        container=TorchContainer(graph, reader, located, is_bare=is_bare),
    )


def _arguments(graph: Any) -> dict[str, Any]:
    """The plain values of a training program's arguments, which are pickled as an `argparse.Namespace`."""
    found: dict[str, Any] = {}
    for key, value in (items_of(graph) or {}).items():
        if isinstance(value, Inert) and value.qualified in {"argparse.Namespace", "types.SimpleNamespace"}:
            for state in value.states:
                named = state.items() if type(state) is dict else ()
                found.update((f"{key}.{name}", each) for name, each in named if isinstance(each, (str, int, float)))
    return found


def _fingerprint(value: Any) -> str:
    """A text that is the same for two values only if they are; empty where that cannot be told."""
    if not isinstance(value, Opaque):
        return repr(value)
    if value.node is None:
        return ""
    try:
        return hashlib.sha256(dump(value.node)).hexdigest()
    except CkpttoolError:
        return ""


def _refusal(path: Path, place: KeyPath, what: Refused) -> UnsupportedError:
    return UnsupportedError(
        f"{path}: {dotted(place)} is {what.kind}",
        path=path,
        tensor=dotted(place),
        hint=f"Only dense tensors with data can be averaged. {parameter('section')} names others, if there are any.",
    )


def lay_out(artifact: Artifact) -> tuple[OutputFile, ...]:
    """Give every byte of a torch file its place.

    Raises:
        MismatchError: The artifact has a tensor that its template has no place for.
        UnsupportedError: The template holds something that cannot be written back.
    """
    template = artifact.template
    records = {}
    if artifact.provenance:
        said = json.dumps(artifact.provenance, ensure_ascii=False, indent=1, sort_keys=True)
        records[PROVENANCE] = said.encode()
    if template is None or template.format != NAME:
        return (lay_out_graph(plain_graph(artifact), artifact, None, None, records),)
    container: TorchContainer = template.container
    located = container.located
    homes = {("", name): place for name, place in located.weights.items()}
    for section, names in located.copies.items():
        homes.update({(section, name): place for name, place in names.items()})
    homeless = [name for section, name in artifact.tensors if (section, name) not in homes]
    if homeless:
        raise MismatchError(
            f"{template.path}: no place for {len(homeless)} tensors that it does not have: {', '.join(homeless[:3])}",
            path=template.path,
            tensor=homeless[0],
        )
    graph, reader = container.graph, container.reader
    return (lay_out_graph(graph, artifact, located, reader, records, homes, unwrap=container.is_bare),)


IMPLEMENTATION = Implementation(recognise, read, lay_out, tree=tree)
