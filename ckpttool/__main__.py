"""``ckpttool`` and ``python -m ckpttool``."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["start"]


def start() -> NoReturn:
    """Run the command line. An interrupt while it is imported ends it as later ones do."""
    try:
        from ckpttool.cli import main

        main()
    except KeyboardInterrupt:
        print("Interrupted: nothing was written.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    start()
