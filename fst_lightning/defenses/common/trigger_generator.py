r"""Trigger inversion by decoupling benign features (BTI): a generator of triggered images.

No target class is searched for. A mask splits the features into those that the clean task needs
and the rest; a generator then changes images so that the rest moves and the benign ones stay. What
it costs does not depend on the number of classes.

Xu, Huang, Li, Wang, Hu, Cui and Liu, "Towards reliable and efficient backdoor trigger inversion via
decoupling benign features", ICLR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.clean_data import CleanData, LabeledImages
from fst_lightning.defenses.common.defense import Defense
from fst_lightning.defenses.common.features import features_of, vectors
from fst_lightning.defenses.common.folded_batchnorm import FoldedBatchNorm
from fst_lightning.defenses.common.pixel_range import PixelRange
from fst_lightning.defenses.common.snapshot import flat
from fst_lightning.defenses.common.whole_set import keep_modes, seeded
from fst_lightning.defenses.nc import stamped_images
from fst_lightning.models import Head, find_head, inputs_of, weight_matrix
from fst_lightning.validate import check_number


class TriggerGenerator(nn.Module):
    r"""A small U-Net that triggers images: :math:`g(x) = (1 - a(x)) \odot x + a(x) \odot c(x)`.

    Opacity a, one value a pixel, and color c are in [0, 1], so that images in [0, 1] stay in it.
    The opacity starts close to 0: at first g is close to the identity. Group normalization gives
    an image the same trigger in every batch. To the logits of both, what the convolutions make of
    the image, a canvas is added that is the same for all images: a trigger that is a picture, or
    lies in a corner, is no function of what surrounds a pixel.

    Args:
        shape: of one image, channels, height and width.
        width: channels at half of the resolution, 1 or more; twice as many at a quarter.

    Shapes:
        ``(N, C, H, W)`` in [0, 1] to the same; H and W of 3 or more.

    Example:
        >>> TriggerGenerator((3, 9, 12), width=4)(torch.rand(2, 3, 9, 12)).shape
        torch.Size([2, 3, 9, 12])
    """

    def __init__(self, shape: Sequence[int], width: int = 16) -> None:
        super().__init__()
        channels, height, image_width = shape
        self.canvas = nn.Parameter(torch.zeros(channels + 1, height, image_width))
        self.down_1 = _layer(channels, width, stride=2)
        self.down_2 = _layer(width, 2 * width, stride=2)
        self.up_1 = _layer(3 * width, width)
        self.out = nn.Conv2d(width + channels, channels + 1, 3, padding=1)
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            if self.out.bias is not None:
                self.out.bias[:1].fill_(_FIRST_OPACITY)

    def forward(self, images: Tensor) -> Tensor:
        """Put the trigger on images."""
        half = self.down_1(images * 2 - 1)
        quarter = self.down_2(half)
        up = self.up_1(torch.cat([_resized(quarter, half), half], dim=1))
        logits = self.out(torch.cat([_resized(up, images), images], dim=1))
        maps = (logits + _CANVAS_SPEED * self.canvas).sigmoid()
        maps = maps.to(images.dtype)  # of lower precision under autocast
        return torch.lerp(images, maps[:, 1:], maps[:, :1])


_FIRST_OPACITY = -3.0
"""The logit of a at first: 5 %."""

_CANVAS_SPEED = 20.0
"""A step of Adam is as long for every parameter, and a pixel of the canvas has to go further."""


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
        nn.GroupNorm(math.gcd(4, outputs), outputs),
        nn.ReLU(),
    )


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(maps, like.shape[2:], mode="bilinear")


def benign_mask(
    head: Head, features: Tensor, labels: Tensor, *, steps: int, lr: float = 0.01
) -> Tensor:
    r"""Split features into those that the clean task needs and the rest.

    .. math:: \min_{m \in [0, 1]^d} \mathrm{CE}(h(m \odot z), y)
        - \mathrm{CE}(h((1 - m) \odot z), y)

    by Adam on :math:`r` with :math:`m = (1 + \tanh r) / 2`, from 1/2, on all images at once.

    Args:
        head: h.
        features: z of clean images, ``(N, d)``.
        labels: ``(N,)``.
        steps: of Adam, 1 or more.
        lr: of Adam, greater than 0.

    Returns:
        m, ``(d,)``; near 1 for benign features.

    Example:
        >>> head = nn.Linear(3, 2, bias=False)
        >>> with torch.no_grad(): _ = head.weight.copy_(torch.tensor([[1.0, 0, 0], [-1, 0, 0]]))
        >>> z = torch.tensor([[1.0, 1, 1], [-1, 1, 1]])
        >>> benign_mask(head, z, torch.tensor([0, 1]), steps=200)[0] > 0.9
        tensor(True)
    """
    features = features.detach().float()
    weight = weight_matrix(head).detach().float()
    bias = None if head.bias is None else head.bias.detach().float()
    raw = torch.zeros(features.shape[1], device=features.device, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=lr)
    for _ in range(steps):
        mask = (1 + raw.tanh()) / 2
        kept = functional.linear(mask * features, weight, bias)
        rest = functional.linear((1 - mask) * features, weight, bias)
        loss = functional.cross_entropy(kept, labels) - functional.cross_entropy(rest, labels)
        (raw.grad,) = torch.autograd.grad(loss, raw)
        optimizer.step()
    return ((1 + raw.tanh()) / 2).detach()


class InvertingDefense(Defense):
    r"""Recover a generator of triggered images, some times along the way, and tune with it.

    At the start of an epoch, ``rounds`` times and ``round_epochs`` epochs apart: the benign
    features are found (:func:`benign_mask`), and the generator goes on to learn

    .. math:: \min_g\; -\frac{\|(1 - m) \odot (z' - z)\|^2}{\|z\|^2}
        + 0.01 \frac{\|m \odot (z' - z)\|^2}{\|z\|^2}, \quad z = \phi(x),\; z' = \phi(g(x))

    with two bounds: where a batch breaks one, the step makes both changes smaller instead. From the
    second round on it also learns :math:`\mathrm{CE}(f(g(x)), t)` with t the class that most
    triggered images went to; where the network has unlearned that class the backdoor may show
    elsewhere, and t is seen anew. A subclass says how the images of :meth:`triggered` are used.

    The bounds of the paper are numbers of its network and its normalization; here they are relative
    to the features, and in units of [0, 1]. Its generator is trained to the identity first; this
    one starts there.

    The mask is stopped early, as published. A trained network needs none of its features to be
    absent, so that in the end m is 1 nearly everywhere, and where it is above 0.91 the second term
    outweighs the first: the generator would be rewarded for changing nothing.

    Args:
        stamp_ratio: triggered images of a batch, as a share of it, in [0, 1].
        rounds: inversions, 1 or more; the paper makes 5, which cost clean accuracy here.
        round_epochs: epochs from one to the next, 1 or more.
        mask_steps: of Adam for the mask, 1 or more.
        generator_epochs: passes over the clean images for the generator, in every round, 1 or more.
        generator_lr: of Adam for the generator, greater than 0.
        generator_width: its channels at half of the resolution, 1 or more.
        batch_size: images a step of the generator, 2 or more.
        image_bound: the largest mean squared change of a pixel, in units of [0, 1], above 0.
        feature_bound: the largest change of benign features, relative to all features, above 0.
        head: dotted name of the linear head; None finds it.

    Raises:
        ValueError: for an argument out of its range; for a network whose head does not get one
            vector an image.
    """

    generator_weights: Tensor
    """The weights of the generator in one vector; empty before the first round."""
    mask: Tensor
    """The last mask, ``(d,)``."""
    rates: Tensor
    """``(rounds so far, C)``, the share of triggered images in every class, after every round."""

    def __init__(
        self,
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
        super().__init__()
        check_number("stamp_ratio", stamp_ratio, high=1)
        check_number("rounds", rounds, low=1, whole=True)
        check_number("round_epochs", round_epochs, low=1, whole=True)
        check_number("mask_steps", mask_steps, low=1, whole=True)
        check_number("generator_epochs", generator_epochs, low=1, whole=True)
        check_number("generator_lr", generator_lr, low_open=True)
        check_number("generator_width", generator_width, low=1, whole=True)
        check_number("batch_size", batch_size, low=2, whole=True)
        check_number("image_bound", image_bound, low_open=True)
        check_number("feature_bound", feature_bound, low_open=True)
        self.stamp_ratio = stamp_ratio
        self.rounds = rounds
        self.round_epochs = round_epochs
        self.mask_steps = mask_steps
        self.generator_epochs = generator_epochs
        self.generator_lr = generator_lr
        self.generator_width = generator_width
        self.batch_size = batch_size
        self.image_bound = image_bound
        self.feature_bound = feature_bound
        self.head = head
        for name in _BUFFERS:
            self.register_buffer(name, torch.empty(0))
        self.pixel_range = PixelRange()
        # In a list it is no submodule: the network's weights must not be saved twice.
        self._linear: list[Head] = []

    @property
    def needs_head(self) -> bool:
        """Always: it looks at the features in front of the head."""
        return True

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Find the head; forget the generator of another network."""
        self._linear = [find_head(net, self.head)[1]]
        for name in _BUFFERS:
            setattr(self, name, torch.empty(0))
        self.pixel_range = PixelRange()

    def begin_epoch(
        self, net: nn.Module, clean: CleanData, epoch: int, generator: torch.Generator
    ) -> None:
        """Invert, in the epochs where a round begins."""
        number, rest = divmod(epoch, self.round_epochs)
        if rest == 0 and number < self.rounds:
            with keep_modes(net), seeded(generator, clean.device):
                net.eval()
                self.invert(net, clean, generator)

    def invert(self, net: nn.Module, clean: LabeledImages, generator: torch.Generator) -> None:
        """Split the features of the network and let the generator learn; a round.

        Args:
            net: the network, in evaluation mode; left as it is.
            clean: the clean images.
            generator: a CPU generator; global numbers have to be seeded.
        """
        head = self.linear
        self.pixel_range.fit(clean)
        images, _ = next(clean.batches(2))
        with FoldedBatchNorm().of(net, images):
            # A bounded number of images a batch, in order: what follows takes rows of it.
            with torch.no_grad():
                features = torch.cat(
                    [features_of(net, head, batch).float() for batch, _ in clean.batches(250)]
                )
            self.mask = benign_mask(head, features, clean.labels, steps=self.mask_steps)
            target = int(self.rates[-1].argmax()) if len(self.rates) else None
            self._train(net, clean, features, target, generator)
            rates = self._predicted(net, clean)
        self.rates = torch.cat([self.rates.to(clean.device), rates[None]])

    def _train(
        self,
        net: nn.Module,
        clean: LabeledImages,
        features: Tensor,
        target: int | None,
        generator: torch.Generator,
    ) -> None:
        head = self.linear
        trigger = TriggerGenerator(clean.images.shape[1:], self.generator_width).to(clean.device)
        if len(self.generator_weights):
            nn.utils.vector_to_parameters(self.generator_weights, trigger.parameters())
        optimizer = torch.optim.Adam(trigger.parameters(), lr=self.generator_lr, betas=(0.5, 0.9))
        learned = list(trigger.parameters())
        scale = features.square().mean()
        rows = LabeledImages(clean.images, torch.arange(len(clean), device=clean.device))
        rows.mean, rows.std, rows.dtype = clean.mean, clean.std, clean.dtype
        for _ in range(self.generator_epochs):
            for images, index in rows.batches(self.batch_size, generator):
                pixels = self.pixel_range.to_pixels(images)
                changed = trigger(pixels)
                with inputs_of(head) as inputs:
                    logits = net(self.pixel_range.to_inputs(changed).to(images.dtype)).float()
                change = (vectors(inputs[0]).float() - features[index]).square() / scale
                benign = (self.mask**2 * change).mean()
                other = ((1 - self.mask) ** 2 * change).mean()
                image = (changed - pixels).square().mean()
                broken = (image > self.image_bound) | (benign > self.feature_bound)
                loss = 0.01 * benign - other
                if target is not None:
                    goal = torch.full((len(logits),), target, device=logits.device)
                    loss = loss + functional.cross_entropy(logits, goal)
                within = image / self.image_bound + benign / self.feature_bound
                gradients = torch.autograd.grad(torch.where(broken, within, loss), learned)
                for parameter, gradient in zip(learned, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
        self.generator_weights = flat(learned)

    @torch.no_grad()
    def _predicted(self, net: nn.Module, clean: LabeledImages) -> Tensor:
        """The share of triggered images of other classes that go to every class, ``(C,)``."""
        hits = []
        for images, labels in clean.batches(250):
            logits = net(self.triggered(images)).float()
            chosen = functional.one_hot(logits.argmax(1), logits.shape[1])
            others = labels[:, None] != torch.arange(logits.shape[1], device=labels.device)
            hits.append(torch.stack([(chosen * others).sum(0), others.sum(0)]).float())
        total = torch.stack(hits).sum(0)
        return total[0] / total[1].clamp_min(1)

    def triggered(self, images: Tensor) -> Tensor:
        """Put the recovered trigger on images.

        Args:
            images: ``(N, C, H, W)``, normalized.

        Returns:
            The same shape; the images themselves before the first round.
        """
        if len(self.generator_weights) == 0 or len(images) == 0:
            return images
        changed = self.triggered_pixels(self.pixel_range.to_pixels(images))
        return self.pixel_range.to_inputs(changed).to(images.dtype)

    @torch.no_grad()
    def triggered_pixels(self, images: Tensor) -> Tensor:
        """Put the recovered trigger on images in [0, 1], ``(N, C, H, W)``."""
        with torch.device("meta"):
            shapes = TriggerGenerator(images.shape[1:], self.generator_width)
        weights, start = {}, 0
        for name, parameter in shapes.named_parameters():
            stop = start + parameter.numel()
            weights[name] = self.generator_weights[start:stop].view(parameter.shape)
            start = stop
        changed: Tensor = torch.func.functional_call(shapes, weights, (images.float(),))
        return changed

    def num_stamped(self, images: Tensor) -> int:
        """How many images of a batch are to be triggered; none before the first round."""
        if len(self.generator_weights) == 0:
            return 0
        return stamped_images(self.stamp_ratio, len(images))

    def stamped(self, images: Tensor) -> Tensor:
        """A batch whose first images are triggered, :meth:`num_stamped` of them."""
        count = self.num_stamped(images)
        return torch.cat([self.triggered(images[:count]), images[count:]])

    @property
    def linear(self) -> Head:
        """The head, between :meth:`prepare` and :meth:`finish`."""
        return self._linear[0]

    def finish(self) -> None:
        """Forget the head."""
        self._linear = []

    def findings(self) -> dict[str, Any]:
        """After every round where triggered images went, and the share of benign features."""
        if len(self.rates) == 0:
            return {}
        best = self.rates.max(dim=1)
        return {
            "target": best.indices.tolist(),
            "success": [round(float(rate), 4) for rate in best.values],
            "benign_features": round(float((self.mask > 0.5).float().mean()), 4),
        }


_BUFFERS = ("generator_weights", "mask", "rates")
