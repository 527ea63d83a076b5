"""Automatic purification: its loss by hand, its teacher, its sources, and a whole run."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fst_lightning.defenses import AutoPurification, CleanData
from fst_lightning.models import inputs_of
from fst_lightning.pipelines import purify
from tests import tiny
from tests.defenses.drive import drive

SHARES = ("random_share", "warp_share", "patch_share", "universal_share", "inverted_share")
PLAIN: dict[str, Any] = dict.fromkeys(SHARES, 0.0)


def clean_data(count: int = 24) -> CleanData:
    data = tiny.rows(count)
    return CleanData(data.images, data.labels, mean=[0.5] * 3, std=[0.25] * 3)


def prepared(**options: Any) -> tuple[AutoPurification, nn.Module, nn.Module]:
    net = tiny.conv_net().eval()
    before = copy.deepcopy(net)
    defense = AutoPurification(**(PLAIN | options))
    defense.prepare(net, torch.Generator().manual_seed(0))
    defense.study(net, clean_data(), torch.Generator().manual_seed(0))
    return defense, net, before


def softmax(logits: Tensor, temperature: float = 1.0) -> list[list[float]]:
    rows = []
    for row in logits.tolist():
        powers = [math.exp(value / temperature) for value in row]
        rows.append([power / sum(powers) for power in powers])
    return rows


def test_the_loss_by_hand() -> None:
    defense, net, before = prepared(distillation=0.6, temperature=3.0, alpha=0.0)
    images, labels = next(clean_data().batches(8))
    with torch.no_grad():
        ours, theirs = net(images), before(images)
        loss = float(defense.loss(net, images, labels))
    expected = 0.0
    for row, label in enumerate(labels.tolist()):
        entropy = -math.log(softmax(ours)[row][label])
        p, q = softmax(theirs, 3.0)[row], softmax(ours, 3.0)[row]
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        expected += (0.4 * entropy + 0.6 * 9 * divergence) / len(labels)
    assert loss == pytest.approx(expected, rel=1e-4)


def test_the_teacher_sees_no_trigger_and_gets_no_gradient() -> None:
    defense, net, before = prepared(distillation=1.0, random_share=1.0)
    images, labels = next(clean_data().batches(8))
    with inputs_of(net.get_submodule("conv1")) as seen:
        torch.autograd.backward(defense.loss(net, images, labels))
    triggered, taught = seen
    assert not torch.equal(triggered, images)
    assert torch.equal(taught, images)
    first = before.get_parameter("conv1.weight").flatten()
    assert torch.equal(defense.original[: first.numel()], first)


@pytest.mark.parametrize("share", SHARES)
def test_each_share_adds_its_source(share: str) -> None:
    names = {"random": "Random", "warp": "Warp", "patch": "Patch", "universal": "Universal"}
    names["inverted"] = "Inverted"
    defense = AutoPurification(**(PLAIN | {share: 0.25}))
    (source,) = defense.triggers
    assert type(source).__name__ == names[share.removesuffix("_share")] + "Triggers"
    assert source.share == 0.25
    assert list(AutoPurification(**PLAIN).triggers) == []


def test_without_any_part_it_is_fine_tuning() -> None:
    from fst_lightning.defenses import FineTuning

    states = []
    for defense in (
        AutoPurification(**PLAIN, distillation=0.0, alpha=0.0, reinit="none"),
        FineTuning(),
    ):
        net = tiny.conv_net()
        drive(defense, net, clean_data(), epochs=2)
        states.append(net.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_purify_runs_it_by_name() -> None:
    data = tiny.rows(32)
    images = (data.images.float() / 255 - 0.5) / 0.25
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, data.labels), batch_size=16
    )
    result = purify(
        tiny.conv_net(), loader, "auto", max_epochs=1, return_result=True, accelerator="cpu"
    )
    found = result.findings["triggers"]
    assert set(found) == {"PatchTriggers", "UniversalTriggers"}
    assert all(bool(p.isfinite().all()) for p in result.net.parameters())


@pytest.mark.parametrize(
    ("name", "value"),
    [("distillation", 1.2), ("temperature", 0.0), ("patch_share", 2.0)],
)
def test_arguments_out_of_their_range(name: str, value: float) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"`{'share' if 'share' in name else name}` to be"):
        AutoPurification(**options)
