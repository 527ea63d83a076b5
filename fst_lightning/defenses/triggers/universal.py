"""Additive perturbations that are recovered from the network, class by class."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.defenses.common.pixel_range import PixelRange
from fst_lightning.defenses.triggers.suspected import SuspectedClassTriggers
from fst_lightning.validate import check_number

_SMALLEST = 0.005  # radius, root mean square of a pixel
_LARGEST = 0.12
_MOMENTUM = 0.8
_STEP = 0.25  # of the radius
_REACHED = 0.6  # share of the classes, after which the search ends


class UniversalTriggers(SuspectedClassTriggers):
    r"""Put the smallest universal perturbations of suspected classes on images.

    *How it works.* Before the purification, a perturbation that sends clean images to a class is
    searched for every class:

    .. math:: \delta_k(r) = \arg\min_{\|\delta\|_{\mathrm{rms}} \le r}
        \frac{1}{N} \sum_i \mathrm{CE}(f(x_i + \delta), k)

    The radius grows from round to round, and :math:`r_k` is the first one at which the perturbation
    wins over most images. The backdoor of an additive trigger or a patch is a shortcut, so its
    target class needs a far smaller radius than the other classes. A class is suspected if
    :math:`r_k < c \cdot \mathrm{median}_{j \ne k}\, r_j`. While the network is tuned, images get
    the perturbation of a suspected class, drawn at random. If no class is suspected, they stay as
    they are: the perturbation of a class without a backdoor costs clean accuracy and removes
    nothing.

    Args:
        share: Share of the images of each mini-batch that get a perturbation, in [0, 1].
        ratio: :math:`c`, in (0, 1).
        success: Share of the images that a perturbation has to win over, in (0, 1].
        growth: Factor between two radii, greater than 1.
        steps: Steps of gradient descent at each radius, 1 or more.
        batch_size: Images per step and class, 1 or more.
        classes_at_once: Classes that are searched together, 1 or more; more need more memory.

    Shape:
        Images ``(N, C, H, W)`` float in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Note:
        It does not see triggers that are no common perturbation of all images, such as warps, and
        triggers that are as large as the perturbation which any class needs.

    Example:
        >>> UniversalTriggers(share=0.2).findings()
        {}

    References:
        Moosavi-Dezfooli, Fawzi, Fawzi and Frossard, "Universal adversarial perturbations", CVPR
        2017, arXiv 1610.08401. The comparison of the classes follows Wang et al., "Neural Cleanse",
        IEEE S&P 2019.

    See Also:
        - :class:`~fst_lightning.defenses.triggers.PatchTriggers`: the smallest patch of each class.
        - :class:`~fst_lightning.defenses.triggers.AdversarialTriggers`: one perturbation per
          mini-batch, for no particular class.
    """

    deltas: Tensor
    """The perturbation of each class, ``(K, C, H, W)``; empty before :meth:`study`."""
    radii: Tensor
    """:math:`r_k`, ``(K,)``; infinite for a class that was not reached."""

    def __init__(
        self,
        share: float = 0.2,
        ratio: float = 0.6,
        success: float = 0.75,
        growth: float = 1.25,
        steps: int = 8,
        batch_size: int = 16,
        classes_at_once: int = 10,
    ) -> None:
        super().__init__(share, ratio)
        check_number("success", success, low_open=True, high=1)
        check_number("growth", growth, low=1, low_open=True)
        check_number("steps", steps, low=1, whole=True)
        check_number("batch_size", batch_size, low=1, whole=True)
        check_number("classes_at_once", classes_at_once, low=1, whole=True)
        self.success = success
        self.growth = growth
        self.steps = steps
        self.batch_size = batch_size
        self.classes_at_once = classes_at_once
        self.register_buffer("deltas", torch.empty(0))
        self.register_buffer("radii", torch.empty(0))

    @property
    def sizes(self) -> Tensor:
        """The radii of the classes."""
        return self.radii

    def study(self, net: nn.Module, clean: LabeledImages, generator: torch.Generator) -> None:
        """Find the smallest perturbation of each class."""
        pixel_range = PixelRange.of(clean)
        pixels = pixel_range.to_pixels(clean.normalize(clean.images[:1]))
        with torch.no_grad():
            num_classes = net(pixel_range.to_inputs(pixels).to(clean.dtype)).shape[1]
        deltas = pixels.new_zeros(num_classes, *pixels.shape[1:])
        momenta = torch.zeros_like(deltas)
        radii = pixels.new_full((num_classes,), math.inf)
        kept = deltas.clone()
        radius = _SMALLEST
        while radius <= _LARGEST and radii.isfinite().sum() < _REACHED * num_classes:
            for classes in torch.split(torch.arange(num_classes), self.classes_at_once):
                found, momenta[classes], rates = self._descend(
                    net, clean, pixel_range, deltas[classes], momenta[classes], classes,
                    radius, generator,
                )  # fmt: skip
                deltas[classes] = found
                won = (rates >= self.success) & radii[classes].isinf()
                kept[classes[won.cpu()]] = found[won]
                radii[classes[won.cpu()]] = radius
            radius *= self.growth
        self.deltas, self.radii = kept, radii

    def _descend(
        self,
        net: nn.Module,
        clean: LabeledImages,
        pixel_range: PixelRange,
        deltas: Tensor,
        momenta: Tensor,
        classes: Tensor,
        radius: float,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take the steps of one radius; returns perturbations, momenta and rates of success."""
        wanted = classes.to(deltas.device).repeat_interleave(self.batch_size)
        norm = radius * math.sqrt(deltas[0].numel())
        rates = deltas.new_zeros(len(classes))
        count = len(classes) * self.batch_size
        for _ in range(self.steps):
            rows = torch.randint(len(clean), (count,), generator=generator).to(clean.device)
            pixels = pixel_range.to_pixels(clean.normalize(clean.images[rows]))
            deltas = deltas.detach().requires_grad_()
            with torch.enable_grad():
                changed = (pixels + deltas.repeat_interleave(self.batch_size, 0)).clamp(0, 1)
                logits = net(pixel_range.to_inputs(changed).to(clean.dtype)).float()
                loss = functional.cross_entropy(logits, wanted, reduction="sum")
                (slopes,) = torch.autograd.grad(loss / self.batch_size, deltas)
            with torch.no_grad():
                won = (logits.argmax(1) == wanted).float()
                rates += won.view(len(classes), -1).mean(1) / self.steps
                slopes = functional.normalize(slopes.flatten(1), dim=1).view_as(slopes)
                momenta = _MOMENTUM * momenta + (1 - _MOMENTUM) * slopes
                deltas = deltas - _STEP * norm * momenta
                excess = (deltas.flatten(1).norm(dim=1) / norm).clamp(min=1)
                deltas = deltas / excess.view(-1, 1, 1, 1)
        return deltas.detach(), momenta, rates

    def put(self, images: Tensor, classes: Tensor) -> Tensor:
        """Add the perturbation of a class to each image."""
        return (images + self.deltas[classes]).clamp(0, 1)

    def findings(self) -> dict[str, Any]:
        """The radius of each class (None if it was not reached), and the suspected classes."""
        if not self.ready:
            return {}
        radii = [round(r, 4) if math.isfinite(r) else None for r in self.radii.tolist()]
        return {"radii": radii, "suspected": self.suspected.tolist()}
