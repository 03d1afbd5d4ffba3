"""Which row of the table a directory follows, and what each of its names is.

Nothing is opened and nothing is listed here: the result depends on the names alone, and not on their order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache

from ckpttool.errors import NotFoundError, UsageError
from ckpttool.formats import CHECKPOINT_SUFFIXES
from ckpttool.run_layouts import (
    COMMON_ALIASES,
    COMMON_IGNORED,
    EARLIER_AVERAGE,
    GUESSES,
    HIDDEN,
    LAYOUTS,
    UNFINISHED,
    WEIGHT_FILES,
    Layout,
    Reason,
    Rule,
)
from ckpttool.selection.metric_files import sidecar
from ckpttool.selection.names import (
    Named,
    has_step_word,
    is_run,
    named_by,
    read_series,
    series_of,
    template_of,
)
from ckpttool.text import first_names, parameter

__all__ = ["Classified", "LeftOut", "Listing", "classify", "detect"]

Listing = Mapping[str, "Sequence[str] | None"]
"""Name to the names inside it, for a directory; None for a file."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A name that is not an entry: which, why, and that in words."""

    name: str
    code: Reason
    reason: str

    @property
    def is_guess(self) -> bool:
        """Whether it was left out for what its name suggests, so that the user may know better."""
        return self.code in GUESSES


def _left_out(name: str, code: Reason, **facts: object) -> LeftOut:
    return LeftOut(name, code, code.say(**facts))


def _is_partial(found: Classified, listing: Listing) -> bool:
    """Whether a row reads a part of a series only: a number of fixed width that is not padded, or has outgrown it.

    Of ``model_50000.pt`` and ``model_100000.pt``, the pattern ``model_[0-9]{6}.pt`` fits the second by chance.
    """
    is_directory = found.layout.kind == "directory"
    templates = {template_of(name) for name in found.entries}
    left = (name for name in found.unexplained if (listing[name] is not None) == is_directory)
    return any(template_of(name) in templates for name in left)


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
    aliases: tuple[LeftOut, ...] = ()
    ignored: tuple[LeftOut, ...] = ()
    unexplained: tuple[str, ...] = ()
    evidence: int = 0
    why: str = field(default="", compare=False)

    @property
    def has_words(self) -> bool:
        """Whether the names themselves, and not only the row, say that they count steps."""
        return all(map(has_step_word, list(self.entries)[:1]))

    def unknown(self, name: str) -> LeftOut:
        """That a name fits nothing."""
        if self.layout.name == "generic":
            return _left_out(name, Reason.NOT_OF_THE_SERIES)
        return _left_out(name, Reason.UNKNOWN_NAME, layout=self.layout.name)

    def joined(self, other: Classified) -> Classified:
        """With the entries of another reading of the same directory, which are nothing else then."""
        entries = {**self.entries, **other.entries}
        return replace(
            self,
            entries=entries,
            aliases=tuple(each for each in self.aliases if each.name not in entries),
            ignored=tuple(each for each in self.ignored if each.name not in entries),
            unexplained=tuple(name for name in self.unexplained if name not in entries),
        )


@lru_cache(maxsize=1 << 14)  # Fifty rows ask the same of every name.
def _first(rules: tuple[Rule, ...], name: str) -> Reason | None:
    return next((rule.reason for rule in rules if re.fullmatch(rule.pattern, name)), None)


def _own_rule(rules: tuple[Rule, ...], name: str, listing: Listing) -> LeftOut | None:
    """Why a layout leaves a name out; also that what it belongs to is not there."""
    reason = _first(rules, name)
    if reason is None:
        return None
    owner = _owner(rules, name)
    missing = owner is not None and owner not in listing
    return _left_out(name, Reason.OWNER_MISSING, owner=owner) if missing else _left_out(name, reason)


@lru_cache(maxsize=1 << 14)
def _owner(rules: tuple[Rule, ...], name: str) -> str | None:
    matches = ((rule, re.fullmatch(rule.pattern, name)) for rule in rules)
    rule, match = next((rule, match) for rule, match in matches if match)
    return match.expand(rule.owner) if rule.owner else None


