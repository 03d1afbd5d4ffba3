"""Learning-rate schedules: step to rate, as pure functions.

rates         the schedules themselves (these names), each with its formula and source; checks: of their parameters
transformers_rates, torch_rates   further schedules of these libraries
kinds         the schedules by name; family: with parameters and wrapper, as data; float32: as TensorFlow rounds them
request       from parameters, a configuration and comparisons to the schedules that are meant
config        OpenNMT-tf configurations
landmarks     where a curve turns; steps, marks: which rows a table has; table: the rows, as numbers and text
picture       curves as points; figures: as SVG and PNG
peers         other frameworks' options for the same curve; translation: of one schedule
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
