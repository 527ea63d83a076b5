"""How an image and its label are poisoned; plain PyTorch, one attack a file."""

from fst_lightning.attacks.attack import Attack, LabelMap
from fst_lightning.attacks.badnets import BadNets
from fst_lightning.attacks.blended import Blended
from fst_lightning.attacks.none import NoAttack
from fst_lightning.attacks.plan import PoisonPlan, draw_rows

__all__ = ["Attack", "BadNets", "Blended", "LabelMap", "NoAttack", "PoisonPlan", "draw_rows"]
