"""``ema-apply`` on a checkpoint that holds a moving average: what was recognised, in words and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpttool._version import __version__
from ckpttool.cli._options import PolicyOptions, RunOptions
from ckpttool.cli._output import Output, format_bytes, format_count
from ckpttool.cli._report import SCHEMA_VERSION, Details
from ckpttool.cli._steps import policy_of, run_plans
from ckpttool.errors import UsageError
from ckpttool.text import first_names

if TYPE_CHECKING:
    from ckpttool.ema.diagnosis import Judged
    from ckpttool.ema.stored_average import StoredAverage

__all__ = ["apply_stored", "list_stored"]


def apply_stored(
    path: Path,
    output: str | None,
    *,
    section: str | None,
    slot: str | None,
    names_from: Path | None,
    policy: PolicyOptions,
    run: RunOptions,
    out: Output,
) -> None:
    """Put the average that a checkpoint holds in the weights' place, in a new file."""
    from ckpttool.ema.files import find_stored_average
    from ckpttool.operations.stored_ema import make_stored_plan

    found = find_stored_average(path, section=section, slot=slot, names_from=names_from)
    if output is None:
        raise UsageError(
            f"{path}: found {_said(found)}, and there is no output to write it to",
            hint=f"For example: -o {path.name.split('.')[0]}-ema.safetensors; "
            "--list says what was found, and what its numbers say.",
        )
    plan = make_stored_plan(found, output, policy_of(policy, run))
    verb = "Writing" if found.in_place else "Applying"
    details = Details(
        rows=[("average", _said(found)), ("because", found.why), ("covers", _covers(found))],
        document={"stored_average": _document(found)},
        start=f"{verb} {_said(found)}, {format_bytes(plan.bytes_to_read)}: {found.why}.",
    )
    run_plans([plan], "ema-apply", run, out, [details])


def list_stored(
    paths: Sequence[Path],
    *,
    section: str | None,
    slot: str | None,
    names_from: Path | None,
    as_json: bool,
    out: Output,
) -> None:
    """Say what averages checkpoints hold, and what their numbers say; of two of one run, whether the average moves."""
    from ckpttool.ema.diagnosis import judge
    from ckpttool.ema.files import find_stored_average

    documents = []
    earlier: StoredAverage | None = None
    for path in paths:
        found = find_stored_average(path, section=section, slot=slot, names_from=names_from)
        judged = judge(found, earlier)
        documents.append({"path": str(path), **_document(found), **_verdicts(judged)})
        if not as_json:
            if earlier is not None:
                out.answer("")
            out.table(["average", ""], _rows(path, found, judged))
            for note in found.notes:
                out.say(f"Note: {note}.")
            for warning in found.warnings:
                out.warn(f"{warning}.")
        earlier = found
    if as_json:
        head = {"schema": SCHEMA_VERSION, "ckpttool": __version__, "command": "ema-apply --list"}
        out.json({**head, "checkpoints": documents})


def _rows(path: Path, found: StoredAverage, judged: Judged) -> list[list[str]]:
    rows = [
        ["checkpoint", str(path)],
        ["found", _said(found)],
        ["because", found.why],
        ["covers", _covers(found)],
    ]
    if judged.distance is not None:
        rows.append(["distance", f"{judged.distance:.3g} of the trained weights' size"])
    rows.extend(["verdict", verdict.text] for verdict in judged.verdicts)
    return rows


def _said(found: StoredAverage) -> str:
    inside = "" if found.source is found.checkpoint else f", a file beside {found.checkpoint.path.name}"
    return f"the {found.kind} at {found.where}{inside} ({found.framework})"


def _covers(found: StoredAverage) -> str:
    said = format_count(len(found.averaged), "tensor")
    if found.uncovered:
        said += f"; not {len(found.uncovered):,}: {first_names(found.uncovered)}"
    return said


def _document(found: StoredAverage) -> dict[str, Any]:
    return {
        "framework": found.framework,
        "kind": found.kind,
        "where": found.where,
        "source": str(found.source.path),
        "why": found.why,
        "applied_already": found.in_place,
        "covers": len(found.averaged),
        "uncovered": list(found.uncovered),
        "notes": list(found.notes),
        "warnings": list(found.warnings),
    }


def _verdicts(judged: Judged) -> dict[str, Any]:
    return {
        "distance": judged.distance,
        "verdicts": [
            {"kind": verdict.kind, "text": verdict.text, "tensors": list(verdict.tensors)}
            for verdict in judged.verdicts
        ],
    }
