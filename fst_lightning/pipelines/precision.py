"""Which arithmetic a machine does natively."""

from __future__ import annotations

from typing import get_args

import torch
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT as PRECISIONS


def resolve_precision(precision: str | int, accelerator: str) -> str:
    """Turn ``auto`` into bf16-mixed where the hardware does it natively, else into 32-true.

    Args:
        precision: ``auto``, or any of Lightning's.
        accelerator: Lightning's name for the kind of device, or ``auto``.

    Raises:
        ValueError: for a precision that Lightning does not know.

    Example:
        >>> resolve_precision("16-mixed", "cpu")
        '16-mixed'
    """
    if precision != "auto":
        known = (str(name) for literal in get_args(PRECISIONS) for name in get_args(literal))
        valid = list(dict.fromkeys(known))
        if str(precision) not in valid:
            raise ValueError(
                f"Expected `trainer.precision` to be one of auto, {', '.join(valid)}, "
                f"but got {precision!r}."
            )
        return str(precision)
    return "bf16-mixed" if _has_native_bf16(accelerator) else "32-true"


def _has_native_bf16(accelerator: str) -> bool:
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if accelerator == "cpu" or (accelerator == "auto" and not torch.mps.is_available()):
        # Older torch has the first question only, newer torch answers for ARM as well.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return torch.cpu._is_avx512_bf16_supported() or any(
            bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16")
        )
    return False
