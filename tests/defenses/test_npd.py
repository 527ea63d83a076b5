import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses import NeuralPolarizer
from fst_lightning.defenses.npd import Polarizer, best_wrong_class, find_place, fold, log_other
from fst_lightning.models import preact_resnet18, small_resnet, vgg19_bn
from tests.defenses import pruning
from tests.defenses.drive import drive


def scrambled(polarizer: Polarizer, seed: int = 3) -> None:
    generator = pruning.seeded(seed)
    with torch.no_grad():
        for parameter in polarizer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 4)


@pytest.mark.parametrize("layer", ["conv1", "layer3.0.conv2", "layer4.0.downsample.0"])
def test_the_layer_is_folded_without_a_trace(layer: str) -> None:
    net, clean = pruning.network(), pruning.clean_data()
    names, untouched = list(net.state_dict()), pruning.logits(net, clean)
    defense = NeuralPolarizer(layer=layer)
    defense.prepare(net, pruning.seeded())
    torch.testing.assert_close(pruning.logits(net, clean), untouched)  # the identity, at first
    scrambled(defense._polarizer[0])
    polarized = pruning.logits(net, clean)
    assert not torch.allclose(polarized, untouched, atol=1e-2)
    defense.finish()
    defense.finish()
    torch.testing.assert_close(pruning.logits(net, clean), polarized, atol=1e-5, rtol=1e-5)
    assert list(net.state_dict()) == names
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("bias", [True, False])
def test_folding_with_and_without_a_bias(bias: bool) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 6, 3, stride=2, bias=bias), nn.BatchNorm2d(6)
    norm.running_mean = torch.randn(6)
    norm.running_var = torch.rand(6) + 0.5
    polarizer = Polarizer(conv.weight)
    scrambled(polarizer)
    images = torch.randn(4, 3, 9, 9)
    norm.eval()
    expected = norm(torch.einsum("oc,nchw->nohw", polarizer.weight, conv(images)))
    shift = norm.weight * polarizer.bias / (norm.running_var + norm.eps).sqrt()
    expected = expected + shift[:, None, None]
    torch.testing.assert_close(norm(polarizer(conv(images))), expected, atol=1e-5, rtol=1e-5)
    fold(polarizer, conv, norm)
    torch.testing.assert_close(norm(conv(images)), expected, atol=1e-5, rtol=1e-5)


def test_after_training_it_is_an_ordinary_network_too() -> None:
    pruning.assert_folds(NeuralPolarizer(), pruning.network(), pruning.clean_data())


def test_all_but_the_layer_is_frozen_and_in_evaluation_mode() -> None:
    net, clean = pruning.network(), pruning.clean_data(8)
    before = copy.deepcopy(net.state_dict())
    defense = NeuralPolarizer()
    pruning.after_steps(defense, net, clean)
    assert [n for n, p in net.named_parameters() if p.requires_grad] == [
        "layer4.0.conv1.polarizer.weight",
        "layer4.0.conv1.polarizer.bias",
    ]
    assert list(defense.always_eval()) == [net]
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert float(defense.statistics()["polarizer_distance"]) > 0
    defense.finish()


def slow_log_other(logits: Tensor, k: int) -> Tensor:
    return torch.log(sum(p for j, p in enumerate(logits.softmax(0)) if j != k))


def test_the_loss_image_by_image() -> None:
    net, clean = pruning.network(), pruning.clean_data(6)
    images, labels = clean.normalize(clean.images), clean.labels
    defense = NeuralPolarizer(
        radius=0.5, clean_weight=0.9, adv_weight=0.5, wrong_weight=0.3, target_weight=0.2
    )
    defense.prepare(net, pruning.seeded())
    defense.study(net, clean, pruning.seeded())
    found = defense.loss(net, images, labels)
    clean_logits = net(images)
    targets = torch.tensor(
        [
            max((k for k in range(4) if k != y), key=lambda k: float(row[k]))
            for row, y in zip(clean_logits, labels.tolist(), strict=True)
        ]
    )
    moved = net(defense.adversarial(net, images, targets))
    total = torch.zeros(())
    for row in range(6):
        y, t = int(labels[row]), int(targets[row])
        wrong = max((k for k in range(4) if k != y), key=lambda k: float(moved[row, k]))
        total = total - 0.9 * clean_logits[row].log_softmax(0)[y]
        total = total - 0.5 * moved[row].log_softmax(0)[y]
        total = total - 0.3 * slow_log_other(moved[row], wrong)
        total = total - 0.2 * slow_log_other(moved[row], t)
    torch.testing.assert_close(found, total / 6, atol=1e-5, rtol=1e-5)
    defense.finish()


