"""What an operation is asked for, and what it hands back: records that the command line and the API share.

An operation takes inputs, a `Selection`, a `ckpttool.planning.request.Policy` and arguments of its own. It returns
`Planned`: plans, and for each what else there is to report, as values. It prints nothing, and reads no weight that a
plan does not need.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, TypeVar, get_args

from ckpttool.errors import UsageError
from ckpttool.planning.plan import Plan
from ckpttool.planning.request import IntegerPolicy, KeyPolicy, OutputDType, Policy
from ckpttool.selection.metrics import Mode
from ckpttool.text import parameter

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DTYPE_ALIASES",
    "Planned",
    "PlannedOutput",
    "Selection",
    "byte_count",
    "check_policy",
    "one_of",
    "output_dtype",
]

DTYPE_ALIASES: Mapping[str, OutputDType] = MappingProxyType(
    {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
)
"""Short names of element types, and the names that numpy, ml_dtypes and torch share."""


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that a parameter does not have.

    Raises:
        UsageError: It is not one of the choices; the hint names them, the nearest first.
    """
    if value in choices:
        return
    close = get_close_matches(str(value), choices, n=1)
    raise UsageError(
        f"{parameter(name)} is {value!r}, which it cannot be",
        hint=f"Did you mean {close[0]}?" if close else f"It can be {', '.join(choices)}.",
    )


def output_dtype(name: str) -> OutputDType:
    """The element type that a name or a short name of `DTYPE_ALIASES` means; ``same`` for each tensor's own.

    Raises:
        UsageError: There is no such type, or no average is written in it.
    """
    for known in get_args(OutputDType):
        if name == known:
            dtype: OutputDType = known
            return dtype
    if name in DTYPE_ALIASES:
        return DTYPE_ALIASES[name]
    one_of("dtype", name, (*get_args(OutputDType), *DTYPE_ALIASES))
    raise AssertionError(name)


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def byte_count(size: int | str) -> int:
    """A number of bytes. Units are decimal, as everywhere in Hugging Face's libraries; with an i, binary.

    Raises:
        UsageError: It is not a size, or less than a byte.

    Example:
        >>> byte_count("5GB"), byte_count("1MiB")
        (5000000000, 1048576)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i)?B?", str(size), re.IGNORECASE)
    if match is None or (match[3] and not match[2]):
        raise UsageError(
            f"{parameter('max_shard_size')}: {size!r} is not a size", hint="It is a size such as 5GB or 500MB."
        )
    unit = 1 << (10 * "KMGT".index(match[2].upper()) + 10) if match[3] else _UNITS[match[2].upper()]
    count = int(Fraction(match[1]) * unit)
    if count < 1:
        raise UsageError(f"{parameter('max_shard_size')}: {size!r} is less than one byte")
    return count


@dataclass(frozen=True)
class Selection:
    """Which checkpoints take part, and where the weights are in them.

    Attributes:
        last: How many of the newest, by step.
        every: Each k-th, counted back from the newest.
        from_step: None before this step.
        to_step: None after this step.
        include: Globs: only names like one of these.
        exclude: Globs: no names like one of these.
        best: How many of the best by `metric`.
        metric: A metric that the run kept.
        mode: Whether a small ("min") or a large ("max") metric is good; None: as the metric's name says.
        layout: The framework whose files these are; None: recognised.
        section: Dotted key path of the weights in each file; None: recognised.
    """

    last: int | None = None
    every: int | None = None
    from_step: int | None = None
    to_step: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    best: int | None = None
    metric: str | None = None
    mode: Mode | None = None
    layout: str | None = None
    section: str | None = None

    def __post_init__(self) -> None:
        if self.from_step is not None and self.to_step is not None and self.from_step > self.to_step:
            raise UsageError(
                f"{parameter('from_step', self.from_step)} is after {parameter('to_step', self.to_step)}: no step is "
                "between them",
                hint="Exchange the two.",
            )
        if (self.best is None) != (self.metric is None):
            raise UsageError(
                f"{parameter('best')} and {parameter('metric')} go together",
                hint=f"For example: {parameter('best', 5)} {parameter('metric', 'valid_loss')}.",
            )
        if self.mode is not None:
            one_of("mode", self.mode, get_args(Mode))
            if self.best is None:
                raise UsageError(f"{parameter('mode')} says which metric is good and goes with {parameter('best')}")

    def choosing(self) -> tuple[str, ...]:
        """Names of the parameters that are given and choose among the checkpoints of a directory."""
        given = (field.name for field in fields(self) if getattr(self, field.name) not in (None, ()))
        return tuple(name for name in given if name != "section")


def check_policy(policy: Policy) -> Policy:
    """The policy, whose words are those that there are.

    Raises:
        UsageError: One of them is not.
    """
    one_of("dtype", policy.dtype, get_args(OutputDType))
    one_of("keys", policy.keys, get_args(KeyPolicy))
    one_of("integers", policy.integers, get_args(IntegerPolicy))
    return policy


Facts = TypeVar("Facts", covariant=True)  # noqa: PLC0105  # the name that is read in signatures


@dataclass(frozen=True)
class PlannedOutput(Generic[Facts]):
    """One output: the plan, and what else there is to report about it."""

    plan: Plan
    facts: Facts


@dataclass(frozen=True)
class Planned(Generic[Facts]):
    """What an operation will do: one output or several, of the same checkpoints read once."""

    outputs: tuple[PlannedOutput[Facts], ...]

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans, in the order of the outputs."""
        return tuple(output.plan for output in self.outputs)
