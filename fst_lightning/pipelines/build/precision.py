"""Resolves the numeric precision of a run."""

from __future__ import annotations

from typing import get_args

import torch
from lightning.fabric.plugins.precision.precision import (
    _PRECISION_INPUT as PRECISIONS,
)
from lightning.fabric.plugins.precision.precision import (
    _PRECISION_INPUT_STR_ALIAS_CONVERSION as ALIASES,
)


def resolve_precision(precision: str | int, accelerator: str) -> str:
    """Return Lightning's name of the precision that a setting stands for.

    ``auto`` becomes bf16-mixed if the hardware supports it natively, otherwise 32-true; ``16``,
    ``bf16``, ``32`` and ``64`` get their full names; and 16-mixed is bf16-mixed on a CPU.

    Args:
        precision: ``auto``, or one of Lightning's names.
        accelerator: Lightning's name for the kind of device, or ``auto``.

    Raises:
        ValueError: If Lightning does not support the precision.

    Example:
        >>> resolve_precision(32, "cpu"), resolve_precision("16-mixed", "cpu")
        ('32-true', 'bf16-mixed')
    """
    if precision == "auto":
        return "bf16-mixed" if _has_native_bf16(accelerator) else "32-true"
    known = (str(name) for literal in get_args(PRECISIONS) for name in get_args(literal))
    valid = list(dict.fromkeys(known))
    if str(precision) not in valid:
        raise ValueError(
            f"Expected `trainer.precision` to be one of auto, {', '.join(valid)}, "
            f"but got {precision!r}."
        )
    name = str(ALIASES.get(str(precision), precision))
    return "bf16-mixed" if name == "16-mixed" and _kind(accelerator) == "cpu" else name


def _has_native_bf16(accelerator: str) -> bool:
    kind = _kind(accelerator)
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu":
        # Older torch has the first function only; newer torch covers ARM as well.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return torch.cpu._is_avx512_bf16_supported() or any(
            bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16")
        )
    return False


def _kind(accelerator: str) -> str:
    """The kind of device that Lightning chooses for this name: cuda, cpu or another."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    if accelerator == "auto" and not torch.mps.is_available():
        return "cpu"
    return accelerator
