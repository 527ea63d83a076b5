from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses import CleanData, NeuralAttentionDistillation
from fst_lightning.defenses.common.whole_set import tune
from fst_lightning.defenses.nad import attention, find_stages
from fst_lightning.models import preact_resnet18, small_resnet, vgg19_bn
from tests import tiny
from tests.defenses.drive import drive


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clean_images(count: int = 16) -> CleanData:
    return CleanData(tiny.images(count), tiny.labels(count), mean=[0.5] * 3, std=[0.25] * 3)


def slow_map(features: Tensor, power: float) -> list[list[float]]:
    """(N, C, H, W) to unit vectors of H * W, value by value."""
    rows = []
    for image in features.double().numpy():
        values = [
            sum(abs(image[c, y, x]) ** power for c in range(image.shape[0]))
            for y in range(image.shape[1])
            for x in range(image.shape[2])
        ]
        rows.append((np.array(values) / np.sqrt(sum(v * v for v in values))).tolist())
    return rows


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_the_attention_map(power: float) -> None:
    features = torch.randn(3, 5, 4, 2, generator=seeded())
    maps = attention(features, power)
    assert torch.allclose(maps, torch.tensor(slow_map(features, power)), atol=1e-6)


def test_channels_may_come_last() -> None:
    features = torch.randn(2, 6, 4, 4, generator=seeded())
    assert torch.allclose(attention(features.permute(0, 2, 3, 1)), attention(features))


def test_the_loss_is_the_sum_over_layers_images_and_positions() -> None:
    net = tiny.conv_net()
    defense = NeuralAttentionDistillation(beta=(3.0, 5.0, 7.0), teacher_epochs=2, teacher_lr=0.1)
    clean = clean_images()
    defense.prepare(net, seeded())
    teacher = tiny.conv_net()
    tune(teacher.eval(), clean, seeded(4), epochs=2, lr=0.1)
    net.eval()
    defense.study(net, clean, seeded(4))
    images, labels = next(clean.batches(6))
    twin = tiny.conv_net().train()
    net.train()
    loss = defense.loss(net, images, labels)
    # Two stages above 1x1 positions: the last two weights count.
    expected, student, teaching = 0.0, images, images
    with torch.no_grad():
        for name, layer in twin.named_children():
            student, teaching = layer(student), teacher.get_submodule(name)(teaching)
            if name in ("relu1", "relu2"):
                wanted, got = slow_map(teaching, 2), slow_map(student, 2)
                squares = [
                    (a - b) ** 2
                    for u, v in zip(wanted, got, strict=True)
                    for a, b in zip(u, v, strict=True)
                ]
                expected += {"relu1": 5.0, "relu2": 7.0}[name] * sum(squares) / len(squares)
        cross_entropy = float(functional.cross_entropy(student, labels))
    assert expected > 0.01
    assert float(loss.detach()) == pytest.approx(cross_entropy + expected, rel=1e-4)
    assert float(defense.statistics()["attention_distance"]) == pytest.approx(expected, rel=1e-4)
    assert defense.findings() == {"layers": ["relu1", "relu2"]}


def test_only_the_student_learns() -> None:
    net = tiny.conv_net()
    defense = NeuralAttentionDistillation(teacher_epochs=1)
    defense.prepare(net, seeded())
    net.eval()
    defense.study(net, clean_images(), seeded())
    kept = defense.teacher.clone()
    statistics = {name: b.clone() for name, b in net.named_buffers()}
    assert all(torch.equal(b, tiny.conv_net().get_buffer(n)) for n, b in statistics.items())
    torch.autograd.backward(defense.loss(net.train(), *next(clean_images().batches(8))))
    assert torch.equal(defense.teacher, kept)
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert int(net.get_buffer("bn1.num_batches_tracked")) == 1
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("net", "size", "stages"),
    [
        (small_resnet(4, width=2), 32, ["layer1", "layer2", "layer3", "layer4"]),
        (small_resnet(4, width=2), 8, ["layer1", "layer2", "layer3"]),
        (preact_resnet18(4, width=2), 16, ["layer1", "layer2", "layer3", "relu"]),
        (vgg19_bn(4), 32, None),
    ],
)
def test_the_last_module_of_each_resolution_ends_a_stage(
    net: nn.Module, size: int, stages: list[str] | None
) -> None:
    found = find_stages(net, torch.rand(1, 3, size, size))
    if stages is None:
        sizes = []
        for name in found:
            layer = net.get_submodule(name)
            layer.register_forward_hook(lambda _, __, output: sizes.append(output.shape[-1]))
        net.eval()(torch.rand(1, 3, size, size))
        assert sizes == [32, 16, 8, 4, 2]
    else:
        assert found == stages


def test_layers_that_are_named() -> None:
    defense = NeuralAttentionDistillation(beta=[1, 2], layers=["conv1", "conv2"])
    net = tiny.conv_net()
    defense.prepare(net, seeded())
    defense.loss(net, *next(clean_images().batches(8)))
    assert defense.findings() == {"layers": ["conv1", "conv2"]}
    with pytest.raises(ValueError, match=r"`conv3` is none. Did you mean `conv\d`"):
        NeuralAttentionDistillation([1, 2], layers=["conv1", "conv3"]).prepare(net, seeded())


def test_a_network_without_maps_is_refused() -> None:
    net = tiny.linear_net(3 * tiny.SIZE**2)
    defense = NeuralAttentionDistillation()
    defense.prepare(net, seeded())
    with pytest.raises(ValueError, match=r"features of .* but Sequential has none"):
        defense.study(net, clean_images(), seeded())


def test_a_run_that_is_resumed_finds_teacher_and_layers() -> None:
    net = tiny.conv_net()
    first = NeuralAttentionDistillation(teacher_epochs=1, teacher_lr=0.1)
    first.prepare(net, seeded())
    first.study(net.eval(), clean_images(), seeded())
    second = NeuralAttentionDistillation()
    second.prepare(tiny.conv_net(seed=1), seeded())
    second.load_state_dict(first.state_dict())
    batch = next(clean_images().batches(8))
    assert torch.equal(first.loss(net, *batch), second.loss(net, *batch))


def test_a_run() -> None:
    losses = drive(
        NeuralAttentionDistillation([1.0, 1.0, 1.0], teacher_epochs=1),
        tiny.conv_net(),
        clean_images(),
        epochs=10,
    )
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": []}, "`beta` to be a list of numbers of 0 or more, but got"),
        ({"beta": "12"}, "`beta` to be a list of numbers of 0 or more, but got"),
        (
            {"beta": [1.0, -1.0]},
            r"`beta` to be a list of numbers of 0 or more, but got \[1.0, -1.0\]",
        ),
        ({"power": 0}, "`power` to be a number greater than 0"),
        ({"layers": ["conv1"]}, "one layer for each of the 3 numbers"),
        ({"layers": "conv1"}, "one layer for each of the 3 numbers"),
        ({"teacher_epochs": 1.5}, "`teacher_epochs` to be a whole number"),
    ],
)
def test_refuses_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeuralAttentionDistillation(**arguments)
