"""What DeepSpeed ZeRO writes into its files, and where in them the elements of a parameter are.

Each rank's optimizer keeps float32 masters of its part of the parameters, in flat tensors. With stages 1 and 2 a group
of parameters is one flat tensor, cut into as many partitions as there are ranks: the partitions of all ranks, one after
the other, are the group. With stage 3 each parameter is cut by itself, into ceil(numel / ranks) elements for each rank,
and a rank's flat tensors hold its slices one after the other. Neither has names: those are in the model's file, in the
order of the elements. The layout is that of ``deepspeed/utils/zero_to_fp32.py`` in DeepSpeed 0.19.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
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
from ckpttool.tiling import in_runs

__all__ = ["CONVERT", "ModelStates", "Partitions", "frozen", "masters", "read_model_states", "read_partitions"]

Shape: TypeAlias = "tuple[int, ...]"

_OPTIMIZER = "optimizer_state_dict"
_FLAT = {1: "single_partition_of_fp32_groups", 2: "single_partition_of_fp32_groups", 3: "fp32_flat_groups"}
"""Under which key the masters are, by stage."""

_GAPS = "param_alignment_paddings"
_EXPERTS = ("ds_autoep_layers", "autoep_layers")
_PLAIN = (int, float, str, bool)
_MAX_NUMEL = 1 << 60
_MAX_DIMENSIONS = 64

CONVERT = (
    "With ZeRO 1 and 2, leave --section out: what the model is trained with is averaged file by file. With ZeRO 3, make"
    " a whole model of each checkpoint first, with the trainer's own converter."
)
"""What to do where ZeRO's partitions are not all that the model is cut into."""
_MIXED_UP = "Files of two checkpoints may have been mixed up."


