"""Poison images and labels: one attack per file, plain PyTorch."""

from fst_lightning.attacks.adaptive_blend import AdaptiveBlend
from fst_lightning.attacks.adaptive_patch import AdaptivePatch
from fst_lightning.attacks.badnets import BadNets
from fst_lightning.attacks.blended import Blended
from fst_lightning.attacks.blind import Blind
from fst_lightning.attacks.bpp import Bpp
from fst_lightning.attacks.bypass import Bypass
from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf, full_precision
from fst_lightning.attacks.common.plan import PoisonPlan, draw_balanced_rows, draw_rows
from fst_lightning.attacks.common.trained_attack import TrainedAttack
from fst_lightning.attacks.ctrl import CTRL
from fst_lightning.attacks.ftrojan import FTrojan
from fst_lightning.attacks.input_aware import InputAware
from fst_lightning.attacks.label_consistent import LabelConsistent
from fst_lightning.attacks.lira import LIRA
from fst_lightning.attacks.low_frequency import LowFrequency
from fst_lightning.attacks.none import NoAttack
from fst_lightning.attacks.refool import Refool
from fst_lightning.attacks.sig import SIG
from fst_lightning.attacks.ssba import SSBA
from fst_lightning.attacks.tact import TaCT
from fst_lightning.attacks.trojannn import TrojanNN
from fst_lightning.attacks.wanet import WaNet
from fst_lightning.pixels import check_pixels

__all__ = [
    "CTRL",
    "LIRA",
    "SIG",
    "SSBA",
    "AdaptiveBlend",
    "AdaptivePatch",
    "Attack",
    "BadNets",
    "Blended",
    "Blind",
    "Bpp",
    "Bypass",
    "FTrojan",
    "InputAware",
    "LabelConsistent",
    "LabelMap",
    "LowFrequency",
    "NoAttack",
    "PoisonPlan",
    "RateOf",
    "Refool",
    "TaCT",
    "TrainedAttack",
    "TrojanNN",
    "WaNet",
    "check_pixels",
    "draw_balanced_rows",
    "draw_rows",
    "full_precision",
]
