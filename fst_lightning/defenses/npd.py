"""Neural polarizer defense (NPD): one small linear layer lets clean features pass.

Example:
    ``python purify.py attack=blended defense=npd defense.layer=layer4.1.conv1``
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.conv_norm_pairs import conv_batchnorm_pairs
from fst_lightning.defenses.common.defense import Defense, freeze
from fst_lightning.defenses.common.folded_batchnorm import FoldedBatchNorm
from fst_lightning.defenses.common.known_gradient import settled
from fst_lightning.defenses.common.whole_set import require_batchnorm
from fst_lightning.validate import check_number


class Polarizer(nn.Module):
    r"""A 1x1 convolution with bias, :math:`z \mapsto A z + b`, that starts as the identity.

    Args:
        like: A weight; its length is the number of channels, and the layer gets its type and
            device.

    Shape:
        - ``(N, C, H, W)`` to the same.
    """

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        channels = len(like)
        self.weight = nn.Parameter(torch.eye(channels, dtype=like.dtype, device=like.device))
        self.bias = nn.Parameter(torch.zeros(channels, dtype=like.dtype, device=like.device))

    def forward(self, images: Tensor) -> Tensor:
        """Mix the channels at every position."""
        return functional.conv2d(images, self.weight[:, :, None, None], self.bias)


class _Point(NamedTuple):
    """A point of the search for adversarial examples."""

    delta: Tensor
    """The perturbation in units of [0, 1], ``(N, C, H, W)``."""
    images: Tensor
    """The perturbed images, normalized, without a graph."""
    logits: Tensor | None
    """What the network answers, with a graph to ``delta``; None if it was not asked."""


class NeuralPolarizer(Defense):
    r"""Train a channel mixing after one convolution against targeted adversarial examples.

    *How it works.* An optical polarizer lets light of one direction pass and blocks the rest. The
    defense inserts a small linear layer that is meant to pass the features of clean images and
    block those of the trigger. Only this layer is trained. Because the trigger is unknown,
    adversarial examples take its place: images that are changed so that the network prefers the
    second-best class. At the end the layer is folded into its neighbors, so that the network looks
    as before.

    .. math:: \min_{A, b}\; \lambda_1\,\mathrm{CE}(f(x), y) + \lambda_2\,\mathrm{CE}(f(\tilde x), y)
        - \lambda_3 \log(1 - \max_{k \ne y} p_k(\tilde x)) - \lambda_4 \log(1 - p_t(\tilde x))

    with the layer :math:`z \mapsto A z + b`, the network :math:`f` and its softmax output
    :math:`p`, the most likely wrong class :math:`t` of the image :math:`x` with label :math:`y`,
    and the adversarial example :math:`\tilde x`, moved towards :math:`t` by signed steps within
    :math:`\|\tilde x - x\|_2 \le \rho`.

    Args:
        layer: Dotted name of a convolution whose output goes straight into BatchNorm. None chooses
            the second to last one, or the only one.
        radius: Bound :math:`\rho` in units of [0, 1], 0 or more. The paper uses 3 for CIFAR-10, 5
            for GTSRB and 6 for Tiny-ImageNet.
        adv_lr: Length of a signed step in each pixel, in units of [0, 1], 0 or more.
        adv_steps: Number of steps at most, 1 or more.
        adv_rate: Share of the mini-batch, 0 to 1; no step is made once a larger share is classified
            as :math:`t`.
        clean_weight: Weight :math:`\lambda_1`, 0 or more.
        adv_weight: Weight :math:`\lambda_2`, 0 or more.
        wrong_weight: Weight :math:`\lambda_3`, 0 or more.
        target_weight: Weight :math:`\lambda_4`, 0 or more.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If an argument is out of its range, or the network has no such convolution.

    Needs:
        Clean images with true labels, and a convolution whose output goes straight into BatchNorm.

    Cost:
        Each step adds up to ``adv_steps`` forward and backward passes for the adversarial examples.
        Only one small layer is trained.

    When it fails:
        The result depends on the layer and on the network: it removes a backdoor from one network
        and leaves a third of it in the next. Triggers that adversarial examples do not resemble
        stay.

    Note:
        The paper inserts the layer before a convolution and normalizes it by the batch. Here it is
        between a convolution and its BatchNorm layer, where it can be folded. All else is frozen,
        and BatchNorm stays in evaluation mode.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        >>> defense = NeuralPolarizer()
        >>> defense.prepare(net, torch.Generator())
        >>> [name for name, parameter in net.named_parameters() if parameter.requires_grad]
        ['0.polarizer.weight', '0.polarizer.bias']
        >>> defense.finish()
        >>> [name for name, _ in net.named_parameters()]
        ['0.weight', '0.bias', '1.weight', '1.bias']

    References:
        Zhu, Wei, Zha and Wu, "Neural polarizer: A lightweight and effective backdoor defense via
        purifying poisoned features", NeurIPS 2023, arXiv 2306.16697.

    See Also:
        - :class:`~fst_lightning.defenses.SharedAdversarialUnlearning`: tunes the whole network on
          adversarial examples.
        - :class:`~fst_lightning.defenses.NeuralMaskFineTuning`: trains channel masks only.
    """

    unit: Tensor
    """One unit of [0, 1] in normalized units, ``(1, C, 1, 1)``; ones before it is known."""

    def __init__(
        self,
        layer: str | None = None,
        radius: float = 3.0,
        adv_lr: float = 0.1,
        adv_steps: int = 2,
        adv_rate: float = 0.6,
        clean_weight: float = 1.0,
        adv_weight: float = 0.4,
        wrong_weight: float = 0.4,
        target_weight: float = 0.4,
    ) -> None:
        super().__init__()
        check_number("radius", radius)
        check_number("adv_lr", adv_lr)
        check_number("adv_steps", adv_steps, low=1, whole=True)
        check_number("adv_rate", adv_rate, high=1)
        check_number("clean_weight", clean_weight)
        check_number("adv_weight", adv_weight)
        check_number("wrong_weight", wrong_weight)
        check_number("target_weight", target_weight)
        self.layer = layer
        self.radius = radius
        self.adv_lr = adv_lr
        self.adv_steps = adv_steps
        self.adv_rate = adv_rate
        self.clean_weight = clean_weight
        self.adv_weight = adv_weight
        self.wrong_weight = wrong_weight
        self.target_weight = target_weight
        self.register_buffer("unit", torch.ones(1, 1, 1, 1))
        # Kept in lists so that `nn.Module` does not register them and save the weights twice.
        self._net: list[nn.Module] = []
        self._place: list[tuple[nn.Conv2d, _BatchNorm]] = []
        self._polarizer: list[Polarizer] = []
        self._handle: list[RemovableHandle] = []
        self._frozen: list[nn.Parameter] = []
        self._folded = FoldedBatchNorm()
        self._found: dict[str, Any] = {}

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Freeze the network and insert the layer."""
        require_batchnorm(net, type(self).__name__)
        self.finish()
        name, conv, norm = find_place(net, self.layer)
        self._net, self._place = [net], [(conv, norm)]
        self._found = {"layer": name, "channels": conv.out_channels}
        self._frozen = freeze(net.parameters())
        self._polarizer = [Polarizer(conv.weight)]
        conv.add_module("polarizer", self._polarizer[0])
        self._handle = [conv.register_forward_hook(_polarize)]

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Record how the images are normalized."""
        self.unit = clean.unit.clone()

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The loss on the images and on adversarial examples of them."""
        trained = list(self._polarizer[0].parameters())
        with self._folded.of(net, images):
            # One pass over the images gives the loss on them and the first step of the search.
            start = self._start(net, images)
            logits = start.logits
            assert logits is not None
            clean = self.clean_weight * functional.cross_entropy(logits, labels)
            clean = settled(clean, trained, retain_graph=True)
            target = best_wrong_class(logits, labels)
            end = self._search(net, images, target, start)
            moved = net(end.images) if end.logits is None else end.logits
            adversarial = (
                self.adv_weight * functional.cross_entropy(moved, labels)
                - self.wrong_weight * log_other(moved, best_wrong_class(moved, labels)).mean()
                - self.target_weight * log_other(moved, target).mean()
            )
            return clean + settled(adversarial, trained)

    def adversarial(self, net: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        """Move images towards a class, within the ball.

        Args:
            net: The network.
            images: ``(N, C, H, W)``, normalized.
            target: ``(N,)`` int64.

        Returns:
            Images ``(N, C, H, W)``, normalized; not clipped to [0, 1].
        """
        return self._search(net, images, target, self._start(net, images)).images

    def _start(self, net: nn.Module, images: Tensor) -> _Point:
        return self._point(net, images, torch.zeros_like(images))

    def _point(self, net: nn.Module, images: Tensor, delta: Tensor) -> _Point:
        delta = delta.detach().requires_grad_()
        moved = images.detach() + delta * self.unit
        return _Point(delta, moved.detach(), net(moved))

    def _search(self, net: nn.Module, images: Tensor, target: Tensor, start: _Point) -> _Point:
        """Move images towards a class; logits are None if no pass was made at the last point."""
        point = start
        for number in range(self.adv_steps):
            if number:
                point = self._point(net, images, point.delta)
            logits = point.logits
            assert logits is not None
            if float((logits.argmax(1) == target).float().mean()) > self.adv_rate:
                return point
            (slope,) = torch.autograd.grad(functional.cross_entropy(logits, target), point.delta)
            delta = point.delta.detach() - self.adv_lr * slope.sign()
            norm = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
            delta = delta * (self.radius / norm).clamp_max(1)[:, None, None, None]
            point = _Point(delta, images.detach() + delta * self.unit, None)
        return point

    @torch.no_grad()
    def finish(self) -> None:
        """Fold the layer into the convolution and the BatchNorm layer; undo the freezes."""
        for (conv, norm), polarizer in zip(self._place, self._polarizer, strict=True):
            fold(polarizer, conv, norm)
            del conv.polarizer
        for handle in self._handle:
            handle.remove()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._net, self._place, self._polarizer = [], [], []
        self._handle, self._frozen = [], []
        self._folded = FoldedBatchNorm()

    def always_eval(self) -> Iterator[nn.Module]:
        """The whole network."""
        yield from self._net

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        r"""How far the layer is from the identity, :math:`\|A - I\|_F / \sqrt C`."""
        weight = self._polarizer[0].weight.float()
        identity = torch.eye(len(weight), device=weight.device)
        return {"polarizer_distance": (weight - identity).norm() / len(weight) ** 0.5}

    def findings(self) -> dict[str, Any]:
        """The name of the convolution, and its number of channels."""
        return dict(self._found)


def _polarize(conv: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    polarized: Tensor = conv.get_submodule("polarizer")(output)
    return polarized


def find_place(net: nn.Module, layer: str | None = None) -> tuple[str, nn.Conv2d, _BatchNorm]:
    """Find the convolution to insert the layer after, and its BatchNorm layer.

    Args:
        net: The network.
        layer: Dotted name of the convolution; None to choose.

    Raises:
        ValueError: If no convolution, or not the given one, feeds a BatchNorm layer.
    """
    places: dict[str, tuple[nn.Conv2d, _BatchNorm]] = {}
    for norm_name, conv_name in conv_batchnorm_pairs(net).items():
        conv, norm = net.get_submodule(conv_name), net.get_submodule(norm_name)
        if not (isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm) and conv.groups == 1):
            continue
        if conv.bias is not None or norm.running_mean is not None:
            places[conv_name] = conv, norm
    if not places:
        raise ValueError(
            "Expected an ungrouped convolution whose output goes straight into BatchNorm, but "
            f"{type(net).__name__} has none. Use another defense, such as fst or anp."
        )
    if layer is None:
        # A 1x1 convolution is on a shortcut, beside the main path.
        wide = [name for name, (conv, _) in places.items() if max(conv.kernel_size) > 1]
        names = wide or list(places)
        layer = names[-2] if len(names) > 1 else names[-1]
    if layer not in places:
        close = get_close_matches(layer, places, n=1, cutoff=0)
        raise ValueError(
            "Expected `layer` to name an ungrouped convolution whose output goes straight into "
            f"BatchNorm, but got {layer!r}. Did you mean {close[0]!r}? Valid: {', '.join(places)}."
        )
    return layer, *places[layer]


@torch.no_grad()
def fold(polarizer: Polarizer, conv: nn.Conv2d, norm: _BatchNorm) -> None:
    r"""Fold the layer into a convolution and its BatchNorm layer, which then compute the same.

    .. math:: W' = A W, \qquad c' = A c + b \;\text{or, without a bias } c,\;
        \hat\mu' = \hat\mu - b

    Args:
        polarizer: The layer with :math:`A` and :math:`b`.
        conv: The convolution with weight :math:`W` and bias :math:`c`; changed in place.
        norm: The BatchNorm layer after it, in evaluation mode; its running mean :math:`\hat\mu`
            takes :math:`b` if ``conv`` has no bias.
    """
    mixing = polarizer.weight.double()
    conv.weight.copy_(torch.einsum("oc,cihw->oihw", mixing, conv.weight.double()))
    if conv.bias is not None:
        conv.bias.copy_(mixing @ conv.bias.double() + polarizer.bias)
    elif norm.running_mean is not None:
        norm.running_mean.sub_(polarizer.bias)


def best_wrong_class(logits: Tensor, labels: Tensor) -> Tensor:
    """The most likely class other than the true one, ``(N,)``.

    Example:
        >>> best_wrong_class(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([2])
    """
    return logits.detach().scatter(1, labels[:, None], -torch.inf).argmax(1)


def log_other(logits: Tensor, classes: Tensor) -> Tensor:
    r"""The logarithm of the probability of all other classes, :math:`\log(1 - p_k)`, ``(N,)``.

    Args:
        logits: ``(N, C)``.
        classes: The classes :math:`k`, ``(N,)``.

    Example:
        >>> log_other(torch.zeros(1, 4), torch.tensor([0])).exp()
        tensor([0.7500])
    """
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return others.logsumexp(1) - logits.logsumexp(1)
