"""Learning-rate schedules: step to rate, as pure functions.

rates                the schedules (these names), each with its formula and source
checks               the checks of their parameters
transformers_rates   further schedules of transformers
torch_rates          further schedules of torch
kinds                the schedules by name
family               a schedule with its parameters and wrapper, as data
float32              schedules as TensorFlow rounds them
request              from parameters, a configuration and comparisons to the schedules that are meant
config               OpenNMT-tf configurations
landmarks            where a curve turns
steps                the steps of a table, as text
marks                landmarks as rows of a table
table                the rows, as numbers and as text
picture              curves as points
figures              pictures as SVG and PNG
peers                other frameworks' options for the same curve
translation          those of one schedule
train_log            what a run has logged
log_match            whether that is the schedule
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
