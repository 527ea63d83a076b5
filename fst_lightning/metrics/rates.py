"""Clean accuracy, attack success rate and robust accuracy, as counts of rows."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class _MatchRate(Metric):
    """The share of rows whose predicted class is the given one."""

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    correct: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("correct", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, counted: Tensor | None = None) -> None:
        """Count one batch. Only shapes and types are checked, so nothing waits for the device.

        Args:
            preds: Logits or probabilities of shape (N, C), or class numbers of shape (N,).
            target: Class numbers of shape (N,). A number that is not a class never matches.
            counted: Which rows to count, (N,) bool; None counts all.

        Raises:
            ValueError: If the shapes do not fit or a type is wrong.
        """
        right = matches(preds, target)
        # Not in place: the next fit can't change tensors that a test made in inference mode.
        if counted is None:
            self.correct = self.correct + right.sum()
            self.total = self.total + target.shape[0]
        else:
            self.correct = self.correct + (right & counted).sum()
            self.total = self.total + counted.sum()

    def compute(self) -> Tensor:
        """Divide the counts: a scalar in [0, 1], NaN if no row was counted."""
        return self.correct / self.total

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the rate, with matplotlib, as every ``torchmetrics.Metric`` does.

        Args:
            val: What `compute` or `forward` returned, or a list of it; None computes the rate.
            ax: The axes to draw on; None makes a figure.

        Returns:
            The figure and its axes.
        """
        return self._plot(val, ax)

    def counts(self) -> tuple[int, int]:
        """Return (right rows, all rows) over all processes; waits for the device.

        Like `compute`, it has to be called on every process of a distributed run.
        """
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn,
            process_group=self.process_group,
            should_sync=self.sync_on_compute,
        ):
            return int(self.correct), int(self.total)


class CleanAccuracy(_MatchRate):
    r"""Share of clean images that get their true label.

    .. math:: \mathrm{CA} = \frac{1}{N} \sum_{i=1}^{N} 1[f(x_i) = y_i]

    In [0, 1], higher is better; NaN if no image was counted. A row of logits that holds a NaN
    counts as wrong.

    Shapes: `update(preds, target)` takes logits (N, C) or class numbers (N,), and the true labels
    (N,) as integers; `compute()` gives a scalar.

    Args:
        kwargs: Options of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = CleanAccuracy()
        >>> metric.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        >>> metric.compute()
        tensor(0.5000)
        >>> metric.counts()
        (1, 2)
    """


class AttackSuccessRate(_MatchRate):
    r"""Share of triggered images that get the label the attacker wants.

    .. math:: \mathrm{ASR} = \frac{1}{N} \sum_{i=1}^{N} 1[f(T(x_i)) = t(y_i)]

    In [0, 1], with the trigger :math:`T` and the attacker's label :math:`t(y)`; NaN if no image was
    counted. Images whose true label is already the target say nothing about the attack and must not
    be passed in. For a defender lower is better. A row of logits that holds a NaN counts as a
    failed attack.

    Shapes: `update(preds, target)` takes logits (N, C) or class numbers (N,) for the *triggered*
    images, and the *attacker's* labels (N,) as integers; `compute()` gives a scalar.

    Args:
        kwargs: Options of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = AttackSuccessRate()
        >>> metric.update(torch.tensor([0, 0, 0, 2]), torch.tensor([0, 0, 0, 0]))
        >>> metric.compute()
        tensor(0.7500)
    """

    higher_is_better: bool | None = False


class RobustAccuracy(_MatchRate):
    r"""Share of triggered images that still get their true label.

    .. math:: \mathrm{RA} = \frac{1}{N} \sum_{i=1}^{N} 1[f(T(x_i)) = y_i]

    In [0, 1], higher is better; NaN if no image was counted. Over the same images ASR + RA <= 1. A
    row of logits that holds a NaN counts as wrong.

    Shapes: `update(preds, target)` takes logits (N, C) or class numbers (N,) for the *triggered*
    images, and the *true* labels (N,) as integers; `compute()` gives a scalar.

    Args:
        kwargs: Options of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = RobustAccuracy()
        >>> metric.update(torch.tensor([0, 0, 0, 2]), torch.tensor([1, 3, 2, 2]))
        >>> metric.compute()
        tensor(0.2500)
    """


class ControlRate(_MatchRate):
    r"""Share of *clean* images that get the label the attacker wants, without any trigger.

    .. math:: \frac{1}{N} \sum_{i=1}^{N} 1[f(x_i) = t(y_i)]

    Over the images that the attack success rate is measured on, in [0, 1]; NaN if no image was
    counted. It is the control of the attack success rate: a network that answers one class to many
    images gives a high rate without a backdoor.

    Shapes: `update(preds, target, counted)` takes logits (N, C) or class numbers (N,) for *clean*
    images, the *attacker's* labels (N,) as integers, and which rows to count, (N,) bool;
    `compute()` gives a scalar.

    Args:
        kwargs: Options of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = ControlRate()
        >>> labels = torch.tensor([0, 1, 1, 2])
        >>> metric.update(torch.tensor([0, 0, 1, 2]), torch.zeros(4, dtype=torch.long), labels != 0)
        >>> metric.counts()
        (1, 3)
    """

    higher_is_better: bool | None = False


def matches(preds: Tensor, target: Tensor) -> Tensor:
    """The rows whose prediction is the given class: (N,) bool.

    Args:
        preds: Logits or probabilities of shape (N, C), or class numbers of shape (N,). A row that
            holds a NaN predicts nothing.
        target: Class numbers of shape (N,).

    Raises:
        ValueError: If the shapes do not fit or a type is wrong.

    Example:
        >>> matches(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])).tolist()
        [True, False]
    """
    _check(preds, target)
    if preds.ndim == 1:
        return preds == target
    highest, labels = preds.max(dim=1)
    # The argmax of a row of NaN is some class: a diverged network would get credit for
    # the accuracy, or the success rate, of one constant class.
    return (labels == target) & ~highest.isnan()


def _check(preds: Tensor, target: Tensor) -> None:
    """Refuse shapes and types that would be counted wrongly."""
    if target.ndim != 1:
        raise ValueError(
            "Expected `target` to hold one label per row, shape (N,), but got "
            f"{tuple(target.shape)}."
        )
    if not _holds_labels(target):
        raise ValueError(f"Expected `target` to hold integers, but got {target.dtype}.")
    if preds.ndim not in (1, 2):
        raise ValueError(
            "Expected `preds` to be logits (N, C) or labels (N,), "
            f"but got shape {tuple(preds.shape)}."
        )
    if preds.shape[0] != target.shape[0]:
        raise ValueError(
            "Expected `preds` and `target` to have the same number of rows, "
            f"but got {preds.shape[0]} and {target.shape[0]}."
        )
    if preds.ndim == 1 and not _holds_labels(preds):
        raise ValueError(
            f"Expected `preds` of shape (N,) to hold integer labels, but got {preds.dtype}. "
            "Pass logits with one column per class, or labels."
        )
    if preds.ndim == 2 and not preds.is_floating_point():
        raise ValueError(
            f"Expected `preds` of shape (N, C) to hold floating point logits, "
            f"but got {preds.dtype}. Pass logits, or labels of shape (N,)."
        )
    if preds.ndim == 2 and preds.shape[1] == 0:
        raise ValueError("Expected `preds` to have a column for each class, but got none.")


def _holds_labels(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
