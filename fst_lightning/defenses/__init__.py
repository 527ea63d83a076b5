"""How a network is purified; plain PyTorch, one defense a file."""

from fst_lightning.defenses.defense import Defense
from fst_lightning.defenses.fe_tuning import FeatureExtractorTuning
from fst_lightning.defenses.fine_tuning import FineTuning
from fst_lightning.defenses.fst import FST
from fst_lightning.defenses.ft_init import FineTuningInit
from fst_lightning.defenses.head import HeadDefense, Reinit
from fst_lightning.defenses.linear_probing import LinearProbing
from fst_lightning.defenses.none import NoDefense

__all__ = [
    "FST",
    "Defense",
    "FeatureExtractorTuning",
    "FineTuning",
    "FineTuningInit",
    "HeadDefense",
    "LinearProbing",
    "NoDefense",
    "Reinit",
]
