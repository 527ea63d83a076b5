"""Where images lie while they are used: in the host's memory or on the device."""

from __future__ import annotations

from typing import Literal

import torch

Placement = Literal["auto", "host", "device"]

SHARE = 0.25
"""Of a GPU's free memory that a set of images may take by itself."""


def on_device(placement: Placement, num_bytes: int, device: torch.device) -> bool:
    """Whether images are to lie on the device.

    There a batch is one gather, and nothing is copied from the host in a step.

    Args:
        placement: ``host``, ``device``, or ``auto``: on a GPU that has four times as much free.
        num_bytes: That the images take.
        device: Of the run.

    Example:
        >>> on_device("auto", 10**6, torch.device("cpu"))
        False
    """
    if placement == "auto" and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return num_bytes <= SHARE * free
    return placement == "device" and device.type != "cpu"
