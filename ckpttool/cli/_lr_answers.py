"""The other questions of ``lr-plot-table``: --as, --compare-log and --fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ckpttool.cli._lr_request import title
from ckpttool.cli._lr_rows import Curve
from ckpttool.cli._output import Output
from ckpttool.errors import MismatchError, UsageError
from ckpttool.schedules.family import ScheduleSpec, Semantics
from ckpttool.schedules.peers import PEERS, Noam, Peer, find_peer
from ckpttool.schedules.rates import Schedule

__all__ = ["compare_with_log", "fit_log", "show_peer"]


def show_peer(out: Output, name: str, spec: ScheduleSpec, *, as_json: bool) -> None:
    """Print another framework's options for the same curve, and where its rates differ; ``all``: a list.

    Raises:
        UsageError: If the framework is unknown, or the schedule is not Noam's with a warm-up.
    """
    if spec.kind.name != "noam":
        raise UsageError(f"--as knows the equivalents of the noam schedule, not of {spec.kind.name}")
    p = Noam(*(spec.values[key] for key in ("learning_rate", "model_dim", "warmup_steps")))  # type: ignore[arg-type]
    if p.warmup_steps == 0:
        raise UsageError("--as needs --warmup-steps of at least 1: the other frameworks set the peak")
    peers = PEERS if name == "all" else (find_peer(name),)
    defaults = {"start_decay_steps": 0, "decay_step_duration": 1, "minimum_learning_rate": 0}
    own = [name for name, default in defaults.items() if getattr(spec, name) != default]
    if own:
        out.warn(f"{', '.join(own)}: other frameworks have nothing like it; it is left out here")
    if as_json:
        out.json({"peers": [_peer_document(peer, p) for peer in peers]})
    elif name == "all":
        rows = [[peer.name, *map(_cell, _rates(peer, p, (1, 2, p.warmup_steps))), peer.title] for peer in peers]
        out.table(["--as", "update 1", "update 2", f"update {p.warmup_steps}", "framework"], rows)
    else:
        _print_peer(out, peers[0], p)


def _rates(peer: Peer, p: Noam, updates: tuple[int, ...]) -> list[float | None]:
    if peer.rate is None:
        return [None] * len(updates)
    rate = peer.rate(p)
    return [None if math.isnan(rate(update)) else rate(update) for update in updates]


def _cell(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.6e}"


def _updates(p: Noam) -> tuple[int, ...]:
    return tuple(sorted({1, 2, 100, p.warmup_steps, p.warmup_steps + 1, 2 * p.warmup_steps, 100_000}))


def _own(p: Noam) -> Schedule:
    rate = PEERS[0].rate
    if rate is None:
        raise AssertionError("the first of them is OpenNMT-tf")
    return rate(p)


def _peer_document(peer: Peer, p: Noam) -> dict[str, Any]:
    own = _own(p)
    updates = _updates(p)
    return {
        "name": peer.name,
        "title": peer.title,
        "equivalent": peer.rate is not None,
        "options": list(peer.options(p)),
        "first_update": peer.first_update,
        "remarks": list(peer.remarks),
        "rates": [
            {"update": update, "opennmt_tf": own(update), peer.name: rate}
            for update, rate in zip(updates, _rates(peer, p, updates), strict=True)
        ],
    }


def _print_peer(out: Output, peer: Peer, p: Noam) -> None:
    out.answer(peer.title)
    for option in peer.options(p):
        out.answer(f"  {option}")
    if peer.rate is None:
        out.answer("  no equivalent")
    out.answer("")
    out.answer(f"{peer.first_update}.")
    for remark in peer.remarks:
        out.answer(f"- {remark}")
    if peer.rate is None:
        return
    out.answer("")
    own = _own(p)
    rows = []
    updates = _updates(p)
    for update, rate in zip(updates, _rates(peer, p, updates), strict=True):
        difference = "-" if rate is None else f"{(rate / own(update) - 1) * 100:+.4f} %"
        rows.append([str(update), _cell(own(update)), _cell(rate), difference])
    out.table(["update", "OpenNMT-tf", peer.name, "difference"], rows)


def compare_with_log(
    out: Output, path: str, pattern: str | None, spec: ScheduleSpec, semantics: Semantics, *, as_json: bool
) -> None:
    """Print whether a log agrees with the schedule.

    Raises:
        MismatchError: If it does not (exit code 4).
        UnreadableError: If the log cannot be read.
        UsageError: If the pattern is none.
    """
    from ckpttool.schedules.log_match import compare_log
    from ckpttool.schedules.train_log import compile_pattern, read_log

    records = read_log(path, compile_pattern(pattern) if pattern is not None else None)
    verdict = compare_log(records, spec, semantics)
    first = verdict.first
    if as_json:
        out.json(
            {
                "log": path,
                "verdict": verdict.outcome,
                "explanation": verdict.explanation,
                "compared": verdict.compared,
                "differing": verdict.differing,
                "first_difference": first
                and {
                    "step": first.record.step,
                    "line": first.record.line,
                    "logged": _finite(first.record.rate),
                    "expected": first.expected,
                },
            }
        )
    else:
        out.answer(f"{path}: {verdict.outcome}")
        out.answer(f"  {verdict.explanation}")
        out.answer(f"  {verdict.compared} lines compared, {verdict.differing} differ")
        if first:
            out.answer(
                f"  first difference: Step = {first.record.step} (line {first.record.line}) shows "
                f"{first.record.rate:g}, the schedule says {first.expected:.6e}"
            )
    if not verdict.agrees:
        raise MismatchError(
            f"{path} does not agree with {title([Curve(spec)])}: {verdict.outcome}",
            hint=_HINTS.get(verdict.outcome),
            path=path,
        )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


_HINTS = {
    "shifted by one": "If that log is meant to show it so, say --semantics applied (or logged).",
    "different parameters": "Try --fit on the log, and check start_decay_steps, decay_step_duration and the floor.",
}


def fit_log(
    out: Output,
    path: str,
    pattern: str | None,
    spec: ScheduleSpec,
    semantics: Semantics,
    *,
    has_dim: bool,
    as_json: bool,
) -> None:
    """Print which ``learning_rate`` and ``warmup_steps`` explain a log.

    Raises:
        MismatchError: If none explain all of it (exit code 4).
        UnreadableError: If the log cannot be read.
        UsageError: If the pattern is none, or no line lies above the floor.
    """
    from ckpttool.schedules.log_match import fit_noam
    from ckpttool.schedules.train_log import compile_pattern, read_log

    records = read_log(path, compile_pattern(pattern) if pattern is not None else None)
    fit = fit_noam(records, spec, semantics)
    scale = "learning_rate" if has_dim else "learning_rate / sqrt(model_dim)"
    if as_json:
        out.json(
            {
                "log": path,
                scale: fit.scale,
                f"{scale} bounds": fit.scale_bounds,
                "warmup_steps": fit.warmup_steps,
                "warmup_steps bounds": fit.warmup_bounds,
                "compared": fit.compared,
                "differing": fit.differing,
            }
        )
    else:
        show: Callable[[str], None] = out.answer
        show(f"{path}: {fit.compared} of {len(records)} lines are above the floor of {spec.minimum_learning_rate:g}")
        show(f"  {scale}: {_fitted(fit.scale, fit.scale_bounds)}")
        show(f"  warmup_steps: {_fitted(fit.warmup_steps, fit.warmup_bounds)}")
        if fit.scale is None or fit.warmup_steps is None:
            side = "before" if fit.slope_bounds is None else "after"
            show(f"  The log has no line {side} the peak, and both sides are needed.")
        if not has_dim:
            show("  A curve shows the quotient only: give --model-dim for learning_rate itself.")
    if fit.differing and fit.first:
        raise MismatchError(
            f"{path}: no Noam schedule explains it: the nearest one misses {fit.differing} of its lines, first "
            f"Step = {fit.first.record.step} (line {fit.first.record.line}): {fit.first.record.rate:g}, "
            f"expected {fit.first.expected:.6e}",
            hint="Give --start-decay-steps, --decay-step-duration and --minimum-learning-rate as they were.",
            path=path,
        )


def _fitted(value: float | None, bounds: tuple[float, float] | None) -> str:
    if value is None:
        return "unknown"
    low, high = sorted(bounds or (value, value))
    return f"{value:.7g} (from {low:.7g} to {high:.7g})"
