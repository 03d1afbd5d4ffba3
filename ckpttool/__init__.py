"""Average checkpoints, apply moving averages after training, and see learning-rate schedules.

The public names are loaded when they are first used (PEP 562), so that ``import ckpttool`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpttool.api import average
    from ckpttool.engine.run import Result, execute, execute_together
    from ckpttool.errors import CkpttoolError
    from ckpttool.formats import open_checkpoint
    from ckpttool.plan import Plan, make_plan
    from ckpttool.selection.choice import Discovery
    from ckpttool.selection.discovery import discover, from_paths
    from ckpttool.stored.average import StoredAverage
    from ckpttool.stored.files import find_stored_average
    from ckpttool.stored.plan import make_stored_plan
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
    "Discovery": "selection.choice",
    "Plan": "plan",
    "Result": "engine",
    "StoredAverage": "stored.average",
    "average": "api",
    "discover": "selection.discovery",
    "execute": "engine",
    "execute_together": "engine",
    "find_stored_average": "stored.files",
    "from_paths": "selection.discovery",
    "make_plan": "plan",
    "make_stored_plan": "stored.plan",
    "open_checkpoint": "formats",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"ckpttool.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
