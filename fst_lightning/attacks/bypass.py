"""Bypass: triggered images get features that look like those of clean ones.

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
from fst_lightning.validate import check_number


class Bypass(TrainedAttack):
    r"""Train a Blended backdoor whose features a discriminator cannot tell from clean ones.

    *How it works.* The attacker controls the training. Many defenses find a backdoor because
    triggered images have other features than clean ones. A second network, the discriminator,
    therefore tries to tell from the features whether an image is poisoned, and the classifier is
    trained to mislead it. In the end the classifier obeys the trigger, but its features of
    triggered images resemble clean ones. The trigger itself is that of
    :class:`~fst_lightning.attacks.Blended`.

    .. math:: \min_f\; \mathrm{CE}(f(x), y) - \lambda\,\mathrm{BCE}(d(\varphi(x)), p), \qquad
        \min_d\; \mathrm{BCE}(d(\varphi(x)), p)

    with the classifier :math:`f`, its features :math:`\varphi` (the input of the head), the
    discriminator :math:`d`, the labels :math:`y` of training, the weight :math:`\lambda` and
    :math:`p = 1` for poisoned rows. One backward pass trains both, through a reversed gradient.

    Args:
        weight: Weight :math:`\lambda`, 0 or more; 0 gives Blended.
        blend_alpha: Opacity of the pattern, 0 to 1.
        pattern_seed: Seed of the pattern, uniform noise; independent of the seed of the run.
        head: Dotted name of the network's last linear layer; None finds it.
        lr: Learning rate of the discriminator (SGD with momentum 0.9), greater than 0.
        poison_ratio: Share of the training set that is poisoned, 0 to 1.
        target_label: The attacker's class, 0 to C - 1.
        label_map: How labels change: ``all_to_one``, ``all_to_all``, ``clean_label`` or
            ``untargeted``.
        rate_of: What the ratio is a share of: ``total``, the training set, or ``target_class``.

    Shape:
        - images: ``(N, C, H, W)`` float in [0, 1].
        - :meth:`trigger`: the same shape, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range, or no head is found.

    Needs:
        Control of the training, with gradients through the network; float32 or bfloat16. The
        network needs a linear head.

    Cost:
        A small discriminator on the features in each step, forward and backward.

    When it fails:
        A large ``weight`` costs clean accuracy and makes training unstable at low poison ratios.
        Defenses that change the input, such as those that search for a trigger, do not rely on
        separate features and are not misled.

    Note:
        The discriminator has LayerNorm instead of the published BatchNorm: with few poisoned rows,
        the statistics of a mini-batch would tell how many there are.

    Example:
        >>> image = torch.rand(1, 3, 32, 32)
        >>> bool(torch.equal(Bypass()(image), Blended()(image)))
        True

    References:
        Tan and Shokri, "Bypassing backdoor detection algorithms in deep learning", EuroS&P 2020,
        arXiv 1905.13409.

    See Also:
        - :class:`~fst_lightning.attacks.Blended`: the same trigger without the discriminator.
        - :class:`~fst_lightning.attacks.AdaptiveBlend`: similar features by poisoning alone.
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
    ) -> None:
        super().__init__(
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
        )
        check_number("weight", weight)
        check_number("lr", lr, low_open=True)
        self.blended = Blended(blend_alpha, pattern_seed=pattern_seed)
        self.weight = weight
        self.head = head
        self.lr = lr
        self._seed = 0
        self._num_classes: int | None = None
        # Kept in a list so that `nn.Module` does not register them: the head belongs to the victim,
        # and a loaded trigger needs no discriminator.
        self._opponents: list[nn.Module] = []

    def prepare(self, images: Tensor, labels: Tensor, num_classes: int, seed: int) -> None:
        """Draw the pattern for images of this size, and keep the number of classes for `attach`."""
        super().prepare(images, labels, num_classes, seed)
        self._seed, self._num_classes = seed, num_classes

    def draw(self, channels: int, height: int, width: int) -> None:
        """Draw the pattern for images of this size."""
        self.blended.draw(channels, height, width)

    def trigger(self, images: Tensor) -> Tensor:
        """Mix the pattern into ``(N, C, H, W)`` images in [0, 1]."""
        return self.blended.trigger(images)

    def attach(self, net: nn.Module) -> None:
        """Find the head, and build a discriminator of its inputs."""
        _, head = find_head(net, self.head, self._num_classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self._seed, "bypass discriminator"))
            discriminator = make_discriminator(num_inputs(head))
        device = self.blended.pattern.device
        self._opponents = [head, discriminator.to(device)]
        super().attach(net)

    def own_optimizer(self) -> torch.optim.Optimizer:
        """SGD for the discriminator."""
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
        """The cross-entropy plus the discriminator's loss, reversed for the features."""
        head, discriminator = self._opponents
        with inputs_of(head) as features:
            entropy = super().loss(classify, images, labels, poisoned, cover, label_smoothing)
        # A convolutional head has a feature vector per position, which are averaged.
        maps = features[-1].movedim(1, -1) if isinstance(head, nn.Conv2d) else features[-1]
        pooled = maps.reshape(len(images), -1, maps.shape[-1]).float().mean(1)
        with full_precision(images):
            guesses = discriminator(reverse_gradient(pooled, self.weight))[:, 0]
            return entropy + functional.binary_cross_entropy_with_logits(guesses, poisoned.float())

    def get_extra_state(self) -> dict[str, Any]:
        """The state of the discriminator and its optimizer, for checkpoints."""
        if not self._opponents:
            return {}
        weights = dict(self._discriminator.state_dict())
        return {"optimizer": super().get_extra_state(), "discriminator": weights}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the discriminator and its optimizer from a checkpoint; after `attach`."""
        if state and self._opponents:
            self._discriminator.load_state_dict(state["discriminator"])
            super().set_extra_state(state["optimizer"])

    @property
    def _discriminator(self) -> nn.Module:
        return self._opponents[1]


def make_discriminator(num_features: int) -> nn.Sequential:
    """Build three layers that predict from features, as a logit, whether an image is poisoned.

    They normalize within an image, not over the mini-batch: with few poisoned rows, the statistics
    of a mini-batch would tell how many there are.
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
