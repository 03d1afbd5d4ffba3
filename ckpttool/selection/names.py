r"""What the name of a checkpoint says: which number orders it, and what that number counts.

A row of the table of layouts says it for a framework's names. Names that no row knows are read by general rules: a
number counts steps or epochs where a word next to it says so (``step_10k``, ``e1_s500``, ``9epoch``,
``model_500000_steps``); a number that differs between the names of a series orders them, and it is not known what it
counts. A seed, a fold, a metric or a decimal number is not a counter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ckpttool.formats import CHECKPOINT_SUFFIXES
from ckpttool.run_layouts import LAYOUTS, Layout
from ckpttool.selection.metrics import MAXIMISED, MINIMISED

__all__ = [
    "Named",
    "Unit",
    "has_step_word",
    "is_run",
    "name_numbers",
    "named_by",
    "read_series",
    "series_of",
    "stem_of",
    "template_of",
]

Unit = Literal["step", "epoch", "date", "number"]
"""What a number counts. number: not known; it only orders the checkpoints."""

_LAST_PART = 10**9 - 1
"""Position of the end of an epoch among the checkpoints saved during it."""


@dataclass(frozen=True, slots=True)
class Named:
    """What an entry's name says: those of its numbers that the name has.

    Attributes:
        name: The name.
        step: Optimizer steps since the start of the run.
        epoch: Epochs.
        date: A date and time, as digits that sort.
        number: A number that orders the checkpoints and does not say what it counts.
        part: The position within the epoch.
        series: Which of several averages or networks of one run it is of, where the pattern says that.
        alike: A glob of names that differ from it in numbers only, but for the series.
    """

    name: str
    step: int | None = None
    epoch: int | None = None
    date: int | None = None
    number: int | None = None
    part: int | None = None
    series: str = field(default="", compare=False)
    alike: str = field(default="", compare=False)

    @property
    def kind(self) -> tuple[str, ...]:
        """What tells its family from others in its directory: what its name counts, and the series."""
        counts = ("date", "epoch", "number", "part", "step")
        counted = [unit for unit in counts if getattr(self, unit) is not None]
        return (*counted, self.series) if self.series else tuple(counted)

    @property
    def key(self) -> tuple[Unit, int] | None:
        """The number that orders it, with its unit; None for a name without one."""
        units: tuple[Unit, ...] = ("step", "epoch", "date", "number")
        return next(((unit, value) for unit in units if (value := getattr(self, unit)) is not None), None)

    @property
    def order(self) -> int:
        """What it is sorted by among names of its unit."""
        value = self.key[1] if self.key else 0
        if self.key is None or self.key[0] != "epoch":
            return value
        return value * (_LAST_PART + 1) + (_LAST_PART if self.part is None else self.part)


# --- Names of a framework --------------------------------------------------------------------------------------

_NUMBERS = ("step", "epoch", "date", "number", "part")


def named_by(layout: Layout, name: str) -> Named | None:
    """What a name says by the patterns of a row; None where it fits none."""
    for pattern in layout.entries:
        match = re.fullmatch(pattern, name)
        if match:
            numbers = {
                group: int(re.sub(r"\D", "", text))
                for group, text in match.groupdict().items()
                if text is not None and group in _NUMBERS
            }
            return Named(name, **numbers, series=match.groupdict().get("series") or "", alike=_alike(match))
    return None


def _alike(match: re.Match[str]) -> str:
    """A glob of names that differ from this one in numbers only, but for the series."""
    name, glob, end = match.string, "", 0
    # A group's number may end where the next one begins: "ep10.500" is not a decimal.
    for group in sorted(match.groupdict(), key=match.start):
        start, stop = match.span(group)
        if start >= end:
            glob += _globbed(name[end:start])
            glob += match[group] if group == "series" else re.sub(r"\d+", "[0-9]*", match[group])
            end = stop
    return glob + _globbed(name[end:])


# --- Names of no framework -------------------------------------------------------------------------------------

_SLOT = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?(?:[kKmM](?![A-Za-z]))?")
_BEFORE = {
    "step": r"(?:steps?|iters?|iterations?|updates?|batch(?:es)?|(?<![a-z])(?:it|ba|gs))",
    "epoch": r"(?:epochs?|(?<![a-z])(?:ep|e))",
    "run": r"(?<![a-z])(?:seed|fold|run|trial|exp|experiment|version|split)",
    "s": r"(?<![a-z])s",
}
_AFTER = {
    "step": r"(?:steps?|iters?|iterations?|it|updates?)",
    "epoch": r"(?:epochs?|eps?)",
}
_WORD_BEFORE = {unit: re.compile(rf"{words}[-_=. ]?$", re.IGNORECASE) for unit, words in _BEFORE.items()}
_WORD_AFTER = {
    unit: re.compile(rf"[-_ ]?{words}(?![a-z])(?![-_=. ]?\d)", re.IGNORECASE) for unit, words in _AFTER.items()
}
_KEY = re.compile(r"([A-Za-z][A-Za-z_]*?)[-_=]?$")
_DATE = re.compile(
    r"(?<!\d)(?:19|20)\d\d([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])"
    r"(?:[-_T+ ]*(?:[01]\d|2[0-3])(?:[-_:.]?[0-5]\d){1,2})?(?!\d)"
)
_FACTORS = {"k": 10**3, "m": 10**6}


def stem_of(name: str) -> str:
    """A name without the suffix of a checkpoint."""
    lower = name.lower()
    suffix = max((suffix for suffix in CHECKPOINT_SUFFIXES if lower.endswith(suffix)), key=len, default="")
    return name[: len(name) - len(suffix)] if suffix else name


def template_of(name: str) -> str:
    """A name with ``#`` in place of its numbers: the same for all names of a series."""
    return _SLOT.sub("#", _DATE.sub("#", name))


