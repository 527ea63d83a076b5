"""A 1x1 convolution as the head: every method treats it like the equal linear layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from fst_lightning.defenses import FST, CleanData, DatasetDefense, Defense, PoisonedData
from fst_lightning.defenses.common.features import features_of
from fst_lightning.models import find_head, weight_matrix
from tests import tiny
from tests.defenses.drive import drive
from tests.runs import option_config

COUNT = 48


class ConvHead(nn.Module):
    """The features of a network, and its head as a convolution or as a linear layer."""

    def __init__(self, net: nn.Sequential, convolution: bool) -> None:
        super().__init__()
        net = copy.deepcopy(net)
        linear, features = net.head, [*net][:-3]  # without flatten and dropout
        assert isinstance(linear, nn.Linear)
        self.features = nn.Sequential(*features)
        self.convolution = convolution
        head = nn.Conv2d(12, tiny.NUM_CLASSES, 1) if convolution else linear
        self.head = head
        head.load_state_dict({"weight": linear.weight.view_as(head.weight), "bias": linear.bias})

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        if self.convolution:
            return self.head(features).flatten(1)  # type: ignore[no-any-return]
        return self.head(features.flatten(1))  # type: ignore[no-any-return]


def pair() -> tuple[ConvHead, ConvHead]:
    net = tiny.conv_net()
    return ConvHead(net, convolution=True), ConvHead(net, convolution=False)


def clean(defense: Defense) -> CleanData:
    images, labels = tiny.images(COUNT), tiny.labels(COUNT)
    mean, std = (0.5,) * 3, (0.25,) * 3
    poisoned = PoisonedData(images, labels, mean, std) if defense.needs_poisoned_set else None
    return CleanData(images, labels, None, mean, std, poisoned)


def make(option: str, **arguments: Any) -> Defense:
    config: Any = option_config("defense", option)
    for name, value in config.items():
        if isinstance(value, int) and not isinstance(value, bool) and name.endswith("epochs"):
            config[name] = 1
    config.update(arguments)
    made = instantiate(config, _convert_="all")
    assert isinstance(made, Defense)
    return made


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("fst", {}),
        ("fst", {"reinit": "uniform"}),
        ("ft", {"project_norm": True}),
        ("lp", {}),
        ("fe_tuning", {}),
        ("ft_init", {}),
        ("fp", {"max_pruning_ca_drop": 1.0}),
        ("ngf", {}),
        ("fip", {"scope": "head"}),
        ("bti_dbf", {}),
        ("pam", {}),
        ("ac", {}),
        ("spectral", {}),
        ("dbd", {}),
    ],
)
def test_a_convolution_is_tuned_like_the_equal_linear_layer(
    option: str, arguments: dict[str, Any]
) -> None:
    found = []
    for net in pair():
        defense = make(option, **arguments)
        losses = drive(defense, net, clean(defense), epochs=3, lr=0.01, batch_size=12)
        found.append((net, defense, torch.tensor(losses)))
    (conv, by_conv, conv_losses), (linear, by_linear, linear_losses) = found
    torch.testing.assert_close(conv_losses, linear_losses, rtol=1e-6, atol=1e-6)
    states = (conv.state_dict(), linear.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(
            value.view_as(states[1][name]), states[1][name], rtol=0, atol=1e-6
        )
    if isinstance(by_conv, DatasetDefense) and isinstance(by_linear, DatasetDefense):
        assert torch.equal(by_conv.suspected, by_linear.suspected)


def test_fst_on_a_convolution_in_closed_form() -> None:
    net = pair()[0].to(memory_format=torch.channels_last)
    original = weight_matrix(net.head).detach().clone()
    defense = FST(alpha=0.5, project_norm=True)
    defense.prepare(net, torch.Generator().manual_seed(0))
    weight = weight_matrix(net.head).detach()
    scale = float(original.norm())
    assert abs(float(weight.norm()) / scale - 1) < 1e-6
    assert float((weight @ original.T).abs().max()) < 1e-6 * scale**2
    with torch.no_grad():
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    penalty = defense.penalty()
    assert penalty is not None
    pairs = zip(weight.flatten().tolist(), original.flatten().tolist(), strict=True)
    assert abs(penalty.item() - 0.5 * sum(a * b for a, b in pairs)) < 1e-6
    defense.after_step()
    assert abs(float(weight_matrix(net.head).detach().norm()) / scale - 1) < 1e-6
    low, high = FST().alpha_range(pair()[0])
    assert (low, high) == FST().alpha_range(pair()[1])


def test_a_head_that_sees_maps_is_tuned_but_has_no_feature_vectors() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1))
    net.append(nn.Flatten())
    assert find_head(net)[0] == "2"
    defense = make("fst")
    drive(defense, net, clean(defense), epochs=1)
    with pytest.raises(ValueError, match=r"features \(N, d\)"):
        features_of(net, find_head(net)[1], torch.zeros(2, 3, 8, 8))
