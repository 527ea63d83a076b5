"""Sources of triggers: what they put on images, and what they remember."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fst_lightning.defenses import CleanData, FineTuning
from fst_lightning.defenses.triggers import (
    AdversarialTriggers,
    InvertedTriggers,
    PatchTriggers,
    RandomTriggers,
    TriggerSource,
    put_triggers,
    study_sources,
)
from fst_lightning.modules import PurificationModule
from fst_lightning.pipelines import purify
from tests import tiny
from tests.defenses.common.test_trigger_generator import Planted, planted_data
from tests.modules.test_inputs import Peek

SMALL: dict[str, Any] = {"generator_epochs": 1, "generator_width": 4, "mask_steps": 3}


class White(TriggerSource):
    """Makes images white, and counts its studies."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__(share)
        self.studied: list[Tensor] = []

    @property
    def ready(self) -> bool:
        return bool(self.studied)

    def study(self, net: nn.Module, clean: Any, generator: torch.Generator) -> None:
        self.studied.append(torch.cat([p.detach().flatten() for p in net.parameters()]))

    def trigger(self, images: Tensor, labels: Tensor, classify: Any) -> Tensor:
        return torch.ones_like(images)


def nothing(images: Tensor) -> Tensor:
    return images


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_a_share_of_the_images_gets_a_trigger(share: float, count: int) -> None:
    images = torch.zeros(8, 3, 4, 4)
    changed = White(share)(images, torch.zeros(8), nothing).flatten(1).mean(1)
    assert sorted(changed.tolist()) == [0.0] * (8 - count) + [1.0] * count


def test_several_sources_draw_their_own_images() -> None:
    torch.manual_seed(0)
    images, labels = torch.zeros(400, 1, 2, 2), torch.zeros(400)
    once = put_triggers([White(0.5)], images, labels, nothing)
    twice = put_triggers([White(0.5), White(0.5)], images, labels, nothing)
    assert float(once.mean()) == 0.5
    assert float(twice.mean()) == pytest.approx(0.75, abs=0.06)  # 1 - 1/2 * 1/2


def module_of(net: nn.Module, *sources: TriggerSource, **options: Any) -> L.LightningModule:
    return PurificationModule(net, FineTuning(), seed=0, triggers=sources, **options)


@pytest.mark.parametrize("statistics", [True, False])
def test_images_are_changed_in_the_unit_range_and_normalized_after(
    tmp_path: Path, statistics: bool
) -> None:
    """White is 1, or the largest value of images that are normalized by unknown numbers."""
    net, low, high = Peek(), -2.0, 3.0
    images = torch.rand(16, 3, 8, 8)
    images[0], images[1] = 0.0, 1.0
    options: dict[str, Any] = {}
    if statistics:
        options = {"mean": [0.4] * 3, "std": [0.2] * 3}
    else:
        images = low + (high - low) * images
    data = TensorDataset(images, torch.zeros(16, dtype=torch.int64))
    tiny.trainer(tmp_path).fit(module_of(net, White(), **options), DataLoader(data, 16))
    (trained,) = net.seen[True]
    expected = (1 - 0.4) / 0.2 if statistics else high
    assert torch.allclose(trained, torch.full_like(trained, expected))


def test_a_source_studies_the_network_from_before_the_purification(tmp_path: Path) -> None:
    net, rows, source = tiny.conv_net(), tiny.rows(16), White()
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    loader = DataLoader(TensorDataset(rows.images.float() / 255, rows.labels), 8)
    from fst_lightning.defenses import FST

    module = PurificationModule(net, FST(), seed=0, triggers=[source])
    for _ in range(2):
        tiny.trainer(tmp_path).fit(module, loader)
    assert len(source.studied) == 1  # A second fit goes on with what was found in the first one.
    assert torch.equal(source.studied[0], before)


def test_purify_copies_sources() -> None:
    rows, source = tiny.rows(16), White(0.5)
    loader = DataLoader(TensorDataset(rows.images.float() / 255, rows.labels), 8)
    for seed in range(2):
        purify(
            tiny.conv_net(seed=seed),
            loader,
            "ft",
            max_epochs=1,
            triggers=[source],
            accelerator="cpu",
        )
    assert source.studied == []
    with pytest.raises(ValueError, match=r"no `triggers` for ChannelLipschitzPruning"):
        purify(tiny.conv_net(), loader, "clp", triggers=[source])


