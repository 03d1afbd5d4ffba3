"""Directories of torch.distributed.checkpoint with any sharding, written by torch's own planner and writer.

What a rank of a real run would do is done here for one rank after the other, in one process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from ckpttool.tensors import Region

Sharding = Sequence[tuple[int, Region]]
"""(rank, what it has of a tensor)."""


class _Planner(DefaultSavePlanner):
    def __init__(self, flat: Mapping[str, Any], cuts: Mapping[str, Sharding]) -> None:
        super().__init__()
        self._flat = flat
        self._cuts = cuts

    def lookup_object(self, index: MetadataIndex) -> Any:
        value = self._flat[index.fqn]
        if not isinstance(value, torch.Tensor):
            return value
        region = next(region for _, region in self._cuts[index.fqn] if region.offsets == tuple(index.offset or ()))
        return value[tuple(slice(start, start + size) for start, size in zip(*region, strict=True))]


def whole(value: torch.Tensor, rank: int = 0) -> Sharding:
    """A tensor that is on one rank."""
    return [(rank, Region((0,) * value.ndim, tuple(value.shape)))]


def split(value: torch.Tensor, axis: int, sizes: Sequence[int]) -> Sharding:
    """A tensor cut along one dimension, a piece for each rank. Empty pieces begin at the end, as torch's own do."""
    assert sum(sizes) == value.shape[axis]
    cut = []
    start = 0
    for rank, size in enumerate(sizes):
        begin = start if size else value.shape[axis]
        offsets = tuple(begin if dim == axis else 0 for dim in range(value.ndim))
        cut.append((rank, Region(offsets, tuple(size if dim == axis else n for dim, n in enumerate(value.shape)))))
        start += size
    return cut


def flatten(state: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Nested dicts as torch flattens them; lists stay whole."""
    flat: dict[tuple[str, ...], Any] = {}
    for key, value in state.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, (*path, key)))
        else:
            flat[(*path, key)] = value
    return flat


def save(path: Path, state: Mapping[str, Any], cuts: Mapping[str, Sharding] | None = None, **writer: Any) -> None:
    """Save a nested state dict.

    Args:
        path: The directory.
        state: Nested dicts of tensors and small objects.
        cuts: How tensors are cut, by their dotted key; the others lie on the first rank, as all objects do.
        **writer: Options of torch's writer.
    """
    by_path = flatten(state)
    flat = {".".join(keys): value for keys, value in by_path.items()}
    all_cuts = {key: whole(value) for key, value in flat.items() if isinstance(value, torch.Tensor)} | dict(cuts or {})
    ranks = 1 + max((rank for cut in all_cuts.values() for rank, _ in cut), default=0)
    items: list[list[WriteItem]] = [[] for _ in range(ranks)]
    for key, value in flat.items():
        if not isinstance(value, torch.Tensor):
            items[0].append(WriteItem(index=MetadataIndex(key), type=WriteItemType.BYTE_IO))
            continue
        for rank, region in all_cuts[key]:
            chunk = ChunkStorageMetadata(torch.Size(region.offsets), torch.Size(region.sizes))
            data = TensorWriteData(chunk, TensorProperties.create_from_tensor(value), value.size())
            index = MetadataIndex(key, torch.Size(region.offsets))
            items[rank].append(WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data))
    planner = _Planner(flat, all_cuts)
    storage = FileSystemWriter(path, sync_files=False, **writer)
    storage.set_up_storage_writer(True)
    mapping = {".".join(keys): keys for keys in by_path}
    plans = [storage.prepare_local_plan(SavePlan(own, planner_data=mapping)) for own in items]
    plans, metadata = planner.create_global_plan(plans)
    plans = storage.prepare_global_plan(plans)
    results = [storage.write_data(plan, planner).value() for plan in plans]
    storage.finish(metadata, results)
