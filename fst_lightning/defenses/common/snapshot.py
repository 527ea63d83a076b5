"""A network's weights in one tensor, for defenses that compare with the original network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fst_lightning.defenses.common.whole_set import keep_modes


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Copy tensors of any memory layout into one vector without gradient.

    Example:
        >>> flat([torch.zeros(2, 2), torch.ones(1)])
        tensor([0., 0., 0., 0., 1.])
    """
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def snapshot(net: nn.Module) -> Tensor:
    """All floating-point parameters and buffers as a vector, for a buffer of a defense.

    Example:
        >>> snapshot(nn.Linear(3, 2)).shape
        torch.Size([8])
    """
    return flat(_floats(net).values())


@torch.no_grad()
def restore(net: nn.Module, weights: Tensor) -> None:
    """Restore the values of a :func:`snapshot` in a network of the same architecture.

    Example:
        >>> net, other = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> restore(other, snapshot(net))
        >>> torch.equal(other.weight, net.weight)
        True
    """
    for value, part in _parts(net, weights):
        value.copy_(part)


def call_with(net: nn.Module, weights: Tensor, images: Tensor) -> Tensor:
    """The logits of a network in evaluation mode with the weights of a :func:`snapshot`.

    Hooks on the network see this pass too. Only the images get gradients.

    Args:
        net: The network; it keeps its own weights and its mode.
        weights: A snapshot of it.
        images: ``(N, C, H, W)``, normalized.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> kept, inputs = snapshot(net), torch.ones(1, 3)
        >>> expected = net(inputs).detach()
        >>> with torch.no_grad(): _ = net.weight.zero_()
        >>> torch.equal(call_with(net, kept, inputs), expected)
        True
    """
    values = {
        # In the memory format of the network: convolutions are fast in that one.
        name: part if part.stride() == value.stride() else torch.empty_like(value).copy_(part)
        for name, (value, part) in zip(_floats(net), _parts(net, weights), strict=True)
    }
    with keep_modes(net):
        net.eval()
        logits: Tensor = functional_call(net, values, (images,))
    return logits


def _parts(net: nn.Module, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The tensors of a network, and the values of a snapshot in their shapes and types."""
    own = list(_floats(net).values())
    parts = torch.split(weights, [value.numel() for value in own])
    return [
        (value, part.reshape(value.shape).to(value.dtype))
        for value, part in zip(own, parts, strict=True)
    ]


def _floats(net: nn.Module) -> dict[str, Tensor]:
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {name: value for name, value in tensors.items() if value.is_floating_point()}
