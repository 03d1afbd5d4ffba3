"""The one way of every command that writes checkpoints: print what is planned, or execute it and say what was done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ckpttool.cli import _report
from ckpttool.cli._options import RunOptions
from ckpttool.cli._output import Output
from ckpttool.cli._show import check_shown, print_shown
from ckpttool.operations.records import Planned
from ckpttool.planning.plan import Plan

__all__ = ["run_planned"]

Facts = TypeVar("Facts")


def run_planned(
    planned: Planned[Facts],
    command: str,
    run: RunOptions,
    out: Output,
    details_of: Callable[[Plan, Facts], _report.Details],
    *,
    show: Sequence[str] = (),
) -> None:
    """Print the plans (--dry-run), or execute them together and say what became of them and of the tensors to show.

    Args:
        planned: The plans, and what the operation says of each.
        command: The command's name.
        run: How the work is done and reported.
        out: Where it is reported.
        details_of: What to report about a plan beyond what every plan says.
        show: Names of tensors to print.
    """
    from ckpttool.engine.run import execute_together, expected_memory
    from ckpttool.planning.destination import check_destinations, destinations_of

    plans = planned.plans
    check_shown(show, plans[0], dry_run=run.dry_run)
    details = [details_of(output.plan, output.facts) for output in planned.outputs]
    memory = expected_memory(plans, run.jobs)
    if run.dry_run:
        if run.as_json:
            out.json(
                _together(
                    [
                        _report.document(plan, command, result=None, peak_memory=memory, details=more)
                        for plan, more in zip(plans, details, strict=True)
                    ]
                )
            )
        else:
            for plan, more in zip(plans, details, strict=True):
                _report.print_plan(plan, out, peak_memory=memory, details=more)
        check_destinations(destinations_of(plans))
        return
    check_destinations(destinations_of(plans))  # before anything is said to begin
    _report.print_start(plans[0], out, details[0])
    for plan in plans[1:]:
        _report.print_notes((), plan.warnings, out)
    with out.progress(plans[0].bytes_to_read) as on_progress:
        results = execute_together(plans, jobs=run.jobs, on_progress=on_progress)
    if run.as_json:
        documents = [
            _report.document(plan, command, result=result, peak_memory=memory, details=more, show=show)
            for plan, result, more in zip(plans, results, details, strict=True)
        ]
        out.json(_together(documents))
        return
    for plan, result in zip(plans, results, strict=True):
        print_shown(show, plan, out)
        _report.print_result(result, out)


def _together(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One document for one output, or a document of several."""
    return documents[0] if len(documents) == 1 else {"schema": _report.SCHEMA_VERSION, "outputs": list(documents)}
