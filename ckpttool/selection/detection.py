"""Which row of the table a directory follows, and what each of its names is.

Nothing is opened and nothing is listed here: names come in, a classification goes out, whatever their order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache

from ckpttool.errors import NotFoundError, UsageError
from ckpttool.formats import CHECKPOINT_SUFFIXES
from ckpttool.run_layouts import (
    COMMON_ALIASES,
    COMMON_IGNORED,
    EARLIER_AVERAGE,
    HIDDEN,
    LAYOUTS,
    UNFINISHED,
    WEIGHT_FILES,
    Layout,
    Reason,
    Rule,
)
from ckpttool.selection.metrics import sidecar
from ckpttool.text import first_names

__all__ = ["Classified", "Ignored", "Listing", "Named", "classify", "detect", "name_numbers"]

Listing = Mapping[str, "Sequence[str] | None"]
"""Name to the names inside it, for a directory; None for a file."""


@dataclass(frozen=True, slots=True)
class Named:
    """What an entry's name says. Of `step`, `epoch` and `date`, those that its pattern has.

    Attributes:
        series: Which of several averages of one run it is of, where its pattern says that.
        alike: A glob of names that differ from it in numbers only, but for the series.
    """

    name: str
    step: int | None = None
    epoch: int | None = None
    date: int | None = None
    series: str = field(default="", compare=False)
    alike: str = field(default="", compare=False)

    @property
    def kind(self) -> tuple[str, ...]:
        """What tells its kind from others in its directory: what its name counts, and the series."""
        counted = [unit for unit in ("date", "epoch", "step") if getattr(self, unit) is not None]
        return (*counted, self.series) if self.series else tuple(counted)


@dataclass(frozen=True, slots=True)
class Ignored:
    """A name that is not an entry: which, why, and that in words."""

    name: str
    code: Reason
    reason: str


def _ignored(name: str, code: Reason, **facts: object) -> Ignored:
    return Ignored(name, code, code.say(**facts))


@dataclass(frozen=True)
class Classified:
    """Every name of a directory, as one layout sees it.

    Attributes:
        layout: The row.
        entries: The numbered checkpoints, by name.
        aliases: Further names of a checkpoint.
        ignored: Names that are not checkpoints of this run.
        unexplained: Names that look like checkpoints and fit nothing.
        evidence: How many further files of this framework are there.
        why: One sentence: which row, and why.
    """

    layout: Layout
    entries: Mapping[str, Named]
    aliases: tuple[Ignored, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    unexplained: tuple[str, ...] = ()
    evidence: int = 0
    why: str = field(default="", compare=False)


@lru_cache(maxsize=1 << 14)  # Forty rows ask the same of every name.
def _first(rules: tuple[Rule, ...], name: str) -> Reason | None:
    return next((rule.reason for rule in rules if re.fullmatch(rule.pattern, name)), None)


def _own_rule(rules: tuple[Rule, ...], name: str, listing: Listing) -> Ignored | None:
    """Why a layout leaves a name out; also that what it belongs to is not there."""
    reason = _first(rules, name)
    if reason is None:
        return None
    owner = _owner(rules, name)
    missing = owner is not None and owner not in listing
    return _ignored(name, Reason.OWNER_MISSING, owner=owner) if missing else _ignored(name, reason)


@lru_cache(maxsize=1 << 14)
def _owner(rules: tuple[Rule, ...], name: str) -> str | None:
    matches = ((rule, re.fullmatch(rule.pattern, name)) for rule in rules)
    rule, match = next((rule, match) for rule, match in matches if match)
    return match.expand(rule.owner) if rule.owner else None


def _has_any(inner: Sequence[str], globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) and name.count("/") == glob.count("/") for name in inner for glob in globs)


def _named(layout: Layout, name: str) -> Named | None:
    for pattern in layout.entries:
        match = re.fullmatch(pattern, name)
        if match:
            numbers = {
                group: int(re.sub(r"\D", "", text))
                for group, text in match.groupdict().items()
                if text is not None and group in {"step", "epoch", "date"}
            }
            return Named(name, **numbers, series=match.groupdict().get("series") or "", alike=_alike(match))
    return None


def _alike(match: re.Match[str]) -> str:
    """A glob of names that differ from this one in numbers only, but for the series."""
    name, glob, end = match.string, "", 0
    # A group's number may end where the next one begins: "ep10.500" is no decimal.
    for group in sorted(match.groupdict(), key=match.start):
        start, stop = match.span(group)
        if start >= end:
            glob += _NUMBER.sub("[0-9]*", name[end:start])
            glob += match[group] if group == "series" else re.sub(r"\d+", "[0-9]*", match[group])
            end = stop
    return glob + _NUMBER.sub("[0-9]*", name[end:])


def _looks_like_weights(name: str) -> bool:
    return name.lower().endswith(CHECKPOINT_SUFFIXES)


def classify(layout: Layout, listing: Listing) -> Classified:
    """See a directory through one layout's eyes.

    Args:
        layout: The row.
        listing: The directory's names.
    """
    entries: dict[str, Named] = {}
    aliases: list[Ignored] = []
    ignored: list[Ignored] = []
    unexplained: list[str] = []
    evidence = 0
    for name in sorted(listing):
        inner = listing[name]
        is_ours = (inner is not None) == (layout.kind == "directory")
        looks = _looks_like_weights(name) or (inner is not None and _has_any(inner, WEIGHT_FILES))
        own_rule, own_alias = _own_rule(layout.ignored, name, listing), _first(layout.aliases, name)
        named = _named(layout, name) if is_ours else None
        common = _first((UNFINISHED,), name) or (_first((HIDDEN,), name) if named is None else None)
        if common is not None and own_rule is None:
            if looks or _named(layout, name.split(".tmp")[0]) is not None or common is UNFINISHED.reason:
                ignored.append(_ignored(name, common))
        elif own_rule is not None:
            ignored.append(own_rule)
            evidence += 1
        elif own_alias is not None:
            aliases.append(_ignored(name, own_alias))
            evidence += 1
        elif named is not None and inner is not None and layout.markers and not _has_any(inner, layout.markers):
            missing = " or ".join(layout.markers[:3])
            ignored.append(_ignored(name, Reason.UNFINISHED, missing=missing))
        elif named is not None:
            entries[name] = named
        elif looks or inner is not None:
            average = _first((EARLIER_AVERAGE,), name)
            other = average or (_first(COMMON_IGNORED, name) if looks else None)
            if other is not None:
                ignored.append(_ignored(name, other))
            elif looks and (alias := _first(COMMON_ALIASES, name)) is not None:
                aliases.append(_ignored(name, alias))
            elif looks:
                unexplained.append(name)
        if any(fnmatchcase(name, glob) for glob in layout.auxiliary if glob not in {"*.json", "*.py", "*.yml"}):
            evidence += 1
    # A pattern with a free beginning also fits "avg_step_100.pt"; where the whole run is called so, it is no average.
    averages = [name for name in entries if _first((EARLIER_AVERAGE,), name)]
    if len(averages) < len(entries):
        for name in averages:
            del entries[name]
            ignored.append(_ignored(name, EARLIER_AVERAGE.reason))
    evidence += sum(table in listing for table in layout.tables for _ in list(entries)[:3])
    evidence += sum(
        sidecar(template, name).split("/")[0] in listing
        for template in layout.sidecars
        if not template.startswith("{name}/")
        for name in list(entries)[:3]
    )
    return Classified(layout, entries, tuple(aliases), tuple(ignored), tuple(unexplained), evidence)


# --- Directories that no row knows -----------------------------------------------------------------------------

_INTEGER = re.compile(r"(?<!\d)(?<!\d\.)\d+(?!\.?\d)")
_STEP_WORD = re.compile(r"(?:steps?|iters?|iterations?|it|updates?|batch|ba|global_?step|kimg)[-_=.]?$", re.IGNORECASE)
_EPOCH_WORD = re.compile(r"(?:epochs?|ep|e)[-_=.]?$", re.IGNORECASE)
_RUN_WORD = re.compile(r"(?<![a-z])(?:seed|fold|run|trial|exp|experiment|version|split)[-_=.]?$", re.IGNORECASE)
"""What a directory's number counts where it is a run of its own."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def _stem(name: str) -> str:
    lower = name.lower()
    suffix = max((suffix for suffix in CHECKPOINT_SUFFIXES if lower.endswith(suffix)), key=len, default="")
    return name[: len(name) - len(suffix)] if suffix else name


