"""What a user should know of a plan before its output is used: notes and warnings, as sentences without a full stop."""

from __future__ import annotations

from collections.abc import Sequence

from ckpttool.planning.matching import Matched
from ckpttool.tensors import Artifact, Checkpoint
from ckpttool.text import Message, first_names, parameter, tensor_label

__all__ = ["notes_of", "tie_notes"]


def notes_of(
    checkpoints: Sequence[Checkpoint], matched: Matched, artifact: Artifact, dtype: str, *, holds_copies: bool
) -> tuple[str, ...]:
    """What is kept, left out, mixed or converted.

    Args:
        checkpoints: The members; the last is the newest.
        matched: Their tensors, name by name.
        artifact: What is written.
        dtype: The output's element type as it was asked for; ``same`` for each tensor's own.
        holds_copies: Whether stored averages of the weights are averaged as well.
    """
    newest = checkpoints[-1]
    said = [note for c in checkpoints for note in c.notes]
    shared = {note for note in said if all(note in c.notes for c in checkpoints)}
    notes = list(dict.fromkeys(note for note in said if note in shared))
    notes += [f"{c.path.name}: {note}" for c in checkpoints for note in c.notes if note not in shared]
    by_dtype = {
        tuple(str(found[name].dtype) for found in matched.found if name in found): name for name in matched.names
    }
    mixed = [(dtypes, name) for dtypes, name in by_dtype.items() if len(set(dtypes)) > 1]
    for dtypes, name in mixed:
        kept = artifact.tensors[name].dtype
        notes.append(
            f"dtypes differ between members ({', '.join(dict.fromkeys(dtypes))}), as in {tensor_label(name)}; "
            f"the output is {kept}"
        )
    if dtype != "same":
        notes.append(f"the averaged tensors are written as {dtype}")
        stated = newest.values.get("config.dtype", dtype)
        if artifact.template is not None and stated != dtype:
            notes.append(
                f"config.json is copied and states {stated}, by which transformers loads: pass dtype={dtype!r}"
            )
    kinds = {name: matched.found[-1][name].dtype.kind for name in matched.names}
    for what, of_kind in (
        ("integer or bool tensor", {"integer", "bool"}),
        ("e8m0 scale tensor", {"scale"}),
    ):
        unchanged = [name for name, kind in kinds.items() if kind in of_kind]
        if unchanged:
            notes.append(f"{_count(unchanged, what)} kept from {newest.path.name}, not averaged")
    if newest.copies and holds_copies:
        notes.append(f"averaged separately: the stored average in {', '.join(newest.copies)}")
    elif newest.copies:
        instead = parameter("section", next(iter(newest.copies)))
        notes.append(
            Message(f"the stored average in {', '.join(newest.copies)} is left out; {instead} averages it instead")
        )
    unmatched = [c.path.name for c in checkpoints[:-1] if c.copies and not newest.copies]
    if unmatched:
        notes.append(f"stored averages in {first_names(unmatched)} are left out: the newest has none")
    if newest.left_out and artifact.template is not None:
        notes.append(f"not copied: {_by_reason(newest)}")
    if newest.state and not artifact.keep_state:
        keeps = f" ({parameter('keep_state', value=True)} keeps it)" if artifact.template else ""
        notes.append(Message(f"training state left out: {', '.join(newest.state)}{keeps}"))
    notes += _of_others(checkpoints, artifact)
    statistics = [
        name
        for name in matched.names
        if name not in matched.alone and name[1].endswith(("running_mean", "running_var"))
    ]
    if statistics:
        notes.append(
            f"{_count(statistics, 'batch-norm statistic')} averaged as stored; "
            "re-estimate them on data if accuracy depends on it"
        )
    return tuple(notes)


def _by_reason(newest: Checkpoint) -> str:
    """What is left out, the names that have one reason together: ``a, b (weights that are not averaged); c (logs)``."""
    names: dict[str, list[str]] = {}
    for item in newest.left_out:
        name = item.path.relative_to(newest.path).as_posix()
        names.setdefault(item.reason, []).append(name if name.isprintable() else ascii(name))
    return "; ".join(f"{first_names(some)} ({reason})" for reason, some in names.items())


def tie_notes(artifact: Artifact, format_name: str) -> tuple[str, ...]:
    """What to know of tied tensors where the output's format stores one name of each.

    The file says which name was left out in its metadata, as `safetensors.torch.save_model` does. To write a second
    copy would load everywhere, and would untie the tensors for every tool that reads the file, at twice the size.
    """
    if format_name != "safetensors" or not artifact.ties:
        return ()
    pairs = [
        f"{tensor_label(alias)} and {tensor_label(first)}" for alias, first in artifact.ties.items() if not alias[0]
    ]
    if not pairs:
        return ()
    note = (
        f"tied tensors are one, and .safetensors stores one name of each ({first_names(pairs, 2)}): "
        "safetensors.torch.load_model(model, file) ties them again; load_state_dict(load_file(file)) takes strict=False"
    )
    return (note,)


def _of_others(checkpoints: Sequence[Checkpoint], artifact: Artifact) -> list[str]:
    """What becomes of entries of the state dict that are not tensors."""
    newest = checkpoints[-1]
    names = list(dict.fromkeys(name for checkpoint in checkpoints[::-1] for name in checkpoint.other_entries))
    if not names:
        return []
    differing = [
        name
        for name in names
        if any(
            (own := checkpoint.other_entries.get(name)) is None
            or own != newest.other_entries.get(name)
            or not own.value
            for checkpoint in checkpoints
        )
    ]
    entry = next(
        checkpoint.other_entries[names[0]] for checkpoint in checkpoints[::-1] if names[0] in checkpoint.other_entries
    )
    becomes = (
        f"are those of {newest.path.name}"
        if artifact.template is not None
        else "are left out: the output holds tensors only"
    )
    where = f"differ between members: {first_names(differing)}" if differing else "the same in all members"
    if len(checkpoints) == 1:
        where = "of one member"
    what = f"{first_names(names)}; {names[0]} is {entry.kind}"
    return [f"entries of the state dict that are not tensors ({what}) {becomes} ({where})"]


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things):,} {noun}" + ("" if len(things) == 1 else "s")
