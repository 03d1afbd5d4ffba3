"""The profiles of the averages that training stored as snapshots.

A post-hoc average needs to know the profile of every snapshot. EDM2 writes it into the file names, ema-pytorch writes
an index there; for others the user says it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ckpttool.coefficients.posthoc import Stored, stored_power_function
from ckpttool.coefficients.profiles import ConstantDecay, PowerFunction, Profile, WarmupDecay
from ckpttool.errors import UsageError
from ckpttool.text import parameter

__all__ = ["StoredProfile", "parse_profile", "profiles_of", "snapshot_number"]

# Exactly as EDM2 writes them: names such as model-100-0.53.ckpt have a metric there.
_EDM2 = re.compile(r".*-(?P<time>\d{7,})-(?P<std>0\.\d{3})\.[A-Za-z]+")
_EMA_PYTORCH = re.compile(r"(?P<index>\d+)\.(?P<time>\d+)\.pt")

_KINDS: Mapping[str, Callable[[float], Profile]] = {
    "decay": ConstantDecay,
    "warmup": WarmupDecay,
    "half-life": ConstantDecay.from_half_life,
    "sigma-rel": PowerFunction.from_sigma_rel,
    "gamma": PowerFunction,
}

_EXAMPLES = "decay:0.9999, warmup:0.9999, half-life:1000, sigma-rel:0.05, gamma:6.94, each perhaps after 'GLOB='"


@dataclass(frozen=True, slots=True)
class StoredProfile:
    """What a user said about snapshots: which names it is for (None: see `profiles_of`), and their profile."""

    glob: str | None
    profile: Profile
    text: str


def parse_profile(text: str) -> StoredProfile:
    """Read ``[GLOB=]KIND:NUMBER``.

    Raises:
        UsageError: It is nothing of the kind, or the number is out of range.
    """
    head, _, said = text.rpartition("=")
    kind, _, number = said.partition(":")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if kind not in _KINDS or math.isnan(value):
        raise UsageError(f"{parameter('stored_profile', text)}: not a profile", hint=f"For example: {_EXAMPLES}.")
    return StoredProfile(head or None, _KINDS[kind](value), said)


def snapshot_number(path: Path) -> tuple[str, int] | None:
    """(framework, time) where a name is that of a post-hoc snapshot; None for others."""
    match = _EDM2.fullmatch(path.name)
    if match:
        return "edm2", int(match["time"])
    match = _EMA_PYTORCH.fullmatch(path.name)
    return ("ema-pytorch", int(match["time"])) if match else None


def profiles_of(
    paths: Sequence[Path], steps: Sequence[int | None], said: Sequence[StoredProfile], update_every: int | None
) -> list[Stored]:
    """What each snapshot is an average of.

    Args:
        paths: The snapshots.
        steps: Their training steps, where the names of EDM2 and ema-pytorch do not say it.
        said: What the user said. One without a glob is about all; several without globs are about ema-pytorch's
            indices, in their order.
        update_every: How often the averages were updated with a decay meant for every step; None: not said.

    Raises:
        UsageError: A snapshot has no profile, or no step; or ema-pytorch's `update_every` was not said, on which its
            profiles depend.
    """
    stored = []
    for path, step in zip(paths, steps, strict=True):
        number = snapshot_number(path)
        time = number[1] if number is not None else step
        if not time:
            raise UsageError(
                f"{path.name}: its training step is not known, and a post-hoc average needs it",
                hint="Put it into the name: snapshot_1000.pt.",
            )
        stored.append(Stored(_profile(path, said, update_every), float(time)))
    return stored


def _profile(path: Path, said: Sequence[StoredProfile], update_every: int | None) -> Profile:
    globbed = [one.profile for one in said if one.glob is not None and fnmatchcase(path.name, one.glob)]
    plain = [one.profile for one in said if one.glob is None]
    if globbed:
        return _corrected(globbed[0], update_every)
    edm2 = _EDM2.fullmatch(path.name)
    indexed = _EMA_PYTORCH.fullmatch(path.name)
    if indexed and len(plain) > 1:
        index = int(indexed["index"])
        if index >= len(plain):
            raise UsageError(
                f"{path.name}: there is no profile for index {index}, only {len(plain)} were given",
                hint=f"Give {parameter('stored_profile')} once for each of the run's sigma_rels, in their order.",
            )
        if update_every is None:
            raise UsageError(
                f"{path.name}: ema-pytorch applies the decay of one step once in update_every steps, so what its "
                "snapshots are depends on it",
                hint=f"Say the run's: {parameter('update_every', 10)} (its class PostHocEMA hands update_every to "
                "KarrasEMA, where it is 100 by default).",
            )
        return _corrected(plain[index], update_every)
    if len(plain) == 1:
        return _corrected(plain[0], update_every)
    if edm2 and not plain:
        return PowerFunction.from_sigma_rel(float(edm2["std"]))
    if plain:
        raise UsageError(
            f"{path.name}: several profiles were given, and its name does not say which is its own",
            hint=f"Say which names each is for: {parameter('stored_profile', f'*{path.suffix}={said[0].text}')}.",
        )
    raise UsageError(
        f"{path.name}: what it is an average of is not known",
        hint=f"{parameter('stored_profile')} says it: {_EXAMPLES}.",
    )


def _corrected(profile: Profile, update_every: int | None) -> Profile:
    if update_every is None or update_every == 1:
        return profile
    if isinstance(profile, PowerFunction):
        return stored_power_function(profile, update_every)
    if isinstance(profile, ConstantDecay):
        return ConstantDecay(profile.decay ** (1 / update_every))
    raise UsageError(
        f"{parameter('update_every')}: the warm-up of such an average counts its updates, and is another profile then",
        hint="Name a profile without warm-up that comes near: decay:0.9999 or sigma-rel:0.09.",
    )
