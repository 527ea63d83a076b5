"""Warps that are drawn at random, without a look at the network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fst_lightning.defenses.triggers.source import Classifier, TriggerSource
from fst_lightning.validate import check_number

_COARSEST, _FINEST = 2, 8  # cells of the flow, along either side


class WarpTriggers(TriggerSource):
    r"""Warp images smoothly, each one by a different flow.

    *How it works.* A coarse grid of random vectors is enlarged to the image and scaled to a random
    mean length. The image is read at the places that are moved by it:

    .. math:: x'(u) = x(u + r\, \phi(u)), \qquad \mathrm{mean}\, |\phi| = 1, \quad r \sim U(0, s)

    with a flow :math:`\phi` of 2 to 8 cells along either side. A network that is tuned on such
    images with their true labels learns to ignore small warps, which
    :class:`~fst_lightning.defenses.triggers.RandomTriggers` does not contain. The source needs no
    look at the network and finds nothing in it.

    Args:
        share: Share of the images of each mini-batch that are warped, in [0, 1].
        strength: :math:`s`, the largest mean displacement along either side, in pixels, 0 or more.

    Shape:
        Images ``(N, C, H, W)`` float in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> source = WarpTriggers(share=1.0)
        >>> images = torch.rand(4, 3, 32, 32)
        >>> bool((source(images, torch.zeros(4), lambda x: x) != images).any())
        True

    References:
        The flow is drawn as in Nguyen and Tran, "WaNet: Imperceptible warping-based backdoor
        attack", ICLR 2021, arXiv 2102.10369, Section 3, but anew for each image.

    See Also:
        - :class:`~fst_lightning.defenses.triggers.RandomTriggers`: noise, waves and patches.
        - :class:`~fst_lightning.attacks.WaNet`: the attack.
    """

    def __init__(self, share: float = 0.3, strength: float = 1.0) -> None:
        super().__init__(share)
        check_number("strength", strength)
        self.strength = strength

    def trigger(self, images: Tensor, labels: Tensor, classify: Classifier) -> Tensor:
        """Warp every image."""
        count, _, height, width = images.shape
        cells = int(torch.randint(_COARSEST, _FINEST + 1, ()))
        coarse = 2 * torch.rand(count, 2, cells, cells, device=images.device) - 1
        flow = functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
        length = self.strength * torch.rand(count, 1, 1, 1, device=images.device)
        flow = flow * length / flow.abs().mean((1, 2, 3), keepdim=True)
        # From pixels to the coordinates of grid_sample, which go from -1 to 1.
        flow = flow * flow.new_tensor([2 / max(1, width - 1), 2 / max(1, height - 1)]).view(2, 1, 1)
        still = functional.affine_grid(
            torch.eye(2, 3, device=images.device).expand(count, 2, 3),
            list(images.shape),
            align_corners=True,
        )
        places = still + flow.movedim(1, 3)
        return functional.grid_sample(
            images.float(), places, align_corners=True, padding_mode="border"
        )