@pytest.mark.parametrize(("rate", "label", "passes"), [(1.0, 0, 3), (0.0, 0, 2), (0.0, 1, 1)])
def test_no_point_is_asked_twice(rate: float, label: int, passes: int) -> None:
    """The gradient is that of a pass on the images and one on the adversarial examples."""
    net, clean = pruning.network(), pruning.clean_data(8)
    images = clean.normalize(clean.images)
    defense = NeuralPolarizer(radius=5.0, adv_rate=rate)
    defense.prepare(net, pruning.seeded())
    defense.study(net, clean, pruning.seeded())
    scrambled(defense._polarizer[0])
    # With the second class as the label, the network prefers the target from the start.
    labels = net.eval()(images).topk(2).indices[:, label]
    trained = list(defense._polarizer[0].parameters())
    asked: list[int] = []
    handle = net.register_forward_hook(lambda *_: asked.append(1))
    found = defense.loss(net, images, labels)
    handle.remove()
    logits = net(images)
    target = best_wrong_class(logits, labels)
    moved = net(defense.adversarial(net, images, target))
    expected = functional.cross_entropy(logits, labels)
    expected = expected + 0.4 * functional.cross_entropy(moved, labels)
    expected = expected - 0.4 * log_other(moved, best_wrong_class(moved, labels)).mean()
    expected = expected - 0.4 * log_other(moved, target).mean()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for got, wanted in zip(
        torch.autograd.grad(found, trained), torch.autograd.grad(expected, trained), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    assert len(asked) == passes + 2  # and two of the comparison before BatchNorm is folded
    defense.finish()


def test_adversarial_examples_stay_in_their_ball_and_come_closer_to_their_target() -> None:
    net, clean = pruning.network(), pruning.clean_data(8)
    images = clean.normalize(clean.images)
    defense = NeuralPolarizer(radius=0.7, adv_rate=1.0, adv_steps=3, adv_lr=0.05)
    defense.prepare(net, pruning.seeded())
    defense.study(net, clean, pruning.seeded())
    target = (net(images).argmax(1) + 1) % 4
    moved = defense.adversarial(net, images, target)
    distance = (clean.pixels(moved) - clean.pixels(images)).flatten(1).norm(dim=1)
    assert float(distance.max()) <= 0.7 * (1 + 1e-4)
    assert float(distance.min()) >= 0.7 * (1 - 1e-3)  # 3 steps of 0.05 in 432 pixels reach further
    before = functional.cross_entropy(net(images), target)
    assert functional.cross_entropy(net(moved), target) < before
    assert all(p.grad is None for p in net.parameters())
    defense.finish()


def test_one_sign_step_is_of_the_given_length() -> None:
    net, clean = pruning.network(), pruning.clean_data(4)
    images = clean.normalize(clean.images)
    defense = NeuralPolarizer(radius=1e6, adv_rate=1.0, adv_steps=1, adv_lr=0.05)
    defense.prepare(net, pruning.seeded())
    defense.study(net, clean, pruning.seeded())
    target = torch.tensor([1, 2, 3, 0])
    leaf = images.clone().requires_grad_()
    functional.cross_entropy(net(leaf), target).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    expected = clean.pixels(images) - 0.05 * leaf.grad.sign()
    moved = clean.pixels(defense.adversarial(net, images, target))
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=1e-4)
    # With everything misled from the start there is nothing to do.
    defense.adv_rate = 0.9
    assert torch.equal(defense.adversarial(net, images, net(images).argmax(1)), images)
    defense.finish()


def test_it_lowers_its_loss() -> None:
    net, clean = pruning.network(), pruning.clean_data()
    clean.labels = pruning.logits(net, clean).argmax(1)
    losses = drive(NeuralPolarizer(radius=0.5), net, clean, epochs=5, lr=0.05)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_the_place_that_is_chosen() -> None:
    assert find_place(small_resnet(4, width=4))[0] == "layer4.0.conv1"
    assert find_place(small_resnet(4, width=4, blocks=2))[0] == "layer4.1.conv1"
    assert find_place(preact_resnet18(4, width=4))[0] == "layer4.0.conv1"
    assert find_place(preact_resnet18(4, width=4), "layer4.1.conv1")[0] == "layer4.1.conv1"
    assert find_place(vgg19_bn(4))[0] == "features.46"
    assert find_place(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))[0] == "0"


def test_a_wrong_place_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'layer4.0.con1'. Did you mean 'layer4.0.conv1'"):
        find_place(small_resnet(4, width=4), "layer4.0.con1")
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="Expected an ungrouped convolution"):
        find_place(grouped)


def test_the_best_wrong_class_may_have_a_negative_logit() -> None:
    logits = torch.tensor([[3.0, -2.0, -1.0], [-5.0, -4.0, -6.0]])
    assert best_wrong_class(logits, torch.tensor([0, 1])).tolist() == [2, 0]


def test_the_logarithm_of_the_rest_is_finite_for_certain_classes() -> None:
    certain = log_other(torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([0]))
    assert float(certain) == pytest.approx(-200 + 0.6931, abs=1e-3)


@pytest.mark.parametrize(
    "arguments", [{"radius": -1}, {"adv_steps": 0}, {"adv_rate": 2}, {"clean_weight": -1}]
)
def test_arguments_are_checked(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
        NeuralPolarizer(**arguments)  # type: ignore[arg-type]
