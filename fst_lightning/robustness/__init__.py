"""Attack a purified network to test whether it stays clean: one check per file."""

from fst_lightning.robustness.check import Rates, RobustnessCheck, Subject, rates_of
from fst_lightning.robustness.connectivity import LinearConnectivity
from fst_lightning.robustness.reactivation import ReactivationAttack
from fst_lightning.robustness.retuning import RetuningAttack

__all__ = [
    "LinearConnectivity",
    "Rates",
    "ReactivationAttack",
    "RetuningAttack",
    "RobustnessCheck",
    "Subject",
    "rates_of",
]
