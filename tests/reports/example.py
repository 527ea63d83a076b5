"""Results as a run would have them, for the tests of this folder."""

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from fst_lightning.reports import Score, build_results


def score(ca: int, asr: int | None = None, ra: int = 0, rows: int = 1000) -> Score:
    """Make a score from right rows out of `rows`."""
    attacked = {} if asr is None else {"asr": (asr, rows), "ra": (ra, rows)}
    return Score.from_counts({"ca": (ca, rows), **attacked})


def example(**changes: object) -> dict[str, Any]:
    values: dict[str, Any] = {
        "task": "purify",
        "seed": 0,
        "attack": {"name": "blended", "poison_ratio": 0.05, "target_label": 0},
        "defense": {"name": "fst", "alpha": 0.2},
        "data": {"name": "digits", "num_classes": 10, "num_train": 1437, "num_test": 1000},
        "model": {"name": "small_resnet", "head": "fc", "num_parameters": 77_000},
        "before": score(918, 938, 55),
        "after": score(922, 16, 871),
        "seconds": {"train": 12.34, "purify": 3.21, "evaluate": 0.5},
        "environment": {"precision": "32-true", "device": "cpu", "versions": {"torch": "2.9"}},
        "checkpoints": {"backdoored": "store/a.ckpt", "purified": "run/purified.safetensors"},
    }
    return build_results(**{**values, **changes})


def text_console(width: int, *, terminal: bool = False) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        force_terminal=terminal,
        color_system="standard" if terminal else "auto",
        _environ={},
    )
    return console, file


def without(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}
