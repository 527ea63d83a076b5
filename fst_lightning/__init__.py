"""Train backdoored image classifiers and purify them, on PyTorch Lightning.

The names below are imported when they are first used: ``import fst_lightning`` alone is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fst_lightning.version import __version__

if TYPE_CHECKING:
    from fst_lightning.callbacks import BackdoorMetricsCallback, DefenseCallback, FSTCallback
    from fst_lightning.catalog import create_attack, create_defense, list_attacks, list_defenses
    from fst_lightning.data import BackdoorDataModule
    from fst_lightning.modules import BackdoorModule, PurificationModule
    from fst_lightning.pipelines import PurifyResult, purify

_HOMES = {
    "BackdoorDataModule": "data",
    "BackdoorMetricsCallback": "callbacks",
    "BackdoorModule": "modules",
    "DefenseCallback": "callbacks",
    "FSTCallback": "callbacks",
    "PurificationModule": "modules",
    "PurifyResult": "pipelines",
    "create_attack": "catalog",
    "create_defense": "catalog",
    "list_attacks": "catalog",
    "list_defenses": "catalog",
    "purify": "pipelines",
}

__all__ = [
    "BackdoorDataModule",
    "BackdoorMetricsCallback",
    "BackdoorModule",
    "DefenseCallback",
    "FSTCallback",
    "PurificationModule",
    "PurifyResult",
    "__version__",
    "create_attack",
    "create_defense",
    "list_attacks",
    "list_defenses",
    "purify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
