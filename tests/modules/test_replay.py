"""A replayed network is the network: on a GPU by its figures, elsewhere by when it is replayed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.attacks import BadNets, Blind
from fst_lightning.data import BackdoorDataModule
from fst_lightning.defenses import FST, Defense
from fst_lightning.modules import BackdoorModule, PurificationModule, replay
from fst_lightning.modules.replay import ReplayedNetwork
from tests import tiny


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that were captured, on a machine that captures nothing."""
    shapes: list[tuple[int, ...]] = []

    def capture(net: nn.Module, images: Tensor) -> replay.Replay:
        shapes.append(tuple(images.shape))

        def replayed(batch: Tensor, done: Callable[[], None]) -> Tensor:
            assert batch.shape == images.shape
            logits: Tensor = net(batch)
            logits.register_hook(lambda _: done())  # type: ignore[no-untyped-call]
            return logits

        return replayed

    monkeypatch.setattr(replay, "capture", capture)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    return shapes


def steps(network: nn.Module, *batches: Tensor) -> None:
    for batch in batches:
        network(batch).sum().backward()


def test_the_third_batch_of_a_shape_is_captured(captures: list[tuple[int, ...]]) -> None:
    network = ReplayedNetwork(tiny.conv_net())
    full, part = torch.rand(4, 3, 8, 8), torch.rand(2, 3, 8, 8)
    steps(network, full, full, part)
    assert captures == []
    steps(network, full, full, part, full, part)
    assert captures == [(4, 3, 8, 8), (2, 3, 8, 8)]


@pytest.mark.parametrize("change", ["mode", "weights", "parameter", "frozen"])
def test_a_changed_network_is_captured_anew(change: str, captures: list[tuple[int, ...]]) -> None:
    net = tiny.conv_net()
    network, batch = ReplayedNetwork(net), torch.rand(4, 3, 8, 8)
    steps(network, batch, batch, batch)
    first = next(net.parameters())
    if change == "mode":
        next(part for part in net.modules() if isinstance(part, nn.BatchNorm2d)).eval()
    elif change == "weights":
        first.data = first.data.clone()
    elif change == "parameter":
        conv = next(part for part in net.modules() if isinstance(part, nn.Conv2d))
        conv.weight = nn.Parameter(conv.weight.data)
    elif change == "frozen":
        first.requires_grad_(False)
    steps(network, batch, batch)
    assert len(captures) == 1
    steps(network, batch)
    assert len(captures) == 2


def test_a_network_that_changes_in_every_step_is_never_captured(
    captures: list[tuple[int, ...]],
) -> None:
    net = tiny.conv_net()
    network, batch = ReplayedNetwork(net), torch.rand(2, 3, 8, 8)
    kept = []
    for _ in range(2 * replay._MOST_KINDS):
        first = next(net.parameters())
        kept.append(first.data)
        first.data = first.data.clone()
        steps(network, batch)
    assert captures == []
    assert len(network._calls) <= replay._MOST_KINDS


def test_graphs_are_few(captures: list[tuple[int, ...]]) -> None:
    network = ReplayedNetwork(tiny.conv_net())
    for count in range(2, 10):
        batch = torch.rand(count, 3, 8, 8)
        steps(network, batch, batch, batch, batch)
    assert len(captures) == replay._MOST_GRAPHS


def test_what_a_replay_would_get_wrong_is_called_as_it_is(
    captures: list[tuple[int, ...]],
) -> None:
    net = tiny.conv_net()
    network, batch = ReplayedNetwork(net), torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        for _ in range(4):
            network(batch)
    for _ in range(4):
        network(batch.clone().requires_grad_()).sum().backward()
    hook = next(iter(net.children())).register_forward_hook(lambda *_: None)
    steps(network, batch, batch, batch, batch)
    assert captures == []
    hook.remove()
    steps(network, batch, batch, batch)
    assert len(captures) == 1


