"""Callbacks that work in any Lightning project."""

from fst_lightning.callbacks.defense import DefenseCallback
from fst_lightning.callbacks.fst import FSTCallback
from fst_lightning.callbacks.metrics import BackdoorMetricsCallback
from fst_lightning.callbacks.progress import LiveProgress, PlainProgress, progress_callback

__all__ = [
    "BackdoorMetricsCallback",
    "DefenseCallback",
    "FSTCallback",
    "LiveProgress",
    "PlainProgress",
    "progress_callback",
]
