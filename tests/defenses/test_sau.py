import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses import CleanData, SharedAdversarialUnlearning, sau
from fst_lightning.defenses.common.snapshot import call_with
from fst_lightning.defenses.sau import jensen_shannon, unlearning_loss
from tests import tiny
from tests.defenses.drive import drive


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clean_images(count: int = 16) -> CleanData:
    return CleanData(tiny.images(count), tiny.labels(count), mean=[0.5] * 3, std=[0.2, 0.25, 0.5])


def tuned_apart() -> tuple[SharedAdversarialUnlearning, nn.Module, nn.Module]:
    """A defense that saw one network, that network, and another one in its place."""
    original, net = tiny.conv_net(seed=0), tiny.conv_net(seed=0)
    defense = SharedAdversarialUnlearning(
        clean_weight=0.5, adv_weight=0.25, shared_weight=2.0, fool_weight=0.3
    )
    defense.prepare(net, seeded())
    defense.study(net, clean_images(), seeded())
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=seeded(parameter.numel()))
            parameter.add_(0.3 * noise)
    return defense, original.eval(), net.eval()


def probabilities(logits: Tensor) -> list[list[float]]:
    rows = []
    for row in logits.double().tolist():
        powers = [math.exp(value) for value in row]
        rows.append([power / sum(powers) for power in powers])
    return rows


def slow_search_loss(
    logits: Tensor, other: Tensor, labels: list[int], fool: float, divergence: float
) -> float:
    total = 0.0
    for p, q, label in zip(probabilities(logits), probabilities(other), labels, strict=True):
        answer, other_answer = p.index(max(p)), q.index(max(q))
        if answer == label:
            total += fool / 2 * math.log(p[label])
        if other_answer == label:
            total += fool / 2 * math.log(q[label])
        if not (answer == other_answer != label):
            for a, b in zip(p, q, strict=True):
                middle = (a + b) / 2
                total += divergence / 2 * (a * math.log(a / middle) + b * math.log(b / middle))
    return total / len(labels)


def test_the_search_loss_is_that_of_a_loop_over_images() -> None:
    logits = 3 * torch.randn(40, 4, generator=seeded(1))
    other = logits + torch.randn(40, 4, generator=seeded(2))
    labels = torch.randint(4, (40,), generator=seeded(3))
    labels[::2] = logits.argmax(1)[::2]
    defense = SharedAdversarialUnlearning(fool_weight=0.3, divergence_weight=0.7)
    expected = slow_search_loss(logits, other, labels.tolist(), 0.3, 0.7)
    assert float(defense.search_loss(logits, other, labels)) == pytest.approx(expected, rel=1e-5)


def test_the_divergence_agrees_with_entropies() -> None:
    """JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2."""
    p = torch.rand(5, 4, generator=seeded(), dtype=torch.float64)
    q = torch.rand(5, 4, generator=seeded(1), dtype=torch.float64)
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)

    def entropy(values: Tensor) -> Tensor:
        total: Tensor = torch.special.entr(values).sum(1)
        return total

    expected = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    assert torch.allclose(jensen_shannon(p.log(), q.log()).double(), expected, atol=1e-6)
    assert torch.allclose(jensen_shannon(p.log(), p.log()), torch.zeros(5), atol=1e-6)


def test_the_perturbations_are_those_of_sign_steps_on_single_images() -> None:
    defense, original, net = tuned_apart()
    images, labels = next(clean_images().batches(6))
    unit = torch.tensor([5.0, 4.0, 2.0]).view(1, 3, 1, 1)
    found = defense.perturb(net, images, labels)
    for row in range(6):
        image, label = images[row : row + 1], labels[row : row + 1]
        delta = torch.full_like(image, 0.2)
        for _ in range(5):
            delta = delta.detach().requires_grad_()
            p = net(image + delta * unit).softmax(1)[0]
            q = original(image + delta * unit).softmax(1)[0]
            right, other_right = int(p.argmax()) == int(label), int(q.argmax()) == int(label)
            cost = torch.zeros(())
            if right:
                cost = cost + 0.15 * p[label[0]].log()
            if other_right:
                cost = cost + 0.15 * q[label[0]].log()
            if int(p.argmax()) != int(q.argmax()) or right:
                m = (p + q) / 2
                cost = cost + ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
            if cost.grad_fn is None:
                continue
            (slope,) = torch.autograd.grad(cost, delta)
            delta = (delta - 0.2 * slope.sign()).clamp(-0.2, 0.2)
        # A sign may turn over rounding where a slope is about 0.
        assert float((found[row] != delta[0]).float().mean()) < 0.02
    assert float(found.abs().max()) == pytest.approx(0.2)


