"""Opening the checkpoints of one selection: each once, and no more of them in memory than is needed.

A selection looks into checkpoints to tell their order, leaves some of them out, and hands the others to a plan. All of
that shares one snapshot of the storage and one `Opener`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from ckpttool.errors import CkpttoolError, UnreadableError
from ckpttool.formats import open_checkpoint
from ckpttool.reading.snapshot import Snapshot
from ckpttool.run_layouts import Reason
from ckpttool.selection.names import Unit
from ckpttool.tensors import Checkpoint, Skipped
from ckpttool.text import Message, parameter

__all__ = ["Entry", "Facts", "Ignored", "Opener"]

_T = TypeVar("_T")

_KEPT_TENSORS = 50_000
"""Of so many tensors the specs are kept for checkpoints that were only looked into: some 25 MB."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a selection asks of a checkpoint's content.

    Attributes:
        step: The training step that it states.
        epoch: The epoch that it states.
        is_average: Whether an earlier run of ckpttool wrote it.
    """

    step: int | None
    epoch: int | None
    is_average: bool


class Opener:
    """Opens checkpoints, once each, as long as they fit in memory.

    Args:
        snapshot: The view of the storage that all of them share.
        section: Where the weights are inside the files, where the user says it.
        weights: For directories: globs of the file that holds the weights, best first.
        keeps_all: Whether each checkpoint that is opened is a member, and so kept however many tensors it has.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        section: str | None = None,
        weights: Sequence[str] = (),
        *,
        keeps_all: bool = False,
    ) -> None:
        self.snapshot = snapshot
        self.section = section
        self.weights = tuple(weights)
        self._facts: dict[Path, Facts] = {}
        self._kept: dict[Path, Checkpoint] = {}
        self._room = sys.maxsize if keeps_all else _KEPT_TENSORS

    def open(self, path: Path) -> Checkpoint:
        """The checkpoint. No weight is read.

        Raises:
            UnreadableError: It cannot be read.
        """
        kept = self._kept.get(path)
        if kept is not None:
            return kept
        opened = open_checkpoint(path, section=self.section, weights=self.weights, snapshot=self.snapshot)
        epoch = opened.values.get("epoch")
        self._facts[path] = Facts(
            opened.step, epoch if type(epoch) is int and epoch >= 0 else None, opened.provenance is not None
        )
        size = len(opened.weights) + sum(map(len, opened.copies.values()))
        if size <= self._room:
            self._room -= size
            self._kept[path] = opened
        return opened

    def facts(self, path: Path) -> Facts:
        """What the checkpoint states; see `open`."""
        if path not in self._facts:
            self.open(path)
        return self._facts[path]

    def stated_step(self, path: Path) -> int | None:
        """The step that the content states; None where it states none or cannot be read."""
        try:
            return self.facts(path).step
        except CkpttoolError:
            return None


@dataclass(frozen=True)
class Entry:
    """A checkpoint in a directory or a list.

    Attributes:
        path: The file or directory, as it is called there.
        opener: Opens it.
        step: Its number on the scale of its directory, in `unit`s; None where it has none (or only a date).
        unit: What `step` counts; "number" if that is not known.
        where_step: Whether the step comes from the content or from the name; None where there is none.
        order: What it is sorted by; in a list, its place.
        epoch: The epoch in its name.
        listed: Whether the user named it, instead of its directory.
        kind: What tells it from checkpoints of other families in its directory; see `ckpttool.selection.families`.
        alike: A glob of the names of its family.
        label: What it is called, where its own name does not tell it from the others of a list.
    """

    path: Path
    opener: Opener = field(compare=False, repr=False)
    step: int | None = None
    unit: Unit = "step"
    where_step: Literal["content", "name"] | None = None
    order: int = 0
    epoch: int | None = None
    listed: bool = False
    kind: tuple[str, ...] = ()
    alike: str = ""
    label: str = ""

    @property
    def name(self) -> str:
        """Its own name, without the directory; in a list with as much of it as tells it from the others."""
        return self.label or self.path.name

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, opened once and kept. No weight is read.

        Raises:
            UnreadableError: It cannot be read; the hint says how to leave it out.
        """
        if "_opened" not in self.__dict__:
            self.__dict__["_opened"] = self.peek()
        opened: Checkpoint = self.__dict__["_opened"]
        return opened

    def peek(self) -> Checkpoint:
        """The checkpoint, which is not kept with the entry: those of a long directory do not fit in memory together."""
        kept: Checkpoint | None = self.__dict__.get("_opened")
        return kept or self._ask(self.opener.open)

    def facts(self) -> Facts:
        """What its content states; see `peek`."""
        return self._ask(self.opener.facts)

    def _ask(self, question: Callable[[Path], _T]) -> _T:
        try:
            return question(self.path)
        except UnreadableError as error:
            if not self.listed:
                said = error.hint.marked + " " if isinstance(error.hint, Message) else ""
                error.hint = Message(f"{said}To go without it: {parameter('exclude', self.name)}.")
            raise


@dataclass(frozen=True)
class Ignored(Skipped):
    """A path that was left out, with the reason as code and as a phrase."""

    code: Reason

    @classmethod
    def because(cls, path: Path, code: Reason, **facts: object) -> Ignored:
        """Leave a path out for a reason; `facts` fill in its phrase."""
        return cls(path, code.say(**facts), code)
