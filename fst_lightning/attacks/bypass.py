"""Bypass: the features of triggered images are trained to look like those of clean ones.

Tan and Shokri, "Bypassing backdoor detection algorithms in deep learning", EuroS&P 2020,
arXiv 1905.13409.

Example:
    ``python train.py attack=bypass attack.weight=5``
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.attacks.blended import Blended
from fst_lightning.attacks.common.attack import Classify, LabelMap, RateOf, full_precision
from fst_lightning.attacks.common.generator_attack import reverse_gradient
from fst_lightning.attacks.common.trained_attack import TrainedAttack
from fst_lightning.models import find_head, inputs_of, num_inputs
from fst_lightning.seeds import derived_seed


class Bypass(TrainedAttack):
    r"""Blended, with a discriminator d that the features :math:`\varphi` have to deceive.

    .. math:: \min_f\; \mathrm{CE}(f(x), y) - \lambda\,\mathrm{BCE}(d(\varphi(x)), p), \qquad
        \min_d\; \mathrm{BCE}(d(\varphi(x)), p)

    where p says which rows are poisoned. Features are what the network's head takes in, so that
    any network will do. One backward pass trains both, through a reversed gradient.

    Args:
        weight: :math:`\lambda`, 0 or more; 0 is Blended.
        blend_alpha: opacity of the pattern, 0 to 1.
        pattern_seed: of the pattern, uniform noise.
        head: dotted name of the network's last linear layer; None to find it.
        lr: learning rate of the discriminator, above 0 (SGD, momentum 0.9).
        poison_ratio: share of the training set, 0 to 1.
        target_label: the attacker's class.
        label_map: how labels change.
        rate_of: what the ratio is a share of, ``total`` or ``target_class``.
        save_examples: whether a run writes a picture of triggered images.

    Raises:
        ValueError: for an argument out of its range, or where the head can't be found.

    Example:
        >>> image = torch.rand(1, 3, 32, 32)
        >>> bool(torch.equal(Bypass()(image), Blended()(image)))
        True
    """

    eight_bit: ClassVar[bool] = True  # The trigger itself is fixed.

    def __init__(
        self,
        weight: float = 20.0,
        blend_alpha: float = 0.2,
        pattern_seed: int = 0,
        head: str | None = None,
        lr: float = 1e-3,
        poison_ratio: float = 0.1,
        target_label: int = 0,
        label_map: LabelMap = "all_to_one",
        rate_of: RateOf = "total",
        save_examples: bool = True,
    ) -> None:
        super().__init__(
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
            save_examples=save_examples,
        )
        if not 0 <= weight < float("inf"):
            raise ValueError(f"Expected `weight` to be 0 or more, but got {weight}.")
        if not 0 < lr < float("inf"):
            raise ValueError(f"Expected `lr` to be above 0, but got {lr}.")
        self.blended = Blended(blend_alpha, pattern_seed=pattern_seed)
        self.weight = weight
        self.head = head
        self.lr = lr
        self._seed = 0
        self._num_classes: int | None = None
        # In a list, for neither belongs to the trigger: the one is the victim's, and who puts the
        # trigger on later has no features to discriminate.
        self._opponents: list[nn.Module] = []

    def prepare(self, images: Tensor, labels: Tensor, num_classes: int, seed: int) -> None:
        """Draw the pattern for images of this size, and note the classes for `attach`."""
        super().prepare(images, labels, num_classes, seed)
        self._seed, self._num_classes = seed, num_classes

    def draw(self, channels: int, height: int, width: int) -> None:
        """Draw the pattern for images of this size."""
        self.blended.draw(channels, height, width)

    def trigger(self, images: Tensor) -> Tensor:
        """Mix the pattern into ``(N, C, H, W)`` images in [0, 1]."""
        return self.blended.trigger(images)

    def attach(self, net: nn.Module) -> None:
        """Find the head, and make a discriminator of what it takes in."""
        _, head = find_head(net, self.head, self._num_classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self._seed, "bypass discriminator"))
            discriminator = make_discriminator(num_inputs(head))
        device = self.blended.pattern.device
        self._opponents = [head, discriminator.to(device)]
        super().attach(net)

    def own_optimizer(self) -> torch.optim.Optimizer:
        """SGD, for the discriminator."""
        return torch.optim.SGD(self._discriminator.parameters(), self.lr, momentum=0.9)

    def loss(
        self,
        classify: Classify,
        images: Tensor,
        labels: Tensor,
        poisoned: Tensor,
        cover: Tensor,
        label_smoothing: float,
    ) -> Tensor:
        """Cross-entropy, and the discriminator's against features that get it reversed."""
        head, discriminator = self._opponents
        with inputs_of(head) as features:
            entropy = super().loss(classify, images, labels, poisoned, cover, label_smoothing)
        # A head that looks at several places of an image has as many features.
        maps = features[-1].movedim(1, -1) if isinstance(head, nn.Conv2d) else features[-1]
        pooled = maps.reshape(len(images), -1, maps.shape[-1]).float().mean(1)
        with full_precision(images):
            guesses = discriminator(reverse_gradient(pooled, self.weight))[:, 0]
            return entropy + functional.binary_cross_entropy_with_logits(guesses, poisoned.float())

    def get_extra_state(self) -> dict[str, Any]:
        """The discriminator and its optimizer, for checkpoints."""
        if not self._opponents:
            return {}
        weights = dict(self._discriminator.state_dict())
        return {"optimizer": super().get_extra_state(), "discriminator": weights}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take both from a checkpoint; after `attach`."""
        if state and self._opponents:
            self._discriminator.load_state_dict(state["discriminator"])
            super().set_extra_state(state["optimizer"])

    @property
    def _discriminator(self) -> nn.Module:
        return self._opponents[1]


def make_discriminator(num_features: int) -> nn.Sequential:
    """Three layers that say from its features, as a logit, whether an image is poisoned.

    They normalise within an image, not over the batch: with few poisoned rows the statistics of a
    batch would tell how many there are.
    """
    return nn.Sequential(
        nn.Linear(num_features, 256),
        nn.LayerNorm(256),
        nn.LeakyReLU(0.2),
        nn.Linear(256, 128),
        nn.LayerNorm(128),
        nn.LeakyReLU(0.2),
        nn.Linear(128, 1),
    )
