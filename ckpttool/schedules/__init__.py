"""Learning-rate schedules: step to rate, as pure functions.

rates         the schedules themselves (these names), each with its formula and source
family        the same by name and parameters; float32: as TensorFlow rounds them
landmarks     where a curve turns and what it is near there; steps: which rows of a table; picture, figures: drawn
peers         other frameworks' options for the same curve
config        OpenNMT-tf configurations
train_log     what a run has logged; log_match: whether that is the schedule
"""

from ckpttool.schedules.rates import (
    ParameterError,
    Schedule,
    constant,
    cosine,
    cosine_annealing,
    inv_sqrt,
    inverse_sqrt,
    linear,
    noam,
    rnmt_plus,
    rsqrt,
    wrap,
    wsd,
)

__all__ = [
    "ParameterError",
    "Schedule",
    "constant",
    "cosine",
    "cosine_annealing",
    "inv_sqrt",
    "inverse_sqrt",
    "linear",
    "noam",
    "rnmt_plus",
    "rsqrt",
    "wrap",
    "wsd",
]
