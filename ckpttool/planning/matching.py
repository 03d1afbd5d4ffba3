"""Which tensor of one checkpoint is which tensor of another: names, wrapper prefixes, ties.

Pure functions over `Checkpoint`s. Nothing is dropped or invented without notice: each choice is returned as a note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from ckpttool.errors import MismatchError
from ckpttool.formats import get_format
from ckpttool.formats.wrappers import wrapper_prefix
from ckpttool.planning.request import KeyPolicy
from ckpttool.tensors import Checkpoint, TensorId, TensorSpec
from ckpttool.text import first_names, parameter, tensor_label

__all__ = ["Matched", "match", "ties"]


@dataclass(frozen=True)
class Matched:
    """Checkpoints with their tensors matched by name.

    Attributes:
        names: The tensors of the output, as the newest member names them, in its order.
        found: For each member, its tensors of these names.
        notes: What a user should know about how they were matched.
        alone: Names that are in the newest only and keep its value (policy "newest").
    """

    names: tuple[TensorId, ...]
    found: tuple[Mapping[TensorId, TensorSpec], ...]
    notes: tuple[str, ...]
    alone: frozenset[TensorId] = frozenset()


def ties(tensors: Mapping[TensorId, TensorSpec]) -> dict[TensorId, TensorId]:
    """Of tensors that are one and the same view of one storage, each but the first, mapped to the first."""
    first: dict[TensorSpec, TensorId] = {}
    tied: dict[TensorId, TensorId] = {}
    for name, spec in tensors.items():
        if spec.numel == 0:  # nothing is shared by tensors without elements
            continue
        original = first.setdefault(spec, name)
        if original != name:
            tied[name] = original
    return tied


def match(checkpoints: Sequence[Checkpoint], newest: int, policy: KeyPolicy, *, with_copies: bool = True) -> Matched:
    """Match the tensors of several checkpoints by name.

    Args:
        checkpoints: The members.
        newest: Index of the newest, whose names and order the output has.
        policy: What to do about names that not all members have. "strict": an error. "intersection": leave them out.
            "newest": keep the newest's names; what another member lacks keeps the newest's value.
        with_copies: Whether moving averages that are stored next to the weights take part.

    Raises:
        MismatchError: Names differ (policy "strict"), no name is common to all, or shapes or kinds of dtype differ.
    """
    notes: list[str] = []
    prefixes = [wrapper_prefix(checkpoint.weights) for checkpoint in checkpoints]
    for prefix in sorted(set(prefixes) - {prefixes[newest]}):
        who = [str(c.path.name) for c, p in zip(checkpoints, prefixes, strict=True) if p == prefix]
        said = (
            f"without the wrapper prefix {prefixes[newest]!r}" if not prefix else f"with the wrapper prefix {prefix!r}"
        )
        notes.append(f"names {said} in {first_names(who)} are matched with the newest's")
    members = [
        _renamed(checkpoint, prefix, prefixes[newest], with_copies=with_copies)
        for checkpoint, prefix in zip(checkpoints, prefixes, strict=True)
    ]
    wanted = members[newest]
    tied = ties(wanted)
    found = [_adopt_ties(tensors, wanted, tied) for tensors in members]

    names = list(wanted)
    alone: set[TensorId] = set()
    for checkpoint, tensors in zip(checkpoints, found, strict=True):
        if tensors.keys() == wanted.keys():
            continue
        missing = [name for name in wanted if name not in tensors]
        extra = [name for name in tensors if name not in wanted]
        if not missing and not extra:
            continue
        difference = _difference(checkpoint, checkpoints[newest], missing, extra)
        if policy == "strict":
            raise MismatchError(
                difference,
                path=checkpoint.path,
                tensor=tensor_label((missing or extra)[0]),
                hint=_doubt(checkpoint, checkpoints[newest])
                + f"{parameter('keys', 'intersection')} averages what all have; {parameter('keys', 'newest')} keeps the"
                " newest's names.",
            )
        notes.append(difference)
        if policy == "intersection":
            gone = set(missing)
            names = [name for name in names if name not in gone]
        else:
            alone.update(missing)
    if not names or len(alone) == len(names):
        raise MismatchError(
            "the checkpoints have no tensor in common",
            path=checkpoints[newest].path,
            hint=f"Are they of one model? {parameter('section')} says where the weights are.",
        )
    for checkpoint, tensors in zip(checkpoints, found, strict=True):
        _check_alike([name for name in names if name in tensors], checkpoint, tensors, checkpoints[newest], wanted)
    return Matched(tuple(names), tuple(found), tuple(notes), frozenset(alone))


def _renamed(checkpoint: Checkpoint, own: str, wanted: str, *, with_copies: bool) -> dict[TensorId, TensorSpec]:
    """The tensors under the names that they would have in the newest member."""
    tensors = checkpoint.tensors() if with_copies else {("", name): spec for name, spec in checkpoint.weights.items()}
    if own == wanted:
        return tensors
    renamed = {}
    for (section, name), spec in tensors.items():
        name = wanted + name[len(own) :] if name.startswith(own) else name  # noqa: PLW2901
        renamed[section, name] = spec
    return renamed


def _adopt_ties(
    tensors: dict[TensorId, TensorSpec], wanted: Mapping[TensorId, TensorSpec], tied: Mapping[TensorId, TensorId]
) -> dict[TensorId, TensorSpec]:
    """Add names that are missing only because a tied tensor was stored under one name, and drop the reverse.

    Formats without ties (safetensors) keep one name of a tied group; frameworks tie them again when they load.
    """
    if tensors.keys() == wanted.keys():
        return tensors
    adopted = dict(tensors)
    for alias, original in tied.items():
        if alias not in adopted and original in adopted:
            adopted[alias] = adopted[original]
        elif original not in adopted and alias in adopted:
            adopted[original] = adopted[alias]
    # Three names and more: the group's first may have come in only now.
    for alias, original in tied.items():
        if alias not in adopted and original in adopted:
            adopted[alias] = adopted[original]
    known = {spec for name, spec in adopted.items() if name in wanted and spec.numel}
    return {name: spec for name, spec in adopted.items() if name in wanted or spec not in known}


def _difference(
    checkpoint: Checkpoint, newest: Checkpoint, missing: Sequence[TensorId], extra: Sequence[TensorId]
) -> str:
    parts = []
    if missing:
        parts.append(f"lacks {len(missing)} ({first_names(map(tensor_label, missing))})")
    if extra:
        parts.append(f"has {len(extra)} more ({first_names(map(tensor_label, extra))})")
    return f"{checkpoint.path}: of the tensors of {newest.path.name} it {' and '.join(parts)}"


def _check_alike(
    names: Sequence[TensorId],
    checkpoint: Checkpoint,
    tensors: Mapping[TensorId, TensorSpec],
    newest: Checkpoint,
    wanted: Mapping[TensorId, TensorSpec],
) -> None:
    """Refuse members whose tensors have other shapes, or numbers of another kind. Nothing is ever broadcast."""
    for aspect, plain in (("shape", attrgetter("shape")), ("kind of dtype", attrgetter("dtype.kind"))):
        unlike = [name for name in names if plain(tensors[name]) != plain(wanted[name])]
        if not unlike:
            continue
        name = unlike[0]
        shown = _shape if aspect == "shape" else lambda spec: str(spec.dtype)
        others = (
            f"; {len(unlike) - 1} more differ ({first_names(map(tensor_label, unlike[1:]))})" if len(unlike) > 1 else ""
        )
        raise MismatchError(
            f"{tensor_label(name)} has {aspect} {shown(tensors[name])} in {checkpoint.path} "
            f"and {shown(wanted[name])} in {newest.path}{others}",
            path=checkpoint.path,
            tensor=tensor_label(name),
            hint=_doubt(checkpoint, newest)
            + f"Only checkpoints of one architecture can be averaged; {parameter('exclude')} leaves a file out.",
        )


def _doubt(checkpoint: Checkpoint, newest: Checkpoint) -> str:
    """A sentence for two that do not fit: what else than their architecture may be the reason.

    Where ranks save files of their own, nothing in a directory may show that those of the last ranks are missing.
    """
    fewer, more = sorted((checkpoint, newest), key=lambda each: len(each.files))
    formats = {each.format for each in (checkpoint, newest)}
    if len(formats) > 1 and not any(get_format(name).is_partitioned for name in formats):
        return (
            f"{checkpoint.path.name} is of the format {checkpoint.format} and {newest.path.name} of {newest.format}:"
            f" they may be of two families, and {parameter('exclude', newest.path.name)} leaves the newest out. "
        )
    if len(fewer.files) == len(more.files):
        return ""
    count = f"{len(fewer.files)} file{'s' * (len(fewer.files) != 1)}"
    return (
        f"{fewer.path.name} is in {count} and {more.path.name} in {len(more.files)}:"
        f" it may be unfinished, and {parameter('exclude', fewer.path.name)} leaves it out. "
    )


def _shape(spec: TensorSpec) -> str:
    return "[" + ", ".join(map(str, spec.shape)) + "]"
