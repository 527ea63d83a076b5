"""The clean network that an attacker trains and inspects in place of the victim's."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.attacks.common.attack import Attack
from fst_lightning.models import small_resnet
from fst_lightning.models.bounds import check_bounds
from fst_lightning.models.cost import training_memory
from fst_lightning.optim import triangle
from fst_lightning.seeds import derived_seed
from fst_lightning.validate import check_number

_BATCH_SIZE = 128
_PEAK_LR = 0.2025


class Surrogate(nn.Module):
    """A small residual network with its normalization: images in [0, 1] to logits.

    Args:
        num_classes: Number of classes C.
        channels: Channels of the images, 1 or 3.
        width: Channels of the first stage, 1 to 4096.
        seed: Seed of the weights; the global random state does not change.

    Raises:
        ValueError: If the number of channels or the width is out of range.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int, channels: int, width: int, seed: int) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"Expected images of 1 or 3 channels, but got {channels}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "surrogate weights"))
            self.net = small_resnet(num_classes, width)
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of ``(N, C, H, W)`` images in [0, 1]."""
        pixels = (images - self.mean) / self.std
        logits: Tensor = self.net(pixels.expand(-1, 3, -1, -1))
        return logits


class SurrogateAttack(Attack):
    """An attack that inspects its own clean network.

    Args:
        surrogate_epochs: Epochs in which the surrogate is trained, 1 or more.
        surrogate_width: Channels of the first of its four stages, 1 to 4096.
        max_images: Training images that are used at most, 2 or more.
        options: The options of all attacks.

    Raises:
        ValueError: If a value is out of its range.
    """

    needs_fit: ClassVar[bool] = True
    fit_arguments: ClassVar[tuple[str, ...]] = ("surrogate_epochs", "surrogate_width", "max_images")

    def __init__(
        self, *, surrogate_epochs: int, surrogate_width: int, max_images: int, **options: Any
    ) -> None:
        super().__init__(**options)
        check_number("surrogate_epochs", surrogate_epochs, low=1, whole=True)
        check_number("max_images", max_images, low=2, whole=True)
        check_bounds(width=surrogate_width)
        self.surrogate_epochs = surrogate_epochs
        self.surrogate_width = surrogate_width
        self.max_images = max_images

    def train_surrogate(
        self, images: Tensor, labels: Tensor, num_classes: int, seed: int, device: torch.device
    ) -> Surrogate:
        """Train the surrogate as configured, on uint8 images; see :func:`train_surrogate`."""
        return train_surrogate(
            images,
            labels,
            num_classes,
            seed,
            device,
            epochs=self.surrogate_epochs,
            width=self.surrogate_width,
            max_images=self.max_images,
        )

    def memory(self, images: Tensor, num_classes: int) -> int:
        """The memory to train the surrogate, and of the images that it sees."""
        channels, height, width = images.shape[1:]
        seen = min(self.max_images, len(images))
        return 4 * seen * channels * height * width + training_memory(
            lambda: Surrogate(num_classes, channels, self.surrogate_width, seed=0),
            (min(_BATCH_SIZE, seen), channels, height, width),
        )

    def check_fitted(self) -> None:
        """Refuse to go on without the result of :meth:`fit`.

        Raises:
            ValueError: If nothing was fitted or loaded.
        """
        if not self.fitted:
            raise ValueError(
                f"Expected {type(self).__name__} to be fitted on a surrogate, but it is not; call "
                "`fit_once` with the training images first."
            )


def train_surrogate(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    seed: int,
    device: torch.device,
    *,
    epochs: int,
    width: int,
    max_images: int,
) -> Surrogate:
    """Train a small network on clean images with a triangular learning rate and random shifts.

    Args:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` int64.
        num_classes: Number of classes C.
        seed: The same seed gives the same network on the same device.
        device: Device to compute on.
        epochs: Passes over the images that are used, 1 or more.
        width: Channels of the network's first stage.
        max_images: Images, drawn at random, that are used at most; 2 or more.

    Returns:
        The network on the device, frozen and in evaluation mode.

    Example:
        >>> images = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
        >>> device = torch.device("cpu")
        >>> options = {"epochs": 1, "width": 4, "max_images": 8}
        >>> net = train_surrogate(images, torch.arange(8) % 2, 2, 0, device, **options)
        >>> net(images / 255).shape
        torch.Size([8, 2])
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, "surrogate"))
    chosen = torch.randperm(len(images), generator=generator)[:max_images]
    pixels, labels = images[chosen].to(device).float() / 255, labels[chosen].to(device)
    surrogate = Surrogate(num_classes, images.shape[1], width, seed).to(device)
    surrogate.mean = pixels.mean(dim=(0, 2, 3), keepdim=True)
    surrogate.std = pixels.std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-3)
    steps_per_epoch = -(-len(chosen) // _BATCH_SIZE)
    optimizer = torch.optim.SGD(
        surrogate.parameters(), lr=_PEAK_LR, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    # In step s of T the lower one of 0.01 + 0.8 s / T and 0.8 (1 - s / T) / 3.
    schedule = triangle(
        optimizer, epochs * steps_per_epoch, start=0.01 / _PEAK_LR, peak=0.240625, end=0.0
    )
    surrogate.train()
    with torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(len(chosen), generator=generator)
            # Parts of almost equal size, because a mini-batch of one image has no batch statistics.
            for rows in order.tensor_split(steps_per_epoch):
                batch = _shift(pixels[rows.to(device)], generator)
                loss = functional.cross_entropy(surrogate(batch), labels[rows.to(device)])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return surrogate.requires_grad_(False).eval()


def input_gradient(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the summed cross-entropy with respect to ``(N, C, H, W)`` images."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        loss = functional.cross_entropy(net(images), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images)
    return gradient


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift a mini-batch by up to a tenth of its size; all of its images alike."""
    height, width = images.shape[-2:]
    most = min(height, width) // 10
    top, left = torch.randint(2 * most + 1, (2,), generator=generator).tolist()
    padded = functional.pad(images, [most] * 4, mode="replicate")
    return padded[..., top : top + height, left : left + width]
