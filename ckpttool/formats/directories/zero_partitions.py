"""Where in the files of DeepSpeed ZeRO the elements of a parameter are.

With stages 1 and 2 the partitions of all ranks, one after the other, are a group of parameters; with stage 3 every rank
has ceil(numel / ranks) elements of each parameter. See `ckpttool.formats.directories.zero_files`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ckpttool.errors import UnreadableError
from ckpttool.formats.directories.common import MIXED_UP
from ckpttool.formats.directories.zero_files import GAPS, ModelStates, Partitions, Shape
from ckpttool.tensors import TensorSpec
from ckpttool.tiling import in_runs

__all__ = ["frozen", "masters"]


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
        UnreadableError: They have not the elements that the shapes ask for, or a name occurs twice.
    """
    names = Counter(name for group in model.shapes for name in group)
    twice = next((name for name, times in names.items() if times > 1), None)
    if twice is not None:
        raise UnreadableError(
            f"{model.path}: {twice} is in two groups of param_shapes",
            path=model.path,
            tensor=twice,
            hint=MIXED_UP,
        )
    first = partitions[0]
    for other in partitions:
        kinds = {(flat.dtype, flat.big_endian) for flat in (*first.flat, *other.flat)}
        if len(kinds) > 1 or len(other.flat) != len(first.flat) or other.gaps != first.gaps:
            raise UnreadableError(
                f"{other.path}: its groups are not those of {first.path.name}",
                path=other.path,
                hint=MIXED_UP,
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
            hint=MIXED_UP,
        )
    found = {}
    for index, shapes in enumerate(model.shapes):
        line = _Line([each.flat[index] for each in partitions])
        gaps = first.gaps[index] if first.gaps else (0,) * len(shapes)
        if len(first.gaps) not in {0, len(model.shapes)} or len(gaps) != len(shapes):
            raise UnreadableError(
                f"{first.path}: {GAPS} has not one number for each parameter",
                path=first.path,
                hint=MIXED_UP,
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
                    f"{each.path}: {name}: its slice is missing, or is not of {share:,} elements",
                    path=each.path,
                    tensor=name,
                    hint=MIXED_UP,
                )
            if runs and (fragment.dtype, fragment.big_endian) != (runs[0].dtype, runs[0].big_endian):
                raise UnreadableError(
                    f"{each.path}: {name}: its slice is {fragment.dtype}, and {runs[0].dtype} in {models[0].path.name}",
                    path=each.path,
                    tensor=name,
                    hint=MIXED_UP,
                )
            runs += _Line([fragment]).cut(0, min(share, left))
            left -= min(share, left)
        found[name] = _assembled(shape, runs, models[0].fragments[name])
    return found


def _does_not_fit(path: Path, there: int, wanted: int) -> UnreadableError:
    return UnreadableError(
        f"{path}: the optimizer's partitions have {there:,} elements, and the parameters need {wanted:,}",
        path=path,
        hint=f"{MIXED_UP} Or the masters were swapped to a disk (NVMe offload), and are not in the file.",
    )
