"""Patches that are recovered from the network, class by class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.defenses.nc import NeuralCleanse
from fst_lightning.defenses.triggers.suspected import SuspectedClassTriggers


class PatchTriggers(SuspectedClassTriggers):
    r"""Put recovered patches of suspected classes on images.

    *How it works.* Before the purification, Neural Cleanse recovers the smallest patch of each
    class that sends clean images to it. A class is suspected if its patch is far smaller than those
    of the others: its size is below :math:`c` times their median. While the network is tuned,
    images get the patch of a suspected class, drawn at random:

    .. math:: x' = (1 - m) \odot x + m \odot p

    with the mask m and the pattern p. If no class is suspected, the images stay as they are.

    Args:
        share: Share of the images of each mini-batch that get a patch, in [0, 1].
        ratio: :math:`c`, in (0, 1).
        rounds: Rounds of the search, 1 or more; fewer are faster.
        steps: Steps of Adam per round, 1 or more.
        batch_size: Images per step, 1 or more.
        classes_at_once: Classes that are searched together, 1 or more; more need more memory.

    Shape:
        Images ``(N, C, H, W)`` float in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Note:
        Recovers patches and small patterns. It does not see triggers that cover the whole image.
        Neural Cleanse compares by an anomaly index. With few rounds and one start, the sizes vary
        more, and a ratio of medians separates the classes better.

    Example:
        >>> PatchTriggers(share=0.2).findings()
        {}

    References:
        Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao, "Neural Cleanse: Identifying and mitigating
        backdoor attacks in neural networks", IEEE S&P 2019, Eq. 2-3.

    See Also:
        - :class:`~fst_lightning.defenses.NeuralCleanse`: the defense that the search comes from.
        - :class:`~fst_lightning.defenses.triggers.InvertedTriggers`: triggers that are no patches.
    """

    def __init__(
        self,
        share: float = 0.2,
        ratio: float = 0.6,
        rounds: int = 12,
        steps: int = 10,
        batch_size: int = 16,
        classes_at_once: int = 10,
    ) -> None:
        super().__init__(share, ratio)
        self.search = NeuralCleanse(
            rounds=rounds,
            steps=steps,
            batch_size=batch_size,
            classes_at_once=classes_at_once,
            restarts=1,
        )

    @property
    def sizes(self) -> Tensor:
        """The sizes of the patches; infinite for one that does not work."""
        if len(self.search.masks) == 0:
            return torch.empty(0)
        found = self.search.triggers
        return found.norms.masked_fill(~found.working(), torch.inf)

    def study(self, net: nn.Module, clean: LabeledImages, generator: torch.Generator) -> None:
        """Recover a patch for each class."""
        found = self.search.search(net, clean, generator)
        self.search.masks, self.search.patterns = found.masks, found.patterns
        self.search.rates = found.rates

    def put(self, images: Tensor, classes: Tensor) -> Tensor:
        """Put the patch of a class on each image."""
        patterns, masks = self.search.patterns[classes], self.search.masks[classes]
        return torch.lerp(images, patterns.float(), masks.float())

    def findings(self) -> dict[str, Any]:
        """Size and success rate of each patch, and the suspected classes."""
        found = self.search.findings()
        if not found:
            return {}
        return {
            "norms": found["norms"],
            "success": found["success"],
            "suspected": self.suspected.tolist(),
        }