def _generic(listing: Listing) -> list[Classified]:
    """The numbered series of names in a directory, longest first: names that differ in numbers only."""
    base = classify(Layout("generic", ()), listing)
    directories = tuple(name for name, inner in listing.items() if inner and _has_any(inner, WEIGHT_FILES))
    series: dict[tuple[str, bool], list[str]] = {}
    for name in sorted({*base.unexplained, *(name for name in directories if name in base.unexplained)}):
        if _INTEGER.search(_stem(name)):
            series.setdefault((_NUMBER.sub("#", name), listing[name] is not None), []).append(name)
    found = []
    for (template, is_directory), names in series.items():
        entries = {}
        for name in names:
            stem = _stem(name)
            numbers = list(_INTEGER.finditer(stem))
            steps = [number for number in numbers if _STEP_WORD.search(stem[: number.start()])]
            epochs = [number for number in numbers if _EPOCH_WORD.search(stem[: number.start()])]
            if is_directory and not steps and not epochs and _RUN_WORD.search(stem[: numbers[-1].start()]):
                continue
            if steps or not epochs:
                chosen = steps[-1] if steps else numbers[-1]
                entries[name] = Named(name, step=int(chosen.group()))
            else:
                entries[name] = Named(name, epoch=int(epochs[-1].group()))
        if not entries:
            continue
        layout = Layout("generic", (), "directory" if is_directory else "file", weights=WEIGHT_FILES)
        others = tuple(name for name in base.unexplained if name not in entries)
        why = f"no framework's pattern fits; {len(entries)} names follow {template}"
        found.append(Classified(layout, entries, base.aliases, base.ignored, others, 0, why))
    return sorted(found, key=lambda each: (-len(each.entries), min(each.entries)))


