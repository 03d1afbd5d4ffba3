"""Executes plans: reads, adds, writes, then commits.

run           executes plans together, and says what was done
tasks         a plan, cut into chunks; neighbours: tensors that are done as if they were one
work          does them on a few threads; chunk_reader: the bytes of a chunk, of all members
kernels/      compute the weighted means, compiled or in numpy, with the same bits
numerics      means, conversions and comparisons of chunks; nonfinite: NaN and infinity
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
