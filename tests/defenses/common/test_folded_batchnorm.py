"""Folded BatchNorm against the network as it is: logits, gradients, and what is left alone."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.folded_batchnorm import FoldedBatchNorm
from fst_lightning.models.preact_resnet import preact_resnet18
from fst_lightning.models.resnet import small_resnet


def learned(net: nn.Module) -> nn.Module:
    """Random running statistics, scales and shifts, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for name, value in (*module.named_parameters(), *module.named_buffers()):
                if value.is_floating_point():
                    low = 0.0 if name in ("bias", "running_mean") else 0.5
                    value.data.copy_(low + torch.rand(value.shape, generator=generator))
    return net.double().eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def derivatives(net: nn.Module, batch: Tensor) -> list[Tensor]:
    """The loss, its gradients, and the gradients of the squared gradient in the images."""
    batch = batch.clone().requires_grad_()
    parameters = list(net.parameters())
    loss = functional.cross_entropy(net(batch), torch.arange(len(batch)) % 3)
    first = torch.autograd.grad(loss, [batch, *parameters], create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), parameters, allow_unused=True)
    zeros = [
        torch.zeros_like(p) if s is None else s for s, p in zip(second, parameters, strict=True)
    ]
    return [loss, *first, *zeros]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_values_and_both_derivatives_agree(bias: bool, affine: bool) -> None:
    net = learned(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular", bias=bias),
            nn.BatchNorm2d(4, affine=affine),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3, groups=2),
            nn.BatchNorm2d(4),
            nn.Flatten(),
            nn.Linear(144, 3),
        )
    )
    folded = FoldedBatchNorm()
    expected = derivatives(net, images())
    with folded.of(net, images()):
        assert len(folded.pairs) == 2
        found = derivatives(net, images())
    for got, value in zip(found, expected, strict=True):
        torch.testing.assert_close(got, value)


def test_a_pre_activation_network_is_folded_in_part() -> None:
    net = learned(preact_resnet18(3, width=4))
    folded = FoldedBatchNorm()
    with folded.of(net, images()):
        found = net(images())
    assert 0 < len(folded.pairs) < 18
    torch.testing.assert_close(found, net(images()))


def test_what_cannot_be_folded_is_computed_as_it_is() -> None:
    """Layers in training mode, layers with hooks, and their running statistics."""
    net, seen = learned(small_resnet(3, width=4)), []
    net.get_submodule("bn1").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    expected = net(images())
    with FoldedBatchNorm().of(net, images()):
        torch.testing.assert_close(net(images()), expected)
    torch.testing.assert_close(seen[-1], seen[0])
    net.train()
    expected, before = net(images()), net.get_buffer("bn1.running_mean").clone()
    with FoldedBatchNorm().of(net, images()):
        torch.testing.assert_close(net(images()), expected)
    assert not torch.equal(before, net.get_buffer("bn1.running_mean"))


class Misleading(nn.Module):
    """Its layers stand side by side, but something is between them; it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, batch: Tensor) -> Tensor:
        maps = self.conv(batch)
        if bool((maps > 0).any()):
            maps = maps.relu()
        means: Tensor = self.norm(maps).mean((2, 3))
        return means


def test_a_network_whose_logits_would_differ_is_left_alone() -> None:
    net, folded = learned(Misleading()), FoldedBatchNorm()
    with folded.of(net, images()):
        assert folded.pairs == []
        found = net(images())
    assert torch.equal(found, net(images()))


def test_nothing_is_left_in_the_network() -> None:
    net, folded = learned(small_resnet(3, width=4)), FoldedBatchNorm()

    def fail() -> None:
        with folded.of(net, images()), folded.of(net, images()):
            assert folded.pairs
            net(images()[:, :2])

    with pytest.raises(RuntimeError, match="channels"):
        fail()
    assert not any("forward" in vars(module) for module in net.modules())
