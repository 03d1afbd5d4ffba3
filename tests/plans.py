"""Plans made by hand, so that the engine is tested without the planner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckpttool.formats import get_format, open_checkpoint
from ckpttool.planning.plan import Action, Member, Plan, PlannedTensor, Term
from ckpttool.tensors import DTYPES, Artifact, OutputTensor, TensorId, TensorSpec


def build_plan(
    paths: Sequence[Path],
    output: Path,
    *,
    weights: Sequence[float] | None = None,
    dtype: str | None = None,
    actions: Mapping[str, Action] | None = None,
    tensors: Sequence[Mapping[str, TensorSpec]] | None = None,
    output_strides: Mapping[str, tuple[int, ...]] | None = None,
    **fields: Any,
) -> Plan:
    """A plan for safetensors files: a uniform mean, or a weighted sum. The last path is the newest.

    `tensors`, where given, are the members' tensors in place of what the files' headers say.
    """
    checkpoints = [open_checkpoint(path) for path in paths]
    specs = (
        [dict(checkpoint.weights) for checkpoint in checkpoints] if tensors is None else [dict(one) for one in tensors]
    )
    uniform = weights is None
    factors = [1.0] * len(paths) if weights is None else list(weights)
    outputs: dict[TensorId, OutputTensor] = {}
    ties: dict[TensorId, TensorId] = {}
    planned: list[PlannedTensor] = []
    first_of: dict[TensorSpec, TensorId] = {}
    for name, spec in specs[-1].items():
        averaged = spec.dtype.is_averaged
        strides = (output_strides or {}).get(name)
        outputs["", name] = out = OutputTensor(
            DTYPES[dtype] if dtype and spec.dtype.kind == "float" else spec.dtype, spec.shape, strides
        )
        if spec in first_of:
            ties["", name] = first_of[spec]
            continue
        first_of[spec] = ("", name)
        action: Action = (actions or {}).get(name, "average" if averaged else "newest")
        terms = [
            Term(member, factors[member] if action == "average" else 1.0, specs[member][name])
            for member in range(len(paths))
            if action != "average" or factors[member] != 0
        ]
        planned.append(PlannedTensor(("", name), action, out, tuple(terms), newest=len(terms) - 1))
    artifact = Artifact(outputs, ties, template=checkpoints[-1], provenance=fields.pop("provenance", {}))
    format_name = fields.pop("format", "safetensors")
    return Plan(
        members=tuple(
            Member(checkpoint, 1 / len(paths) if uniform else factor)
            for checkpoint, factor in zip(checkpoints, factors, strict=True)
        ),
        divisor=float(len(paths)) if uniform else 1.0,
        tensors=tuple(planned),
        output=output,
        format=format_name,
        artifact=artifact,
        files=get_format(format_name).lay_out(artifact),
        **fields,
    )
