"""Why a name of a directory is not a member: one table of reasons and their words."""

from __future__ import annotations

from enum import Enum

from ckpttool.text import Message, parameter

__all__ = ["GUESSES", "Reason"]


class Reason(Enum):
    """Why something was left out. The value says it as a phrase; ``{...}`` are the facts of the case.

    Code decides by the member, people read `say`.
    """

    # --- by name, as a row of the table or a common rule has it
    HIDDEN = "a hidden or temporary name"
    HALF_WRITTEN = "a temporary name: a half-written checkpoint"
    HALF_WRITTEN_MARKER = "a marker: the checkpoint of this name is half-written"
    STATE = "training state, not weights"
    PIECE = "one piece of a checkpoint in several files"
    AVERAGE = "an earlier average, by its name"
    MOVING_AVERAGE = "the moving average of the checkpoint of the same name"
    ALIAS = "a further name of a checkpoint"
    BEST = "the best checkpoint under a further name"
    NEWEST = "the newest checkpoint under a further name"
    RECOVERY = "a recovery checkpoint from the middle of an epoch"
    INITIAL = "the weights before training"
    RELEASED = "the released model, without an iteration"
    CONVERTED = "a converted model"
    EXPORTED = "an exported model"
    MERGED = "a merged model"
    OTHER_NETWORK = "another network of the same run"
    SAME_AS_PT = "the weights of the .pt of the same name"
    WITH_INDEX = "belongs to the .index of the same name"
    LOGS = "logs"

    # --- by what else is in the directory
    OWNER_MISSING = "belongs to {owner}, which is missing or left out"
    UNFINISHED = "unfinished or not a checkpoint: no {missing} in it"
    UNKNOWN_NAME = "not named as {layout} names its checkpoints"
    NOT_OF_THE_SERIES = "not named as the other checkpoints are"
    BROKEN_LINK = "a symbolic link that leads nowhere"
    SAME_FILE = "the same file as {other} ({link})"
    ONLY_BEST = f"a best checkpoint that has no other name here; {parameter('include', '{name}')} takes it"
    COPY = "a copy of {other} (same size, same samples)"

    # --- by what was asked for
    NOT_INCLUDED = f"not in {parameter('include', '{globs}')}"
    EXCLUDED = parameter("exclude", "{globs}")
    BEFORE = f"before {parameter('from_step', '{step}')}"
    AFTER = f"after {parameter('to_step', '{step}')}"
    NOT_EVERY = "not one of every {count}, counted from the newest"
    OLDER = "older than the last {count}"
    BEFORE_START = "older than the last {count} and the one before"
    NAN = "{metric} is NaN"
    NOT_BEST = "not among the best {count}: {metric} {value}"

    # --- by its content
    SAYS_AVERAGE = "an earlier average, by what it says of itself"

    def say(self, **facts: object) -> Message:
        """The reason in words.

        Args:
            **facts: What the phrase's fields stand for.
        """
        return Message(self.value.format(**facts))


GUESSES = frozenset(
    {
        Reason.STATE,
        Reason.AVERAGE,
        Reason.MOVING_AVERAGE,
        Reason.ALIAS,
        Reason.BEST,
        Reason.NEWEST,
        Reason.RECOVERY,
        Reason.INITIAL,
        Reason.RELEASED,
        Reason.CONVERTED,
        Reason.EXPORTED,
        Reason.MERGED,
        Reason.OTHER_NETWORK,
    }
)
"""Reasons that a name suggests. A user who asks for such a name knows better."""
