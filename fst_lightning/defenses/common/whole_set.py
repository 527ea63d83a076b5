"""Work on all clean images: tuning, accuracy, BatchNorm statistics, random states."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from fst_lightning.defenses.common.clean_data import LabeledImages

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def tune(
    net: nn.Module,
    clean: LabeledImages,
    generator: torch.Generator,
    *,
    epochs: int,
    lr: float,
    batch_size: int = 128,
    loss: Loss | None = None,
    parameters: Iterable[nn.Parameter] | None = None,
    weight_decay: float = 0.0,
    decay: bool = True,
) -> None:
    r"""Train a network in place by SGD with momentum 0.9 and a cosine schedule over epochs.

    Dropout draws from the generator too. Afterwards the network is in its original mode and has no
    gradients.

    Args:
        net: The network, on the device of the images.
        clean: The training images.
        generator: A CPU generator, the only source of random numbers.
        epochs: Passes over the images, 0 or more.
        lr: Learning rate, greater than 0.
        batch_size: Images per step, 1 or more.
        loss: ``(net, images, labels)`` to a scalar; None for cross-entropy.
        parameters: The parameters to train; None for all trainable ones.
        weight_decay: Weight decay, 0 or more.
        decay: Whether the rate decays; False keeps it constant.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> images = torch.rand(8, 3, 2, 2)
        >>> clean = LabeledImages(images, (images.mean((1, 2, 3)) > 0.5).long())
        >>> tune(net, clean, torch.Generator().manual_seed(0), epochs=1, lr=0.1)
    """
    compute = cross_entropy if loss is None else loss
    trained = [
        p for p in (net.parameters() if parameters is None else parameters) if p.requires_grad
    ]
    optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, epochs))
    with keep_modes(net), seeded(generator, clean.device):
        net.train()
        for _ in range(epochs):
            for images, labels in clean.batches(batch_size, generator):
                optimizer.zero_grad()
                torch.autograd.backward(compute(net, images, labels))
                optimizer.step()
            if decay:
                schedule.step()
        optimizer.zero_grad()


def cross_entropy(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of a network on a batch, a scalar."""
    return functional.cross_entropy(net(images), labels)


@torch.no_grad()
def accuracy(net: nn.Module, clean: LabeledImages, batch_size: int = 500) -> float:
    """The share of images that the network classifies as labeled, in evaluation mode: 0 to 1."""
    with keep_modes(net):
        net.eval()
        hits = [
            int((net(images).argmax(1) == labels).sum())
            for images, labels in clean.batches(batch_size)
        ]
    return sum(hits) / len(clean)


def fresh_copy(net: nn.Module, generator: torch.Generator) -> nn.Module:
    """Copy a network with freshly initialized weights.

    Args:
        net: The network, unchanged; modules without ``reset_parameters`` keep their values.
        generator: A CPU generator; one number is drawn.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> torch.equal(fresh_copy(net, torch.Generator().manual_seed(0)).weight, net.weight)
        False
    """
    fresh = copy.deepcopy(net)
    with seeded(generator, torch.device("cpu")):
        for module in fresh.cpu().modules():  # the same numbers on every device
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    devices = {parameter.device for parameter in net.parameters()}
    return fresh.to(devices.pop()) if len(devices) == 1 else fresh


def batchnorms(net: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers of a network by their dotted names, in order of registration.

    Example:
        >>> list(batchnorms(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
        ['1']
    """
    return {name: module for name, module in net.named_modules() if isinstance(module, _BatchNorm)}


def require_batchnorm(net: nn.Module, name: str) -> dict[str, _BatchNorm]:
    """The BatchNorm layers of a network, for a defense that requires them.

    Args:
        net: The network.
        name: Name of the defense in the error.

    Raises:
        ValueError: If there is none.
    """
    found = batchnorms(net)
    if not found:
        raise ValueError(
            f"Expected a network with BatchNorm layers for {name}, but {type(net).__name__} has "
            "none. Use a defense that works on any network, such as fst or ft."
        )
    return found


@torch.no_grad()
def recompute_batchnorm(net: nn.Module, clean: LabeledImages, batch_size: int = 128) -> None:
    r"""Replace the running statistics of BatchNorm by those of the clean images.

    They become the mean and variance of the mini-batches, averaged with their sizes as weights. All
    other modules are in evaluation mode meanwhile.

    Args:
        net: The network; layers without running statistics do not change.
        clean: The images to estimate them on, at least 2.
        batch_size: Images per batch, 2 or more.
    """
    norms = [norm for norm in batchnorms(net).values() if norm.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    with keep_modes(net):
        net.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        seen = 0
        for images, _ in clean.batches(batch_size):
            if seen and len(images) == 1:
                continue  # A single value has no variance.
            seen += len(images)
            for norm in norms:
                norm.momentum = len(images) / seen
            net(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@contextmanager
def keep_modes(net: nn.Module) -> Iterator[None]:
    """Restore the mode (training or evaluation) of each module afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Compute attention in the context so that second derivatives exist.

    The faster kernels of ``scaled_dot_product_attention`` have no second derivative.
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def seeded(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Seed the global generators (used by dropout, for example), and restore them afterwards.

    Args:
        generator: A CPU generator; one number is drawn.
        device: The device whose global generator is seeded, in addition to the CPU's.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield
