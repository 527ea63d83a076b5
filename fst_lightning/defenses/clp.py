"""Channel Lipschitzness pruning (CLP): find backdoored channels in the weights alone.

Zheng, Tang, Li and Liu, "Data-free backdoor removal based on channel Lipschitzness", ECCV 2022,
arXiv 2208.03111.

Example:
    ``python purify.py attack=blended defense=clp defense.u=3``
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fst_lightning.defenses.common.channel_masks import OutlierPruning
from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.conv_norm_pairs import Convolution, conv_batchnorm_pairs


class ChannelLipschitzPruning(OutlierPruning):
    r"""Prune the channels that can amplify their input more than the others of their layer.

    .. math:: \sigma_c = \sigma_{\max}(W_c) \, |\gamma_c| / \sqrt{v_c + \epsilon}, \qquad
        \gamma_c = \beta_c = 0 \;\text{where}\; \sigma_c > \mathrm{mean}(\sigma) +
        u\,\mathrm{std}(\sigma)

    :math:`W_c`, input channels by kernel positions, is what the convolution before the BatchNorm
    layer has for channel c, and :math:`v_c` the running variance. Needs no images. Only a
    convolution whose output goes straight into BatchNorm is looked at
    (:func:`~fst_lightning.defenses.common.conv_norm_pairs.conv_batchnorm_pairs`): the first
    BatchNorm layer of a pre-activation block normalises a sum, and none of its channels belongs to
    one convolution.

    Args:
        u: deviations above the mean of the layer, greater than 0; fewer prune more. The paper: 3
            for CIFAR-10, 5 for Tiny-ImageNet. With 3, a layer of 10 channels or fewer keeps all.

    Raises:
        ValueError: for another u; for a network without convolutions before BatchNorm.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))
        >>> with torch.no_grad(): _ = net[0].weight[5].mul_(100)
        >>> clean = CleanData(torch.rand(1, 3, 8, 8), torch.tensor([0]))
        >>> defense = ChannelLipschitzPruning()
        >>> defense.prepare(net, torch.Generator())
        >>> defense.study(net, clean, torch.Generator())
        >>> defense.findings()["pruned"]
        {'1': [5]}
    """

    def __init__(self, u: float = 3.0) -> None:
        super().__init__(u)
        self._pairs: dict[str, Convolution] = {}

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Find the convolution of every BatchNorm layer."""
        super().prepare(net, generator)
        pairs = conv_batchnorm_pairs(net)
        self._pairs = {}
        for name, norm in self._norms.items():
            conv = net.get_submodule(pairs[name]) if name in pairs else None
            if isinstance(conv, Convolution) and norm.running_var is not None:
                self._pairs[name] = conv
        if not self._pairs:
            raise ValueError(
                "Expected convolutions that feed a BatchNorm layer with running statistics, but "
                f"{type(net).__name__} has none. Use another defense, such as fst or anp."
            )

    def scores(
        self, net: nn.Module, clean: CleanData, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The bound of every channel."""
        return {
            name: channel_lipschitz(conv, self._norms[name]) for name, conv in self._pairs.items()
        }


def channel_lipschitz(conv: Convolution, norm: _BatchNorm) -> Tensor:
    r"""The bounds :math:`\sigma_{\max}(W_c) |\gamma_c| / \sqrt{v_c + \epsilon}`, ``(C,)``.

    Args:
        conv: its weight is ``(C, inputs, ...)``, one matrix ``(inputs, positions)`` a channel.
        norm: the BatchNorm layer behind it.
    """
    spectral: Tensor = torch.linalg.matrix_norm(conv.weight.detach().float().flatten(2), ord=2)
    assert norm.running_var is not None
    scale = norm.weight.detach().float().abs()
    return spectral * scale / (norm.running_var.float() + norm.eps).sqrt()
