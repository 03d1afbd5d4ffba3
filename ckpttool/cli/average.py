"""``ckpttool average``."""

from __future__ import annotations

import click


@click.command(short_help="Average the last checkpoints of a run.")
def average() -> None:
    """Average the last checkpoints of a run, layer by layer."""
