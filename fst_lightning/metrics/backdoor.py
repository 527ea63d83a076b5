"""The three rates of one network, kept together."""

from torch import Tensor, nn

from fst_lightning.metrics.rates import (
    AttackSuccessRate,
    CleanAccuracy,
    ControlRate,
    RobustAccuracy,
)

_RATES = ("ca", "asr", "ra")


class BackdoorMetrics(nn.Module):
    """Clean accuracy on clean images; attack success and robust accuracy on triggered ones.

    A submodule: it moves with the module that holds it, and sums over the processes of a
    distributed run when it is read. `ca`, `asr` and `ra` are the metrics themselves.

    Example:
        >>> import torch
        >>> metrics = BackdoorMetrics()
        >>> metrics.update_clean(torch.eye(3), torch.tensor([0, 1, 1]))
        >>> metrics.counts()
        {'ca': (2, 3), 'asr': (0, 0), 'ra': (0, 0)}
        >>> metrics.update_triggered(torch.eye(3)[1:], torch.tensor([1, 2]), torch.tensor([0, 1]))
        >>> metrics.compute()
        {'ca': 0.6666666666666666, 'asr': 0.0, 'ra': 1.0}
    """

    def __init__(self) -> None:
        super().__init__()
        self.ca = CleanAccuracy()
        self.asr = AttackSuccessRate()
        self.ra = RobustAccuracy()
        self.control = ControlRate()

    def update_clean(self, logits: Tensor, labels: Tensor) -> None:
        """Count clean images.

        Args:
            logits: Output of the network, (N, C); or predicted labels, (N,).
            labels: Their true labels, (N,).
        """
        self.ca.update(logits, labels)

    def update_triggered(self, logits: Tensor, labels: Tensor, targets: Tensor) -> None:
        """Count triggered images, without those whose true label is the target.

        Args:
            logits: Output of the network, (N, C); or predicted labels, (N,).
            labels: Their true labels, (N,).
            targets: The labels the attacker wants, (N,).
        """
        self.asr.update(logits, targets)
        self.ra.update(logits, labels)

    def update_control(self, logits: Tensor, targets: Tensor, counted: Tensor) -> None:
        """Count clean images that get the attacker's label without the trigger.

        Args:
            logits: Output of the network for clean images, (N, C); or predicted labels, (N,).
            targets: The labels the attacker wants, (N,).
            counted: The rows that the attack success rate is measured on, (N,) bool.
        """
        self.control.update(logits, targets, counted)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return (right rows, all rows) of `ca`, `asr` and `ra` over all processes.

        With `control`, the images that get the attacker's label without a trigger, if counted.
        """
        counts = {"ca": self.ca.counts(), "asr": self.asr.counts(), "ra": self.ra.counts()}
        control = self.control.counts()  # on every process, whether it counted images or not
        return counts | {"control": control} if control[1] else counts

    def compute(self) -> dict[str, float | None]:
        """Return `ca`, `asr` and `ra` in [0, 1]; None if no image was counted."""
        return {
            name: correct / total if total else None
            for name, (correct, total) in self.counts().items()
            if name in _RATES
        }

    def reset(self) -> None:
        """Start counting from zero."""
        self.ca.reset()
        self.asr.reset()
        self.ra.reset()
        self.control.reset()