def _globbed(name: str) -> str:
    return _SLOT.sub("[0-9]*", name)


def is_run(name: str) -> bool:
    """Whether the only numbers of a name are those of a run: ``seed1``, ``fold_2``."""
    stem = stem_of(name)
    slots = list(_SLOT.finditer(stem))
    return bool(slots) and all(_unit_of(stem, slot) == "run" for slot in slots)


def _unit_of(stem: str, slot: re.Match[str]) -> str:
    """What the words around a number call it: step, epoch, run, metric; empty where they do not say it.

    A lone ``s`` before it is reported as such: next to an epoch it means step.
    """
    before, after = stem[: slot.start()], stem[slot.end() :]
    for unit, pattern in _WORD_BEFORE.items():
        if pattern.search(before):
            return unit
    for unit, pattern in _WORD_AFTER.items():
        if pattern.match(after):
            return unit
    key = _KEY.search(before)
    if key and ({key[1].lower(), key[1].lower().rpartition("_")[2]} & (MINIMISED | MAXIMISED) or before.endswith("=")):
        return "metric"
    return ""


def _value(text: str) -> int | None:
    """The number as a count; None for a decimal."""
    factor = _FACTORS.get(text[-1].lower(), 0)
    if factor:
        scaled = float(text[:-1]) * factor
        return int(scaled) if scaled.is_integer() else None
    return int(text) if text.isdigit() else None


def series_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by their template, of those that have a number."""
    found: dict[str, list[str]] = {}
    for name in names:
        stem = stem_of(name)
        if any(_value(slot.group()) is not None for slot in _SLOT.finditer(stem)) or _DATE.search(stem):
            found.setdefault(template_of(name), []).append(name)
    return found


def read_series(names: Sequence[str]) -> Mapping[str, Named]:
    """What the names of one series say: names that differ in their numbers only.

    Returns:
        By name; empty where their numbers tell runs apart, and not the checkpoints of one.
    """
    stems = {name: stem_of(name) for name in names}
    slots = {name: list(_SLOT.finditer(stem)) for name, stem in stems.items()}
    first = names[0]
    if len({len(each) for each in slots.values()}) > 1:  # dates of several lengths
        return _by_date(names, stems)
    columns: dict[int, list[int]] = {}
    units: dict[int, str] = {}
    for index, slot in enumerate(slots[first]):
        values = [_value(slots[name][index].group()) for name in names]
        counts = [value for value in values if value is not None]
        if len(counts) == len(names):
            columns[index] = counts
            units[index] = _unit_of(stems[first], slot)
    steps = [index for index in columns if units[index] == "step"]
    epochs = [index for index in columns if units[index] == "epoch"]
    if epochs and not steps:
        steps = [index for index in columns if units[index] == "s"]
    chosen: dict[str, int] = {}
    if steps:
        chosen["step"] = steps[-1]
    if epochs:
        chosen["epoch"] = epochs[-1]
    if not chosen:
        dated = _by_date(names, stems)
        inside = {name: [match.span() for match in _DATE.finditer(stem)] for name, stem in stems.items()}
        free = [
            index
            for index in columns
            if units[index] in {"", "s"}
            and not any(start <= slots[first][index].start() < stop for start, stop in inside[first])
        ]
        distinct = [index for index in free if len(set(columns[index])) == len(names)]
        varying = [index for index in free if len(set(columns[index])) > 1]
        best = distinct if len(names) > 1 else free
        if dated and not (distinct and len(names) > 1):
            return dated
        if not (best or varying):
            return {} if not free else _named(names, {"number": free[-1]}, columns)
        chosen["number"] = (best or varying)[-1]
    return _named(names, chosen, columns)


def _named(names: Sequence[str], chosen: Mapping[str, int], columns: Mapping[int, Sequence[int]]) -> dict[str, Named]:
    return {
        name: Named(
            name,
            step=columns[chosen["step"]][row] if "step" in chosen else None,
            epoch=columns[chosen["epoch"]][row] if "epoch" in chosen else None,
            number=columns[chosen["number"]][row] if "number" in chosen else None,
            alike=_globbed(name),
        )
        for row, name in enumerate(names)
    }


def _by_date(names: Sequence[str], stems: Mapping[str, str]) -> dict[str, Named]:
    """The names by the dates in them; empty where not all have one, or they are all of one."""
    dates = {name: [re.sub(r"\D", "", match.group()) for match in _DATE.finditer(stems[name])] for name in names}
    if not all(dates.values()):
        return {}
    found = {name: Named(name, date=int(dates[name][-1].ljust(14, "0")), alike=_globbed(name)) for name in names}
    return found if len({named.date for named in found.values()}) == len(names) else {}


def has_step_word(name: str) -> bool:
    """Whether a name has a word for the steps that it counts."""
    read = read_series([name]).get(name)
    return read is not None and read.step is not None


def name_numbers(name: str) -> Named:
    """What a name alone says, for a file without others: only numbers that it calls step or epoch.

    A pattern of the table with words in it counts as well as a word next to the number; a bare number does not.
    """
    for row in LAYOUTS:
        named = named_by(row, name)
        if named is not None and re.search(r"[A-Za-z]{2}", stem_of(name)) and not named.series:
            return named if named.number is None else Named(name)
    read = read_series([name]).get(name, Named(name))
    return Named(name, step=read.step, epoch=read.epoch, alike=read.alike)
