"""Looks at what was written: read like any other file, does it have the planned tensors in the planned places?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ckpttool.errors import CkpttoolError
from ckpttool.formats import get_format
from ckpttool.planning.plan import Plan
from ckpttool.reading.tiled import pieces_of
from ckpttool.tensors import TensorSpec
from ckpttool.text import tensor_label

__all__ = ["read_back"]


def read_back(plan: Plan) -> Callable[[Path], None]:
    """A check that the written file, read like any other, has the planned tensors in the planned places."""

    def verify(path: Path) -> None:
        template = plan.artifact.template
        section = template.section if template is not None and template.format == plan.format else None
        written = get_format(plan.format).read(path, section=section or None)
        found = {_place(part): part for spec in written.tensors().values() for part in pieces_of(spec)}
        for file in plan.files:
            place = path / file.name if file.name else path
            for slot in file.slots:
                output = plan.artifact.tensors[slot.tensor]
                shape = output.shape if slot.region is None else slot.region.sizes
                spec = found.get((place, slot.offset)) if slot.nbytes else None
                if slot.nbytes and (
                    spec is None or (spec.dtype, spec.shape, spec.strides) != (output.dtype, shape, output.strides)
                ):
                    raise CkpttoolError(
                        f"{plan.output}: {tensor_label(slot.tensor)} does not read back as planned; nothing was kept",
                        path=plan.output,
                        tensor=tensor_label(slot.tensor),
                        hint="This is a defect of ckpttool. Please report it, with the plan.",
                    )

    return verify


def _place(spec: TensorSpec) -> tuple[Path, int]:
    """File and byte offset of a tensor's first element."""
    return spec.storage.path, spec.storage.offset + spec.offset * spec.dtype.itemsize
