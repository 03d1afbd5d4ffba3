"""How much of each checkpoint: the coefficients of every average, as pure functions.

weights       one coefficient for each checkpoint (these names)
profiles      moving averages as distributions of mass over training steps
posthoc       averages out of averages: least squares over stored snapshots
lengths       one length in every term: decay, half-life, sigma-rel, window
snapshots     what stored snapshots are averages of
"""

from ckpttool.coefficients.weights import (
    ANNEALING_CURVES,
    Quadrature,
    Statistics,
    anneal,
    explicit,
    from_decays,
    from_profile,
    implied_multipliers,
    per_checkpoint,
    statistics,
    uniform,
)

__all__ = [
    "ANNEALING_CURVES",
    "Quadrature",
    "Statistics",
    "anneal",
    "explicit",
    "from_decays",
    "from_profile",
    "implied_multipliers",
    "per_checkpoint",
    "statistics",
    "uniform",
]