@pytest.mark.parametrize("step", [1, 4])
def test_images_whose_search_is_over_are_left_out(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The perturbations and the gradient are those of passes over all images."""
    monkeypatch.setattr(sau, "_BATCH_STEP", step)
    defense, original, net = tuned_apart()
    defense.adv_weight = 0.0
    images, labels = next(clean_images(24).batches(24))
    sizes = []
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    loss = defense.loss(net, images, labels)
    assert min(sizes) < 24
    found = torch.autograd.grad(loss, list(net.parameters()))
    unit = torch.tensor([5.0, 4.0, 2.0]).view(1, 3, 1, 1)
    delta = torch.full_like(images, 0.2)
    for _ in range(5):
        delta.requires_grad_()
        moved = images + delta * unit
        cost = defense.search_loss(net(moved), original(moved), labels)
        (slope,) = torch.autograd.grad(cost, delta)
        delta = (delta.detach() - 0.2 * slope.sign()).clamp(-0.2, 0.2)
    # A sign may turn over rounding where a slope is about 0.
    assert float((defense.perturb(net, images, labels) != delta).float().mean()) < 0.01
    moved = images + defense.perturb(net, images, labels) * unit
    answer = original(moved).argmax(1)
    expected = 0.5 * functional.cross_entropy(net(images), labels)
    expected = expected + 2.0 * unlearning_loss(net(moved), answer, answer != labels)
    torch.testing.assert_close(loss, expected)
    for got, wanted in zip(
        found, torch.autograd.grad(expected, list(net.parameters())), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_the_loss_is_that_of_a_loop_over_images() -> None:
    defense, original, net = tuned_apart()
    images, labels = next(clean_images().batches(16))
    delta = defense.perturb(net, images, labels)
    moved = images + delta * torch.tensor([5.0, 4.0, 2.0]).view(1, 3, 1, 1)
    with torch.no_grad():
        answers = original(moved).argmax(1).tolist()
        clean_rows, moved_rows = probabilities(net(images)), probabilities(net(moved))
    expected, counted, shared = 0.0, 0, 0
    for row, label in enumerate(labels.tolist()):
        expected -= 0.5 * math.log(clean_rows[row][label])
        expected -= 0.25 * math.log(moved_rows[row][label])
        if answers[row] != label:
            counted += 1
            shared += moved_rows[row].index(max(moved_rows[row])) == answers[row]
            expected -= 2.0 * math.log(1 - moved_rows[row][answers[row]])
    assert counted > 0
    loss = defense.loss(net, images, labels)
    assert float(loss.detach()) == pytest.approx(expected / 16, rel=1e-4)
    rates = defense.statistics()
    assert float(rates["fooled_original"]) == pytest.approx(counted / 16)
    assert float(rates["shared"]) == pytest.approx(shared / 16)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    logits = net(moved)
    log_other = torch.log1p(-logits.softmax(1)[range(16), answers])
    wrong = torch.tensor(answers) != labels
    again = (
        0.5 * functional.cross_entropy(net(images), labels)
        + 0.25 * functional.cross_entropy(logits, labels)
        - 2.0 * (log_other * wrong).mean()
    )
    for got, wanted in zip(
        gradients, torch.autograd.grad(again, list(net.parameters())), strict=True
    ):
        assert torch.allclose(got, wanted, atol=1e-5)


def test_unlearning_has_a_slope_where_the_answer_is_certain() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = unlearning_loss(logits, torch.tensor([0]), torch.tensor([True]))
    assert float(loss.detach()) == pytest.approx(200 - math.log(2))
    (slope,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(slope, torch.tensor([[1.0, -0.5, -0.5]]))


def test_a_run_keeps_the_original_and_the_running_statistics() -> None:
    net = tiny.conv_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    defense = SharedAdversarialUnlearning(adv_steps=2)
    drive(defense, net, clean_images(), epochs=3, lr=0.05)
    other = tiny.conv_net()
    images = tiny.images(3, seed=9) / 255
    assert torch.equal(call_with(net, defense.original, images), other.eval()(images))
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == (name in dict(net.named_buffers()))


@pytest.mark.parametrize(
    "arguments",
    [{"radius": -1}, {"adv_lr": -1}, {"adv_steps": 1.5}, {"clean_weight": -1}, {"fool_weight": -1}],
)
def test_refuses_arguments(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=f"Expected `{name}` to be a"):
        SharedAdversarialUnlearning(**arguments)
