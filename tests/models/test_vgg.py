import pytest
import torch
import torchvision
from torch import nn

from fst_lightning.models import vgg19_bn


def test_features_are_those_of_torchvision() -> None:
    with torch.device("meta"):
        ours = vgg19_bn(10).features
        theirs = torchvision.models.vgg19_bn(num_classes=10).features
    assert str(ours) == str(theirs)
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes


def test_number_of_parameters() -> None:
    with torch.device("meta"):
        net = vgg19_bn(10)
        features = torchvision.models.vgg19_bn(num_classes=10).features
    expected = sum(p.numel() for p in features.parameters()) + 512 * 10 + 10
    assert sum(p.numel() for p in net.parameters()) == expected == 20_040_522


def test_forward_and_gradients() -> None:
    torch.manual_seed(0)
    net = vgg19_bn(3)
    images = torch.randn(3, 3, 32, 32)
    logits = net(images)
    assert logits.shape == (3, 3)
    torch.autograd.backward(nn.functional.cross_entropy(logits, torch.arange(3)))
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    net.eval()
    with torch.no_grad():
        pooled = net.features(images).mean(dim=(2, 3))
        torch.testing.assert_close(net(images), net.classifier(pooled))


def test_convolutions_are_drawn_with_fan_out_variance() -> None:
    torch.manual_seed(0)
    for layer in vgg19_bn(3).features:
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            assert not layer.bias.any()
            tolerance = 4 / (2 * layer.weight.numel()) ** 0.5
            expected = (2 / (9 * layer.out_channels)) ** 0.5
            assert layer.weight.std().item() == pytest.approx(expected, rel=tolerance)


def test_small_images_are_refused() -> None:
    with torch.device("meta"):
        net, images = vgg19_bn(3), torch.empty(2, 3, 28, 40)
    with pytest.raises(ValueError, match=r"at least 32x32 pixels for VGG-19.* got 28x40"):
        net(images)
