"""What DeepSpeed ZeRO writes into its files.

Each rank's optimizer keeps float32 masters of its part of the parameters, in flat tensors. With stages 1 and 2 a group
of parameters is one flat tensor, cut into as many partitions as there are ranks: the partitions of all ranks, one after
the other, are the group. With stage 3 each parameter is cut by itself, into ceil(numel / ranks) elements for each rank,
and a rank's flat tensors hold its slices one after the other. Neither has names: those are in the model's file, in the
order of the elements. The layout is that of ``deepspeed/utils/zero_to_fp32.py`` in DeepSpeed 0.19.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ckpttool.errors import UnreadableError, UnsupportedError
from ckpttool.formats.pickles.inert import Inert
from ckpttool.formats.pytorch.file import no_garbage, read_graph
from ckpttool.formats.pytorch.tensors import TensorReader
from ckpttool.formats.pytorch.tree import items_of
from ckpttool.tensors import TensorSpec
from ckpttool.text import parameter

__all__ = ["CONVERT", "GAPS", "ModelStates", "Partitions", "Shape", "read_model_states", "read_partitions"]

Shape: TypeAlias = "tuple[int, ...]"

_OPTIMIZER = "optimizer_state_dict"
_FLAT = {1: "single_partition_of_fp32_groups", 2: "single_partition_of_fp32_groups", 3: "fp32_flat_groups"}
"""Under which key the masters are, by stage."""

GAPS = "param_alignment_paddings"
_EXPERTS = ("ds_autoep_layers", "autoep_layers")
_PLAIN = (int, float, str, bool)
_MAX_NUMEL = 1 << 60
_MAX_DIMENSIONS = 64

CONVERT = (
    f"With ZeRO 1 and 2, call it without {parameter('section')}: what the model is trained with is averaged file by"
    " file. With ZeRO 3, make a whole model of each checkpoint first, with the trainer's own converter."
)
"""What to do where ZeRO's partitions are not all that the model is cut into."""


@dataclass(frozen=True)
class ModelStates:
    """A ``*_model_states.pt``.

    Attributes:
        path: The file.
        module: What it holds of the model itself, by name: all with stages 1 and 2, with stage 3 the buffers, and
            placeholders without elements.
        shapes: Of each group of parameters that the optimizer has, name to shape in the order of the elements.
        buffers: Names of the buffers.
        shared: Further names of a parameter, mapped to the one under which its elements are.
        frozen: Name to shape of the parameters that the optimizer does not have.
        fragments: With stage 3, this rank's slices of those.
        step: The training step.
        values: Further small values.
    """

    path: Path
    module: Mapping[str, TensorSpec]
    shapes: tuple[Mapping[str, Shape], ...]
    buffers: tuple[str, ...]
    shared: Mapping[str, str]
    frozen: Mapping[str, Shape]
    fragments: Mapping[str, TensorSpec]
    step: int | None
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Partitions:
    """A ``*_optim_states.pt``.

    Attributes:
        path: The file.
        stage: Of ZeRO: 1, 2 or 3.
        ranks: How many such files there are.
        flat: The flat tensors, of one dimension each.
        gaps: With stages 1 and 2, of each group the elements that follow each parameter for alignment; empty for none.
    """

    path: Path
    stage: int
    ranks: int
    flat: tuple[TensorSpec, ...]
    gaps: tuple[tuple[int, ...], ...] = ()


# --- Reading ---------------------------------------------------------------------------------------------------


class _File:
    """An open file, and its complaints."""

    def __init__(self, path: Path, reader: TensorReader) -> None:
        self.path = path
        self._reader = reader

    def mapping(self, node: Any, what: str) -> dict[Any, Any]:
        found = items_of(node)
        if found is None:
            raise self.bad(f"{what} is missing, or is not a mapping")
        return found

    def tensor(self, node: Any, what: str) -> TensorSpec:
        found = self._reader.read(node)
        if isinstance(found, TensorSpec):
            return found
        if found is None:
            raise self.bad(f"{what} is not a tensor")
        raise UnsupportedError(
            f"{self.path}: {what} is {found.kind}",
            path=self.path,
            tensor=what,
            hint="Only dense tensors with data can be averaged.",
        )

    def flat(self, node: Any, what: str) -> TensorSpec:
        found = self.tensor(node, what)
        if len(found.shape) != 1 or found.strides is not None or found.dtype.kind != "float":
            raise self.bad(f"{what} has shape {list(found.shape)} of {found.dtype}, and should be flat")
        return found

    def shape(self, node: Any, what: str) -> Shape:
        if isinstance(node, Inert) and node.qualified == "torch.Size" and node.args:
            node = node.args[0]
        if (
            type(node) not in {tuple, list}
            or len(node) > _MAX_DIMENSIONS
            or not all(type(size) is int and size >= 0 for size in node)
            or math.prod(node) > _MAX_NUMEL
        ):
            raise self.bad(f"{what} has no shape")
        return tuple(node)

    def gaps(self, node: Any) -> tuple[int, ...]:
        found = self.sequence(node, f"a group of {GAPS}")
        if not all(type(gap) is int and gap >= 0 for gap in found):
            raise self.bad(f"a group of {GAPS} holds what is not a number of elements")
        return tuple(found)

    def shapes(self, node: Any, what: str) -> dict[str, Shape]:
        return {self.name(name): self.shape(shape, str(name)) for name, shape in self.mapping(node, what).items()}

    def name(self, node: Any) -> str:
        if type(node) is not str:
            raise self.bad("the name of a parameter is not a string")
        return node

    def sequence(self, node: Any, what: str) -> Sequence[Any]:
        if type(node) not in {list, tuple}:
            raise self.bad(f"{what} is missing, or is not a list")
        found: Sequence[Any] = node
        return found

    def bad(self, what: str) -> UnreadableError:
        return UnreadableError(
            f"{self.path}: not as DeepSpeed writes it: {what}",
            path=self.path,
            hint="The file is damaged, or of a version of DeepSpeed that is not known here. zero_to_fp32.py, which is"
            " next to the checkpoint, converts it.",
        )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[dict[Any, Any], _File]]:
    with no_garbage(), read_graph(path) as (graph, storages, _):
        file = _File(path, TensorReader(storages))
        yield file.mapping(graph, "the whole"), file


