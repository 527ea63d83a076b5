"""Path-aware minimization (PAM): take gradients on the way back to the backdoored weights.

Example:
    ``python purify.py attack=badnets defense=pam defense.rho=0.7``
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.snapshot import flat
from fst_lightning.defenses.common.trigger_generator import InvertingDefense
from fst_lightning.validate import check_number


class PathAwareMinimization(InvertingDefense):
    r"""Take the gradient of each step closer to the backdoored weights.

    *How it works.* Many purified networks stay so close to the backdoored one that a few steps of
    retraining bring the backdoor back. This defense first moves the weights a fixed length back
    towards the backdoored ones. It computes the gradient there, on clean images and on images with
    a recovered trigger and their true labels, moves back and applies the gradient. The loss then
    becomes low along the whole path to the backdoored weights, not only at its end.

    .. math:: \tilde w = w + \rho \frac{w_b - w}{\|w_b - w\|_2}, \qquad
        w \leftarrow w - \eta \nabla \mathrm{CE}(f_{\tilde w}(x'), y)

    with the weights :math:`w`, the backdoored weights :math:`w_b`, the length :math:`\rho`, the
    learning rate :math:`\eta`, and images :math:`x'` of which a share is triggered by the generator
    of :class:`~fst_lightning.defenses.BTIDBF`. Nothing is added if :math:`w = w_b`.

    Args:
        rho: Length :math:`\rho` of the move, 0 or more; the paper compares 0.3 to 0.9.
        stamp_ratio: Share of triggered images in the mini-batch, 0 to 1.
        rounds: Number of inversions, 1 or more.
        round_epochs: Epochs between two inversions, 1 or more.
        mask_steps: Steps of Adam for the mask, 1 or more.
        generator_epochs: Passes over the clean images in which the generator learns, for each
            inversion; 1 or more.
        generator_lr: Learning rate of the generator (Adam), greater than 0.
        generator_width: Channels of the generator at half of the resolution, 1 or more.
        batch_size: Images per step of the generator, 2 or more.
        image_bound: Largest mean squared change of a pixel, in units of [0, 1], greater than 0.
        feature_bound: Largest change of benign features, relative to all features, greater than 0.
        head: Dotted name of the linear head; None finds it.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If an argument is out of its range, or if the head does not take one feature
            vector per image.

    Needs:
        Clean images with true labels, and a linear head that takes one feature vector per image.

    Cost:
        The inversions of BTI-DBF, whatever the number of classes. Each step then takes one backward
        pass, at the moved weights, and a copy of all weights is kept.

    When it fails:
        It relies on the inversion of BTI-DBF: if the generator finds another class than the target,
        the backdoor stays. A large ``rho`` costs clean accuracy.

    Note:
        The norm is over all weights. BatchNorm's running statistics are those of :math:`w`, not
        interpolated.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        >>> defense = PathAwareMinimization(rho=0.5)
        >>> defense.prepare(net, torch.Generator())
        >>> with torch.no_grad(): _ = net[1].weight.add_(1)
        >>> before = net[1].weight.detach().clone()
        >>> loss = defense.loss(net, torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]))
        >>> round(float((net[1].weight - before).norm()), 4)
        0.5
        >>> defense.after_backward()
        >>> bool((net[1].weight == before).all())
        True

    References:
        Min, Qin, Zhang, Shen and Cheng, "Uncovering, explaining, and mitigating the superficial
        safety of backdoor defense", NeurIPS 2024, arXiv 2410.09838.

    See Also:
        - :class:`~fst_lightning.defenses.BTIDBF`: the same inversion, without the move.
        - :class:`~fst_lightning.defenses.FineTuningSAM`: moves to the worst weights instead.
    """

    backdoored: Tensor
    """:math:`w_b`, all trained parameters in one vector; empty before :meth:`prepare`."""

    def __init__(
        self,
        rho: float = 0.5,
        stamp_ratio: float = 0.2,
        rounds: int = 1,
        round_epochs: int = 3,
        mask_steps: int = 20,
        generator_epochs: int = 5,
        generator_lr: float = 2e-3,
        generator_width: int = 16,
        batch_size: int = 32,
        image_bound: float = 0.005,
        feature_bound: float = 3.0,
        head: str | None = None,
    ) -> None:
        super().__init__(
            stamp_ratio=stamp_ratio,
            rounds=rounds,
            round_epochs=round_epochs,
            mask_steps=mask_steps,
            generator_epochs=generator_epochs,
            generator_lr=generator_lr,
            generator_width=generator_width,
            batch_size=batch_size,
            image_bound=image_bound,
            feature_bound=feature_bound,
            head=head,
        )
        check_number("rho", rho)
        self.rho = rho
        self.register_buffer("backdoored", torch.empty(0))
        self._trained: list[Tensor] = []
        self._kept: list[Tensor] = []

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Keep a copy of the backdoored weights."""
        self.after_backward()
        super().prepare(net, generator)
        self._trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self.backdoored = flat(self._trained)

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy at the moved weights, which stay moved for the backward pass."""
        mixed = self.stamped(images)
        self.move()
        return functional.cross_entropy(net(mixed), labels)

    @torch.no_grad()
    def move(self) -> None:
        """Move the weights in place, by a step of length rho towards the backdoored ones."""
        self.after_backward()
        sizes = [parameter.numel() for parameter in self._trained]
        parts = torch.split(self.backdoored, sizes)
        goal = [part.view_as(p) for part, p in zip(parts, self._trained, strict=True)]
        step = torch._foreach_sub(goal, self._trained)
        norm = torch.stack(torch._foreach_norm(step)).float().norm()
        # A comparison in Python would wait for the GPU. A step of zeros moves nothing.
        torch._foreach_mul_(step, torch.where(norm > 0, self.rho / norm, 0.0))
        self._kept = [parameter.detach().clone() for parameter in self._trained]
        torch._foreach_add_(self._trained, step)

    @torch.no_grad()
    def after_backward(self) -> None:
        """Restore the weights, bit for bit."""
        if self._kept:
            torch._foreach_copy_(self._trained, self._kept)
            self._kept = []

    def finish(self) -> None:
        """Restore the weights, and drop the copies."""
        self.after_backward()
        self._trained = []
        super().finish()

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """The distance of the weights from the backdoored ones."""
        vector = flat(self._trained)
        return {"path_distance": (vector - self.backdoored).float().norm()}
