"""Executes plans: reads, adds, writes, then commits.

run           chunks of work on a few threads, and the results
tasks         a plan, cut into chunks
numerics      widen, add in float64, round once; half_sums: the short way for 16-bit members, with the same bits
storage_io    elements of tensors, out of extents; piece_io: out of the pieces of sharded ones
output        the output, which appears whole or not at all
"""

from ckpttool.engine.run import (
    Result,
    execute,
    execute_together,
    expected_memory,
    read_values,
)

__all__ = [
    "Result",
    "execute",
    "execute_together",
    "expected_memory",
    "read_values",
]