@dataclass(frozen=True)
class ModelStates:
    """A ``*_model_states.pt``.

    Attributes:
        path: The file.
        module: What it holds of the model itself, by name: all with stages 1 and 2, with stage 3 the buffers, and
            placeholders without elements.
        shapes: Of each group of parameters that the optimizer has, name to shape in the order of the elements.
        buffers: Names of the buffers.
        shared: Names under which a parameter stands that has its elements under another one, which they map to.
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
            raise self.bad(f"{what} is not there, or is no mapping")
        return found

    def tensor(self, node: Any, what: str) -> TensorSpec:
        found = self._reader.read(node)
        if isinstance(found, TensorSpec):
            return found
        if found is None:
            raise self.bad(f"{what} is no tensor")
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
        found = self.sequence(node, f"a group of {_GAPS}")
        if not all(type(gap) is int and gap >= 0 for gap in found):
            raise self.bad(f"a group of {_GAPS} holds what is no number of elements")
        return tuple(found)

    def shapes(self, node: Any, what: str) -> dict[str, Shape]:
        return {self.name(name): self.shape(shape, str(name)) for name, shape in self.mapping(node, what).items()}

    def name(self, node: Any) -> str:
        if type(node) is not str:
            raise self.bad("the name of a parameter is no text")
        return node

    def sequence(self, node: Any, what: str) -> Sequence[Any]:
        if type(node) not in {list, tuple}:
            raise self.bad(f"{what} is not there, or is no list")
        found: Sequence[Any] = node
        return found

    def bad(self, what: str) -> UnreadableError:
        return UnreadableError(
            f"{self.path}: not as DeepSpeed writes it: {what}",
            path=self.path,
            hint="The file is damaged, or of a version of DeepSpeed that is not known here. zero_to_fp32.py, which lies"
            " beside the checkpoint, converts it.",
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
                # A module's extra state is no tensor, and no weight.
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
                hint="Other optimizers of DeepSpeed keep their masters in other ways. Without --section fp32, what the"
                " model is trained with is averaged.",
            )
        ranks = optimizer.get("partition_count")
        counts: list[Any] = ranks if type(ranks) is list else [ranks]  # one for each group, or one
        if not counts or not all(type(each) is int and each > 0 for each in counts):
            raise file.bad("partition_count is no number of ranks")
        if len(set(counts)) > 1 or optimizer.get("ds_zero_partition_groups"):
            raise UnsupportedError(
                f"{path}: some parameters are partitioned over fewer ranks than others, as those of experts are",
                path=path,
                hint=CONVERT,
            )
        key = _FLAT[stage]
        flat = [file.flat(each, key) for each in file.sequence(optimizer.get(key), key)]
        gaps = tuple(map(file.gaps, file.sequence(optimizer.get(_GAPS) or [], _GAPS)))
        return Partitions(path, stage, counts[0], tuple(flat), gaps)


# --- Putting together ------------------------------------------------------------------------------------------


class _Line:
    """Flat tensors, one after the other."""

    def __init__(self, flat: Sequence[TensorSpec]) -> None:
        self._flat = [each for each in flat if each.numel]
        self._starts = [0]
        for each in self._flat:
            self._starts.append(self._starts[-1] + each.numel)

    def __len__(self) -> int:
        return self._starts[-1]

    def cut(self, start: int, stop: int) -> list[TensorSpec]:
        """Elements [start, stop), which are there."""
        found = []
        at = bisect_right(self._starts, start) - 1
        while start < stop:
            flat, end = self._flat[at], min(stop, self._starts[at + 1])
            offset = flat.offset + start - self._starts[at]
            found.append(TensorSpec(flat.dtype, (end - start,), flat.storage, offset, big_endian=flat.big_endian))
            start, at = end, at + 1
        return found


def _assembled(shape: Shape, runs: Sequence[TensorSpec], like: TensorSpec) -> TensorSpec:
    """A parameter; one without elements is nowhere."""
    nothing = TensorSpec(like.dtype, (0,), like.storage, big_endian=like.big_endian)
    return in_runs(shape, runs or [nothing])


def masters(model: ModelStates, partitions: Sequence[Partitions]) -> dict[str, TensorSpec]:
    """The parameters that the optimizer has.

    Args:
        model: The first rank's file.
        partitions: Those of all ranks, in their order; of one stage.

    Raises:
        UnreadableError: They have not the elements that the shapes ask for, or a name stands there twice.
    """
    names = Counter(name for group in model.shapes for name in group)
    twice = next((name for name, times in names.items() if times > 1), None)
    if twice is not None:
        raise UnreadableError(
            f"{model.path}: {twice} is in two groups of param_shapes",
            path=model.path,
            tensor=twice,
            hint=_MIXED_UP,
        )
    first = partitions[0]
    for other in partitions:
        kinds = {(flat.dtype, flat.big_endian) for flat in (*first.flat, *other.flat)}
        if len(kinds) > 1 or len(other.flat) != len(first.flat) or other.gaps != first.gaps:
            raise UnreadableError(
                f"{other.path}: its groups are not those of {first.path.name}",
                path=other.path,
                hint=_MIXED_UP,
            )
    if not names and not any(flat.numel for flat in first.flat):
        return {}
    if not first.flat:
        raise _does_not_fit(first.path, 0, sum(map(math.prod, (s for g in model.shapes for s in g.values()))))
    return (_by_parameter if first.stage == 3 else _by_group)(model, partitions)


def _by_parameter(model: ModelStates, partitions: Sequence[Partitions]) -> dict[str, TensorSpec]:
    """Stage 3: a slice of each parameter in every rank."""
    shapes = {name: shape for group in model.shapes for name, shape in group.items()}
    lines = [_Line(each.flat) for each in partitions]
    wanted = sum(_share(shape, len(lines)) for shape in shapes.values())
    for line, each in zip(lines, partitions, strict=True):
        if len(line) != wanted:
            raise _does_not_fit(each.path, len(line), wanted)
    found = {}
    start = 0
    for name, shape in shapes.items():
        share, left = _share(shape, len(lines)), math.prod(shape)
        runs = []
        for line in lines:  # the last ones are padded
            runs += line.cut(start, start + min(share, left))
            left -= min(share, left)
        found[name] = _assembled(shape, runs, partitions[0].flat[0])
        start += share
    return found


def _share(shape: Shape, ranks: int) -> int:
    """How many elements of a parameter each rank has, padding included."""
    return -(-math.prod(shape) // ranks)


def _by_group(model: ModelStates, partitions: Sequence[Partitions]) -> dict[str, TensorSpec]:
    """Stages 1 and 2: each group in one line over all ranks."""
    first = partitions[0]
    if len(first.flat) != len(model.shapes):
        raise UnreadableError(
            f"{first.path}: {len(first.flat)} groups of parameters, and {model.path.name} names {len(model.shapes)}",
            path=first.path,
            hint=_MIXED_UP,
        )
    found = {}
    for index, shapes in enumerate(model.shapes):
        line = _Line([each.flat[index] for each in partitions])
        gaps = first.gaps[index] if first.gaps else (0,) * len(shapes)
        if len(first.gaps) not in {0, len(model.shapes)} or len(gaps) != len(shapes):
            raise UnreadableError(
                f"{first.path}: {_GAPS} has not one number for each parameter",
                path=first.path,
                hint=_MIXED_UP,
            )
        wanted = sum(map(math.prod, shapes.values())) + sum(gaps)
        # What is there for alignment may have been cut off, or not.
        step = 2 * len(partitions)
        if len(line) < wanted - (gaps[-1] if gaps else 0) or -(-len(line) // step) != -(-wanted // step):
            raise _does_not_fit(first.path, len(line), wanted)
        start = 0
        for (name, shape), gap in zip(shapes.items(), gaps, strict=True):
            numel = math.prod(shape)
            found[name] = _assembled(shape, line.cut(start, start + numel), first.flat[index])
            start += numel + gap
    return found


def frozen(models: Sequence[ModelStates]) -> dict[str, TensorSpec]:
    """The parameters that the optimizer does not have, of stage 3: a slice of each in every rank's file.

    Args:
        models: The files of all ranks, in their order.

    Raises:
        UnreadableError: A slice is missing, or too short.
    """
    found = {}
    for name, shape in models[0].frozen.items():
        share, left = _share(shape, len(models)), math.prod(shape)
        runs: list[TensorSpec] = []
        for each in models:
            fragment = each.fragments.get(name)
            if fragment is None or fragment.numel < min(share, left) or fragment.strides is not None:
                raise UnreadableError(
                    f"{each.path}: {name}: its slice is not there, or is not of {share:,} elements",
                    path=each.path,
                    tensor=name,
                    hint=_MIXED_UP,
                )
            if runs and (fragment.dtype, fragment.big_endian) != (runs[0].dtype, runs[0].big_endian):
                raise UnreadableError(
                    f"{each.path}: {name}: its slice is {fragment.dtype}, and {runs[0].dtype} in {models[0].path.name}",
                    path=each.path,
                    tensor=name,
                    hint=_MIXED_UP,
                )
            runs += _Line([fragment]).cut(0, min(share, left))
            left -= min(share, left)
        found[name] = _assembled(shape, runs, models[0].fragments[name])
    return found


def _does_not_fit(path: Path, there: int, wanted: int) -> UnreadableError:
    return UnreadableError(
        f"{path}: the optimizer's partitions have {there:,} elements, and the parameters need {wanted:,}",
        path=path,
        hint=f"{_MIXED_UP} Or the masters were swapped to a disk (NVMe offload), and are not in the file.",
    )
