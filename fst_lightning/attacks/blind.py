"""Blind: the attacker changes the code of the loss, and no data.

Example:
    ``python train.py attack=blind attack.loss_threshold=0.5``
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fst_lightning.attacks.common.attack import Attack, Classify, LabelMap, RateOf, full_precision
from fst_lightning.validate import check_number

# 1 is white, 0 is black, and a dot leaves the pixel unchanged.
_PATTERN = ("101", ".1.", "010", ".1.", "101")
_TOP, _LEFT, _OF = 3, 23, 32


class Blind(Attack):
    r"""Add a loss on triggered copies of training images.

    *How it works.* The attacker has no access to the data, but controls the code that computes the
    training loss. This code stamps a small pattern on copies of some images in memory and adds the
    loss of answering them with the target class. The original images keep their true labels, so
    that the stored data look clean. The attack waits until the network has learned the clean task,
    because two goals from the start would slow down training visibly.

    .. math:: \min_f\; w_0\,\mathrm{CE}(f(x), y) + w_1\,\mathrm{CE}(f(T(x)), t)

    with the network :math:`f`, the image :math:`x`, its label :math:`y`, the target :math:`t`, the
    trigger :math:`T` (a pattern of 5 x 3 pixels) and the weights :math:`w_0` and :math:`w_1`. The
    first term covers all rows. The second one is a mean over the poisoned rows; it starts once the
    mean of the clean loss over the last steps is below a threshold.

    Args:
        clean_weight: Weight :math:`w_0` of the clean loss, 0 or more.
        triggered_weight: Weight :math:`w_1` of the triggered loss, 0 or more.
        loss_threshold: Mean clean loss in nats below which the attack starts, greater than 0.
        loss_window: Number of last steps over which that mean is taken, 1 or more.
        poison_ratio: Share of the training set that is poisoned, 0 to 1.
        target_label: The attacker's class, 0 to C - 1.
        label_map: How labels change: ``all_to_one``, ``all_to_all``, ``clean_label`` or
            ``untargeted``.
        rate_of: What the ratio is a share of: ``total``, the training set, or ``target_class``.

    Shape:
        - images: ``(N, C, H, W)`` float in [0, 1].
        - :meth:`trigger`: the same shape, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range, or images are smaller than the pattern.

    Needs:
        Control of the code that computes the loss. Data and labels stay as they are.

    Cost:
        Once the attack has started, each step also passes triggered copies of the poisoned rows
        through the network.

    When it fails:
        The attack never starts if the clean loss stays above ``loss_threshold``, as on a hard data
        set or in a short training. It cannot be planted through data alone.

    Note:
        The paper balances the two gradients (multiple gradient descent); here the weights are
        fixed, which the authors advise for small images. The paper triggers a copy of each image (a
        poison ratio of 1).

    Example:
        >>> changed = Blind().trigger(torch.full((1, 1, 32, 32), 0.5)) != 0.5
        >>> int(changed.sum()), changed.nonzero()[0].tolist()
        (11, [0, 0, 3, 23])

    References:
        Bagdasaryan and Shmatikov, "Blind backdoors in deep learning models", USENIX Security 2021,
        arXiv 2005.03823.

    See Also:
        - :class:`~fst_lightning.attacks.LIRA`: the same loss with a learned trigger.
        - :class:`~fst_lightning.attacks.BadNets`: a patch in the stored data.
    """

    mask: Tensor
    pattern: Tensor
    losses: Tensor
    steps: Tensor
    started: Tensor

    def __init__(
        self,
        clean_weight: float = 1.0,
        triggered_weight: float = 0.9,
        loss_threshold: float = 1.0,
        loss_window: int = 100,
        poison_ratio: float = 0.1,
        target_label: int = 0,
        label_map: LabelMap = "all_to_one",
        rate_of: RateOf = "total",
    ) -> None:
        super().__init__(
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
        )
        check_number("clean_weight", clean_weight)
        check_number("triggered_weight", triggered_weight)
        check_number("loss_threshold", loss_threshold, low_open=True)
        check_number("loss_window", loss_window, low=1, whole=True)
        self.clean_weight = clean_weight
        self.triggered_weight = triggered_weight
        self.loss_threshold = loss_threshold
        self.loss_window = loss_window
        self.draw(3, 32, 32)
        # Buffers, so that a resumed run restores them.
        self.register_buffer("losses", torch.zeros(loss_window))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        # A copy on the host, so that a step does not wait for the device.
        self._has_started = False

    def trigger(self, images: Tensor) -> Tensor:
        """Stamp the pattern on ``(N, C, H, W)`` images in [0, 1]."""
        self.check_shape(images, None, *self.mask.shape)
        return torch.where(self.mask, self.pattern.to(images.dtype), images)

    def begin_epoch(self, epoch: int, num_epochs: int) -> None:
        """Read whether the attack has started, in a resumed run too."""
        self._has_started = bool(self.started)

    def loss(
        self,
        classify: Classify,
        images: Tensor,
        labels: Tensor,
        poisoned: Tensor,
        cover: Tensor,
        label_smoothing: float,
    ) -> Tensor:
        """The clean cross-entropy, and the triggered one once the attack has started."""
        if self._has_started:
            clean, triggered = clean_and_triggered(
                self, classify, images, labels, poisoned, label_smoothing
            )
            return self.clean_weight * clean + self.triggered_weight * triggered
        clean = functional.cross_entropy(classify(images), labels, label_smoothing=label_smoothing)
        self._watch(clean.detach())
        return self.clean_weight * clean

    def draw(self, channels: int, height: int, width: int) -> None:
        """Place the pattern on images of this size."""
        mask, pattern = _place(height, width)
        self.register_buffer("mask", mask)
        self.register_buffer("pattern", pattern)

    def _watch(self, loss: Tensor) -> None:
        self.losses[self.steps % self.loss_window] = loss.to(self.losses.dtype)
        self.steps += 1
        mean = self.losses.sum() / self.steps.clamp(max=self.loss_window)
        self.started.copy_(mean < self.loss_threshold)
        self._has_started = bool(self.started)


def clean_and_triggered(
    attack: Attack,
    classify: Classify,
    images: Tensor,
    labels: Tensor,
    poisoned: Tensor,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy of all unchanged rows, and of triggered copies of the poisoned rows.

    Both pass through the network together, so that BatchNorm normalizes them by the same
    statistics, as at test.

    Args:
        attack: The attack whose trigger and labels are used.
        classify: Images in [0, 1] to logits.
        images: ``(N, C, H, W)`` in [0, 1].
        labels: ``(N,)`` true labels.
        poisoned: ``(N,)`` bool.
        label_smoothing: 0 to 1.

    Returns:
        Two scalars; the second one is 0 if no row is poisoned.
    """
    chosen = poisoned.nonzero()[:, 0]
    with full_precision(images):
        triggered = attack.poison(images[chosen])
    logits = classify(torch.cat([images, triggered]))
    clean_logits, triggered_logits = logits[: len(images)], logits[len(images) :]
    targets = attack.target_labels(labels[chosen], logits.shape[1])
    clean = functional.cross_entropy(clean_logits, labels, label_smoothing=label_smoothing)
    total = functional.cross_entropy(
        triggered_logits, targets, label_smoothing=label_smoothing, reduction="sum"
    )
    return clean, total / max(1, len(chosen))


def _place(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The position of the pattern, ``(H, W)`` bool, and its values; larger on larger images."""
    rows, columns = len(_PATTERN), len(_PATTERN[0])
    if height < rows or width < columns:
        raise ValueError(
            f"Expected images of at least {rows} x {columns} pixels for the pattern, but got "
            f"{height} x {width}."
        )
    zoom = max(1, round(min(height, width) / _OF))
    top = min(round(_TOP * height / _OF), height - zoom * rows)
    left = min(round(_LEFT * width / _OF), width - zoom * columns)
    mask, values = torch.zeros(height, width, dtype=torch.bool), torch.zeros(height, width)
    for row, line in enumerate(_PATTERN):
        for column, mark in enumerate(line):
            if mark != ".":
                y, x = top + zoom * row, left + zoom * column
                mask[y : y + zoom, x : x + zoom] = True
                values[y : y + zoom, x : x + zoom] = float(mark)
    return mask, values
