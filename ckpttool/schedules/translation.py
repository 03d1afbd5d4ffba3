"""A Noam schedule in the options of another framework, with the rates of both at some updates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from ckpttool.errors import UsageError
from ckpttool.schedules.family import ScheduleSpec
from ckpttool.schedules.peers import PEERS, Noam, Peer, find_peer
from ckpttool.text import parameter

__all__ = ["RatePair", "Translation", "noam_of", "translate", "translate_to_all"]

_WRAPPER_DEFAULTS = {"start_decay_steps": 0, "decay_step_duration": 1, "minimum_learning_rate": 0}


@dataclass(frozen=True, slots=True)
class RatePair:
    """The rates of one update.

    Attributes:
        update: Its number, from 1.
        own: The rate that OpenNMT-tf applies.
        theirs: The other framework's; None where its options do not say it.
    """

    update: int
    own: float
    theirs: float | None


@dataclass(frozen=True, repr=False)
class Translation:
    """A framework's options for the same curve.

    Attributes:
        name: The framework's short name.
        title: Framework and scheduler.
        equivalent: Whether it has this curve at all. If not, there are no options.
        options: What to set, one line each.
        first_update: What its first updates have.
        remarks: What else differs.
        rates: The rates of both, update by update.
        left_out: Parameters of the schedule that no other framework has.
    """

    name: str
    title: str
    equivalent: bool
    options: tuple[str, ...]
    first_update: str
    remarks: tuple[str, ...]
    rates: tuple[RatePair, ...]
    left_out: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<Translation {self.name}: {'; '.join(self.options) or 'no equivalent'}>"


def translate(spec: ScheduleSpec, framework: str, updates: Iterable[int] | None = None) -> Translation:
    """The options of a framework that give this schedule.

    Args:
        spec: A Noam schedule with a warm-up.
        framework: A name of `ckpttool.schedules.peers.PEERS`.
        updates: Numbers of updates whose rates are compared, from 1; None: some around the warm-up.

    Raises:
        UsageError: If the framework is unknown, or the schedule is not Noam's with a warm-up.
    """
    p = noam_of(spec)
    return _translation(find_peer(framework), p, spec, updates)


def translate_to_all(spec: ScheduleSpec, updates: Iterable[int] | None = None) -> tuple[Translation, ...]:
    """`translate` for every framework that is known."""
    p = noam_of(spec)
    steps = None if updates is None else tuple(updates)
    return tuple(_translation(peer, p, spec, steps) for peer in PEERS)


def noam_of(spec: ScheduleSpec) -> Noam:
    """The parameters of a Noam schedule.

    Raises:
        UsageError: If it is another schedule, or has no warm-up.
    """
    if spec.kind.name != "noam":
        raise UsageError(
            f"{parameter('framework')}: the equivalents of the noam schedule are known, not those of {spec.kind.name}"
        )
    p = Noam(
        cast("float", spec.values["learning_rate"]),
        cast("int", spec.values["model_dim"]),
        cast("int", spec.values["warmup_steps"]),
    )
    if p.warmup_steps == 0:
        raise UsageError(
            f"{parameter('framework')} needs {parameter('warmup_steps')} of at least 1: "
            "the other frameworks set the peak"
        )
    return p


def _translation(peer: Peer, p: Noam, spec: ScheduleSpec, updates: Iterable[int] | None) -> Translation:
    own = PEERS[0].rate
    if own is None:
        raise AssertionError("the first of them is OpenNMT-tf")
    if updates is None:
        updates = sorted({1, 2, 100, p.warmup_steps, p.warmup_steps + 1, 2 * p.warmup_steps, 100_000})
    schedule, theirs = own(p), peer.rate(p) if peer.rate else None
    pairs = []
    for update in updates:
        rate = math.nan if theirs is None else theirs(update)
        pairs.append(RatePair(update, schedule(update), None if math.isnan(rate) else rate))
    left_out = [name for name, default in _WRAPPER_DEFAULTS.items() if getattr(spec, name) != default]
    return Translation(
        peer.name,
        peer.title,
        peer.rate is not None,
        tuple(peer.options(p)),
        peer.first_update,
        peer.remarks,
        tuple(pairs),
        tuple(left_out),
    )
