"""Universal perturbations: a planted shortcut is found, and no other class is suspected."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fst_lightning.defenses import CleanData
from fst_lightning.defenses.triggers import UniversalTriggers, study_sources

CLASSES, SIDE = 5, 8


def nothing(images: Tensor) -> Tensor:
    return images


def directions() -> Tensor:
    """One for each class: orthogonal, of length 1."""
    torch.manual_seed(0)
    rows = torch.randn(CLASSES, 3 * SIDE * SIDE)
    directions: Tensor = torch.linalg.qr(rows.T).Q.T.contiguous()
    return directions


def linear(gain: float) -> nn.Module:
    """Measures the directions; that of class 2 with a gain, which is the shortcut."""
    layer = nn.Linear(3 * SIDE * SIDE, CLASSES, bias=False)
    with torch.no_grad():
        layer.weight.copy_(directions())
        layer.weight[2] *= gain
    return nn.Sequential(nn.Flatten(), layer)


def clean() -> CleanData:
    """Gray images, moved along the direction of their class."""
    torch.manual_seed(1)
    labels = torch.arange(40) % CLASSES
    moved = 0.5 + 0.3 * directions()[labels].view(-1, 3, SIDE, SIDE)
    images = (moved + 0.002 * torch.randn_like(moved)).clamp(0, 1)
    return CleanData((images * 255).round().byte(), labels, mean=[0.5] * 3, std=[0.1] * 3)


def test_the_shortcut_is_found() -> None:
    net, data = linear(8.0), clean()
    state = copy.deepcopy(net.state_dict())
    source = UniversalTriggers(1.0)
    ready = [source.ready]
    study_sources([source], net, data, seed=0)
    ready.append(source.ready)
    assert ready == [False, True]
    assert source.suspected.tolist() == [2]
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    # It wins over the images, and points where the logit of its class rises.
    changed = source(data.images.float() / 255, data.labels, nothing)
    answers = net((changed - 0.5) / 0.1).argmax(1)
    assert float((answers == 2).float().mean()) > 0.9
    slope = net.get_parameter("1.weight")[2].view(3, SIDE, SIDE)
    cosine = torch.nn.functional.cosine_similarity(source.deltas[2].flatten(), slope.flatten(), 0)
    assert float(cosine) > 0.9
    # Its length is the radius that was found.
    rms = float(source.deltas[2].square().mean().sqrt())
    assert rms <= float(source.radii[2]) * 1.0001
    assert source.findings()["suspected"] == [2]


def test_without_a_shortcut_the_images_stay_as_they_are() -> None:
    source, data = UniversalTriggers(1.0), clean()
    study_sources([source], linear(1.0), data, seed=0)
    assert source.suspected.tolist() == []
    pixels = data.images.float() / 255
    assert source(pixels, data.labels, nothing) is pixels


def test_the_radius_is_the_least_of_the_grid() -> None:
    """A network with one logit per class and known slopes: the radius has a closed form."""

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gains = nn.Parameter(torch.tensor([0.0, 10.0, 40.0]))

        def forward(self, images: Tensor) -> Tensor:
            mean = (images - 0.5).mean((1, 2, 3))
            return mean[:, None] * self.gains + torch.tensor([1.0, 0.0, 0.0])

    images, labels = torch.full((20, 1, 4, 4), 128, dtype=torch.uint8), torch.zeros(20).long()
    data = CleanData(images, labels, mean=[0.0], std=[1.0])
    source = UniversalTriggers(1.0, growth=1.1, steps=20)
    study_sources([source], Sums(), data, seed=0)
    # Class 2 wins at 1 / 40 of all pixels. Some steps of a round are below its radius.
    assert 1 / 40 <= float(source.radii[2]) <= 1 / 40 * 1.1**3


def test_it_is_kept_in_the_state() -> None:
    source, again = UniversalTriggers(1.0), UniversalTriggers(1.0)
    source.radii, source.deltas = torch.tensor([0.01, 0.1, 0.1]), torch.rand(3, 1, 2, 2)
    again.load_state_dict(source.state_dict())
    assert again.ready
    images = torch.zeros(4, 1, 2, 2)
    assert torch.equal(
        again(images, torch.zeros(4), nothing), source.deltas[:1].expand(4, -1, -1, -1)
    )
    assert UniversalTriggers().findings() == {}
