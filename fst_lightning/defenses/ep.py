"""Entropy pruning (EP): channels whose inputs on poisoned training data have two humps.

Zheng, Tang, Li and Liu, "Pre-activation distributions expose backdoor neurons", NeurIPS 2022.

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
    check_number,
    merged_moments,
    watch_inputs,
)
from fst_lightning.defenses.common.clean_data import CleanData, PoisonedData

_REACH = 50.0
"""Standard deviations beyond which values share the outermost bin."""


class EntropyPruning(OutlierPruning):
    r"""Prune the channels whose standardised inputs have an unusually low entropy.

    .. math:: H_c = -\sum_k p_{ck} \log p_{ck}, \qquad
        p_{ck} = \Pr\left[\left\lfloor \tfrac{x_c - \mu_c}{\sigma_c w} \right\rfloor = k\right],
        \qquad \text{pruned where}\; H_c < \mathrm{mean}(H) - u\,\mathrm{std}(H)

    :math:`x_c` is what reaches the BatchNorm layer, at every image and position of the *training
    set as it was delivered*. On a mixture of clean and poisoned images a backdoored channel has
    outliers or a second hump; once it is standardised, most of it lies in few bins. Needs no
    clean images; with clean images alone it finds nothing.

    Args:
        u: deviations below the mean of the layer, greater than 0; fewer prune more. The paper: 3
            for CIFAR-10, 4 for Tiny-ImageNet. With 3, a layer of 10 channels or fewer keeps all.
        bin_width: w, in standard deviations, greater than 0.
        max_images: so many images of the training set are drawn, 1 or more; null: all.
        batch_size: images a batch, 1 or more; the result doesn't depend on it.

    Raises:
        ValueError: for an argument out of its range, a network without BatchNorm, or without the
            training set.
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
        """The entropy of every channel with its sign changed; NaN where a channel is constant."""
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
            # A constant channel carries nothing, a backdoor no more than anything else.
            entropy[moments[name][1].to(entropy.device) < 1e-12] = torch.nan
            yield name, entropy


def histograms(values: Tensor, width: float, bins: int) -> Tensor:
    r"""Count values in bins :math:`[k w, (k + 1) w)` around zero, row by row.

    Args:
        values: ``(C, n)``.
        width: w, greater than 0.
        bins: an odd number; values further out are counted in the outermost bins.

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
    r"""The entropy :math:`-\sum_k p_k \log p_k` of every row of counts, in nats, ``(C,)``.

    Example:
        >>> histogram_entropy(torch.tensor([[2, 2, 0]]))  # log 2
        tensor([0.6931], dtype=torch.float64)
    """
    shares = counts.double() / counts.sum(1, keepdim=True)
    entropy: Tensor = -torch.special.xlogy(shares, shares).sum(1)
    return entropy