def _has_any(inner: Sequence[str], globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) and name.count("/") == glob.count("/") for name in inner for glob in globs)


def _looks_like_weights(name: str, inner: Sequence[str] | None) -> bool:
    return name.lower().endswith(CHECKPOINT_SUFFIXES) or (inner is not None and _has_any(inner, WEIGHT_FILES))


def classify(layout: Layout, listing: Listing, believed: frozenset[str] = frozenset()) -> Classified:
    """What each name of a directory is by one layout.

    Args:
        layout: The row.
        listing: The directory's names.
        believed: Names that are not left out for what they suggest.
    """
    entries: dict[str, Named] = {}
    aliases: list[LeftOut] = []
    ignored: list[LeftOut] = []
    unexplained: list[str] = []
    evidence = 0
    for name in sorted(listing):
        inner = listing[name]
        is_ours = (inner is not None) == (layout.kind == "directory")
        looks = _looks_like_weights(name, inner)
        own_rule, own_alias = _own_rule(layout.ignored, name, listing), _first(layout.aliases, name)
        if name in believed:
            own_rule, own_alias = None if own_rule is not None and own_rule.is_guess else own_rule, None
        named = named_by(layout, name) if is_ours else None
        common = _first((UNFINISHED,), name) or (_first((HIDDEN,), name) if named is None else None)
        if common is not None and own_rule is None:
            half_written = common is UNFINISHED.reason
            if looks or half_written or named_by(layout, name.split(".tmp")[0]) is not None:
                ignored.append(_left_out(name, common))
        elif own_rule is not None:
            ignored.append(own_rule)
            evidence += 1
        elif own_alias is not None:
            aliases.append(_left_out(name, own_alias))
            evidence += 1
        elif named is not None and inner is not None and layout.markers and not _has_any(inner, layout.markers):
            ignored.append(_left_out(name, Reason.UNFINISHED, missing=" or ".join(layout.markers[:3])))
        elif named is not None:
            entries[name] = named
        elif name in believed:
            unexplained.append(name)
        elif looks or inner is not None:
            other = _first((EARLIER_AVERAGE,), name) or (_first(COMMON_IGNORED, name) if looks else None)
            if other is not None:
                ignored.append(_left_out(name, other))
            elif looks and (alias := _first(COMMON_ALIASES, name)) is not None:
                aliases.append(_left_out(name, alias))
            elif looks:
                unexplained.append(name)
        if any(fnmatchcase(name, glob) for glob in layout.auxiliary if glob not in {"*.json", "*.py", "*.yml"}):
            evidence += 1
    # A pattern with a free beginning also fits "avg_step_100.pt"; if the whole run is called so, it is not an average.
    averages = [name for name in entries if name not in believed and _first((EARLIER_AVERAGE,), name)]
    if len(averages) < len(entries):
        for name in averages:
            del entries[name]
            ignored.append(_left_out(name, EARLIER_AVERAGE.reason))
    evidence += sum(table in listing for table in layout.tables for _ in list(entries)[:3])
    evidence += sum(
        sidecar(template, name).split("/")[0] in listing
        for template in layout.sidecars
        if not template.startswith("{name}/")
        for name in list(entries)[:3]
    )
    return Classified(layout, entries, tuple(aliases), tuple(ignored), tuple(unexplained), evidence)


# --- Directories that no row knows -----------------------------------------------------------------------------


_MODELS = tuple(glob for glob in WEIGHT_FILES if glob.endswith((".safetensors", ".bin")))


def _generic(listing: Listing, believed: frozenset[str] = frozenset()) -> list[Classified]:
    """The numbered series of names in a directory, longest first: names that differ in numbers only."""
    base = classify(Layout("generic", ()), listing, believed)
    found = []
    for is_directory in (False, True):
        candidates = (name for name in base.unexplained if (listing[name] is not None) == is_directory)
        names = [name for name in candidates if not is_run(name)]
        layout = Layout("generic", (), "directory" if is_directory else "file", weights=WEIGHT_FILES)
        for template, series in series_of(names).items():
            entries = read_series(series)
            # One numbered file next to a model is a part of it: a normaliser, an adapter of its own.
            if not entries or (len(entries) == 1 and not is_directory and _has_any(tuple(listing), _MODELS)):
                continue
            others = tuple(name for name in base.unexplained if name not in entries)
            why = f"no framework's pattern fits; {len(entries)} names follow {template}"
            found.append(Classified(layout, entries, base.aliases, base.ignored, others, 0, why))
    return sorted(found, key=lambda each: (-len(each.entries), min(each.entries)))


