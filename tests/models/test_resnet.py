import pytest
import torch
import torchvision
from torch import nn

from fst_lightning.models import SmallImageResNet, resnet18, small_resnet


def torchvision_resnet18(num_classes: int) -> nn.Module:
    net: nn.Module = torchvision.models.resnet18(num_classes=num_classes)
    return net


def test_parameters_are_named_and_shaped_as_in_torchvision() -> None:
    with torch.device("meta"):
        ours = resnet18(10).state_dict()
        theirs = torchvision_resnet18(10).state_dict()
    assert list(ours) == list(theirs)
    different = [key for key in ours if ours[key].shape != theirs[key].shape]
    assert different == ["conv1.weight"]
    assert ours["conv1.weight"].shape == (64, 3, 3, 3)


@pytest.mark.parametrize("training", [False, True])
def test_forward_equals_torchvision_with_a_small_stem(training: bool) -> None:
    torch.manual_seed(0)
    ours = resnet18(7)
    theirs = torchvision_resnet18(7)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 16, 16)
    ours.train(training)
    theirs.train(training)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
    # The same running statistics afterwards, too.
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_resnet18_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        net = resnet18(10)
    assert sum(p.numel() for p in net.parameters()) == 11_173_962


@pytest.mark.parametrize(("width", "blocks"), [(16, 1), (4, 2), (3, 3)])
def test_number_of_parameters_follows_the_formula(width: int, blocks: int) -> None:
    count = 3 * 9 * width + 2 * width
    inputs = width
    for stage in range(4):
        outputs = width * 2**stage
        for _ in range(blocks):
            count += 9 * inputs * outputs + 9 * outputs**2 + 4 * outputs
            if inputs != outputs:
                count += inputs * outputs + 2 * outputs
            inputs = outputs
    count += inputs * 5 + 5
    net = SmallImageResNet(5, width=width, blocks=blocks)
    assert sum(p.numel() for p in net.parameters()) == count


def test_convolutions_are_drawn_with_fan_out_variance() -> None:
    torch.manual_seed(0)
    net = resnet18(10)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
            # Four standard errors of a sample standard deviation: 4 / sqrt(2 n).
            tolerance = 4 / (2 * layer.weight.numel()) ** 0.5
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=tolerance)


@pytest.mark.parametrize("size", [1, 8, 17, 32])
def test_any_image_size_gives_one_logit_a_class(size: int) -> None:
    net = small_resnet(6, width=2).eval()
    assert net(torch.zeros(3, 3, size, size)).shape == (3, 6)


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    net = small_resnet(4, width=4, blocks=2)
    loss = nn.functional.cross_entropy(net(torch.randn(4, 3, 16, 16)), torch.arange(4))
    torch.autograd.backward(loss)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 0},
        {"num_classes": 10, "width": 0},
        {"num_classes": 10, "width": 4097},
        {"num_classes": 10, "blocks": 51},
        {"num_classes": 10, "blocks": True},
    ],
)
def test_sizes_out_of_range_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"Expected `\w+` to be a whole number from "):
        small_resnet(**arguments)
