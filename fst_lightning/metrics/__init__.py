"""How well a network classifies, how well the attack works, and what a defense is worth."""

from fst_lightning.metrics.backdoor import BackdoorMetrics
from fst_lightning.metrics.interval import wilson_interval
from fst_lightning.metrics.paired import paired_drop_interval
from fst_lightning.metrics.rates import AttackSuccessRate, CleanAccuracy, RobustAccuracy
from fst_lightning.metrics.rating import defense_effectiveness_rating

__all__ = [
    "AttackSuccessRate",
    "BackdoorMetrics",
    "CleanAccuracy",
    "RobustAccuracy",
    "defense_effectiveness_rating",
    "paired_drop_interval",
    "wilson_interval",
]
