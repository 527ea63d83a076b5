"""The memory that holds the images: the host's or the device's."""

from __future__ import annotations

from typing import Literal

import torch

Placement = Literal["auto", "host", "device"]

SHARE = 0.25
"""Share of a GPU's free memory that a set of images may take by default."""


def on_device(placement: Placement, num_bytes: int, device: torch.device) -> bool:
    """Whether to hold the images on the device.

    A mini-batch is then one gather, and no step copies from the host.

    Args:
        placement: ``host``, ``device``, or ``auto``: on a GPU that has four times as much free.
        num_bytes: Bytes of the images.
        device: Device of the run.

    Example:
        >>> on_device("auto", 10**6, torch.device("cpu"))
        False
    """
    if placement == "auto" and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return num_bytes <= SHARE * free
    return placement == "device" and device.type != "cpu"
