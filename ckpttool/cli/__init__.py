"""The command line: one group, one module a command, one place where errors become exit codes."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
