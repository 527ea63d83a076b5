"""Every defense on every kind of network: it runs, or it refuses in one clear sentence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from hydra.utils import instantiate
from torch import nn
from torchvision.models import VisionTransformer

from fst_lightning.configuration import groups
from fst_lightning.defenses import CleanData, DatasetDefense, Defense, PoisonedData
from fst_lightning.models import find_head, preact_resnet18, resnet18, vgg
from tests.defenses.drive import drive
from tests.runs import option_config, skip_without_packages

pytestmark = pytest.mark.slow

CLASSES, SIZE, IMAGES = 4, 32, 24


def narrow_vgg() -> nn.Module:
    """VGG-19-BN with a few channels and convolutions."""
    with mock.patch.object(vgg, "STAGES", ((1, 4), (1, 8), (2, 8), (1, 12))):
        return vgg.vgg19_bn(CLASSES)


def tiny_vit() -> nn.Module:
    """A vision transformer of two blocks."""
    net: nn.Module = VisionTransformer(
        image_size=SIZE,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        num_classes=CLASSES,
    )
    return net


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: resnet18(CLASSES, width=4),
    "preact_resnet": lambda: preact_resnet18(CLASSES, width=4),
    "vgg": narrow_vgg,
    "vit": tiny_vit,
}

REFUSED = {
    ("vit", option): "BatchNorm"
    for option in ("anp", "bnp", "clp", "ep", "flare", "nft", "npd", "rnp")
}
"""What a network has none of, and the word that the refusal has to hold."""


def small(option: str) -> Defense:
    config: Any = option_config("defense", option)
    for name, value in config.items():
        if isinstance(value, int) and not isinstance(value, bool):
            if name.endswith(("epochs", "rounds")):
                config[name] = 1
            elif name.endswith(("steps", "iterations")):
                config[name] = min(value, 2)
            elif name.endswith("batch_size"):
                config[name] = 12
    made = instantiate(config, _convert_="all")
    assert isinstance(made, Defense)
    return made


def rows(defense: Defense) -> CleanData:
    generator = torch.Generator().manual_seed(2)
    size = (IMAGES, 3, SIZE, SIZE)
    images = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    labels = torch.arange(IMAGES) % CLASSES
    mean, std = (0.5,) * 3, (0.25,) * 3
    poisoned = PoisonedData(images, labels, mean, std) if defense.needs_poisoned_set else None
    return CleanData(images, labels, None, mean, std, poisoned).split(defense.held_out, generator)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("option", groups()["defense"])
def test_it_runs_or_refuses(option: str, network: str) -> None:
    skip_without_packages(option)
    torch.manual_seed(0)
    net: nn.Module = NETWORKS[network]().to(memory_format=torch.channels_last)
    head = find_head(net)[1]
    if not bool(head.weight.any()):  # a ViT starts with zeros, which a trained one has not
        nn.init.normal_(head.weight, std=0.1)
    defense = small(option)
    clean = rows(defense)
    keys, trained = list(net.state_dict()), [p.requires_grad for p in net.parameters()]
    word = REFUSED.get((network, option))
    if word is not None:
        with pytest.raises(ValueError, match=word) as refusal:
            drive(defense, net, clean, batch_size=12)
        assert "\n" not in str(refusal.value)
        assert [p.requires_grad for p in net.parameters()] == trained
        return
    losses = drive(defense, net, clean, epochs=1, lr=1e-3, batch_size=12)
    assert all(math.isfinite(loss) for loss in losses)
    if isinstance(defense, DatasetDefense) and clean.poisoned is not None:
        generator = torch.Generator().manual_seed(0)
        suspects = torch.arange(IMAGES) % 3 == 0
        made = defense.retrain(
            lambda: net, clean.poisoned, suspects, generator, lambda fresh, _: fresh
        )
        assert made is net
    assert list(net.state_dict()) == keys
    assert [p.requires_grad for p in net.parameters()] == trained
    assert all(bool(torch.isfinite(value).all()) for value in net.state_dict().values())
    with torch.no_grad():
        assert net.eval()(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, CLASSES)