# --- Deciding --------------------------------------------------------------------------------------------------


def _rank(found: Classified) -> tuple[int, int, int]:
    return (len(found.entries), -len(found.unexplained), found.evidence)


def detect(listing: Listing, *, layout: str | None = None, where: str = "the directory") -> Classified:
    """Decide which layout a directory follows.

    The row that explains the most names wins: most entries, then fewest names left unexplained, then most companions
    of its framework. Rows that are level and read the names alike need no question.

    Args:
        listing: The directory's names.
        layout: The name of a row, where the user says it.
        where: The directory, for messages.

    Raises:
        UsageError: There is no such row, or several fit equally well and read the names differently.
        NotFoundError: No name looks like a numbered checkpoint.
    """
    names = [row.name for row in LAYOUTS]
    if layout is not None and layout not in {*names, "generic"}:
        raise UsageError(f"no layout is called {layout!r}", hint=f"Known layouts: {', '.join([*names, 'generic'])}.")
    rows = [row for row in LAYOUTS if layout in {None, row.name}]
    found = [each for each in (classify(row, listing) for row in rows) if each.entries]
    generic = _generic(listing) if layout in {None, "generic"} else []
    if layout is None and found:
        # A lone name that happens to fit a row must not hide a longer series beside it.
        longest = max(len(each.entries) for each in found)
        generic = [each for each in generic if len(each.entries) > longest + 1]
    found += generic[:1]
    if len(generic) > 1 and len(generic[0].entries) == len(generic[1].entries):
        patterns = " or ".join(_NUMBER.sub("*", min(each.entries)) for each in generic[:2])
        raise UsageError(
            f"{where}: two series of checkpoints of equal length: {patterns}",
            hint=f"Choose one, for instance with --include '{_NUMBER.sub('*', min(generic[0].entries))}'.",
        )
    if not found:
        raise NotFoundError(_nothing(listing, layout, where), hint=_nothing_hint(listing, layout))
    best = max(map(_rank, found))
    level = [each for each in found if _rank(each) == best]
    first = level[0]
    different = [each for each in level[1:] if each.entries != first.entries or each.layout.kind != first.layout.kind]
    if different:
        options = [first.layout.name, *(each.layout.name for each in different)]
        raise UsageError(
            f"{where}: it may be a directory of {' or '.join(options)}",
            hint=f"Say which: {' or '.join(f'--layout {option}' for option in options)}.",
        )
    return Classified(
        first.layout,
        first.entries,
        first.aliases,
        first.ignored,
        first.unexplained,
        first.evidence,
        first.why or _why(first, level[1:], layout),
    )