def _best_ones(listing: Listing) -> list[Classified]:
    """The series of numbered names of best checkpoints, for a run that keeps no others."""
    aliases = classify(Layout("generic", ()), listing).aliases
    return _generic(listing, frozenset(each.name for each in aliases if "best" in each.name.lower()))


# --- Deciding --------------------------------------------------------------------------------------------------


def _rank(found: Classified) -> tuple[int, int, int]:
    return (len(found.entries), -len(found.unexplained), found.evidence)


def _knows_no_unit(found: Classified) -> bool:
    return any(named.number is not None for named in found.entries.values())


def _read_alike(one: Classified, other: Classified) -> bool:
    """Whether two rows give the same entries, with the same numbers in the same unit, or in one that is not known."""
    if one.layout.kind != other.layout.kind or set(one.entries) != set(other.entries):
        return False
    for name, named in one.entries.items():
        same = other.entries[name]
        bare = named.number is not None or same.number is not None
        if named != same and not (bare and named.key and same.key and named.key[1] == same.key[1]):
            return False
    return True


def detect(
    listing: Listing,
    *,
    layout: str | None = None,
    where: str = "the directory",
    believed: frozenset[str] = frozenset(),
) -> Classified:
    """Decide which layout a directory follows.

    The row that explains the most names wins: most entries, then fewest names left unexplained, then most further
    files of its framework. Rows that are level and read the names alike need no question.

    Args:
        listing: The directory's names.
        layout: The name of a row, where the user says it.
        where: The directory, for messages.
        believed: Names that are not left out for what they suggest.

    Raises:
        UsageError: There is no such row, or several fit equally well and read the names differently.
        NotFoundError: No name looks like a numbered checkpoint.
    """
    names = [row.name for row in LAYOUTS]
    if layout is not None and layout not in {*names, "generic"}:
        raise UsageError(f"no layout is called {layout!r}", hint=f"Known layouts: {', '.join([*names, 'generic'])}.")
    rows = [row for row in LAYOUTS if layout in {None, row.name}]
    found = [each for each in (classify(row, listing, believed) for row in rows) if each.entries]
    if layout is None:
        found = [each for each in found if not _is_partial(each, listing)]
    generic = _generic(listing, believed) if layout in {None, "generic"} else []
    if layout is None and found:
        # A lone name that happens to fit a row must not hide a longer series.
        longest = max(len(each.entries) for each in found)
        generic = [each for each in generic if len(each.entries) > longest + 1]
    if layout is None and not found and not generic:
        generic = _best_ones(listing)
    found += generic[:1]
    if len(generic) > 1 and len(generic[0].entries) == len(generic[1].entries):
        patterns = [template_of(min(each.entries)).replace("#", "*") for each in generic[:2]]
        raise UsageError(
            f"{where}: two series of checkpoints of equal length: {' or '.join(patterns)}",
            hint=f"Choose one, for instance with {parameter('include', patterns[0])}.",
        )
    if not found:
        raise NotFoundError(_nothing(listing, layout, where), hint=_nothing_hint(listing, layout))
    best = max(map(_rank, found))
    # A row that knows what the numbers count before one that does not.
    level = sorted((each for each in found if _rank(each) == best), key=_knows_no_unit)
    first = level[0]
    different = [each for each in level[1:] if not _read_alike(each, first)]
    if different:
        options = [first.layout.name, *(each.layout.name for each in different)]
        raise UsageError(
            f"{where}: it may be a directory of {' or '.join(options)}",
            hint=f"Say which: {' or '.join(parameter('layout', option) for option in options)}.",
        )
    return replace(first, why=first.why or _why(first, level[1:], layout))


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
