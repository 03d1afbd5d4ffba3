"""Executes plans: reads, adds, writes, then commits.

run           executes plans together, and says what was done
tasks         a plan, cut into chunks
work          does them on a few threads; chunk_reader: the bytes of a chunk's terms
numerics      widen, add in float64, round once; half_sums: the short way for 16-bit members, with the same bits
sources       open input files; verification: the checksums that they state
storage_io    elements of tensors, out of extents; piece_io: out of the pieces of sharded ones
output        the output, which appears whole or not at all; read_back: a last look at it
"""

from ckpttool.engine.run import (
    Result,
    execute,
    execute_together,
    expected_memory,
)

__all__ = [
    "Result",
    "execute",
    "execute_together",
    "expected_memory",
]
