"""The curves of a run, as Lightning's CSVLogger wrote them."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping

from fst_lightning.text_files import open_text

Curves = dict[str, dict[int, float]]
"""By name, as it was logged, the values by epoch (from 0); ``step`` is the last one of an epoch."""


def read_curves(file: str | os.PathLike[str]) -> Curves:
    """Read a metrics.csv: of several values an epoch the last counts, what is no number does not.

    Args:
        file: with a column ``epoch`` and one a figure.

    Returns:
        Nothing where there is no such file.
    """
    curves: Curves = {}
    try:
        with open_text(file, newline="") as lines:
            for row in csv.DictReader(lines):
                epoch = _number(row.pop("epoch", None))
                if not any(text for name, text in row.items() if str(name).startswith("train/")):
                    row.pop("step", None)  # of a test, which makes none
                for name, text in row.items():
                    value = _number(text)
                    if epoch is not None and value is not None and isinstance(name, str):
                        curves.setdefault(name, {})[int(epoch)] = value
    except (OSError, csv.Error, UnicodeDecodeError):
        return {}
    return curves


def steps_per_epoch(curves: Mapping[str, Mapping[int, float]]) -> int | None:
    """How many steps an epoch has; None where that is not known, or not the same for all.

    Example:
        >>> steps_per_epoch({"step": {0: 35, 1: 71}})
        36
    """
    lengths = {(step + 1) / (epoch + 1) for epoch, step in curves.get("step", {}).items()}
    return int(lengths.pop()) if len(lengths) == 1 and min(lengths).is_integer() else None


def without_penalty(curves: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
    """The loss without the penalty, by epoch; the loss itself where there is none."""
    penalty = curves.get("train/penalty", {})
    return {
        epoch: loss - penalty.get(epoch, 0.0)
        for epoch, loss in curves.get("train/loss", {}).items()
    }


def _number(text: object) -> float | None:
    if not isinstance(text, str):
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
