"""BatchNorm statistics pruning (BNP): prune channels with unusual running statistics.

Example:
    ``python purify.py attack=blended defense=bnp defense.u=3``
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.channel_masks import OutlierPruning, merged_moments
from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.validate import check_number


class BatchNormPruning(OutlierPruning):
    r"""Prune the channels whose running statistics differ from those on clean images.

    *How it works.* BatchNorm layers store the mean and variance of their inputs during training. If
    some training images were poisoned, the stored statistics of a channel that responds to the
    trigger differ from those on clean images. The defense measures the statistics on clean images
    and prunes the channels whose difference is an outlier in its layer. It needs no training.

    .. math:: s_c = \mathrm{KL}(N(\mu_c, \sigma_c^2) \,\|\, N(\hat\mu_c, \hat\sigma_c^2))
        = \tfrac12 \log\frac{\hat\sigma_c^2}{\sigma_c^2} +
        \frac{\sigma_c^2 + (\mu_c - \hat\mu_c)^2}{2 \hat\sigma_c^2} - \tfrac12

    with mean :math:`\mu_c` and variance :math:`\sigma_c^2` of channel :math:`c` on the clean images
    and its running statistics :math:`\hat\mu_c` and :math:`\hat\sigma_c^2`. Channels are pruned if
    :math:`s_c` exceeds the mean of the layer by :math:`u` standard deviations.

    Args:
        u: Standard deviations above the mean of the layer, greater than 0; a smaller value prunes
            more. The paper uses 3 for CIFAR-10 and 4 for Tiny-ImageNet. With 3, a layer of 10
            channels or fewer loses none.
        batch_size: Images per mini-batch of the pass, 1 or more; the result does not depend on it.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.

    Raises:
        ValueError: If an argument is out of its range, or the network has no BatchNorm layer with
            running statistics.

    Needs:
        Clean images (labels are not used), and BatchNorm layers with running statistics from the
        poisoned training.

    Cost:
        One forward pass over the clean images. No training.

    When it fails:
        At a low poison ratio, poisoned images hardly move the running statistics, and nothing
        stands out. If the network was tuned after the attack, its statistics no longer show the
        poisoned images.

    Note:
        All layers are measured in one pass of the unchanged network over all clean images. Public
        code measures a single mini-batch.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm2d(16))
        >>> _ = net[0].running_mean[3].fill_(9.0)
        >>> clean = CleanData(torch.rand(8, 16, 4, 4), torch.zeros(8).long())
        >>> defense = BatchNormPruning()
        >>> defense.prepare(net, torch.Generator())
        >>> defense.study(net.eval(), clean, torch.Generator())
        >>> defense.findings()["pruned"]
        {'0': [3]}

    References:
        Zheng, Tang, Li and Liu, "Pre-activation distributions expose backdoor neurons", NeurIPS
        2022,
        https://proceedings.neurips.cc/paper_files/paper/2022/hash/76917808731dae9e6d62c2a7a6afb542-Abstract-Conference.html

    See Also:
        - :class:`~fst_lightning.defenses.EntropyPruning`: the same paper, without clean images.
        - :class:`~fst_lightning.defenses.ChannelLipschitzPruning`: the same rule on weights.
    """

    def __init__(self, u: float = 3.0, batch_size: int = 128) -> None:
        super().__init__(u)
        check_number("batch_size", batch_size, low=1, whole=True)
        self.batch_size = batch_size

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Find the BatchNorm layers that have running statistics."""
        super().prepare(net, generator)
        self._norms = {n: norm for n, norm in self._norms.items() if norm.running_var is not None}
        if not self._norms:
            raise ValueError(
                "Expected BatchNorm layers with running statistics for BatchNormPruning, but "
                f"{type(net).__name__} keeps none. Use another defense, such as fst or anp."
            )

    def scores(
        self, net: nn.Module, clean: CleanData, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The divergence of each channel."""
        moments = merged_moments(net, self._norms, clean.batches(self.batch_size))
        scores = {}
        for name, (mean, variance) in moments.items():
            norm = self._norms[name]
            assert norm.running_mean is not None
            assert norm.running_var is not None
            device, eps = norm.weight.device, norm.eps
            scores[name] = gaussian_kl(
                mean,
                variance + eps,
                norm.running_mean.double().cpu(),
                norm.running_var.double().cpu() + eps,
            ).to(device)
        return scores


def gaussian_kl(
    mean: Tensor, variance: Tensor, other_mean: Tensor, other_variance: Tensor
) -> Tensor:
    r"""The divergence :math:`\mathrm{KL}(N(\mu, \sigma^2) \| N(\mu', \sigma'^2))`, elementwise.

    Example:
        >>> one = torch.ones(1)
        >>> gaussian_kl(one, one, 0 * one, one)  # half the squared distance of the means
        tensor([0.5000])
    """
    ratio = variance / other_variance
    return (ratio - 1 - ratio.log() + (mean - other_mean) ** 2 / other_variance) / 2
