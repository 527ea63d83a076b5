"""`purify(net, loader, defense)` in Python."""

import copy
import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fst_lightning import PurificationModule, purify
from fst_lightning.defenses import (
    FST,
    AdversarialNeuronPruning,
    ChannelLipschitzPruning,
    CleanData,
    DatasetDefense,
    Defense,
    FineTuning,
    LinearProbing,
    NeuralCleanse,
    NoDefense,
    PoisonedData,
)
from fst_lightning.models import small_resnet
from tests import tiny

Pairs = DataLoader[tuple[Tensor, ...]]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return small_resnet(3, width=4)


@pytest.fixture
def loader() -> Pairs:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(24, 3, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(24) % 3), batch_size=8)


def same(one: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def test_purifies_a_copy(net: nn.Module, loader: Pairs) -> None:
    before, training = copy.deepcopy(net), net.training
    purified = purify(net, loader, FST(alpha=0.1), max_epochs=2, accelerator="cpu")
    assert same(net, before)
    assert net.training == training
    assert purified is not net
    assert type(purified) is type(net)
    assert not same(purified, net)
    assert not purified.training
    assert all(parameter.requires_grad for parameter in purified.parameters())


def test_is_what_the_module_does_by_hand(net: nn.Module, loader: Pairs, tmp_path: Path) -> None:
    by_hand = copy.deepcopy(net)
    module = PurificationModule(
        by_hand,
        FST(alpha=0.1),
        functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=2),
        seed=5,
    )
    tiny.trainer(tmp_path, max_epochs=2).fit(module, loader)
    purified = purify(net, loader, FST(alpha=0.1), max_epochs=2, lr=0.02, seed=5, accelerator="cpu")
    assert same(purified, by_hand)


def test_the_seed_decides(net: nn.Module, loader: Pairs) -> None:
    seeded = functools.partial(purify, net, loader, max_epochs=1, accelerator="cpu")
    first, again = seeded(FST(), seed=1), seeded(FST(), seed=1)
    assert same(first, again)
    assert not same(first, seeded(FST(), seed=2))


def test_takes_an_optimizer_a_schedule_and_any_iterable(net: nn.Module) -> None:
    batches = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    purified = purify(
        net,
        batches,
        FineTuning(),
        max_epochs=1,
        optimizer=functools.partial(torch.optim.Adam, lr=1e-3),
        scheduler=functools.partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
        accelerator="cpu",
        precision="bf16-mixed",
    )
    assert all(parameter.dtype == torch.float32 for parameter in purified.parameters())
    assert all(bool(torch.isfinite(value).all()) for value in purified.state_dict().values())


def test_other_defenses(net: nn.Module, loader: Pairs) -> None:
    probed = purify(net, loader, LinearProbing(), max_epochs=1, accelerator="cpu")
    changed = {
        name
        for name, value in net.state_dict().items()
        if not probed.state_dict()[name].equal(value)
    }
    assert changed == {"fc.weight", "fc.bias"}
    assert same(purify(net, loader, NoDefense(), max_epochs=1, accelerator="cpu"), net)


class Sees(Defense):
    """Keeps the images of the steps, and those that it is given as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Tensor] = []
        self.clean: CleanData | None = None

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        self.clean = clean

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        self.steps.append(images)
        return super().loss(net, images, labels)


class Holds(Sees):
    held_out = 0.25


class Prunes(Sees):
    tunes = False

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        super().study(net, clean, generator)
        with torch.no_grad():
            next(net.parameters())[0].zero_()


class Drops(DatasetDefense):
    def suspects(
        self, net: nn.Module, poisoned: PoisonedData, generator: torch.Generator
    ) -> Tensor:
        return poisoned.labels == 2


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_a_defense_that_looks_at_all_images(net: nn.Module, loader: Pairs) -> None:
    defense = Sees()
    purify(net, loader, defense, max_epochs=1, accelerator="cpu")
    assert defense.clean is not None
    assert rows(defense.clean.images) == rows(torch.cat(defense.steps))
    assert defense.clean.num_images == 24


def test_a_defense_that_wants_images_held_out(net: nn.Module, loader: Pairs) -> None:
    defense = Holds()
    purify(net, loader, defense, max_epochs=2, seed=1, accelerator="cpu")
    assert defense.clean is not None
    assert defense.clean.held_out is not None
    assert (defense.clean.num_images, defense.clean.held_out.num_images) == (18, 6)
    assert [len(images) for images in defense.steps] == [8, 8, 2] * 2
    assert rows(torch.cat(defense.steps)) == rows(defense.clean.images)
    assert not rows(defense.clean.images) & rows(defense.clean.held_out.images)


def test_a_defense_without_steps(net: nn.Module, loader: Pairs) -> None:
    defense = Prunes()
    purified = purify(net, loader, defense, accelerator="cpu")
    assert defense.clean is not None
    assert defense.clean.num_images == 24
    assert not bool(next(purified.parameters())[0].any())
    assert bool(next(net.parameters())[0].any())
    assert not purified.training
    assert not defense.steps


def test_a_defense_that_cleans_a_training_set(net: nn.Module, loader: Pairs) -> None:
    defense = Drops()
    clean = purify(
        net,
        loader,
        defense,
        max_epochs=30,
        lr=0.1,
        seed=0,
        poisoned_loader=loader,
        accelerator="cpu",
    )
    assert defense.findings() == {"flagged": 8, "num_rows": 24}
    images, labels = (torch.cat(part) for part in zip(*loader, strict=True))
    answers = clean(images).argmax(1)
    # A class that is not among what was trained on is never answered.
    assert not bool((answers == 2).any())
    assert torch.equal(answers[labels != 2], labels[labels != 2])
    with pytest.raises(ValueError, match=r"`poisoned_loader`.*which Drops inspects"):
        purify(net, loader, Drops(), accelerator="cpu")


def test_a_network_without_a_head_is_refused(loader: Pairs) -> None:
    with pytest.raises(ValueError, match="head"):
        purify(nn.Conv2d(3, 3, 3), loader, FST(), accelerator="cpu")


@pytest.mark.parametrize("epochs", [0, -1, 1.5])
def test_epochs_are_one_or_more(epochs: int, net: nn.Module, loader: Pairs) -> None:
    with pytest.raises(ValueError, match="max_epochs"):
        purify(net, loader, FST(), max_epochs=epochs, accelerator="cpu")


@pytest.mark.parametrize(
    ("defense", "words"),
    [
        (NeuralCleanse(threshold=1e9, rounds=1, steps=1, restarts=1), "No class was suspected"),
        (ChannelLipschitzPruning(u=50), "Nothing was pruned"),
        (AdversarialNeuronPruning(max_pruning_ca_drop=0.0), None),
    ],
)
def test_a_defense_that_did_nothing_says_so(defense: Any, words: str | None) -> None:
    """And one that prunes what costs nothing does not warn."""
    loader = DataLoader(TensorDataset(tiny.images(32) / 255, tiny.labels(32)), 8)
    net = tiny.conv_net()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        purified = purify(net, loader, defense, max_epochs=1, lr=0.5, accelerator="cpu", seed=0)
    said = [str(each.message) for each in caught if type(defense).__name__ in str(each.message)]
    pruned = defense.findings().get("pruned_channels")
    if words is None:
        assert bool(said) is (pruned == 0)
        return
    assert len(said) == 1
    assert words in said[0]
    for name, value in purified.state_dict().items():
        assert torch.equal(value, net.state_dict()[name])