def _why(found: Classified, level: Sequence[Classified], layout: str | None) -> str:
    name, count = found.layout.name, len(found.entries)
    if layout is not None:
        return f"layout {name}, as asked: {count} checkpoints"
    others = ", ".join(each.layout.name for each in level)
    also = f" ({others} would read them alike)" if level else ""
    return f"layout {name}: {count} name{'s' * (count != 1)} like {min(found.entries)} fit{'s' * (count == 1)} it{also}"


def _nothing(listing: Listing, layout: str | None, where: str) -> str:
    looked = f"checkpoints named as {layout} names them" if layout else "numbered checkpoints"
    if not listing:
        return f"{where}: no {looked}: the directory is empty"
    return f"{where}: no {looked}; there are {first_names(sorted(listing))}"


def _nothing_hint(listing: Listing, layout: str | None) -> str | None:
    if layout is not None:
        row = next((row for row in LAYOUTS if row.name == layout), None)
        return f"Looked for {' or '.join(row.entries)}." if row else None
    # The row that knows the most of them by name, although none is finished.
    rows = [classify(row, listing) for row in LAYOUTS if row.name != "dcp"]  # which knows any number
    unfinished = max(([each for each in row.ignored if each.code is Reason.UNFINISHED] for row in rows), key=len)
    if unfinished:
        first = next(row for row in rows if set(unfinished) <= set(row.ignored))
        return f"As {first.layout.name} has it, {unfinished[0].name} is {unfinished[0].reason}" + (
            f"; {len(unfinished) - 1} more." if unfinished[1:] else "."
        )
    seen = classify(Layout("generic", ()), listing)
    left = Counter(each.reason for each in (*seen.aliases, *seen.ignored))
    if left:
        reasons = ", ".join(f"{count} of them {reason}" for reason, count in left.most_common(3))
        return f"Left out: {reasons}. Name the files themselves to average them all the same."
    return "Looked for names with a step or epoch in them (.pt, .pth, .ckpt, .safetensors, ..., or checkpoint-N/)."


def name_numbers(name: str) -> Named:
    """What a name alone says, for a file without a directory's context: only numbers that it calls step or epoch.

    A pattern of the table with words in it counts as well as a word before the number; a bare number does not.
    """
    for row in LAYOUTS:
        named = _named(row, name)
        if named is not None and re.search(r"[A-Za-z]{2}", _stem(name)) and row.name not in {"edm2", "ema-pytorch"}:
            return named
    stem = _stem(name)
    numbers = list(_INTEGER.finditer(stem))
    steps = [int(number.group()) for number in numbers if _STEP_WORD.search(stem[: number.start()])]
    epochs = [int(number.group()) for number in numbers if _EPOCH_WORD.search(stem[: number.start()])]
    return Named(name, step=steps[-1] if steps else None, epoch=epochs[-1] if epochs else None)
