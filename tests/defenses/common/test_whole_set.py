"""What defenses share, against loops in plain PyTorch."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.whole_set import (
    accuracy,
    batchnorms,
    keep_modes,
    recompute_batchnorm,
    require_batchnorm,
    seeded,
    tune,
)
from tests import tiny

ROWS = tiny.rows(40)
CLEAN = CleanData(ROWS.images, ROWS.labels)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same(net: nn.Module, other: nn.Module, tolerance: float = 0.0) -> None:
    expected = other.state_dict()
    for name, value in net.state_dict().items():
        assert torch.allclose(value, expected[name], rtol=0, atol=tolerance), name


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_tuning_is_sgd_with_momentum_and_a_cosine(weight_decay: float) -> None:
    net, expected = tiny.conv_net(), tiny.conv_net()
    tune(net, CLEAN, generator(3), epochs=4, lr=0.1, batch_size=16, weight_decay=weight_decay)
    stream = generator(3)
    torch.randint(2**62, (), generator=stream)  # for the dropout
    velocity = [torch.zeros_like(p) for p in expected.parameters()]
    for epoch in range(4):
        rate = 0.1 * (1 + math.cos(math.pi * epoch / 4)) / 2
        for rows in torch.split(torch.randperm(40, generator=stream), 16):
            loss = functional.cross_entropy(expected(ROWS.images[rows] / 255), ROWS.labels[rows])
            gradients = torch.autograd.grad(loss, list(expected.parameters()))
            with torch.no_grad():
                for p, v, g in zip(expected.parameters(), velocity, gradients, strict=True):
                    v.mul_(0.9).add_(g + weight_decay * p)
                    p.sub_(rate * v)
    assert_same(net, expected, 1e-6)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_tuning_with_another_loss_on_some_of_the_weights() -> None:
    net = tiny.conv_net().eval()
    before = copy.deepcopy(net)
    head = net.get_submodule("head")

    def squared(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        wanted = functional.one_hot(labels, tiny.NUM_CLASSES).float()
        return functional.mse_loss(net(images), wanted)

    tune(net, CLEAN, generator(), epochs=1, lr=0.1, loss=squared, parameters=head.parameters())
    assert not net.training
    assert not torch.equal(net.get_parameter("head.weight"), before.get_parameter("head.weight"))
    assert torch.equal(net.get_parameter("conv1.weight"), before.get_parameter("conv1.weight"))


def test_tuning_draws_from_its_generator_alone() -> None:
    nets = []
    for global_seed, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        nets.append(tiny.conv_net(dropout=0.5))
        tune(nets[-1], CLEAN, generator(seed), epochs=1, lr=0.1, batch_size=8)
        assert torch.equal(torch.get_rng_state(), state)
    assert_same(nets[0], nets[1])
    weights = [net.get_parameter("head.weight") for net in nets]
    assert not torch.equal(weights[0], weights[2])


def test_global_numbers_follow_the_generator_and_come_back() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        with seeded(generator(seed), torch.device("cpu")):
            drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_come_back_one_by_one() -> None:
    net = tiny.conv_net().train()
    net.get_submodule("bn1").eval()
    with pytest.raises(ValueError, match="mode"), keep_modes(net):
        net.eval().train(mode="neither")  # type: ignore[arg-type]
    assert [name for name, m in net.named_modules() if not m.training] == ["bn1"]


def test_accuracy_counts_in_evaluation_mode() -> None:
    net = tiny.conv_net(dropout=0.9).train()
    net.eval()
    hits = sum(
        int(net(image[None] / 255).argmax()) == int(label)
        for image, label in zip(ROWS.images, ROWS.labels, strict=True)
    )
    net.train()
    assert accuracy(net, CLEAN, batch_size=7) == hits / 40
    assert net.training


def test_batchnorm_layers_are_found_and_asked_for() -> None:
    assert list(batchnorms(tiny.conv_net())) == ["bn1", "bn2"]
    assert list(require_batchnorm(tiny.conv_net(), "ANP")) == ["bn1", "bn2"]
    assert not batchnorms(nn.Sequential(nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.InstanceNorm2d(3)))
    with pytest.raises(ValueError, match="BatchNorm layers for ANP, but Sequential has none"):
        require_batchnorm(tiny.linear_net(4), "ANP")


@pytest.mark.parametrize("batch_size", [40, 16, 13])
def test_recomputed_statistics_are_averages_over_batches(batch_size: int) -> None:
    net = tiny.conv_net(dropout=0.5).train()
    net.get_submodule("bn1").momentum = 0.3  # type: ignore[assignment]
    before = copy.deepcopy(net)
    recompute_batchnorm(net, CLEAN, batch_size)
    images = ROWS.images / 255
    means, variances, weights = [], [], []
    for batch in torch.split(images, batch_size):
        if len(batch) == 1:
            continue
        features = functional.conv2d(batch, net.get_parameter("conv1.weight"), None, 2, 1)
        per_channel = features.transpose(0, 1).flatten(1).double()
        means.append(per_channel.mean(1))
        variances.append(per_channel.var(1))
        weights.append(len(batch))
    share = torch.tensor(weights, dtype=torch.float64)[:, None] / sum(weights)
    norm = net.get_submodule("bn1")
    mean, variance = (torch.stack(v).mul(share).sum(0).float() for v in (means, variances))
    assert torch.allclose(norm.get_buffer("running_mean"), mean, atol=1e-6)
    assert torch.allclose(norm.get_buffer("running_var"), variance, rtol=1e-5)
    assert norm.momentum == 0.3
    assert net.training
    for kept, old in zip(net.parameters(), before.parameters(), strict=True):
        assert torch.equal(kept, old)


def test_a_layer_without_statistics_stays_without() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten())
    recompute_batchnorm(net, CLEAN)
    assert net.get_submodule("0").running_mean is None
