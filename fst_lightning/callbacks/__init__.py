"""Callbacks that work in any Lightning project."""

from fst_lightning.callbacks.batch_size import BatchSizeAdvice
from fst_lightning.callbacks.defense import DefenseCallback
from fst_lightning.callbacks.finite_loss import FiniteLoss
from fst_lightning.callbacks.fst import FSTCallback
from fst_lightning.callbacks.metrics import BackdoorMetricsCallback
from fst_lightning.callbacks.progress import LiveProgress, PlainProgress, progress_callback, stage

__all__ = [
    "BackdoorMetricsCallback",
    "BatchSizeAdvice",
    "DefenseCallback",
    "FSTCallback",
    "FiniteLoss",
    "LiveProgress",
    "PlainProgress",
    "progress_callback",
    "stage",
]