def read_model_states(path: Path) -> ModelStates:
    """Open the file that has the names. No weight is read.

    Raises:
        UnreadableError: It is truncated or damaged, or has not what it should.
        UnsupportedError: It is of a model whose experts are partitioned by themselves.
    """
    with _opened(path) as (states, file):
        if any(states.get(key) for key in _EXPERTS):
            raise UnsupportedError(
                f"{path}: of a model whose experts are partitioned apart from the rest",
                path=path,
                hint=CONVERT,
            )
        module = file.mapping(states.get("module") or {}, "module")
        fragments = file.mapping(states.get("frozen_param_fragments") or {}, "frozen_param_fragments")
        shared = file.mapping(states.get("shared_params") or {}, "shared_params")
        step = states.get("global_steps")
        return ModelStates(
            path=path,
            module={
                name: file.tensor(node, name)
                for name, node in module.items()
                # A module's extra state is not a tensor.
                if type(name) is str and not name.endswith("_extra_state")
            },
            shapes=tuple(
                file.shapes(each, "a group of param_shapes")
                for each in file.sequence(states.get("param_shapes"), "param_shapes")
            ),
            buffers=tuple(map(file.name, file.sequence(states.get("buffer_names") or [], "buffer_names"))),
            shared={file.name(alias): file.name(name) for alias, name in shared.items()},
            frozen=file.shapes(states.get("frozen_param_shapes") or {}, "frozen_param_shapes"),
            fragments={file.name(name): file.tensor(node, name) for name, node in fragments.items()},
            step=step if type(step) is int and step >= 0 else None,
            values={key: value for key, value in states.items() if type(key) is str and type(value) in _PLAIN},
        )


def read_partitions(path: Path) -> Partitions:
    """Open the file of one rank's optimizer. No weight is read.

    Raises:
        UnreadableError: It is truncated or damaged, or has not what it should.
        UnsupportedError: The optimizer is not one of ZeRO, or parts of the model are partitioned in another way.
    """
    with _opened(path) as (states, file):
        optimizer = file.mapping(states.get(_OPTIMIZER), _OPTIMIZER)
        stage = optimizer.get("zero_stage")
        if isinstance(stage, Inert):  # an enumeration: its class, called with its value
            stage = stage.args[0] if len(stage.args) == 1 else None
        if type(stage) is not int or stage not in _FLAT:
            raise UnsupportedError(
                f"{path}: does not say that it is of ZeRO 1, 2 or 3",
                path=path,
                hint="Other optimizers of DeepSpeed keep their masters in other ways. Without"
                f" {parameter('section', 'fp32')}, what the model is trained with is averaged.",
            )
        ranks = optimizer.get("partition_count")
        counts: list[Any] = ranks if type(ranks) is list else [ranks]  # one for each group, or one
        if not counts or not all(type(each) is int and each > 0 for each in counts):
            raise file.bad("partition_count is not a number of ranks")
        if len(set(counts)) > 1 or optimizer.get("ds_zero_partition_groups"):
            raise UnsupportedError(
                f"{path}: some parameters are partitioned over fewer ranks than others, as those of experts are",
                path=path,
                hint=CONVERT,
            )
        key = _FLAT[stage]
        flat = [file.flat(each, key) for each in file.sequence(optimizer.get(key), key)]
        gaps = tuple(map(file.gaps, file.sequence(optimizer.get(GAPS) or [], GAPS)))
        return Partitions(path, stage, counts[0], tuple(flat), gaps)