def test_the_inverted_trigger_is_that_of_the_defense() -> None:
    """In pixels it equals what the defense puts on normalized images."""
    data = tiny.rows(24)
    clean = CleanData(data.images, data.labels, mean=[0.5] * 3, std=[0.25] * 3)
    source = InvertedTriggers(1.0, **SMALL)
    ready = [source.ready]
    net = tiny.conv_net()
    state = copy.deepcopy(net.state_dict())
    study_sources([source], net, clean, seed=0)
    ready.append(source.ready)
    assert ready == [False, True]
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    pixels = data.images.float() / 255
    changed = source(pixels, data.labels, nothing)
    expected = source.inversion.triggered(clean.normalize(data.images)) * 0.25 + 0.5
    assert torch.allclose(changed, expected, atol=1e-5)
    assert not torch.equal(changed, pixels)
    again = InvertedTriggers(1.0, **SMALL)
    again.load_state_dict(source.state_dict())
    assert again.ready
    assert torch.equal(again(pixels, data.labels, nothing), changed)


def planted_source() -> InvertedTriggers:
    return InvertedTriggers(
        1.0,
        mask_steps=200,
        generator_epochs=40,
        generator_lr=5e-3,
        image_bound=0.02,
        feature_bound=0.1,
    )


def test_a_planted_trigger_is_inverted() -> None:
    source, net, clean = planted_source(), Planted(), planted_data()
    study_sources([source], net, clean, seed=0)
    before = clean.images.float()
    others = clean.labels != 0
    answers = net(source(before, clean.labels, nothing)).argmax(1)[others]
    assert float((net(before).argmax(1)[others] == 0).float().mean()) < 0.05
    assert float((answers == 0).float().mean()) > 0.8
    assert source.findings()["target"] == [0]


def test_patches_of_suspected_classes_alone() -> None:
    source = PatchTriggers(1.0)
    images = torch.full((6, 3, 4, 4), 0.5)
    assert torch.equal(source(images, torch.zeros(6), nothing), images)
    masks = torch.zeros(5, 1, 4, 4)
    masks[:4, :, :2] = 1.0
    masks[4, :, 0, 0] = 1.0  # One pixel, where all other classes take eight.
    source.search.masks, source.search.patterns = masks, torch.ones(5, 3, 4, 4)
    source.search.rates = torch.ones(5)
    assert source.suspected.tolist() == [4]
    changed = source(images, torch.zeros(6), nothing)
    assert torch.equal(changed[..., 0, 0], torch.ones(6, 3))
    assert int((changed != images).sum()) == 6 * 3
    assert source.findings()["suspected"] == [4]
    assert set(source.findings()) == {"norms", "success", "suspected"}
    # A patch that does not work is no sign of a backdoor, however small it is.
    source.search.rates = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5])
    assert source.suspected.tolist() == []


def test_one_perturbation_raises_the_loss_and_stays_in_its_ball() -> None:
    torch.manual_seed(0)
    net = tiny.linear_net(3 * 8 * 8)
    images, labels = torch.full((10, 3, 8, 8), 0.5), tiny.labels(10)
    changed = AdversarialTriggers(1.0, radius=1.0, steps=5)(images, labels, net)
    deltas = changed - images
    assert torch.equal(deltas, deltas[:1].expand_as(deltas))
    norm = float(deltas[0].detach().norm())
    assert norm == pytest.approx(1.0, rel=1e-4)
    # The loss of a linear network is convex: the best of many random directions is worse.
    random = functional.normalize(torch.randn(300, 3 * 8 * 8), dim=1).view(300, 1, 3, 8, 8)
    losses = [float(functional.cross_entropy(net(images + d), labels)) for d in random]
    found = float(functional.cross_entropy(net(changed), labels))
    assert found > max(losses)


def test_shares_and_sizes_are_checked() -> None:
    for make in (RandomTriggers, InvertedTriggers, PatchTriggers, AdversarialTriggers):
        with pytest.raises(ValueError, match="`share` to be a number"):
            make(share=1.5)
    with pytest.raises(ValueError, match="`radius` to be a number greater than 0"):
        AdversarialTriggers(radius=0)
