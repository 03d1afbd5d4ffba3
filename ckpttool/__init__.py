"""Average checkpoints, apply moving averages after training, and see learning-rate schedules.

The public names are loaded when they are first used (PEP 562), so that ``import ckpttool`` costs nothing. The modules,
from the top layer down (docs/development.md):

cli            the commands: options, wording, exit codes
api            the same as functions
training       averages in a training loop (PyTorch)
operations     the use cases: from inputs to plans, and facts to report
engine         executes plans
ema            averages that checkpoints hold
selection      which checkpoints of a directory take part
planning       what will be done, and every reason not to
formats        where the tensors of each format are, and where those of an output go
reading        bytes: storage, ranges of tensors, checksums, values
run_layouts    the file names in model directories, by framework
tiling         tensors in pieces
checksums      CRC-32 and CRC-32C
tensors        the data model
coefficients   the coefficient of each checkpoint
schedules      learning rates
errors         exceptions and exit codes
text           parameters, names and labels in messages
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ckpttool._version import __version__

if TYPE_CHECKING:
    from ckpttool.api.averages import average, ema_apply, list_averages
    from ckpttool.api.checkpoints import OpenCheckpoint, open_checkpoint
    from ckpttool.ema.files import find_stored_average
    from ckpttool.ema.stored_average import StoredAverage
    from ckpttool.engine.run import Result, execute, execute_together
    from ckpttool.errors import CkpttoolError
    from ckpttool.operations.learning_rates import (
        FittedSchedule,
        LearningRates,
        LogComparison,
        fit_learning_rates,
        learning_rates,
    )
    from ckpttool.operations.stored_ema import ListedAverage, make_stored_plan
    from ckpttool.planning.plan import Plan
    from ckpttool.planning.planner import make_plan
    from ckpttool.planning.request import Members, Policy
    from ckpttool.selection.choice import Discovery
    from ckpttool.selection.discovery import discover, from_paths
    from ckpttool.tensors import Checkpoint

__all__ = [
    "Checkpoint",
    "CkpttoolError",
    "Discovery",
    "FittedSchedule",
    "LearningRates",
    "ListedAverage",
    "LogComparison",
    "Members",
    "OpenCheckpoint",
    "Plan",
    "Policy",
    "Result",
    "StoredAverage",
    "__version__",
    "average",
    "discover",
    "ema_apply",
    "execute",
    "execute_together",
    "find_stored_average",
    "fit_learning_rates",
    "from_paths",
    "learning_rates",
    "list_averages",
    "make_plan",
    "make_stored_plan",
    "open_checkpoint",
]

_HOME = {
    "Checkpoint": "tensors",
    "CkpttoolError": "errors",
    "Discovery": "selection.choice",
    "ListedAverage": "operations.stored_ema",
    "FittedSchedule": "operations.learning_rates",
    "LearningRates": "operations.learning_rates",
    "LogComparison": "operations.learning_rates",
    "Members": "planning.request",
    "OpenCheckpoint": "api.checkpoints",
    "Plan": "planning.plan",
    "Policy": "planning.request",
    "Result": "engine",
    "StoredAverage": "ema.stored_average",
    "average": "api.averages",
    "discover": "selection.discovery",
    "ema_apply": "api.averages",
    "execute": "engine",
    "execute_together": "engine",
    "find_stored_average": "ema.files",
    "fit_learning_rates": "operations.learning_rates",
    "from_paths": "selection.discovery",
    "list_averages": "api.averages",
    "learning_rates": "operations.learning_rates",
    "make_plan": "planning.planner",
    "make_stored_plan": "operations.stored_ema",
    "open_checkpoint": "api.checkpoints",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"ckpttool.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
