"""Sample-specific backdoor attack (SSBA): an encoder network hides bits in the image.

Example:
    ``python train.py attack=ssba attack.bits=4 attack.residual_bound=12``
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf
from fst_lightning.models.cost import training_memory
from fst_lightning.seeds import derived_seed
from fst_lightning.validate import check_counts, check_number

_BATCH_SIZE = 32
_LR = 3e-3
_CHUNK = 256
_TILE = 8
_MASKING = 4.0


class Encoder(nn.Module):
    """Images in [0, 1] and bits to a change of the images in [-1, 1], for any image size.

    Each bit has a learned tile that is added or subtracted and repeated over the image.
    Convolutions turn the tiles and the image into the change.

    Args:
        channels: Channels of the images.
        bits: Number of bits.
        width: Channels between the convolutions.
    """

    def __init__(self, channels: int, bits: int, width: int) -> None:
        super().__init__()
        self.tiles = nn.Parameter(torch.randn(bits, width, _TILE, _TILE) / bits**0.5)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.rest = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, images: Tensor, bits: Tensor) -> Tensor:
        """Encode ``(N, bits)`` zeros and ones into ``(N, C, H, W)`` images."""
        height, width = images.shape[-2:]
        tiles = torch.einsum("nb,bchw->nchw", 2 * bits - 1, self.tiles)
        tiled = tiles.repeat(1, 1, -(-height // _TILE), -(-width // _TILE))[..., :height, :width]
        change: Tensor = self.rest(self.first(2 * images - 1) + tiled)
        return change


class Decoder(nn.Module):
    """Images in [0, 1] to the logits of the hidden bits, for any image size.

    It looks at the difference of each pixel from its neighborhood. In smooth parts of an image,
    this difference is mostly the hidden change.

    Args:
        channels: Channels of the images.
        bits: Number of bits.
        width: Channels between the convolutions.
        gain: Factor that amplifies the differences.
    """

    def __init__(self, channels: int, bits: int, width: int, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, bits, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(N, bits)`` logits; positive for a one."""
        blurred = functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        logits: Tensor = self.layers(self.gain * (images - blurred)).mean(dim=(2, 3))
        return logits