def test_a_second_batch_before_the_gradients_of_the_first_is_not_replayed(
    captures: list[tuple[int, ...]],
) -> None:
    network, batch = ReplayedNetwork(tiny.conv_net()), torch.rand(4, 3, 8, 8)
    steps(network, batch, batch, batch)
    ((kind, graph),) = network._graphs.items()
    replayed: list[int] = []

    def counted(images: Tensor, done: Callable[[], None]) -> Tensor:
        replayed.append(1)
        return graph(images, done)

    network._graphs[kind] = counted
    first, second = network(batch), network(batch)
    assert len(replayed) == 1
    (first + second).sum().backward()
    steps(network, batch)
    assert len(replayed) == 2


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_that_are_added_up_are_not_replayed(
    accumulate: int, captures: list[tuple[int, ...]], tmp_path: Path
) -> None:
    attack = BadNets(poison_ratio=0.1)
    module = BackdoorModule(tiny.conv_net(), attack)
    data = BackdoorDataModule(tiny.source(), attack, batch_size=15)
    trainer = tiny.trainer(tmp_path, accumulate_grad_batches=accumulate)
    trainer.fit(module, data)
    assert captures == ([(15, 3, 8, 8)] if accumulate == 1 else [])


def test_a_network_that_can_not_be_captured_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, captures: list[tuple[int, ...]]
) -> None:
    def refuse(net: nn.Module, images: Tensor) -> replay.Replay:
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors")

    monkeypatch.setattr(replay, "capture", refuse)
    network, batch = ReplayedNetwork(tiny.conv_net()), torch.rand(4, 3, 8, 8)
    steps(network, batch, batch)
    with pytest.warns(UserWarning, match="not replayed as CUDA graphs: operation not permitted"):
        steps(network, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(network, batch, batch)


class _Twice(Defense):
    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(net(images) + net(images), labels)


def test_only_aims_that_take_gradients_once_are_replayed() -> None:
    replayed = {
        "attack": BackdoorModule(tiny.conv_net(), BadNets())._answer,
        "attack with an aim of its own": BackdoorModule(tiny.conv_net(), Blind())._answer,
        "defense": PurificationModule(tiny.conv_net(), FST())._tuned,
        "defense with a loss of its own": PurificationModule(tiny.conv_net(), _Twice())._tuned,
        "told not to": PurificationModule(tiny.conv_net(), FST(), cuda_graphs=False)._tuned,
    }
    assert [name for name, net in replayed.items() if getattr(net, "enabled", False)] == [
        "attack",
        "defense",
    ]


def test_a_replayed_network_is_no_second_owner() -> None:
    plain = BackdoorModule(tiny.conv_net(), BadNets(), cuda_graphs=False)
    module = BackdoorModule(tiny.conv_net(), BadNets())
    assert set(module.state_dict()) == set(plain.state_dict())
    assert len(list(module.parameters())) == len(list(plain.parameters()))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_replayed_training_is_the_same_training(
    precision: Any, accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(graphs: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        attack = BadNets(poison_ratio=0.1)
        module = BackdoorModule(
            tiny.conv_net(), attack, horizontal_flip=True, seed=0, cuda_graphs=graphs
        )
        data = BackdoorDataModule(tiny.source(), attack, batch_size=16)
        trainer = tiny.trainer(
            tmp_path,
            max_epochs=4,
            accelerator="gpu",
            precision=precision,
            accumulate_grad_batches=accumulate,
        )
        trainer.fit(module, data)
        return copy.deepcopy(module.net.cpu().state_dict())

    captured: list[tuple[int, ...]] = []
    capture = replay.capture

    def counted(net: nn.Module, images: Tensor) -> replay.Replay:
        captured.append(tuple(images.shape))
        return capture(net, images)

    monkeypatch.setattr(replay, "capture", counted)
    expected = run(False)
    assert captured == []
    found = run(True)
    assert captured == ([(16, 3, 8, 8), (12, 3, 8, 8)] if accumulate == 1 else [])
    for name, value in expected.items():
        assert torch.allclose(value, found[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.gpu
def test_a_capture_leaves_the_network_as_it_was() -> None:
    net = tiny.conv_net().cuda()
    net(torch.rand(8, 3, 8, 8, device="cuda"))
    images = torch.rand(4, 3, 8, 8, device="cuda")
    before, state = copy.deepcopy(net.state_dict()), torch.cuda.get_rng_state()
    graph = replay.capture(net, images)
    for name, value in before.items():
        assert torch.equal(value, net.state_dict()[name]), name
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in net.parameters())
    images, labels = torch.rand_like(images), torch.tensor([0, 1, 2, 0], device="cuda")
    torch.autograd.backward(functional.cross_entropy(graph(images, lambda: None), labels))
    gradients = [parameter.grad.clone() for parameter in net.parameters()]  # type: ignore[union-attr]
    net.load_state_dict(before)
    net.zero_grad()
    torch.autograd.backward(functional.cross_entropy(net(images), labels))
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]
