"""The coefficients of every average, as pure functions.

weights     one coefficient for each checkpoint (these names)
profiles    moving averages as distributions of mass over training steps
sums        the closed forms of sums over steps
lengths     a length as users give it (decay, half-life, sigma-rel, window), and its coefficients
posthoc     averages of stored averages: least squares over snapshots
snapshots   what stored snapshots are averages of
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