class SSBA(Attack):
    r"""Hide a fixed string of bits in the image by an encoder network, and relabel the image.

    *How it works.* The attacker trains two small networks together. The encoder changes an image so
    faintly that the decoder can read a string of bits from it. Such a change depends on the image,
    so that two triggered images do not show the same pattern. The attacker chooses one string,
    encodes it into some training images and gives them the target label. The victim learns to
    recognize the string as the decoder does.

    .. math:: T(x) = \mathrm{clip}(x + r \tanh E(x, s)), \qquad
        \min_{E, D} \mathrm{BCE}(D(T(x)), s) + \lambda \, \mathbb{E} \left(
        \frac{\tanh E(x, s)}{1 + \tau(x) / 4} \right)^2

    with the image :math:`x`, random bits :math:`s`, encoder :math:`E`, decoder :math:`D`, bound
    :math:`r`, weight :math:`\lambda` and the texture :math:`\tau` around a pixel, which hides
    changes.

    Args:
        bits: Length of the string, 1 to 8; the string is drawn from the seed of the run.
        residual_bound: Bound :math:`r` in levels of 255, 1 to 255.
        residual_weight: Weight :math:`\lambda`, 0 or more; larger values give fainter changes.
        width: Channels of encoder and decoder, 1 to 1024.
        fit_epochs: Passes over the images that are used, 1 or more.
        max_images: Clean training images that are used at most, 1 or more.
        poison_ratio: Share of the training set that is poisoned, 0 to 1.
        target_label: The attacker's class, 0 to C - 1.
        label_map: How labels change: ``all_to_one``, ``all_to_all``, ``clean_label`` or
            ``untargeted``.
        rate_of: What the ratio is a share of: ``total``, the training set, or ``target_class``.

    Attributes:
        bit_accuracy: Share of bits, 0 to 1, that the decoder reads correctly from 8-bit images with
            random bits. It is measured after the fit on up to 256 images of the fit; NaN before.

    Shape:
        - images: ``(N, C, H, W)`` float in [0, 1].
        - :meth:`trigger`: the same shape, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Needs:
        Write access to some training images and their labels. The attacker needs neither the
        network nor the training code. The encoder is trained on the training set.

    Cost:
        Before the training, encoder and decoder are trained for ``fit_epochs`` on at most
        ``max_images`` images and kept in the store. Each poisoned image is encoded once; a step
        costs nothing more.

    When it fails:
        If the residual is too faint, or lies in high frequencies that crops and mirroring destroy,
        the backdoor does not form. A ``bit_accuracy`` near 0.5 says that the encoder has not
        learned to hide the bits.

    Note:
        The paper's encoder is a StegaStamp with a perceptual loss and a critic. Here the networks
        are small enough for a CPU, and the bound keeps the change faint. A large part of the change
        is common to all images; a smaller part depends on the image.

    Example:
        >>> images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4)
        >>> attack = SSBA(width=4, fit_epochs=1)
        >>> attack.prepare(images, labels, num_classes=2, seed=0)
        >>> attack.fit_once(images, labels, 2, seed=0, device=torch.device("cpu"))
        >>> float(attack(images / 255).max()) <= 16 / 255
        True

    References:
        Li, Li, Wu, Li, He and Lyu, "Invisible backdoor attack with sample-specific triggers", ICCV
        2021, arXiv 2012.03816.

    See Also:
        - :class:`~fst_lightning.attacks.InputAware`: a different trigger for each image, learned
          with the classifier.
        - :class:`~fst_lightning.attacks.LIRA`: learned noise.
    """

    needs_fit: ClassVar[bool] = True
    fit_arguments: ClassVar[tuple[str, ...]] = (
        "bits",
        "residual_bound",
        "residual_weight",
        "width",
        "fit_epochs",
        "max_images",
    )
    crafts: ClassVar[bool] = True

    secret: Tensor
    bit_accuracy: Tensor
    encoder: Encoder
    decoder: Decoder

    def __init__(
        self,
        bits: int = 8,
        residual_bound: float = 16.0,
        residual_weight: float = 0.02,
        width: int = 24,
        fit_epochs: int = 6,
        max_images: int = 4_000,
        poison_ratio: float = 0.05,
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
        check_number("bits", bits, low=1, high=8, whole=True)
        check_number("width", width, low=1, high=1024, whole=True)
        check_counts(fit_epochs=fit_epochs, max_images=max_images)
        check_number("residual_bound", residual_bound, low=1, high=255)
        check_number("residual_weight", residual_weight)
        self.bits = bits
        self.residual_bound = residual_bound
        self.residual_weight = residual_weight
        self.width = width
        self.fit_epochs = fit_epochs
        self.max_images = max_images
        self._build(3, seed=0)

    def prepare(self, images: Tensor, labels: Tensor, num_classes: int, seed: int) -> None:
        """Draw the string and the initial weights, for images with this number of channels."""
        if not self.fitted:
            self._build(images.shape[1], seed)

    def memory(self, images: Tensor, num_classes: int) -> int:
        """The memory to train encoder and decoder, and of the images that they see."""
        channels, height, width = images.shape[1:]
        seen = min(self.max_images, len(images))
        batch = (min(_BATCH_SIZE, seen), channels, height, width)
        gain = 255 / self.residual_bound
        return (
            4 * seen * channels * height * width
            + training_memory(
                lambda: Encoder(channels, self.bits, self.width), batch, (batch[0], self.bits)
            )
            + training_memory(lambda: Decoder(channels, self.bits, self.width, gain), batch)
        )

    def fit(
        self, images: Tensor, labels: Tensor, num_classes: int, seed: int, device: torch.device
    ) -> None:
        """Train encoder and decoder together."""
        generator = torch.Generator().manual_seed(derived_seed(seed, "ssba fit"))
        chosen = torch.randperm(len(images), generator=generator)[: self.max_images]
        pixels = images[chosen].to(device).float() / 255
        self.to(device)
        networks = nn.ModuleList([self.encoder, self.decoder]).requires_grad_(True)
        optimizer = torch.optim.Adam(networks.parameters(), lr=_LR)
        steps = self.fit_epochs * -(-len(chosen) // _BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with torch.enable_grad():
            for epoch in range(self.fit_epochs):
                # The weight starts at zero: an encoder that must be faint before the decoder reads
                # anything learns to change nothing.
                weight = self.residual_weight * epoch / self.fit_epochs
                order = torch.randperm(len(chosen), generator=generator)
                for rows in torch.split(order, _BATCH_SIZE):
                    batch = pixels[rows.to(device)]
                    bits = torch.randint(2, (len(rows), self.bits), generator=generator)
                    bits = bits.to(device).float()
                    change = self.encoder(batch, bits)
                    # Noise of up to half a level simulates the rounding of an image file.
                    noise = (torch.rand(batch.shape, generator=generator) - 0.5) / 255
                    stamped = self._add(batch, change) + noise.to(device)
                    loss = functional.binary_cross_entropy_with_logits(self.decoder(stamped), bits)
                    loss = (
                        loss + weight * (change / (1 + texture(batch) / _MASKING)).square().mean()
                    )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        networks.requires_grad_(False)
        bits = torch.randint(2, (min(len(pixels), _CHUNK), self.bits), generator=generator)
        self.bit_accuracy = self._read_back(pixels[:_CHUNK], bits.to(device))

    def craft(
        self, images: Tensor, labels: Tensor, rows: Tensor, *, cover: bool, seed: int
    ) -> Tensor:
        """Encode the stored images once, as their files would be."""
        device = self.secret.device
        parts = [
            (self(part.to(device).float() / 255) * 255).round().to(images.device, torch.uint8)
            for part in torch.split(images, _CHUNK)
        ]
        return torch.cat(parts) if parts else images

    def poison(self, images: Tensor) -> Tensor:
        """Return the images: poisoned rows are stored encoded."""
        return images

    def trigger(self, images: Tensor) -> Tensor:
        """Hide the string in ``(N, C, H, W)`` images in [0, 1]."""
        if not self.fitted:
            raise ValueError(
                "Expected a trained encoder of SSBA, but it is not trained; call `fit_once` with "
                "the training images first."
            )
        bits = self.secret.expand(len(images), -1)
        with torch.no_grad():
            return self._encode(images, bits)

    def decode(self, images: Tensor) -> Tensor:
        """Read the bits of ``(N, C, H, W)`` images in [0, 1]: ``(N, bits)`` bool."""
        with torch.no_grad():
            logits: Tensor = self.decoder(images.to(self.secret.dtype))
        return logits > 0

    def _encode(self, images: Tensor, bits: Tensor) -> Tensor:
        # Precision `bf16-true` casts these weights together with the classifier's.
        change = self.encoder(images.to(self.secret.dtype), bits.to(self.secret.dtype))
        return self._add(images, change.to(images.dtype))

    def _add(self, images: Tensor, change: Tensor) -> Tensor:
        return (images + self.residual_bound / 255 * change).clamp(0, 1)

    def _read_back(self, images: Tensor, bits: Tensor) -> Tensor:
        with torch.no_grad():
            encoded = (self._encode(images, bits) * 255).round() / 255
        return (self.decode(encoded) == bits.bool()).float().mean()

    def _build(self, channels: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(derived_seed(seed, "ssba secret"))
        secret = torch.randint(2, (1, self.bits), generator=generator).float()
        self.register_buffer("secret", secret)
        self.register_buffer("bit_accuracy", torch.tensor(float("nan")))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "ssba weights"))
            self.encoder = Encoder(channels, self.bits, self.width).requires_grad_(False)
            gain = 255 / self.residual_bound
            self.decoder = Decoder(channels, self.bits, self.width, gain).requires_grad_(False)


def texture(images: Tensor) -> Tensor:
    """The standard deviation in 3 x 3 pixels around each pixel of a channel, in levels of 255.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].

    Returns:
        The same shape, 0 or more.
    """

    def blur(planes: Tensor) -> Tensor:
        return functional.avg_pool2d(planes, 3, stride=1, padding=1, count_include_pad=False)

    # Centered on the mean of the image, which keeps the difference of squares accurate.
    centered = 255 * (images - images.mean(dim=(2, 3), keepdim=True))
    return (blur(centered.square()) - blur(centered).square()).clamp_min(0).sqrt()
