r"""Computes a network with its BatchNorm layers folded into the convolutions in front of them.

In evaluation mode BatchNorm is an affine map of each channel, which a convolution can take over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fst_lightning.defenses.common.conv_norm_pairs import Convolution, conv_batchnorm_pairs
from fst_lightning.defenses.common.whole_set import keep_modes

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_IMAGES = 2  # of the comparison
_TOLERANCE = 1e-3  # relative to the largest logit; the order of the sums differs


class FoldedBatchNorm:
    r"""Folds BatchNorm layers in evaluation mode into their convolutions while a context is open.

    *How it works.* Searches for adversarial examples, triggers and perturbations run the network in
    evaluation mode many times. There, a convolution and its BatchNorm layer together compute

    .. math:: \gamma \odot \frac{W * x + b - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta
        = (s \odot W) * x + s \odot (b - \mu) + \beta, \qquad
        s = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}

    The right-hand side needs one pass over the activations less, and has a cheaper backward pass
    and a much cheaper second derivative. All parameters keep their gradients. No weight changes,
    and nothing is left in the network when the context closes.

    The first call compares both ways on two images. A network whose logits differ is computed as it
    is. So is a layer in training mode, a layer with hooks or parametrizations, and a BatchNorm
    layer without a convolution in front of it.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).eval()
        >>> images, folded = torch.rand(2, 3, 5, 5), FoldedBatchNorm()
        >>> with folded.of(net, images):
        ...     logits = net(images)
        >>> torch.allclose(logits, net(images), atol=1e-5), len(folded.pairs)
        (True, 1)
    """

    def __init__(self) -> None:
        self.pairs: list[tuple[Convolution, _BatchNorm]] = []
        """The pairs that are folded."""
        self._net: nn.Module | None = None

    @contextmanager
    def of(self, net: nn.Module, images: Tensor) -> Iterator[None]:
        """Fold the layers of a network in this context.

        Args:
            net: The network.
            images: Images that it takes, ``(N, C, H, W)``, for the comparison.
        """
        if net is not self._net:
            self._net, self.pairs = net, _pairs(net)
            if self.pairs and not self._agrees(net, images[:_IMAGES].detach()):
                self.pairs = []
        with self._folded():
            yield

    @contextmanager
    def _folded(self) -> Iterator[None]:
        usable = [(conv, norm) for conv, norm in self.pairs if _plain(conv) and _plain(norm)]
        for conv, norm in usable:
            # Attributes of the instance hide the methods of the class.
            vars(conv)["forward"], vars(norm)["forward"] = _joint(conv, norm), _rest(norm)
        try:
            yield
        finally:
            for pair in usable:
                for module in pair:
                    del vars(module)["forward"]

    @torch.no_grad()
    def _agrees(self, net: nn.Module, images: Tensor) -> bool:
        devices = [images.device] if images.is_cuda else []
        with (
            keep_modes(net),
            torch.random.fork_rng(devices),
            torch.autocast(images.device.type, enabled=False),
        ):
            net.eval()
            expected = net(images)
            with self._folded():
                found = net(images)
        scale = max(1.0, float(expected.abs().max()))
        return float((expected - found).abs().max()) <= _TOLERANCE * scale


def _pairs(net: nn.Module) -> list[tuple[Convolution, _BatchNorm]]:
    found = []
    for norm_name, conv_name in conv_batchnorm_pairs(net).items():
        conv, norm = net.get_submodule(conv_name), net.get_submodule(norm_name)
        if not (isinstance(conv, Convolution) and isinstance(norm, _BatchNorm)):
            continue
        # Subclasses may compute something else.
        if type(conv) in _CONVOLUTIONS and type(norm) in _NORMS and norm.running_mean is not None:
            found.append((conv, norm))
    return found


def _plain(module: nn.Module) -> bool:
    """Whether nothing looks at what goes into or comes out of a layer, or changes it."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or "forward" in vars(module)
        or torch.nn.utils.parametrize.is_parametrized(module)
    )


def _joint(conv: Convolution, norm: _BatchNorm) -> Callable[[Tensor], Tensor]:
    plain = conv.forward

    def forward(images: Tensor) -> Tensor:
        mean, variance = norm.running_mean, norm.running_var
        if norm.training or mean is None or variance is None:
            return plain(images)
        scale = (variance + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = norm.weight * scale
        shift = -mean * scale if conv.bias is None else (conv.bias - mean) * scale
        if norm.bias is not None:
            shift = norm.bias + shift
        weight = conv.weight * scale.view(-1, *[1] * (conv.weight.dim() - 1))
        result: Tensor = conv._conv_forward(images, weight, shift)
        return result

    return forward


def _rest(norm: _BatchNorm) -> Callable[[Tensor], Tensor]:
    plain = norm.forward

    def forward(images: Tensor) -> Tensor:
        return plain(images) if norm.training else images

    return forward
