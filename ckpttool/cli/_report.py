"""A plan and its result in words, in tables and as JSON. The JSON is public interface: docs/json.md."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ckpttool._version import __version__
from ckpttool.cli._output import Output, format_bytes, format_count
from ckpttool.cli._show import shown_columns
from ckpttool.cli._wording import spoken
from ckpttool.planning.plan import Plan
from ckpttool.tensors import Skipped
from ckpttool.text import first_names, tensor_label

if TYPE_CHECKING:
    from ckpttool.engine.run import Result

__all__ = [
    "NOISE",
    "SCHEMA_VERSION",
    "Details",
    "document",
    "facts",
    "print_notes",
    "print_plan",
    "print_result",
    "print_start",
]

SCHEMA_VERSION = 1

NOISE = "(the coefficients without their signs add up to it; 1 is the least)"
"""What the noise of coefficients is, next to its number."""


@dataclass(frozen=True)
class Details:
    """What a command has to say about a plan beyond what every plan says.

    Attributes:
        columns: Further columns of the table of members: a title, and a cell for each member in the plan's order.
        rows: Further rows of the plan's own table: what, and its value.
        document: Further entries of the JSON document.
        start: The sentence at the start of the work; None: how many checkpoints are averaged.
    """

    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    rows: Sequence[tuple[str, str]] = ()
    document: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None


def facts(plan: Plan) -> dict[str, int]:
    """The counts of a plan: tensors, averaged, kept, tied, parameters, bytes."""
    weights = [tensor for tensor in plan.tensors if not tensor.id[0]]
    return {
        "tensors": len(plan.artifact.tensors),
        "averaged": sum(tensor.action == "average" for tensor in plan.tensors),
        "kept": sum(tensor.action != "average" for tensor in plan.tensors),
        "tied": len(plan.artifact.ties),
        "parameters": sum(math.prod(tensor.output.shape) for tensor in weights),
        "bytes_to_read": plan.bytes_to_read,
        "bytes_to_write": plan.bytes_to_write,
    }


def document(
    plan: Plan,
    command: str,
    *,
    result: Result | None,
    peak_memory: int,
    details: Details | None = None,
    show: Sequence[str] = (),
) -> dict[str, Any]:
    """The plan, the result where there is one, and the tensors that shall be shown, as JSON-able values."""
    return {
        "schema": SCHEMA_VERSION,
        "ckpttool": __version__,
        "command": command,
        "dry_run": result is None,
        "members": [
            {
                "path": str(member.checkpoint.path),
                "step": member.step,
                "coefficient": member.coefficient,
                "bytes": _member_bytes(plan, index),
            }
            for index, member in enumerate(plan.members)
        ],
        "selection": plan.selection or None,
        "unit": plan.unit,
        "skipped": [{"path": str(skipped.path), "reason": spoken(skipped.reason)} for skipped in plan.skipped],
        "output": {"path": str(plan.output), "format": plan.format},
        "left_out": [{"path": str(item.path), "reason": item.reason} for item in plan.left_out],
        **facts(plan),
        "peak_memory": peak_memory,
        **(details.document if details else {}),
        "notes": [spoken(note) for note in plan.notes],
        "warnings": [spoken(warning) for warning in plan.warnings],
        "result": None
        if result is None
        else {
            "seconds": round(result.seconds, 3),
            "bytes_read": result.bytes_read,
            "bytes_written": result.bytes_written,
            "bytes_verified": result.bytes_verified,
            "kernel": result.kernel,
            "differing": [tensor_label(name) for name in result.differing],
            "infinite": [tensor_label(name) for name in result.infinite],
        },
        "shown": {name: shown_columns(name, plan) for name in show},
    }


def print_plan(plan: Plan, out: Output, *, peak_memory: int, details: Details | None = None) -> None:
    """The whole plan on stdout: members, what was skipped, what is written."""
    columns = details.columns if details else {}
    cells = zip(*columns.values(), strict=True) if columns else [()] * len(plan.members)
    members = [[*row, *more] for row, more in zip(_member_rows(plan, out.size), cells, strict=True)]
    out.table([plan.unit, "checkpoint", "bytes", "coefficient", *columns], members)
    if plan.skipped:
        out.gap()
        out.table(["skipped", "because"], _skipped_rows(plan.skipped, grouped=out.is_terminal))
    count = facts(plan)
    out.gap()
    rows = [
        *([["selection", plan.selection]] if plan.selection else []),
        ["output", str(plan.output)],
        ["format", plan.format],
        [
            "tensors",
            f"{count['tensors']:,} ({count['averaged']:,} averaged, {count['kept']:,} kept, {count['tied']:,} tied)",
        ],
        ["parameters", f"{count['parameters']:,}"],
        ["reads", format_bytes(count["bytes_to_read"])],
        ["writes", format_bytes(count["bytes_to_write"])],
        ["peak memory", f"about {format_bytes(peak_memory)}"],
        *([what, value] for what, value in (details.rows if details else ())),
    ]
    out.table(["plan", ""], rows)
    if out.is_terminal:
        out.gap()
    print_notes(plan.notes, plan.warnings, out)


def print_start(plan: Plan, out: Output, details: Details | None = None) -> None:
    """What is about to be done, on stderr."""
    steps = [member.step for member in plan.members]
    known = f" ({plan.unit}s {_steps(steps)})" if all(step is not None for step in steps) else ""
    averaging = f"Averaging {format_count(len(plan.members), 'checkpoint')}{known}, {format_bytes(plan.bytes_to_read)}."
    out.say(details.start if details is not None and details.start is not None else averaging)
    if plan.selection:
        out.detail(f"Selection: {plan.selection}.")
    for row in _member_rows(plan, format_bytes):
        out.detail("  ".join(row))
    for skipped in plan.skipped:
        out.detail(f"Skipped {skipped.path.name}: {spoken(skipped.reason)}")
    print_notes(plan.notes, plan.warnings, out)


def print_notes(notes: Sequence[str], warnings: Sequence[str], out: Output) -> None:
    """Notes on stderr unless --quiet; warnings always."""
    for note in notes:
        out.say(f"Note: {spoken(note)}.")
    for warning in warnings:
        out.warn(f"{spoken(warning)}.")


def print_result(result: Result, out: Output) -> None:
    """The output's path on stdout, what became of it on stderr."""
    if result.differing:
        names = first_names(map(tensor_label, result.differing))
        out.say(f"Note: integer or bool tensors that differ between members are the newest's: {names}.")
    if result.infinite:
        names = first_names(map(tensor_label, result.infinite))
        out.say(f"Note: infinities that are the same in every checkpoint stay: {names}.")
    out.detail(f"Computed by the {result.kernel} kernel; checksums compared of {format_bytes(result.bytes_verified)}.")
    rate = result.bytes_read / max(result.seconds, 1e-9)
    out.say(
        f"Wrote {format_bytes(result.bytes_written)} in {result.seconds:.2f} s "
        f"(read {format_bytes(result.bytes_read)}, {format_bytes(rate)}/s):"
    )
    out.path(result.output)


def _member_rows(plan: Plan, size: Callable[[int], str]) -> list[list[str]]:
    return [
        [
            "" if member.step is None else str(member.step),
            str(member.checkpoint.path),
            size(_member_bytes(plan, index)),
            f"{member.coefficient:.6g}",
        ]
        for index, member in enumerate(plan.members)
    ]


def _skipped_rows(skipped: Sequence[Skipped], *, grouped: bool) -> list[list[str]]:
    """One row an entry; for people, neighbours that were left out for one reason share a row."""
    rows = []
    for reason, group in itertools.groupby(skipped, key=lambda each: each.reason):
        names = [each.path.name for each in group]
        if grouped and len(names) > 2:
            names = [f"{names[0]} ... {names[-1]} ({len(names)})"]
        rows += [[name, spoken(reason)] for name in names]
    return rows


def _member_bytes(plan: Plan, index: int) -> int:
    return sum(term.tensor.nbytes for tensor in plan.tensors for term in tensor.terms if term.member == index)


def _steps(steps: Sequence[int | None]) -> str:
    shown = [str(step) for step in steps]
    return ", ".join(shown if len(shown) <= 10 else [*shown[:4], "...", *shown[-4:]])
