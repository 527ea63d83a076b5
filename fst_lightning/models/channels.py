"""Networks for images that do not have three channels."""

from __future__ import annotations

from torch import nn

_COLORS = 3


def set_input_channels(net: nn.Module, channels: int) -> None:
    """Change the number of input channels of a network, in place.

    The first convolution that reads three channels gets a new random weight.

    Args:
        net: A network for images of three channels.
        channels: How many its images have, at least 1.

    Raises:
        ValueError: If the network has no such convolution.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Flatten())
        >>> set_input_channels(net, 1)
        >>> net[0]
        Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    if channels == _COLORS:
        return
    # Some networks compute their first weights from images of three channels.
    layers = () if hasattr(net, "initialize") else net.modules()
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != _COLORS or layer.groups != 1:
                break
            layer.in_channels = channels
            weight = layer.weight.new_empty(len(layer.weight), channels, *layer.kernel_size)
            layer.weight = nn.Parameter(weight)
            layer.reset_parameters()
            return
    raise ValueError(
        f"Expected {type(net).__name__} to start with a convolution of {_COLORS} channels, which "
        f"images of {channels} channels need to replace, but it does not. Use another network."
    )
