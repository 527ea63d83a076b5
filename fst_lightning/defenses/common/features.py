"""The features that a network passes to its head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.models import Head, inputs_of


def vectors(features: Tensor) -> Tensor:
    """Turn maps of one pixel ``(N, d, 1, 1)`` into vectors ``(N, d)``; keep other shapes."""
    return features.flatten(1) if features.shape[2:] == (1, 1) else features


def features_of(net: nn.Module, head: Head, images: Tensor) -> Tensor:
    """The features ``(N, d)`` that a network passes to its head.

    Raises:
        ValueError: If the head is not called exactly once with one vector per image.
    """
    with inputs_of(head) as inputs:
        net(images)
    collected = [vectors(part) for part in inputs]
    shapes = [tuple(part.shape) for part in collected]
    if len(collected) != 1 or collected[0].dim() != 2 or len(collected[0]) != len(images):
        raise ValueError(
            f"Expected the head to be called once with features (N, d) of N = {len(images)} "
            f"images, but it got {shapes}. Name another layer with model.head, or use a defense "
            "that does not split features, such as fst."
        )
    return collected[0]


@torch.no_grad()
def all_features(
    net: nn.Module, head: Head, images: LabeledImages, batch_size: int = 500
) -> Tensor:
    """The features ``(N, d)`` of all images, in their order, without gradient.

    Args:
        net: The network, in evaluation mode.
        head: Its head.
        images: The images, N of them.
        batch_size: Images per batch.

    Raises:
        ValueError: If :func:`features_of` raises it.
    """
    return torch.cat([features_of(net, head, batch) for batch, _ in images.batches(batch_size)])
