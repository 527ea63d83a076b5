"""Clean accuracy, attack success rate, robust accuracy, DER, intervals, paired tests."""

from fst_lightning.metrics.backdoor import BackdoorMetrics
from fst_lightning.metrics.effectiveness import defense_effectiveness_rating
from fst_lightning.metrics.interval import rate_difference_interval, wilson_interval
from fst_lightning.metrics.paired import paired_drop_interval
from fst_lightning.metrics.rates import (
    AttackSuccessRate,
    CleanAccuracy,
    ControlRate,
    RobustAccuracy,
    matches,
)

__all__ = [
    "AttackSuccessRate",
    "BackdoorMetrics",
    "CleanAccuracy",
    "ControlRate",
    "RobustAccuracy",
    "defense_effectiveness_rating",
    "matches",
    "paired_drop_interval",
    "rate_difference_interval",
    "wilson_interval",
]
