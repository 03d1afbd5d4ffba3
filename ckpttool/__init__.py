"""Average checkpoints, apply moving averages after training, and see learning-rate schedules.

The public names are loaded when they are first used (PEP 562), so that ``import ckpttool`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpttool.api import average
    from ckpttool.discovery import discover, from_paths
    from ckpttool.engine import Result, execute, execute_together
    from ckpttool.errors import CkpttoolError
    from ckpttool.formats import open_checkpoint
    from ckpttool.plan import Plan, make_plan
    from ckpttool.selection import Discovery
    from ckpttool.stored_average import StoredAverage
    from ckpttool.stored_files import find_stored_average
    from ckpttool.stored_plan import make_stored_plan
    from ckpttool.tensors import Checkpoint

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "CkpttoolError",
    "Discovery",
    "Plan",
    "Result",
    "StoredAverage",
    "__version__",
    "average",
    "discover",
    "execute",
    "execute_together",
    "find_stored_average",
    "from_paths",
    "make_plan",
    "make_stored_plan",
    "open_checkpoint",
]

_HOME = {
    "Checkpoint": "tensors",
    "CkpttoolError": "errors",
    "Discovery": "selection",
    "Plan": "plan",
    "Result": "engine",
    "StoredAverage": "stored_average",
    "average": "api",
    "discover": "discovery",
    "execute": "engine",
    "execute_together": "engine",
    "find_stored_average": "stored_files",
    "from_paths": "discovery",
    "make_plan": "plan",
    "make_stored_plan": "stored_plan",
    "open_checkpoint": "formats",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"ckpttool.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
