"""The weights that the moving average has: stored in a checkpoint, computed from a run, or made of snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckpttool.coefficients.lengths import Unit, Wanted
from ckpttool.coefficients.snapshots import StoredProfile
from ckpttool.coefficients.weights import Quadrature
from ckpttool.ema.stored_average import StoredAverage
from ckpttool.errors import UsageError
from ckpttool.operations.computed_ema import ComputedAverage, plan_computed_ema
from ckpttool.operations.names import check_output_name, check_sources
from ckpttool.operations.opennmt_config import read_averaging_config
from ckpttool.operations.posthoc_ema import Segment, Synthesis, are_snapshots, plan_posthoc_ema
from ckpttool.operations.records import Planned, Selection
from ckpttool.operations.stored_ema import is_one_checkpoint, plan_stored_ema
from ckpttool.planning.request import Policy
from ckpttool.reading.snapshot import Snapshot
from ckpttool.text import parameter

__all__ = ["EmaFacts", "plan_ema_apply"]

EmaFacts = ComputedAverage | StoredAverage | Synthesis | Segment


def plan_ema_apply(
    sources: Sequence[Path],
    output: str | None = None,
    *,
    lengths: Sequence[Wanted] = (),
    warmup: bool = True,
    selection: Selection = Selection(),
    policy: Policy = Policy(),
    slot: str | None = None,
    names_from: Path | None = None,
    unit: Unit | None = None,
    quadrature: Quadrature = "linear",
    profiles: Sequence[StoredProfile] = (),
    update_every: int | None = None,
    segment: tuple[int, int] | None = None,
    config: Path | None = None,
) -> Planned[ComputedAverage] | Planned[StoredAverage] | Planned[Synthesis | Segment]:
    """Plan what the inputs mean.

    * Snapshots of averages (by their names, by `profiles` or by `segment`): averages of other lengths.
    * One checkpoint: the average that it holds, or that is stored next to it.
    * A model directory or a list of checkpoints: the average that the run would have had.

    Args:
        sources: The inputs.
        output: See the operation that it is, like all that follow.
        lengths: See there.
        warmup: See there.
        selection: See there.
        policy: See there.
        slot: See there.
        names_from: See there.
        unit: See there.
        quadrature: See there.
        profiles: See there.
        update_every: See there.
        segment: See there.
        config: An OpenNMT-tf configuration, which says whether the weights are averages already.

    Raises:
        CkpttoolError: The request makes no sense, or cannot be met; see `ckpttool.errors`.
    """
    snapshot = Snapshot()
    sources = check_sources(sources, snapshot)
    check_output_name(output)
    configured = None if config is None else read_averaging_config(config, snapshot)
    if profiles or segment is not None or are_snapshots(sources, snapshot):
        for name, value in (("slot", slot), ("names_from", names_from), ("unit", unit)):
            if value is not None:
                raise UsageError(f"{parameter(name)} has no effect on snapshots of averages", hint="Leave it out.")
        return plan_posthoc_ema(
            sources,
            output,
            lengths=lengths,
            profiles=profiles,
            update_every=update_every,
            stretch=segment,
            selection=selection,
            policy=policy,
            snapshot=snapshot,
        )
    if update_every is not None:
        raise UsageError(
            f"{parameter('update_every')} is about snapshots of averages, and nothing says that these are some",
            hint=f"Leave it out, or say with {parameter('stored_profile')} what they are averages of.",
        )
    if len(sources) == 1 and is_one_checkpoint(sources[0], snapshot):
        if lengths or unit or not warmup:
            raise UsageError(
                f"{sources[0]} is one checkpoint, and a length needs the checkpoints of a run",
                hint="Name the model directory, or leave the length out to take the average that the checkpoint holds.",
            )
        return plan_stored_ema(
            sources[0],
            output,
            section=selection.section,
            slot=slot,
            names_from=names_from,
            policy=policy,
            configured=configured,
            snapshot=snapshot,
        )
    if slot or names_from:
        raise UsageError(
            f"{parameter('slot')} and {parameter('names_from')} are about the average that one checkpoint holds"
        )
    return plan_computed_ema(
        sources,
        output,
        lengths=lengths,
        warmup=warmup,
        selection=selection,
        policy=policy,
        unit=unit,
        quadrature=quadrature,
        notes=() if configured is None else configured.notes(),
        snapshot=snapshot,
    )
