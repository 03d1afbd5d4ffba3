"""``ema-apply --list``: the averages that checkpoints hold, in tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckpttool._version import __version__
from ckpttool.cli._ema_facts import average_document, covered
from ckpttool.cli._output import Output
from ckpttool.cli._report import SCHEMA_VERSION, print_notes
from ckpttool.operations.stored_ema import ListedAverage, describe_average

__all__ = ["print_averages"]


def print_averages(listed: Sequence[ListedAverage], out: Output, *, as_json: bool) -> None:
    """Print what was found, and what its numbers say."""
    if as_json:
        head = {"schema": SCHEMA_VERSION, "ckpttool": __version__, "command": "ema-apply --list"}
        out.json({**head, "checkpoints": [_document(one) for one in listed]})
        return
    for number, one in enumerate(listed):
        if number:
            out.answer("")
        out.table(["average", ""], _rows(one))
        print_notes(one.average.notes, one.average.warnings, out)


def _rows(one: ListedAverage) -> list[list[str]]:
    rows = [
        ["checkpoint", str(one.path)],
        ["found", describe_average(one.average)],
        ["because", one.average.why],
        ["covers", covered(one.average)],
    ]
    if one.diagnosis.distance is not None:
        rows.append(["distance", f"{one.diagnosis.distance:.3g} of the trained weights' size"])
    rows.extend(["finding", finding.text] for finding in one.diagnosis.findings)
    return rows


def _document(one: ListedAverage) -> dict[str, Any]:
    return {
        "path": str(one.path),
        **average_document(one.average),
        "distance": one.diagnosis.distance,
        "verdicts": [
            {"kind": finding.kind, "text": finding.text, "tensors": list(finding.tensors)}
            for finding in one.diagnosis.findings
        ],
    }
