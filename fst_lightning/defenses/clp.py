"""Channel Lipschitzness pruning (CLP): find backdoored channels in the weights alone.

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
    r"""Prune the channels that can amplify their input far more than others of their layer.

    *How it works.* A trigger is a small change with a large effect, so some channel has to amplify
    it. How much a channel can amplify any input is bounded by its weights. The defense computes
    this bound for each channel and prunes the channels whose bound is an outlier in its layer. It
    needs neither images nor training, and takes about a second.

    .. math:: \sigma_c = \sigma_{\max}(W_c) \, |\gamma_c| / \sqrt{v_c + \epsilon}, \qquad
        \gamma_c = \beta_c = 0 \;\text{if}\; \sigma_c > \mathrm{mean}(\sigma) +
        u\,\mathrm{std}(\sigma)

    with the weights :math:`W_c` of the convolution for channel :math:`c`, a matrix of input
    channels by kernel positions, its largest singular value :math:`\sigma_{\max}`, and scale
    :math:`\gamma_c`, shift :math:`\beta_c`, running variance :math:`v_c` and :math:`\epsilon` of
    the BatchNorm layer.

    Args:
        u: Standard deviations above the mean of the layer, greater than 0; a smaller value prunes
            more. The paper uses 3 for CIFAR-10 and 5 for Tiny-ImageNet. With 3, a layer of 10
            channels or fewer loses none.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized; not used.

    Raises:
        ValueError: If ``u`` is not greater than 0, or no convolution feeds a BatchNorm layer.

    Needs:
        Convolutions whose output goes straight into BatchNorm. No images.

    Cost:
        The largest singular value of each channel. No forward pass and no training.

    When it fails:
        One threshold ``u`` does not suit all networks: it can ruin the clean accuracy of one and
        miss the backdoor of another. A backdoor that is spread over many channels has no outliers.

    Note:
        Only convolutions whose output goes straight into BatchNorm are examined, see
        :func:`~fst_lightning.defenses.common.conv_norm_pairs.conv_batchnorm_pairs`. The first
        BatchNorm layer of a pre-activation block normalizes a sum, so that its channels belong to
        no single convolution; public code pairs it with the convolution registered before it. That
        code also leaves :math:`\epsilon` out.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))
        >>> with torch.no_grad(): _ = net[0].weight[5].mul_(100)
        >>> clean = CleanData(torch.rand(1, 3, 8, 8), torch.tensor([0]))
        >>> defense = ChannelLipschitzPruning()
        >>> defense.prepare(net, torch.Generator())
        >>> defense.study(net, clean, torch.Generator())
        >>> defense.findings()["pruned"]
        {'1': [5]}

    References:
        Zheng, Tang, Li and Liu, "Data-free backdoor removal based on channel Lipschitzness", ECCV
        2022, arXiv 2208.03111.

    See Also:
        - :class:`~fst_lightning.defenses.BatchNormPruning`: the same rule on BatchNorm statistics.
        - :class:`~fst_lightning.detectors.HeadWeights`: a detector that needs only weights.
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
        """The bound of each channel."""
        return {
            name: channel_lipschitz(conv, self._norms[name]) for name, conv in self._pairs.items()
        }


def channel_lipschitz(conv: Convolution, norm: _BatchNorm) -> Tensor:
    r"""The bounds :math:`\sigma_{\max}(W_c) |\gamma_c| / \sqrt{v_c + \epsilon}`, ``(C,)``.

    Args:
        conv: Its weight is ``(C, inputs, ...)``, one matrix ``(inputs, positions)`` per channel.
        norm: The BatchNorm layer after it.
    """
    spectral: Tensor = torch.linalg.matrix_norm(conv.weight.detach().float().flatten(2), ord=2)
    assert norm.running_var is not None
    scale = norm.weight.detach().float().abs()
    return spectral * scale / (norm.running_var.float() + norm.eps).sqrt()
