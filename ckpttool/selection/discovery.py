"""Find the checkpoints of a model directory.

Order is numeric, by step: by the one that the content states, or by the one in the name; never by time stamps, never
by string. Discovering opens as few files as it can: the oldest and the newest entry (do the steps inside agree with
the names?), and unnumbered names (which checkpoint is it?); all of them only where names and contents count
differently. Every name that is left out has its reason.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

from ckpttool.errors import CkpttoolError, NotFoundError, UsageError
from ckpttool.formats import format_of_directory, weights_file
from ckpttool.reading.snapshot import Snapshot
from ckpttool.run_layouts import Reason
from ckpttool.selection.choice import Discovery
from ckpttool.selection.detection import Classified, Listing, classify, detect
from ckpttool.selection.families import parting, question, told
from ckpttool.selection.listing import list_directory
from ckpttool.selection.lists import from_paths
from ckpttool.selection.names import Named, template_of
from ckpttool.selection.opening import Entry, Ignored, Opener
from ckpttool.selection.scale import on_one_scale
from ckpttool.selection.twins import Originals, without_links
from ckpttool.text import Message, first_names, parameter

__all__ = ["discover", "from_paths"]


@dataclass(frozen=True)
class _Request:
    """What the user says about the names of a directory."""

    layout: str | None
    section: str | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]

    def hidden(self, names: Mapping[str, object]) -> dict[str, tuple[Reason, str]]:
        """The names that the user leaves out: the reason, and the globs that say it."""
        found = {name: (Reason.EXCLUDED, glob) for name in names for glob in self.exclude if fnmatchcase(name, glob)}
        if self.include:
            for name in names:
                if not any(fnmatchcase(name, glob) for glob in self.include):
                    found.setdefault(name, (Reason.NOT_INCLUDED, " ".join(self.include)))
        return found

    def overruled(self, found: Classified) -> frozenset[str]:
        """Names that a guess left out although the user asks for just those."""
        guessed = [each.name for each in (*found.aliases, *found.ignored) if each.is_guess]
        asked = [
            [name for name in guessed if fnmatchcase(name, glob)]
            for glob in self.include
            if not any(fnmatchcase(name, glob) for name in found.entries)
        ]
        return frozenset(name for names in asked for name in names)


def discover(
    directory: str | os.PathLike[str],
    *,
    layout: str | None = None,
    section: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    snapshot: Snapshot | None = None,
) -> Discovery:
    """Find the checkpoints of a model directory.

    Args:
        directory: The model directory.
        layout: Name of the layout, where it shall not be found out.
        section: Where the weights are inside the files, where the user says it.
        include: Globs; other names are not even considered.
        exclude: Globs of names that are not considered.
        snapshot: The operation's view of the storage; None: a new one.

    Raises:
        NotFoundError: There is no such directory, or no numbered checkpoint in it; the message says what is there.
        UsageError: Several layouts fit equally well, two checkpoints have the same step, or the checkpoints are one
            level further down.
        UnreadableError: The directory or a checkpoint that is needed to tell the order cannot be read.
    """
    asked = _Request(layout, section, tuple(include), tuple(exclude))
    return _discover(Path(directory), asked, snapshot or Snapshot())


def _discover(directory: Path, asked: _Request, snapshot: Snapshot) -> Discovery:
    everything = list_directory(directory, snapshot)
    if not everything and snapshot.names(directory):
        there = first_names(snapshot.names(directory))
        raise NotFoundError(
            f"{directory}: no checkpoints, but links that lead nowhere or pipes: {there}",
            path=directory,
        )
    hidden = asked.hidden(everything)
    listing = {name: inner for name, inner in everything.items() if name not in hidden}
    try:
        found = _detect(listing, asked, str(directory))
    except NotFoundError as error:
        other = _something_else(directory, everything, asked, snapshot)
        if other is not None:
            return other
        raise _with_hidden(error, directory, hidden, asked, nothing=not listing) from None
    if found.layout.name == "generic" and found.layout.kind == "directory":
        # Runs next to each other, with the model that each has ended in, are numbered as well.
        _ask_for_subdirectory(directory, {name: everything[name] for name in found.entries}, snapshot, known=True)
    opener = Opener(snapshot, asked.section, found.layout.weights)
    names = {_entry(directory / name, named, opener): named for name, named in found.entries.items()}
    chosen = bool(asked.include)
    scaled = on_one_scale(list(names), names, where=str(directory), words=found.has_words, mixed=chosen)
    entries, twins = without_links(scaled.entries, snapshot)
    _refuse_equal_steps(directory, entries, mixed=chosen)
    notes = [*scaled.notes]
    if chosen:
        notes += told(entries)
        entries = [replace(entry, kind=()) for entry in entries]
    unfinished = [each.name for each in found.ignored if each.code is Reason.UNFINISHED]
    if unfinished:
        notes.append(f"left out, unfinished or not a checkpoint: {first_names(sorted(unfinished))}")
    skipped = [
        *_hidden_checkpoints(directory, found, everything, hidden),
        *twins,
        *_broken_links(directory, found, snapshot),
        *(Ignored(directory / each.name, each.reason, each.code) for each in found.ignored),
        *_explained(directory, found, entries, opener),
    ]
    return Discovery(
        directory,
        found.layout.name,
        found.why,
        tuple(entries),
        tuple(sorted(skipped, key=lambda each: each.path.name)),
        tuple(notes),
        scaled.warnings,
        contradicted=scaled.contradicted,
    )


def _entry(path: Path, named: Named, opener: Opener) -> Entry:
    return Entry(path, opener, epoch=named.epoch, kind=named.kind, alike=named.alike)


def _detect(listing: Listing, asked: _Request, where: str) -> Classified:
    """The layout of a directory; names that the user asks for are checkpoints, whatever is guessed from them."""
    if not asked.include:
        return detect(listing, layout=asked.layout, where=where)
    try:
        found = detect(listing, layout=asked.layout, where=where)
    except NotFoundError:
        if asked.layout is not None:
            raise
        return detect(listing, layout="generic", where=where, believed=frozenset(listing))
    overruled = asked.overruled(found)
    if not overruled:
        return found
    series = detect({name: listing[name] for name in overruled}, layout="generic", where=where, believed=overruled)
    return found.joined(series)


def _something_else(directory: Path, everything: Listing, asked: _Request, snapshot: Snapshot) -> Discovery | None:
    """What a directory without numbered checkpoints is: one checkpoint, or folders of ranks with all of them.

    Raises:
        UsageError: The checkpoints are further down.
    """
    from ckpttool.formats.directories.parts import RANK  # runs of other formats do without it

    plain = asked.layout is None and not asked.include
    row = format_of_directory(directory, snapshot) if plain else None
    folders = sorted(name for name, inner in everything.items() if inner is not None and RANK.fullmatch(name))
    ranks = folders if row is None else []
    if ranks:  # NeMo with model parallelism: every checkpoint is in the folders of all ranks
        inner = _discover(directory / ranks[0], asked, snapshot)
        return replace(inner, why=f"{inner.why}, in each of {len(ranks)} folders like {ranks[0]}")
    if row is None or not row.is_partitioned:  # whose folders and files are parts
        _ask_for_subdirectory(directory, everything, snapshot)
    if plain and (row is not None or weights_file(directory, snapshot) != directory):
        alone = Entry(directory, Opener(snapshot, asked.section))
        return Discovery(directory.parent, "single", "the directory is one checkpoint itself", (alone,))
    return None


def _with_hidden(
    error: NotFoundError,
    directory: Path,
    hidden: Mapping[str, tuple[Reason, str]],
    asked: _Request,
    *,
    nothing: bool,
) -> NotFoundError:
    """The error that nothing was found, with what the user left out."""
    error.path = directory
    said = " and ".join(
        parameter(name) for name, globs in (("include", asked.include), ("exclude", asked.exclude)) if globs
    )
    if hidden and nothing:
        return NotFoundError(
            f"{directory}: of its {len(hidden)} names, {said} left none",
            hint=f"There are {first_names(sorted(hidden))}.",
            path=directory,
        )
    if hidden:
        before = f"{_marked(error.hint)} " if error.hint else ""
        error.hint = Message(f"{before}Left out by {said}: {first_names(sorted(hidden))}.")
    return error


def _hidden_checkpoints(
    directory: Path, found: Classified, everything: Listing, hidden: Mapping[str, tuple[Reason, str]]
) -> list[Ignored]:
    """The checkpoints of this layout among the names that the user leaves out."""
    names = classify(found.layout, {name: everything[name] for name in hidden}).entries
    return [Ignored.because(directory / name, hidden[name][0], globs=hidden[name][1]) for name in names]


def _broken_links(directory: Path, found: Classified, snapshot: Snapshot) -> list[Ignored]:
    """The links named as the checkpoints are that lead nowhere: what they led to was moved or removed."""
    templates = {template_of(name) for name in found.entries}
    broken = (name for name, item in snapshot.list(directory).items() if item.kind == "missing")
    return [Ignored.because(directory / name, Reason.BROKEN_LINK) for name in broken if template_of(name) in templates]


def _marked(text: str) -> str:
    return text.marked if isinstance(text, Message) else text


def _ask_for_subdirectory(directory: Path, listing: Listing, snapshot: Snapshot, *, known: bool = False) -> None:
    """Raise a question where the checkpoints are further down.

    Args:
        directory: The model directory.
        listing: Its names, and those inside.
        snapshot: The view of the storage.
        known: Whether only those count that a framework's row knows, one level down; else any, up to three levels.
    """
    inside: list[str] = []
    alone: list[str] = []  # directories that are one checkpoint each
    level = sorted(name for name, inner in listing.items() if inner and not name.startswith("."))[:100]
    for _ in range(1 if known else 3):
        deeper: list[str] = []
        for name in level:
            below = list_directory(directory / name, snapshot)
            try:
                found = detect(below, where=name)
                count = len(found.entries)
                if not known or found.layout.name != "generic":
                    inside.append(f"{name} ({count} checkpoint{'s' * (count != 1)})")
            except CkpttoolError:
                if not known and _is_one_checkpoint(directory / name, snapshot):
                    alone.append(name)
                    continue
                deeper += [f"{name}/{child}" for child, inner in sorted(below.items()) if inner and child[:1] != "."]
        level = deeper[:200]
        if inside or alone:
            break
    if len(alone) > 1 and not inside:
        raise _each_alone(directory, alone)
    if inside:
        first = inside[0].rpartition(" (")[0]
        raise UsageError(
            f"{directory}: the checkpoints are further down: {first_names(inside, 6)}",
            hint=f"Name the one that is meant, for instance {directory / first}.",
            path=directory,
        )


def _is_one_checkpoint(directory: Path, snapshot: Snapshot) -> bool:
    """Whether a directory can be opened as a checkpoint: of an unfinished one, only some files are there."""
    if format_of_directory(directory, snapshot) is None:
        return False
    try:
        _ = Entry(directory, Opener(snapshot)).checkpoint
    except CkpttoolError:
        return False
    return True


def _each_alone(directory: Path, names: Sequence[str]) -> UsageError:
    """That the checkpoints are further down, each in a directory of its own, and how to list them."""
    globs = {template_of(name).replace("#", "[0-9]*") for name in names if template_of(name) != name}
    listed = directory / globs.pop() if len(globs) == 1 else f"{directory / names[0]} {directory / names[1]}"
    return UsageError(
        f"{directory}: the checkpoints are further down, each in a directory of its own: {first_names(names, 6)}",
        hint=f"List them, and name an output: {listed}.",
        path=directory,
    )


def _refuse_equal_steps(directory: Path, entries: Sequence[Entry], *, mixed: bool) -> None:
    for first, second in pairwise(entries):
        if first.order == second.order:
            asked = None if mixed else question(str(directory), entries, both=False)
            raise asked or UsageError(
                f"{directory}: {first.name} and {second.name} have the same {first.unit}"
                f"{'' if first.step is None else f' {first.step}'}",
                hint=f"Leave one out: {parting(first, second, entries)}.",
                path=directory,
            )


def _explained(directory: Path, found: Classified, entries: Sequence[Entry], opener: Opener) -> list[Ignored]:
    """Why each unnumbered name is left out: which checkpoint it is, where that can be told."""
    originals = Originals(entries, opener)
    skipped = []
    others = [*found.aliases, *(found.unknown(name) for name in found.unexplained)]
    for other in others:
        path = directory / other.name
        twin = originals.twin_of(path)
        if twin is None:
            step = opener.stated_step(path)
            is_best = other.code is Reason.BEST and any(map(str.isdigit, other.name))
            code, reason = other.code, other.reason
            if is_best:
                code, reason = Reason.ONLY_BEST, Reason.ONLY_BEST.say(name=other.name)
            twin = Ignored(path, reason if step is None else Message(f"{_marked(reason)} (step {step})"), code)
        skipped.append(twin)
    return skipped
