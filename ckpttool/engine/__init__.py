"""Executes plans: reads, adds, writes, then commits.

run            executes plans together, and returns what was done
tasks          cuts plans into chunks
neighbours     joins tensors that follow each other in every file
work           computes the chunks on a few threads
chunk_reader   reads the bytes of a chunk
numerics       the arithmetic on a chunk: means, conversions, comparisons
kernels        the code that computes means, in C and in numpy
nonfinite      finds NaN and infinity
output         the output, which appears whole or not at all
read_back      reads the headers of the output again
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
