"""Query-based reactivation attack (QRA): a small perturbation reactivates a hidden backdoor.

Min et al., "Uncovering, explaining, and mitigating the superficial safety of backdoor defense",
NeurIPS 2024, arXiv 2410.09838.

Example:
    ``python purify.py attack=blended defense=fst robustness=[reactivation]``
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.defenses.common.whole_set import keep_modes, seeded
from fst_lightning.robustness.check import RobustnessCheck, Subject, rates_of
from fst_lightning.robustness.retuning import RetuningAttack
from fst_lightning.validate import check_number


class ReactivationAttack(RobustnessCheck):
    r"""Learn a perturbation that makes the purified network answer like its retuned copy.

    .. math:: \min_{\delta} \alpha\,\mathrm{KL}\big(f_r(x) \,\|\, f_p(x + \delta(x))\big) +
        \mathrm{CE}\big(f_c(x + \delta(x)), y\big), \qquad \|\delta(x)\|_\infty \le \epsilon

    with :math:`f_p` the purified network, :math:`f_r` a copy that a
    :class:`~fst_lightning.robustness.RetuningAttack` has backdoored again and :math:`f_c` a network
    that never was, on clean and triggered training images x with their true labels y. The second
    term keeps the perturbation from being its own attack. One network, an autoencoder of
    three hidden layers, makes :math:`\delta`; :math:`x + \delta` is kept in [0, 1]. Its gradients
    pass through :math:`f_p`: that is more than queries alone would give.

    Args:
        images: Number of clean images and of triggered images, 1 or more each.
        epsilon: Bound of the perturbation of a pixel, in units of [0, 1], 0 or more.
        alpha: Weight of the first term, 0 or more.
        epochs: Passes over the images, 1 or more.
        lr: Learning rate of SGD with momentum 0.9, greater than 0.
        batch_size: Images per step, 1 or more.
        width: Width of the hidden layers, 1 or more.
        retuning: The retuning attack that makes :math:`f_r`; None for the default one.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> ReactivationAttack(images=100).images
        100
    """

    def __init__(
        self,
        images: int = 500,
        epsilon: float = 16 / 255,
        alpha: float = 0.2,
        epochs: int = 50,
        lr: float = 0.1,
        batch_size: int = 128,
        width: int = 1024,
        retuning: RetuningAttack | None = None,
    ) -> None:
        check_number("images", images, low=1, whole=True)
        check_number("epsilon", epsilon)
        check_number("alpha", alpha)
        check_number("epochs", epochs, low=1, whole=True)
        check_number("lr", lr, low_open=True)
        check_number("batch_size", batch_size, low=1, whole=True)
        check_number("width", width, low=1, whole=True)
        self.images = images
        self.epsilon = epsilon
        self.alpha = alpha
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.width = width
        self.retuning = RetuningAttack() if retuning is None else retuning

    def run(self, subject: Subject, generator: torch.Generator) -> dict[str, Any]:
        """Learn the perturbation, and measure both networks with it and without."""
        retuned = self.retuning.retuned(subject, generator)
        clean = subject.make_clean().eval()
        mapping = self.learned(subject, retuned, clean, generator)
        before, after = (rates_of(subject.purified, subject, shift) for shift in (None, mapping))
        innocent, shifted = (rates_of(clean, subject, shift) for shift in (None, mapping))
        return {
            "asr_before": before.asr,
            "asr_after": after.asr,
            "ra_before": before.ra,
            "ra_after": after.ra,
            "clean_asr_before": innocent.asr,
            "clean_asr_after": shifted.asr,
            "epsilon": self.epsilon,
            "images": 2 * min(self.images, len(subject.train)),
        }

    def learned(
        self, subject: Subject, retuned: nn.Module, clean: nn.Module, generator: torch.Generator
    ) -> Perturbation:
        """The perturbation, trained."""
        data = self.attackers_images(subject, generator)
        with keep_modes(subject.purified), seeded(generator, subject.device):
            subject.purified.eval()
            shape = tuple(data.images.shape[1:])
            mapping = Perturbation(shape, self.epsilon, self.width).to(subject.device)
            optimizer = torch.optim.SGD(mapping.parameters(), lr=self.lr, momentum=0.9)
            for _ in range(self.epochs):
                for images, labels in data.batches(self.batch_size, generator):
                    with torch.no_grad():
                        wished = retuned(images).float().log_softmax(1)
                    shifted = data.normalize(mapping(data.pixels(images)))
                    answers = subject.purified(shifted).float().log_softmax(1)
                    loss = functional.cross_entropy(clean(shifted).float(), labels)
                    apart = functional.kl_div(
                        answers, wished, reduction="batchmean", log_target=True
                    )
                    optimizer.zero_grad()
                    gradients = torch.autograd.grad(
                        loss + self.alpha * apart, list(mapping.parameters())
                    )
                    for parameter, gradient in zip(mapping.parameters(), gradients, strict=True):
                        parameter.grad = gradient
                    optimizer.step()
        return mapping.requires_grad_(False)

    def attackers_images(self, subject: Subject, generator: torch.Generator) -> LabeledImages:
        """Clean training images and triggered ones of others, with true labels."""
        order = torch.randperm(len(subject.train), generator=generator)
        clean = subject.train.subset(order[: self.images])
        triggered = subject.train.subset(order.flip(0)[: self.images])
        parts = clean.images, subject.stamp(triggered.images)
        pixels = torch.cat([clean.pixels(clean.normalize(part)) for part in parts])
        labels = torch.cat([clean.labels, triggered.labels])
        return LabeledImages(pixels, labels, clean.mean, clean.std, clean.dtype)


class Perturbation(nn.Module):
    r"""Maps an image in [0, 1] to a similar one: :math:`\min(\max(x + \epsilon \tanh g(x), 0), 1)`.

    Args:
        shape: Channels, height and width of an image.
        epsilon: Largest change of a pixel.
        width: Width of the three hidden layers of g.

    Example:
        >>> images = torch.rand(2, 3, 4, 4)
        >>> near = Perturbation((3, 4, 4), epsilon=0.1, width=8)(images)
        >>> bool((near - images).abs().max() <= 0.1)
        True
    """

    def __init__(self, shape: tuple[int, ...], epsilon: float, width: int) -> None:
        super().__init__()
        size = torch.Size(shape).numel()
        self.shape = shape
        self.epsilon = epsilon
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(size, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, size),
            nn.Tanh(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Perturb each image."""
        change: Tensor = self.layers(images).view(-1, *self.shape)
        return (images + self.epsilon * change).clamp(0, 1)
