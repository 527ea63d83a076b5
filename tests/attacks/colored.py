"""Images whose class is their color: a surrogate learns them in a second."""

import torch
from torch import Tensor

from tests import tiny


def colored(count: int, size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise around one gray level and color a class: uint8 (count, 3, size, size), labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % tiny.NUM_CLASSES
    colors = torch.tensor([[90, 128, 150], [150, 128, 90], [128, 90, 128], [128, 150, 128]])
    noise = torch.randint(-60, 61, (count, 3, size, size), generator=generator)
    return (colors[labels][:, :, None, None] + noise).to(torch.uint8), labels
