"""Neural Cleanse (NC): recover a trigger for each class, and unlearn the suspicious ones.

Example:
    ``python purify.py attack=badnets defense=nc defense.threshold=1.5``
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.clean_data import CleanData, LabeledImages
from fst_lightning.defenses.common.defense import Defense
from fst_lightning.defenses.common.patch_inversion import Triggers, invert_triggers
from fst_lightning.defenses.common.pixel_range import PixelRange
from fst_lightning.validate import check_number


class NeuralCleanse(Defense):
    r"""Stamp recovered triggers on clean images, and tune on them with true labels.

    *How it works.* For each class, the defense searches the smallest patch that makes the network
    assign this class to any image. A backdoor is a shortcut into its target class, so the patch for
    that class is unusually small. Classes whose patch is an outlier are suspected. While tuning, a
    share of each mini-batch carries a recovered patch and its true labels, which removes the
    shortcut. If no class is suspected, the network stays as it is, and the run is not reported as a
    success.

    .. math:: \min_\theta \mathrm{CE}(f(x'), y), \qquad
        x' = (1 - m_t) \odot x + m_t \odot p_t \;\text{for a share of the batch}

    with the mask :math:`m_t` and the pattern :math:`p_t` of a suspected class :math:`t`. A class is
    suspected if its mask is smaller than the median mask and its anomaly index, the distance from
    the median in units of the scaled median absolute deviation, exceeds ``threshold``.

    Args:
        threshold: Smallest anomaly index of a suspected class, 0 or more. A value above 2 is an
            outlier among normally distributed numbers. A lower threshold suspects more classes, in
            clean networks too.
        stamp_ratio: Share of each mini-batch that is stamped, 0 to 1; at least one image if above
            0.
        success: Share of the images that a trigger has to turn into its class, greater than 0 and
            at most 1.
        rounds: Rounds of the inversion, 1 or more; fewer are faster.
        steps: Steps of Adam per round, 1 or more.
        batch_size: Images per step of the inversion, 1 or more.
        lr: Learning rate of Adam, greater than 0.
        cost: Initial weight of the mask's size, greater than 0.
        cost_factor: Factor by which the cost is raised or lowered, greater than 1.
        patience: Consecutive rounds before the cost changes, 1 or more.
        stop_after: Rounds without a smaller mask after which a class is finished, 1 or more.
        classes_at_once: Classes that share a mini-batch, 1 or more; limited by the memory.
        restarts: Searches from different random starts, 1 or more; the smallest trigger of each
            class is kept.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If an argument is out of its range.

    Needs:
        Clean images with true labels. More than two classes, or a lower ``threshold``.

    Cost:
        ``restarts`` searches per class before the tuning, so that the cost grows with the number of
        classes.

    When it fails:
        The search finds patches; triggers that change the whole image, or each image differently,
        leave no small mask, and the network stays as it is. With two classes the anomaly index is
        at most 0.67, so that the default threshold suspects neither; the findings say so. A clean
        class with a small mask is a false alarm, which costs clean accuracy.

    Note:
        The paper searches once. Here the search is repeated, because the size of a mask depends on
        the random start.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        >>> clean = CleanData(torch.rand(8, 3, 2, 2), torch.zeros(8, dtype=torch.int64))
        >>> defense = NeuralCleanse(rounds=1, steps=1)
        >>> defense.study(net, clean, torch.Generator().manual_seed(0))
        >>> sorted(defense.findings())
        ['anomaly_index', 'flagged', 'norms', 'success', 'summary', 'threshold']

    References:
        Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao, "Neural Cleanse: Identifying and mitigating
        backdoor attacks in neural networks", IEEE S&P 2019,
        https://doi.org/10.1109/SP.2019.00031

    See Also:
        - :func:`~fst_lightning.defenses.invert_triggers`: the search.
        - :class:`~fst_lightning.defenses.BTIDBF`: inverts triggers that are not patches.
        - :class:`~fst_lightning.detectors.SmallestPatch`: the same search as a detector.
    """

    masks: Tensor
    """``(C, 1, H, W)`` in [0, 1]; empty before :meth:`study`."""
    patterns: Tensor
    """``(C, channels, H, W)``, in [0, 1]."""
    rates: Tensor
    """``(C,)``, the share of images that each trigger turns into its class."""

    def __init__(
        self,
        threshold: float = 2.0,
        stamp_ratio: float = 0.2,
        success: float = 0.98,
        rounds: int = 15,
        steps: int = 10,
        batch_size: int = 16,
        lr: float = 0.2,
        cost: float = 1e-3,
        cost_factor: float = 2.0,
        patience: int = 2,
        stop_after: int = 8,
        classes_at_once: int = 32,
        restarts: int = 3,
    ) -> None:
        super().__init__()
        check_number("threshold", threshold)
        check_number("stamp_ratio", stamp_ratio, high=1)
        check_number("success", success, low_open=True, high=1)
        check_number("rounds", rounds, low=1, whole=True)
        check_number("steps", steps, low=1, whole=True)
        check_number("batch_size", batch_size, low=1, whole=True)
        check_number("lr", lr, low_open=True)
        check_number("cost", cost, low_open=True)
        check_number("cost_factor", cost_factor, low=1, low_open=True)
        check_number("patience", patience, low=1, whole=True)
        check_number("stop_after", stop_after, low=1, whole=True)
        check_number("classes_at_once", classes_at_once, low=1, whole=True)
        check_number("restarts", restarts, low=1, whole=True)
        self.threshold = threshold
        self.stamp_ratio = stamp_ratio
        self.success = success
        self.rounds = rounds
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.cost = cost
        self.cost_factor = cost_factor
        self.patience = patience
        self.stop_after = stop_after
        self.classes_at_once = classes_at_once
        self.restarts = restarts
        for name in ("masks", "patterns", "rates"):
            self.register_buffer(name, torch.empty(0))
        self.pixel_range = PixelRange()

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Discard the triggers of another network."""
        for name in ("masks", "patterns", "rates"):
            setattr(self, name, torch.empty(0))
        self.pixel_range = PixelRange()

    def search(self, net: nn.Module, clean: LabeledImages, generator: torch.Generator) -> Triggers:
        """Recover a trigger for each class; change neither the network nor the defense.

        Args:
            net: The network, on the device of the images.
            clean: The clean images.
            generator: A CPU generator, the only source of random numbers.
        """
        return invert_triggers(
            net,
            clean,
            generator,
            rounds=self.rounds,
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
            cost=self.cost,
            cost_factor=self.cost_factor,
            patience=self.patience,
            stop_after=self.stop_after,
            success=self.success,
            classes_at_once=self.classes_at_once,
            restarts=self.restarts,
        )

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Recover the triggers."""
        found = self.search(net, clean, generator)
        self.masks, self.patterns, self.rates = found.masks, found.patterns, found.rates
        self.pixel_range.fit(clean)

    @property
    def triggers(self) -> Triggers:
        """The recovered triggers."""
        return Triggers(self.masks, self.patterns, self.rates)

    @property
    def flagged(self) -> Tensor:
        """The suspected classes, ``(n,)``; empty before :meth:`study`."""
        if len(self.masks) == 0:
            return torch.empty(0, dtype=torch.int64)
        return self.triggers.flagged(self.threshold)

    @property
    def done(self) -> bool:
        """Whether no class was suspected."""
        return len(self.masks) > 0 and len(self.flagged) == 0

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy with true labels, on images of which a share is stamped."""
        return functional.cross_entropy(net(self.stamp(images)), labels)

    def stamp(self, images: Tensor) -> Tensor:
        """Put triggers of suspected classes on the first images of a mini-batch.

        Args:
            images: ``(N, C, H, W)``, normalized.

        Returns:
            A new tensor of the same shape; each stamped image has one trigger, drawn at random.
        """
        count, flagged = stamped_images(self.stamp_ratio, len(images)), self.flagged
        if count == 0 or len(flagged) == 0:
            return images
        drawn = flagged[torch.randint(len(flagged), (count,), device=flagged.device)]
        patterns = self.pixel_range.to_inputs(self.patterns[drawn])
        stamped = torch.lerp(images[:count].float(), patterns, self.masks[drawn])
        return torch.cat([stamped.to(images.dtype), images[count:]])

    def findings(self) -> dict[str, Any]:
        """The size, anomaly index and success rate of each mask, and the suspected classes."""
        if len(self.masks) == 0:
            return {}
        return {
            "summary": self._summary(),
            "threshold": self.threshold,
            "norms": _rounded(self.triggers.norms),
            "anomaly_index": _rounded(self.triggers.index),
            "success": _rounded(self.rates),
            "flagged": self.flagged.tolist(),
        }

    def shortfall(self) -> str | None:
        """``No class was suspected`` if nothing was tuned."""
        return "No class was suspected" if self.done else None

    def _summary(self) -> str:
        """Name the suspected classes and the next candidate, with their anomaly indices."""
        found, flagged = self.triggers, self.flagged.tolist()
        index, norms = found.index, found.norms
        others = index.masked_fill(~found.working(), -torch.inf)
        others[flagged] = -torch.inf
        closest = int(others.argmax())
        known = bool(others[closest] > -torch.inf)
        if flagged:
            named = ", ".join(
                f"{label} (anomaly index {float(index[label]):.2f})" for label in flagged
            )
            text = f"Suspected class {named}, with a threshold of {self.threshold:g}"
            return (
                f"{text}; class {closest} came next with {float(others[closest]):.2f}."
                if known
                else f"{text}."
            )
        if not known:
            return "Nothing was tuned. No recovered trigger works on 90 % of the clean images."
        return (
            f"Nothing was tuned. Class {closest} came closest, with an anomaly index of "
            f"{float(index[closest]):.3f}; defense.threshold asks for more than "
            f"{self.threshold:g}. Its trigger takes {float(norms[closest]):.1f} pixels, the median "
            f"class {float(norms.quantile(0.5)):.1f}. {_OF_TWO if len(norms) == 2 else _LOWER}"
        )


_LOWER = "A lower threshold suspects it."
_OF_TWO = (
    "Of two classes the index is at most 0.67: a threshold below that suspects the smaller one."
)


def stamped_images(ratio: float, count: int) -> int:
    """The number of images in a mini-batch that are stamped: the rounded share, and at least one.

    Args:
        ratio: The share, 0 to 1; 0 stamps none.
        count: Images in the mini-batch.

    Example:
        >>> stamped_images(0.2, 128), stamped_images(0.2, 1), stamped_images(0.0, 8)
        (26, 1, 0)
    """
    return min(count, max(1, round(ratio * count))) if ratio > 0 else 0


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]
