import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fst_lightning.models import preact_resnet18

Weights = dict[str, Tensor]


def normalize(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Inference BatchNorm from its definition."""
    mean, var, scale, shift = (
        weights[f"{name}.{key}"].view(1, -1, 1, 1)
        for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def slow_forward(images: Tensor, weights: Weights, final_norm: bool) -> Tensor:
    x = F.conv2d(images, weights["conv1.weight"], padding=1)
    for stage in range(1, 5):
        for block in range(2):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            activated = normalize(x, weights, f"{name}.bn1").clamp(min=0)
            if f"{name}.downsample.0.weight" in weights:
                x = F.conv2d(activated, weights[f"{name}.downsample.0.weight"], stride=stride)
            y = F.conv2d(activated, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = normalize(y, weights, f"{name}.bn2").clamp(min=0)
            x = x + F.conv2d(y, weights[f"{name}.conv2.weight"], padding=1)
    if final_norm:
        x = normalize(x, weights, "norm").clamp(min=0)
    return x.mean(dim=(2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


@pytest.mark.parametrize("final_norm", [True, False])
def test_forward_equals_a_slow_computation(final_norm: bool) -> None:
    torch.manual_seed(0)
    net = preact_resnet18(5, width=4, final_norm=final_norm).double()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    net.train()(images)  # Running statistics other than 0 and 1.
    net.eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    with torch.no_grad():
        expected = slow_forward(images, net.state_dict(), final_norm)
        torch.testing.assert_close(net(images), expected)


def foreign_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the CIFAR implementation most benchmarks use, ten classes."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 3, 3)}
    inputs = 64
    for stage in range(1, 5):
        outputs = 32 * 2**stage
        for block in range(2):
            name = f"layer{stage}.{block}"
            for layer, channels in (("bn1", inputs), ("bn2", outputs)):
                for key in norm:
                    shapes[f"{name}.{layer}.{key}"] = () if key.startswith("num") else (channels,)
            shapes[f"{name}.conv1.weight"] = (outputs, inputs, 3, 3)
            shapes[f"{name}.conv2.weight"] = (outputs, outputs, 3, 3)
            if inputs != outputs:
                shapes[f"{name}.shortcut.0.weight"] = (outputs, inputs, 1, 1)
            inputs = outputs
    return shapes | {"linear.weight": (10, 512), "linear.bias": (10,)}


def test_foreign_weights_need_new_names_only() -> None:
    renamed = {
        key.replace("shortcut", "downsample").replace("linear", "fc"): shape
        for key, shape in foreign_shapes().items()
    }
    with torch.device("meta"):
        ours = preact_resnet18(10, final_norm=False).state_dict()
    assert {key: tuple(value.shape) for key, value in ours.items()} == renamed


def test_final_norm_adds_one_norm() -> None:
    with torch.device("meta"):
        count = {
            final: sum(p.numel() for p in preact_resnet18(10, final_norm=final).parameters())
            for final in (False, True)
        }
    assert count == {False: 11_171_146, True: 11_171_146 + 2 * 512}


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    net = preact_resnet18(4, width=4)
    loss = F.cross_entropy(net(torch.randn(4, 3, 16, 16)), torch.arange(4))
    torch.autograd.backward(loss)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="Expected `width` to be a whole number from"):
        preact_resnet18(10, width=-1)
