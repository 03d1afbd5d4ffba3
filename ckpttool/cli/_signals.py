"""What ends a command from outside: SIGTERM and SIGHUP unwind the stack, so that temporary files go."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

__all__ = ["exiting_on_signals"]

_NAMES = ("SIGTERM", "SIGHUP")


@contextlib.contextmanager
def exiting_on_signals() -> Iterator[None]:
    """While it lasts, SIGTERM and SIGHUP exit with 128 plus their number, and what cleans up is run.

    Handlers that somebody has set, and signals that are ignored (nohup), stay as they are. A second signal does not
    interrupt what the first has begun.
    """
    taken: list[int] = []

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        for each in taken:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for name in _NAMES:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                taken.append(number)
                signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
