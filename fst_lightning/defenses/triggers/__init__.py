"""Sources of triggers for clean images that a defense tunes on: one source per file."""

from fst_lightning.defenses.triggers.adversarial import AdversarialTriggers
from fst_lightning.defenses.triggers.inverted import InvertedTriggers
from fst_lightning.defenses.triggers.patch import PatchTriggers
from fst_lightning.defenses.triggers.random import RandomTriggers, random_triggers
from fst_lightning.defenses.triggers.source import (
    TriggerSource,
    TriggerSources,
    put_triggers,
    study_sources,
)
from fst_lightning.defenses.triggers.universal import UniversalTriggers
from fst_lightning.defenses.triggers.warp import WarpTriggers

__all__ = [
    "AdversarialTriggers",
    "InvertedTriggers",
    "PatchTriggers",
    "RandomTriggers",
    "TriggerSource",
    "TriggerSources",
    "UniversalTriggers",
    "WarpTriggers",
    "put_triggers",
    "random_triggers",
    "study_sources",
]
