import numpy as np
import pytest
import torch
from torch import nn

from fst_lightning.defenses import ChannelLipschitzPruning
from fst_lightning.defenses.clp import channel_lipschitz
from fst_lightning.models import preact_resnet18
from tests.defenses import pruning
from tests.defenses.drive import drive


def pruned_channels(net: nn.Module) -> dict[str, list[int]]:
    defense = ChannelLipschitzPruning(u=3)
    drive(defense, net, pruning.clean_data(8))
    found: dict[str, list[int]] = defense.findings()["pruned"]
    assert defense.findings()["pruned_channels"] == sum(len(c) for c in found.values())
    return found


@pytest.mark.parametrize(("inputs", "groups", "kernel"), [(3, 1, 3), (16, 1, 1), (16, 16, 3)])
def test_the_bounds_are_singular_values(inputs: int, groups: int, kernel: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, 16, kernel, groups=groups, bias=False)
    norm = nn.BatchNorm2d(16)
    with torch.no_grad():
        norm.weight.normal_()
    norm.running_var = torch.rand(16) + 0.1
    found = channel_lipschitz(conv, norm)
    for channel in range(16):
        matrix = conv.weight[channel].detach().double().numpy().reshape(-1, kernel * kernel)
        largest = np.linalg.svd(matrix, compute_uv=False)[0]
        scale = float(norm.weight.detach()[channel]) / np.sqrt(
            float(norm.running_var[channel]) + norm.eps
        )
        assert float(found[channel]) == pytest.approx(largest * abs(scale), rel=1e-5)


def test_a_channel_100_times_as_strong_is_pruned_alone() -> None:
    net = pruning.network(width=16)
    conv, norm = net.get_submodule("layer2.0.conv2"), net.get_submodule("layer2.0.bn2")
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        conv.weight[7] *= 100
    before = {name: value.clone() for name, value in net.state_dict().items()}
    others = pruned_channels(pruning.network(width=16))
    pruned = pruned_channels(net)
    assert pruned == others | {"layer2.0.bn2": [7]}
    assert "layer2.0.bn2" not in others
    for name, value in net.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer in pruned and kind in ("weight", "bias"):
            before[name][pruned[layer]] = 0
        assert torch.equal(value, before[name]), name


def test_the_stem_of_a_preactivation_network_is_no_partner() -> None:
    net = preact_resnet18(4, width=16).eval()
    conv, inner = net.get_submodule("conv1"), net.get_submodule("layer3.1.conv1")
    with torch.no_grad():
        for layer in (conv, inner):
            assert isinstance(layer, nn.Conv2d)
            layer.weight[2] *= 100
    pruned = pruned_channels(net)
    assert pruned["layer3.1.bn2"] == [2]
    assert all(name.endswith("bn2") for name in pruned)


def test_it_needs_a_convolution_before_batchnorm() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(432, 4))
    with pytest.raises(ValueError, match="Expected convolutions that feed a BatchNorm layer"):
        ChannelLipschitzPruning().prepare(net, pruning.seeded())


@pytest.mark.parametrize("u", [0, -1.0, True, "3"])
def test_u_is_positive(u: float) -> None:
    with pytest.raises(ValueError, match="`u`"):
        ChannelLipschitzPruning(u=u)
