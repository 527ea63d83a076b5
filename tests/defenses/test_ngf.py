from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses import CleanData, NaturalGradientTuning
from tests import tiny
from tests.defenses.drive import drive


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clean_images(count: int = 20) -> CleanData:
    return CleanData(tiny.images(count), tiny.labels(count), mean=[0.5] * 3, std=[0.25] * 3)


class Scaled(nn.Module):
    """A head with a factor behind it."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.inner = tiny.conv_net(bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = 3 * self.inner(images)
        return logits


def head_of(net: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in net.named_parameters() if "head" in name]


def gradient_of(net: nn.Module) -> Tensor:
    gradients = [parameter.grad for parameter in head_of(net) if parameter.grad is not None]
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


def rows_by_a_loop(net: nn.Module, clean: CleanData, generator: torch.Generator) -> Tensor:
    """One backward pass an image: gradients of log p of drawn labels, (n, K * d + K)."""
    net.eval()
    images = clean.normalize(clean.images)
    drawn = torch.multinomial(net(images).detach().softmax(1), 1, generator=generator)[:, 0]
    rows = []
    for image, label in zip(images, drawn, strict=True):
        likelihood = net(image[None]).log_softmax(1)[0, label]
        slopes = torch.autograd.grad(likelihood, head_of(net))
        rows.append(torch.cat([slope.flatten() for slope in slopes]))
    return torch.stack(rows).double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("damping", [1.0, 1e-2])
def test_the_natural_gradient_is_the_inverse_of_the_damped_fisher_matrix(
    bias: bool, damping: float
) -> None:
    net, clean = Scaled(bias), clean_images()
    defense = NaturalGradientTuning(damping=damping)
    defense.prepare(net, seeded())
    defense.begin_epoch(net.train(), clean, 0, seeded(4))
    assert net.training
    rows = rows_by_a_loop(net, clean, seeded(4))
    fisher = rows.T @ rows / len(rows)
    images, labels = next(clean.batches(6))
    torch.autograd.backward(functional.cross_entropy(net(images), labels))
    gradient = gradient_of(net)
    damped = fisher + damping * torch.eye(len(fisher), dtype=torch.float64)
    expected = torch.linalg.solve(damped, gradient)
    defense.before_step()
    assert torch.allclose(gradient_of(net), expected, atol=1e-5 * float(expected.abs().max()))
    # The matrix matters: no mere division by the damping.
    assert float((expected * damping - gradient).norm()) > 0.02 * float(gradient.norm())


def test_the_diagonal_and_the_distance_from_what_came_in() -> None:
    net, clean = Scaled(True), clean_images()
    defense = NaturalGradientTuning(ewc_weight=3.0)
    defense.prepare(net, seeded())
    assert defense.penalty() is None
    net.eval()
    defense.study(net, clean, seeded(2))
    diagonal = rows_by_a_loop(net, clean, seeded(2)).square().mean(0)
    weight = diagonal[: 4 * 12].view(4, 12)
    expected = torch.cat([weight, diagonal[4 * 12 :, None]], 1)
    assert torch.allclose(defense.fisher_diagonal.double(), expected, rtol=1e-4, atol=1e-7)
    penalty = defense.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == 0
    total = 0.0
    with torch.no_grad():
        for number, (parameter, part) in enumerate(
            zip(head_of(net), (weight, diagonal[48:]), strict=True), start=1
        ):
            moves = torch.linspace(-1, number, parameter.numel()).view_as(parameter)
            parameter.add_(moves)
            for move, value in zip(moves.flatten().tolist(), part.flatten().tolist(), strict=True):
                total += 1.5 * value * move**2
    penalty = defense.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(total, rel=1e-4)


def test_at_most_so_many_images_are_used() -> None:
    net, clean = tiny.conv_net(), clean_images()
    defense = NaturalGradientTuning(fisher_images=7)
    defense.prepare(net, seeded())
    defense.begin_epoch(net, clean, 0, seeded(4))
    assert defense.features.shape == (7, 13)
    assert defense.errors.shape == (7, 4)


def test_a_new_epoch_uses_a_new_matrix() -> None:
    net, clean = tiny.conv_net(), clean_images()
    defense = NaturalGradientTuning()
    defense.prepare(net, seeded())
    gradient = torch.randn(4, 13, generator=seeded())
    found = []
    for epoch in range(2):
        defense.begin_epoch(net, clean, epoch, seeded(epoch))
        found.append(defense.natural(gradient))
    assert not torch.allclose(found[0], found[1], rtol=1e-3)


def test_a_run_that_is_resumed_has_the_matrix() -> None:
    net, first, second = tiny.conv_net(), NaturalGradientTuning(), NaturalGradientTuning()
    first.prepare(net, seeded())
    first.begin_epoch(net, clean_images(), 0, seeded())
    second.prepare(tiny.conv_net(), seeded())
    second.load_state_dict(first.state_dict())
    gradient = torch.randn(4, 13, generator=seeded())
    assert torch.equal(first.natural(gradient), second.natural(gradient))


def test_a_run_changes_the_head_alone() -> None:
    net = tiny.conv_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    losses = drive(NaturalGradientTuning(damping=0.1), net, clean_images(), epochs=10, lr=0.05)
    assert losses[-1] < losses[0]
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == ("head" not in name)
    assert all(parameter.requires_grad for parameter in net.parameters())


class Tokens(nn.Module):
    """A head that sees every position of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, tiny.NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(2).transpose(1, 2)).mean(1)
        return logits


def test_refuses_a_head_of_positions() -> None:
    net = Tokens()
    defense = NaturalGradientTuning()
    defense.prepare(net, seeded())
    with pytest.raises(ValueError, match=r"called once with \(N, d\) features, but got \[\(20, 64"):
        defense.begin_epoch(net, clean_images(), 0, seeded())
    assert not net.head._forward_hooks


@pytest.mark.parametrize("arguments", [{"damping": 0}, {"ewc_weight": -1}, {"fisher_images": 0}])
def test_refuses_arguments(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=f"Expected `{name}` to be a"):
        NaturalGradientTuning(**arguments)
