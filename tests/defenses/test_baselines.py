"""FT, LP, FE-tuning, FT-init and the defense that does nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses import (
    FST,
    Defense,
    FeatureExtractorTuning,
    FineTuning,
    FineTuningInit,
    HeadDefense,
    LinearProbing,
    NoDefense,
)
from tests import tiny

ALL: list[type[HeadDefense]] = [
    FineTuning,
    LinearProbing,
    FeatureExtractorTuning,
    FineTuningInit,
    FST,
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(kind: type[HeadDefense], **arguments: Any) -> HeadDefense:
    return kind(**arguments)


def trained_names(net: nn.Module) -> set[str]:
    return {name for name, parameter in net.named_parameters() if parameter.requires_grad}


def tune(net: nn.Module, defense: Defense, steps: int = 4) -> None:
    """A training loop as a user would write it, by the order that Defense documents."""
    defense.prepare(net, seeded())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1, 0.9)
    net.train()
    for module in defense.always_eval():
        module.eval()
    for step in range(steps):
        images = tiny.images(8, seed=step).float() / 255
        loss = defense.loss(net, images, tiny.labels(8, seed=step))
        penalty = defense.penalty()
        optimizer.zero_grad()
        torch.autograd.backward(loss if penalty is None else loss + penalty)
        optimizer.step()
        defense.after_step()
    defense.finish()
    net.eval()


def changed(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in net.state_dict().items() if not value.equal(before[name])}


HEAD = {"head.weight", "head.bias"}
FEATURES = {"conv1.weight", "conv2.weight", "bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias"}
STATISTICS = {
    f"{bn}.{name}"
    for bn in ("bn1", "bn2")
    for name in ("running_mean", "running_var", "num_batches_tracked")
}


@pytest.mark.parametrize(
    ("kind", "trained", "moved"),
    [
        (FineTuning, HEAD | FEATURES, HEAD | FEATURES | STATISTICS),
        (LinearProbing, HEAD, HEAD),
        (FeatureExtractorTuning, FEATURES, HEAD | FEATURES | STATISTICS),
        (FineTuningInit, HEAD | FEATURES, HEAD | FEATURES | STATISTICS),
        (FST, HEAD | FEATURES, HEAD | FEATURES | STATISTICS),
    ],
)
def test_what_is_trained_and_what_moves(
    kind: type[HeadDefense], trained: set[str], moved: set[str]
) -> None:
    net = tiny.conv_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    probe = tiny.conv_net()
    make(kind).prepare(probe, seeded())
    assert trained_names(probe) == trained
    tune(net, make(kind))
    assert changed(net, before) == moved
    assert trained_names(net) == HEAD | FEATURES


def test_batch_norm_does_not_drift_under_linear_probing() -> None:
    net = tiny.conv_net(dropout=0.5)
    images = tiny.images(16).float() / 255
    features = nn.Sequential(*list(net.children())[:-1])
    net.eval()
    before = features(images)
    net.train()
    tune(net, LinearProbing(), steps=10)
    assert torch.equal(features(images), before)


@pytest.mark.parametrize("reinit", ["uniform", "orthogonal"])
def test_the_head_of_fe_tuning_is_random_and_stays(reinit: Any) -> None:
    net, other = tiny.conv_net(), tiny.conv_net()
    FeatureExtractorTuning(reinit=reinit).prepare(other, seeded())
    tune(net, FeatureExtractorTuning(reinit=reinit), steps=10)
    for name in HEAD:
        assert torch.equal(net.state_dict()[name], other.state_dict()[name])
        assert not torch.equal(net.state_dict()[name], tiny.conv_net().state_dict()[name])


def test_finish_leaves_frozen_what_the_user_had_frozen() -> None:
    net = tiny.conv_net()
    frozen = net.get_parameter("conv1.weight")
    frozen.requires_grad_(False)
    defense = LinearProbing()
    defense.prepare(net, seeded())
    defense.finish()
    assert not frozen.requires_grad
    assert trained_names(net) == (HEAD | FEATURES) - {"conv1.weight"}
    defense.finish()


def test_prepare_again_starts_anew() -> None:
    first, second = tiny.conv_net(), tiny.conv_net(3, seed=1)
    defense = LinearProbing()
    defense.prepare(first, seeded())
    defense.prepare(second, seeded())
    assert trained_names(first) == HEAD | FEATURES
    assert trained_names(second) == HEAD
    assert defense.linear is second.get_submodule("head")
    assert list(defense.always_eval()) == [second]


@pytest.mark.parametrize("kind", [FineTuning, FineTuningInit, LinearProbing])
@pytest.mark.parametrize("project", [True, False])
def test_the_norm_is_kept_where_asked(kind: type[HeadDefense], project: bool) -> None:
    net = tiny.conv_net()
    norm = float(net.get_parameter("head.weight").detach().norm())
    tune(net, make(kind, project_norm=project))
    kept = float(net.get_parameter("head.weight").detach().norm())
    assert (kept == pytest.approx(norm, rel=1e-6)) == project


@pytest.mark.parametrize("kind", [FineTuning, LinearProbing, FeatureExtractorTuning])
def test_baselines_have_no_penalty(kind: type[HeadDefense]) -> None:
    defense = make(kind)
    defense.prepare(tiny.conv_net(), seeded())
    assert defense.penalty() is None


@pytest.mark.parametrize("kind", ALL)
def test_the_head_argument_reaches_every_baseline(kind: type[HeadDefense]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    defense = make(kind, head="1")
    defense.prepare(net, seeded())
    assert defense.linear is net[1]


def test_no_defense_leaves_everything() -> None:
    net = tiny.conv_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    defense = NoDefense()
    assert not defense.tunes
    defense.prepare(net, seeded())
    defense.after_step()
    defense.finish()
    assert not changed(net, before)
    assert all(kind.tunes for kind in ALL)


class OwnLoss(Defense):
    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return functional.multi_margin_loss(net(images), labels)


class OwnPenalty(Defense):
    def penalty(self) -> Tensor | None:
        return torch.zeros(())


def test_which_defenses_need_the_batch() -> None:
    assert OwnLoss().needs_batch
    assert not OwnPenalty().needs_batch
    assert not NoDefense().needs_batch
    assert not any(make(kind).needs_batch for kind in ALL)


def test_the_default_loss_is_cross_entropy() -> None:
    net = tiny.conv_net().eval()
    images, labels = tiny.images(6).float() / 255, tiny.labels(6)
    probabilities = net(images).double().softmax(dim=1)
    expected = -probabilities[torch.arange(6), labels].log().mean()
    assert float(Defense().loss(net, images, labels).detach()) == pytest.approx(
        float(expected.detach()), rel=1e-5
    )


def test_a_network_is_no_part_of_the_defense() -> None:
    defense = FST()
    defense.prepare(tiny.conv_net(), seeded())
    assert not list(defense.parameters())
    assert list(defense.state_dict()) == ["original_weight"]


@pytest.mark.parametrize("kind", [k for k in ALL if k is not FineTuning])
def test_what_acts_on_the_head_needs_one(kind: type[HeadDefense]) -> None:
    defense = make(kind)
    assert defense.needs_head
    beside = nn.ModuleDict({"net": tiny.conv_net(), "critic": nn.Linear(3, 3)})
    with pytest.raises(ValueError, match="More than one layer could be the head"):
        defense.prepare(beside, seeded())


def test_plain_fine_tuning_needs_no_head() -> None:
    assert FineTuning(project_norm=True).needs_head
    defense = FineTuning()
    assert not defense.needs_head
    beside = nn.ModuleDict({"net": tiny.conv_net(), "critic": nn.Linear(3, 3)})
    before = {name: value.clone() for name, value in beside.state_dict().items()}
    defense.prepare(beside, seeded())
    defense.after_step()
    assert defense.statistics() == {}
    defense.finish()
    assert all(torch.equal(before[name], value) for name, value in beside.state_dict().items())
    with pytest.raises(ValueError, match="no module of this name"):
        FineTuning(head="nowhere").prepare(beside, seeded())
