"""Detects a network that numbers its classes in another order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fst_lightning.metrics.interval import wilson_interval

_CONFIDENCE = 0.99
"""Of the interval. Fourteen images are the fewest that can show another order."""

_SHARE = 2 / 3
"""The network has to prefer the other label twice as often as the own one."""

_LEAST_OF_FAVORITES = 0.9

_TIE = 1e-6


def other_order(
    labels: Tensor, predictions: Tensor, num_classes: int, usual: Sequence[Sequence[int]] = ()
) -> list[int] | None:
    r"""Find the permutation of the classes that explains the predictions, if one clearly does.

    The permutation :math:`\pi` that maximizes :math:`\sum_c P(\text{prediction} = \pi(c) \mid c)`
    is a linear assignment. It always fits better than the identity on the images that it was found
    on. So it is found on one half of the images of each class and judged on the other half. There,
    the network has to give the images of the classes that :math:`\pi` moves the label
    :math:`\pi(c)` at least twice as often as the label :math:`c`: the lower end of Wilson's
    interval of that share is above 2/3. A network of other classes also prefers some label for
    each class, but the same one for several. So the permutation has to explain at least 90 % of
    what the favorite label of each class explains, and no moved class may prefer its own label.
    Every class counts alike in the assignment: a network that always returns the largest class is
    not suspected.

    Args:
        labels: ``(N,)`` int64, the true classes.
        predictions: ``(N,)`` int64, each in [0, num_classes).
        num_classes: The number of classes, 2 or more.
        usual: Orders that are taken if they fit the images as well as the best one; they also tell
            where classes without images belong.

    Returns:
        The label that the network gives each class; None if nothing else than the given order is
        clearly right.

    Example:
        >>> labels = torch.arange(3).repeat(40)
        >>> other_order(labels, (labels + 1) % 3, 3)
        [1, 2, 0]
        >>> other_order(labels, labels, 3) is None
        True

    References:
        The assignment is computed by :func:`scipy.optimize.linear_sum_assignment` (Crouse, "On
        implementing 2D rectangular assignment algorithms", IEEE TAES 52, 2016).
    """
    by_class = labels.argsort(stable=True)
    first, second = by_class[::2], by_class[1::2]
    found = _assignment(labels[first], predictions[first], num_classes)
    favorites = _confusion(labels[first], predictions[first], num_classes).argmax(1)
    if not _preferred(labels[second], predictions[second], found, favorites):
        return None
    best = _assignment(labels, predictions, num_classes)
    hits = int((predictions == best[labels]).sum())
    for order in map(torch.tensor, usual):
        if int((predictions == order[labels]).sum()) >= hits:
            best = order
    moved = (best != torch.arange(num_classes)).nonzero()[:, 0]
    confusion = _confusion(labels, predictions, num_classes)
    if not len(moved) or bool((confusion[moved, best[moved]] < confusion[moved, moved]).any()):
        return None
    return [int(label) for label in best]


def _preferred(labels: Tensor, predictions: Tensor, order: Tensor, favorites: Tensor) -> bool:
    """Whether images of the moved classes get the other label, and not their own or a third one."""
    moved = order[labels] != labels
    labels, predictions = labels[moved], predictions[moved]
    own = int((predictions == labels).sum())
    other = int((predictions == order[labels]).sum())
    favorite = int((predictions == favorites[labels]).sum())
    if other < _LEAST_OF_FAVORITES * favorite or not own + other:
        return False
    return wilson_interval(other, own + other, _CONFIDENCE)[0] > _SHARE


def _assignment(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """The label of each class that fits best, ``(C,)``; classes without images keep theirs."""
    from scipy.optimize import linear_sum_assignment

    confusion = _confusion(labels, predictions, num_classes).double()
    shares = confusion / confusion.sum(1, keepdim=True).clamp_min(1)
    shares += _TIE * torch.eye(num_classes, dtype=torch.float64)
    _, columns = linear_sum_assignment(shares.numpy(), maximize=True)
    return torch.from_numpy(columns)


def _confusion(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Counts by true class and predicted class, ``(C, C)``."""
    pairs = labels * num_classes + predictions
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
