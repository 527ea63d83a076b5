import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fst_lightning.models import airbench, find_head


def patches(images: torch.Tensor) -> npt.NDArray[np.float64]:
    """Every 2x2 patch, channel by channel, cut out one by one."""
    cut = [
        image[:, top : top + 2, left : left + 2].flatten().double().numpy()
        for image in images
        for top in range(image.shape[1] - 1)
        for left in range(image.shape[2] - 1)
    ]
    return np.stack(cut)


def test_the_first_layer_whitens_patches() -> None:
    """Its outputs, without the negatives, have a covariance of the identity, nearly."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(20, 3, 9, 9, generator=generator) + torch.rand(20, 1, 1, 1)
    net = airbench(4, width=4)
    net.initialize(images)
    weight = net.whiten.weight.detach().double()
    filters = weight[:12].flatten(1).numpy()
    outputs = patches(images) @ filters.T
    moment = outputs.T @ outputs / len(outputs)
    values = np.linalg.eigvalsh(patches(images).T @ patches(images) / len(outputs))[::-1]
    assert np.allclose(moment, np.diag(values / (values + 5e-4)), atol=1e-4)
    assert torch.equal(weight[12:], -weight[:12])
    assert not net.whiten.weight.requires_grad


def test_convolutions_start_as_the_identity() -> None:
    net = airbench(4, width=32)
    images = torch.rand(2, 24, 6, 6)
    passed = net.groups.get_submodule("0.conv1")(images)
    assert torch.allclose(passed[:, :24], images)


def test_the_number_of_parameters_and_the_head() -> None:
    net = airbench(10)
    assert 1.9e6 < sum(p.numel() for p in net.parameters()) < 2.1e6
    name, head = find_head(net, num_classes=10)
    assert name == "head"
    assert "head.bias" not in net.state_dict()
    features = torch.rand(3, 256)
    assert torch.allclose(net.head(features) * net.logit_scale * 9, features @ head.weight.T)


@pytest.mark.parametrize("size", [8, 12, 32, 33])
def test_images_of_any_size(size: int) -> None:
    net = airbench(5, width=4).eval()
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 5)


def test_which_parameters_train_when_and_how_fast() -> None:
    net = airbench(4, width=4)
    scales = {name: net.learning_rate_scale(name) for name, _ in net.named_parameters()}
    fast = {name for name, scale in scales.items() if scale != 1}
    assert fast == {f"groups.{group}.norm{number}.bias" for group in range(3) for number in (1, 2)}
    assert set(scales.values()) == {1.0, 64.0}
    for epoch in range(5):
        net.begin_epoch(epoch)
        assert net.whiten.bias is not None
        assert net.whiten.bias.requires_grad == (epoch < 3)
    assert not math.isnan(float(net(torch.rand(4, 3, 32, 32)).sum().detach()))
