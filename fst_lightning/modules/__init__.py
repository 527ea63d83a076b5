"""LightningModules: one trains backdoored classifiers, one runs any defense."""

from fst_lightning.modules.backdoor import BackdoorModule
from fst_lightning.modules.classifier import ClassifierModule
from fst_lightning.modules.inputs import CropFill, InputPipeline
from fst_lightning.modules.purification import PurificationModule

__all__ = [
    "BackdoorModule",
    "ClassifierModule",
    "CropFill",
    "InputPipeline",
    "PurificationModule",
]
