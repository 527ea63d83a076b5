"""The memory layout of a network's convolutions."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_IMAGES = 2  # BatchNorm needs more than one.
_TOLERANCE = 1e-3  # relative to the largest logit: the layouts use other kernels


def use_fastest_layout(net: nn.Module, image_shape: Sequence[int]) -> str | None:
    """Put the weights into the ``channels_last`` layout, unless the network cannot compute in it.

    Convolutions are fastest in that layout. A network that calls ``view`` on the output of one, or
    relies on its strides in another way, needs the contiguous layout instead. The function tries
    two random images in both modes, training and evaluation, on a copy of the network.

    Args:
        net: The network; its weights change their layout in place.
        image_shape: ``(C, H, W)`` of its images.

    Returns:
        Why the layout stays contiguous, in one line; None if it is ``channels_last``, or if the
        network cannot take such images at all.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
        >>> use_fastest_layout(net, (3, 8, 8)) is None
        True
        >>> net[0].weight.is_contiguous(memory_format=torch.channels_last)
        True
    """
    if not any(parameter.dim() == 4 for parameter in net.parameters()):
        return None
    first = next(p for p in net.parameters() if p.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(_IMAGES, *image_shape, generator=generator).to(first.device, first.dtype)
    if first.is_meta:
        net.to(memory_format=torch.channels_last)
        return None
    try:
        expected = _answers(net, images)
    except Exception:  # The caller reports such an error, in either layout.
        return None
    try:
        got = _answers(net, images, torch.channels_last)
    except Exception as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    if not _agree(expected, got):
        return "its logits differ there"
    net.to(memory_format=torch.channels_last)
    return None


def _answers(
    net: nn.Module, images: Tensor, layout: torch.memory_format = torch.contiguous_format
) -> object:
    """What a copy of the network returns in evaluation mode, after a pass in training mode."""
    tried = copy.deepcopy(net).to(memory_format=layout)
    devices = [images.device] if images.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        answer = tried.eval()(images)
        tried.train()(images)
    return answer


def _agree(expected: object, got: object) -> bool:
    if not (isinstance(expected, Tensor) and isinstance(got, Tensor)):
        return True
    if not bool(torch.isfinite(expected).all()):
        return True
    scale = max(1.0, float(expected.abs().max()))
    return float((expected - got).abs().max()) <= _TOLERANCE * scale
