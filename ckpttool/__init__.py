"""Average checkpoints, apply moving averages after training, and see learning-rate schedules.

The public names are loaded when they are first used (PEP 562), so that ``import ckpttool`` costs nothing.
"""

from __future__ import annotations

__version__ = "0.1.0"
