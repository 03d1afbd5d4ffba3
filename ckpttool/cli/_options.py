"""Options that several commands share, with their help beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["conversation_options"]

Command = TypeVar("Command", bound=Callable[..., Any])


def _stack(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def conversation_options(command: Command) -> Command:
    """``-q`` and ``-v``: how much is said on stderr."""
    return _stack(
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors."),
        click.option("-v", "--verbose", is_flag=True, help="Say more."),
    )(command)
