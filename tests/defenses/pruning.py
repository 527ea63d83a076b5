"""Networks, images and comparisons that the tests of the pruning defenses share."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fst_lightning.defenses import Defense
from fst_lightning.defenses.common.clean_data import CleanData, PoisonedData
from fst_lightning.models import small_resnet

CLASSES, SIZE = 4, 12
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(width: int = 4, seed: int = 0) -> nn.Module:
    """A small ResNet whose BatchNorm layers look trained: no scale is 1, no mean is 0.

    Its head is centered, so that it gives every class to some images.
    """
    generator = seeded(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = small_resnet(CLASSES, width=width)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = module.weight.shape
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(shape, generator=generator))
                module.bias.copy_(torch.randn(shape, generator=generator) / 4)
            module.running_mean = torch.randn(shape, generator=generator) / 4
            module.running_var = 0.5 + torch.rand(shape, generator=generator)
    head = net.get_submodule("fc")
    assert isinstance(head, nn.Linear)
    output = logits(net, clean_data(60, seed=2))
    with torch.no_grad():
        deviation, mean = torch.std_mean(output, dim=0)
        head.weight.div_(deviation[:, None])
        head.bias.sub_(mean).div_(deviation)
    return net.eval()


def clean_data(count: int = 24, seed: int = 1) -> CleanData:
    """Images of 8 bit that differ by class in their brightness; a training set comes along."""
    generator = seeded(seed)
    labels = torch.arange(count) % CLASSES
    images = torch.rand(count, 3, SIZE, SIZE, generator=generator) * 0.4
    images = ((images + 0.2 * labels[:, None, None, None]) * 255).clamp(0, 255).byte()
    poisoned = PoisonedData(images.clone(), labels.clone(), MEAN, STD)
    return CleanData(images, labels, None, MEAN, STD, poisoned)


def logits(net: nn.Module, clean: CleanData) -> Tensor:
    with torch.no_grad():
        output: Tensor = net.eval()(clean.normalize(clean.images))
    return output


def after_steps(
    defense: Defense, net: nn.Module, clean: CleanData, steps: int = 3, lr: float = 0.1
) -> None:
    """Prepare, study and take a few steps; neither conclude nor finish."""
    torch.manual_seed(0)
    defense.prepare(net, seeded())
    net.eval()
    defense.study(net, clean, seeded(1))
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=lr)
    images = clean.normalize(clean.images)
    for _ in range(steps):
        net.train()
        for module in defense.always_eval():
            module.eval()
        optimizer.zero_grad()
        loss = defense.loss(net, images, clean.labels)
        penalty = defense.penalty()
        torch.autograd.backward(loss if penalty is None else loss + penalty)
        defense.after_backward()
        defense.before_step()
        optimizer.step()
        defense.after_step()
    net.eval()


def assert_folds(defense: Defense, net: nn.Module, clean: CleanData, lr: float = 0.1) -> None:
    """The network computes the same before and after ``finish``, and looks as it came."""
    untouched = copy.deepcopy(net)
    names = list(net.state_dict())
    shapes = [value.shape for value in net.state_dict().values()]
    wanted = [p.requires_grad for p in net.parameters()]
    kinds = [type(module) for module in net.modules()]
    after_steps(defense, net, clean, lr=lr)
    defense.conclude(net, clean, seeded(2))
    masked = logits(net, clean)
    defense.finish()
    defense.finish()
    torch.testing.assert_close(logits(net, clean), masked, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(masked, logits(untouched, clean), atol=1e-3)
    assert list(net.state_dict()) == names
    assert [value.shape for value in net.state_dict().values()] == shapes
    assert [p.requires_grad for p in net.parameters()] == wanted
    assert [type(module) for module in net.modules()] == kinds
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
