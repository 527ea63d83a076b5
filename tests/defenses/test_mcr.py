import copy

import pytest
import torch

from fst_lightning.defenses import CleanData, ModeConnectivityRepair
from fst_lightning.defenses.mcr import bezier
from tests import tiny
from tests.defenses.drive import drive


def clean_images() -> CleanData:
    data = tiny.rows(24)
    return CleanData(data.images, data.labels, mean=[0.5] * 3, std=[0.25] * 3)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.37, 1.0])
def test_the_curve_is_two_straight_lines_blended(t: float) -> None:
    """De Casteljau's construction."""
    start, middle, end = torch.randn(3, 5, dtype=torch.float64)
    first, second = torch.lerp(start, middle, t), torch.lerp(middle, end, t)
    assert torch.allclose(bezier(start, middle, end, t), torch.lerp(first, second, t))


def test_its_ends_are_the_network_that_came_in_and_the_tuned_one() -> None:
    net = tiny.conv_net()
    came_in = {name: p.detach().clone() for name, p in net.named_parameters()}
    defense = ModeConnectivityRepair(end_epochs=1, end_batch_size=8)
    generator = torch.Generator().manual_seed(0)
    defense.prepare(net, generator)
    defense.study(net, clean_images(), generator)
    for name, value in defense.point(0.0).items():
        assert torch.equal(value, came_in[name])
    tuned = torch.cat([value.flatten() for value in defense.point(1.0).values()])
    assert torch.equal(tuned, defense.end)
    assert not torch.equal(defense.end, defense.start)


def test_channels_last_networks_and_the_point_that_is_taken() -> None:
    """At t = 0 the weights are those that came in, whatever was trained in between."""
    net = tiny.conv_net().to(memory_format=torch.channels_last)
    came_in = copy.deepcopy(net)
    losses = drive(ModeConnectivityRepair(curve_t=0.0, end_epochs=1), net, clean_images())
    assert losses
    for mine, theirs in zip(net.parameters(), came_in.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-7)


def test_the_gradient_goes_to_the_middle() -> None:
    """d w(t) / d theta = 2 t (1 - t), for the t that was drawn."""
    net = tiny.linear_net(12)
    defense = ModeConnectivityRepair(end_epochs=1)
    images, labels = torch.rand(8, 3, 2, 2), tiny.labels(8)
    generator = torch.Generator().manual_seed(0)
    defense.prepare(net, generator)
    defense.study(net, CleanData(images, labels), generator)
    torch.manual_seed(5)
    t = float(torch.rand(()))
    torch.manual_seed(5)
    defense.loss(net, images, labels).backward()  # type: ignore[no-untyped-call]
    point = defense.point(t)
    weight = point["1.weight"].detach().requires_grad_()
    logits = images.flatten(1) @ weight.T + point["1.bias"].detach()
    torch.nn.functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    found = net.get_parameter("1.weight").grad
    assert found is not None
    assert torch.allclose(found, 2 * t * (1 - t) * weight.grad, atol=1e-6)
