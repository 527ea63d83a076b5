"""How an image and its label are poisoned; plain PyTorch, one attack a file."""

from fst_lightning.attacks.attack import Attack, LabelMap, RateOf, full_precision
from fst_lightning.attacks.badnets import BadNets
from fst_lightning.attacks.blended import Blended
from fst_lightning.attacks.none import NoAttack
from fst_lightning.attacks.plan import PoisonPlan, draw_rows
from fst_lightning.attacks.trained import TrainedAttack

__all__ = [
    "Attack",
    "BadNets",
    "Blended",
    "LabelMap",
    "NoAttack",
    "PoisonPlan",
    "RateOf",
    "TrainedAttack",
    "draw_rows",
    "full_precision",
]
