"""Entropy pruning (EP): prune channels whose inputs on training data have two peaks.

Example:
    ``python purify.py attack=blended defense=ep defense.u=3``
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.channel_masks import (
    OutlierPruning,
    merged_moments,
    watch_inputs,
)
from fst_lightning.defenses.common.clean_data import CleanData, PoisonedData
from fst_lightning.validate import check_number

_REACH = 50.0
"""Standard deviations beyond which values share the outermost bin."""


class EntropyPruning(OutlierPruning):
    r"""Prune the channels whose standardized inputs have an unusually low entropy.

    *How it works.* The training set is a mixture of clean and poisoned images. A channel that
    responds to the trigger has one group of values for clean images and another one far away for
    poisoned ones. After such values are standardized, most of them share a few bins of a histogram,
    so that its entropy is low. The defense prunes the channels whose entropy is an outlier in its
    layer. It needs the training set as it was delivered, but no clean images and no training.

    .. math:: H_c = -\sum_k p_{ck} \log p_{ck}, \qquad
        p_{ck} = \Pr\left[\left\lfloor \tfrac{x_c - \mu_c}{\sigma_c w} \right\rfloor = k\right],
        \qquad \text{pruned if}\; H_c < \mathrm{mean}(H) - u\,\mathrm{std}(H)

    with the inputs :math:`x_c` of a BatchNorm layer in channel :math:`c`, at each image and
    position, their mean :math:`\mu_c` and standard deviation :math:`\sigma_c`, and the bin width
    :math:`w`.

    Args:
        u: Standard deviations below the mean of the layer, greater than 0; a smaller value prunes
            more. The paper uses 3 for CIFAR-10 and 4 for Tiny-ImageNet. With 3, a layer of 10
            channels or fewer loses none.
        bin_width: Width :math:`w` of a bin in standard deviations, 0.01 to 50.
        max_images: Training images that are drawn at most, 1 or more; None uses all.
        batch_size: Images per mini-batch, 1 or more; the result does not depend on it.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.

    Raises:
        ValueError: If an argument is out of its range, the network has no BatchNorm layer, or no
            training set is given.

    Needs:
        The training set as it was delivered, and BatchNorm layers. No clean images.

    Cost:
        Two forward passes over at most ``max_images`` training images. No training.

    When it fails:
        At a low poison ratio the second peak is too small to lower the entropy; what is pruned then
        belongs to the clean task. With clean images alone it finds nothing.

    Note:
        Values beyond 50 standard deviations share the outermost bins. The same method is called DDE
        in some benchmarks.

    Example:
        >>> images = torch.randn(200, 16, 1, 1, generator=torch.Generator().manual_seed(0))
        >>> images[:4, 5] = 60.0  # a few images far away in one channel
        >>> labels = torch.zeros(200, dtype=torch.int64)
        >>> net = nn.Sequential(nn.BatchNorm2d(16)).eval()
        >>> defense = EntropyPruning()
        >>> defense.prepare(net, torch.Generator())
        >>> clean = CleanData(images, labels, poisoned=PoisonedData(images, labels))
        >>> defense.study(net, clean, torch.Generator())
        >>> defense.findings()["pruned"]
        {'0': [5]}

    References:
        Zheng, Tang, Li and Liu, "Pre-activation distributions expose backdoor neurons", NeurIPS
        2022,
        https://proceedings.neurips.cc/paper_files/paper/2022/hash/76917808731dae9e6d62c2a7a6afb542-Abstract-Conference.html

    See Also:
        - :class:`~fst_lightning.defenses.BatchNormPruning`: the same paper, with clean images.
        - :class:`~fst_lightning.defenses.FLARE`: looks for unusual rows instead of channels.
    """

    needs_poisoned_set: ClassVar[bool] = True

    def __init__(
        self,
        u: float = 3.0,
        bin_width: float = 0.1,
        max_images: int | None = 5000,
        batch_size: int = 128,
    ) -> None:
        super().__init__(u)
        check_number("bin_width", bin_width, low=0.01, high=_REACH)
        if max_images is not None:
            check_number("max_images", max_images, low=1, whole=True)
        check_number("batch_size", batch_size, low=1, whole=True)
        self.bin_width = bin_width
        self.max_images = max_images
        self.batch_size = batch_size

    def scores(
        self, net: nn.Module, clean: CleanData, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The negative entropy of each channel; NaN if a channel is constant."""
        data = clean.poisoned
        if data is None:
            raise ValueError(
                "Expected the training set as it was delivered in `clean.poisoned`, but got None: "
                "entropy pruning looks for poisoned images among the others. Without it, use bnp."
            )
        if self.max_images is not None and self.max_images < len(data):
            rows = torch.randperm(len(data), generator=generator)[: self.max_images]
            data = data.subset(rows.sort().values)
        entropies = self._entropies(net, data)
        return {name: -entropy.to(self._norms[name].weight.device) for name, entropy in entropies}

    def _entropies(self, net: nn.Module, data: PoisonedData) -> Iterator[tuple[str, Tensor]]:
        moments = merged_moments(net, self._norms, data.batches(self.batch_size))
        bins = 2 * int(_REACH / self.bin_width) + 1
        counts: dict[str, Tensor] = {}

        def count(name: str, values: Tensor) -> None:
            mean, variance = (m.to(values.device, values.dtype) for m in moments[name])
            deviation = variance.sqrt().clamp_min(torch.finfo(values.dtype).tiny)
            scaled = (values - mean[:, None]) / deviation[:, None]
            found = histograms(scaled, self.bin_width, bins)
            counts[name] = counts[name] + found if name in counts else found

        watch_inputs(net, self._norms, data.batches(self.batch_size), count)
        for name, found in counts.items():
            entropy = histogram_entropy(found)
            # A constant channel carries no information.
            entropy[moments[name][1].to(entropy.device) < 1e-12] = torch.nan
            yield name, entropy


def histograms(values: Tensor, width: float, bins: int) -> Tensor:
    """Count values in bins :math:`[k w, (k + 1) w)` around zero, for each row.

    Args:
        values: ``(C, n)``.
        width: Bin width :math:`w`, greater than 0.
        bins: An odd number; values further out are counted in the outermost bins.

    Returns:
        ``(C, bins)`` int64; the bin of zero is the middle one.

    Example:
        >>> histograms(torch.tensor([[-0.5, 0.2, 0.3, 9.0]]), width=1.0, bins=3).tolist()
        [[1, 2, 1]]
    """
    middle = bins // 2
    index = (values / width).floor().clamp(-middle, middle).long() + middle
    rows = torch.arange(len(values), device=values.device)[:, None] * bins
    counts = torch.bincount((index + rows).flatten(), minlength=len(values) * bins)
    return counts.reshape(len(values), bins)


def histogram_entropy(counts: Tensor) -> Tensor:
    r"""The entropy :math:`-\sum_k p_k \log p_k` of each row of counts, in nats, ``(C,)``.

    Example:
        >>> histogram_entropy(torch.tensor([[2, 2, 0]]))  # log 2
        tensor([0.6931], dtype=torch.float64)
    """
    shares = counts.double() / counts.sum(1, keepdim=True)
    entropy: Tensor = -torch.special.xlogy(shares, shares).sum(1)
    return entropy
