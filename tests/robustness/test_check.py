"""What every check in conf/robustness/ has to keep, and the rates that they are measured by."""

import copy
import json
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from fst_lightning import robustness
from fst_lightning.configuration import conf_folder, groups
from fst_lightning.robustness import RobustnessCheck, Subject, rates_of
from tests.robustness.subjects import subject

OPTIONS = groups()["robustness"]


def content(option: str) -> Any:
    return OmegaConf.load(conf_folder() / "robustness" / f"{option}.yaml")


@pytest.fixture(params=OPTIONS)
def check(request: pytest.FixtureRequest) -> RobustnessCheck:
    config = content(request.param)[request.param]
    for name in {"epochs", "points", "width"} & set(config):
        config[name] = 3
    made = instantiate(config)
    assert isinstance(made, RobustnessCheck)
    return made


@pytest.fixture(scope="module")
def whole() -> Subject:
    return subject()


def test_a_file_holds_its_name_alone_and_every_class_has_one() -> None:
    targets = set()
    for option in OPTIONS:
        assert list(content(option)) == [option]
        targets.add(content(option)[option]["_target_"].rpartition(".")[2])
    classes = {
        name
        for name in robustness.__all__
        if isinstance(value := getattr(robustness, name), type)
        and issubclass(value, RobustnessCheck)
        and value is not RobustnessCheck
    }
    assert targets == classes


def test_a_check_gives_plain_figures_and_leaves_its_subject_as_it_is(
    check: RobustnessCheck, whole: Subject
) -> None:
    nets = whole.backdoored, whole.purified
    states = [copy.deepcopy(net.state_dict()) for net in nets]
    images = whole.train.images.clone()
    labels = whole.train.labels.clone()
    state = torch.get_rng_state()
    found = check.run(whole, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert json.loads(json.dumps(found)) == found
    for net, before in zip(nets, states, strict=True):
        assert not net.training
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(whole.train.images, images)
    assert torch.equal(whole.train.labels, labels)
    torch.manual_seed(3)
    assert check.run(whole, torch.Generator().manual_seed(0)) == found


def test_rates_are_counted_image_by_image(whole: Subject) -> None:
    net = whole.purified
    found = rates_of(net, whole)
    right = []
    for data in (whole.test, whole.triggered):
        answers = [
            int(net(data.normalize(data.images[row : row + 1])).argmax())
            for row in range(len(data))
        ]
        right.append((answers, data.labels.tolist()))
    (clean, true), (stamped, own) = right
    assert found.ca == sum(a == b for a, b in zip(clean, true, strict=True)) / len(true)
    assert found.ra == sum(a == b for a, b in zip(stamped, own, strict=True)) / len(own)
    assert found.asr == sum(a == 0 for a in stamped) / len(own)
    assert found.asr > 0.9  # the backdoor is there


def test_a_shift_reaches_triggered_images_in_pixels(whole: Subject) -> None:
    class Sum(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.stack([images.sum((1, 2, 3)), -images.sum((1, 2, 3)) - 1e-3], dim=1)

    seen: list[torch.Tensor] = []

    def shift(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return images

    plain, shifted = rates_of(Sum(), whole), rates_of(Sum(), whole, shift)
    assert plain == shifted
    assert torch.allclose(torch.cat(seen), whole.triggered.images / 255, atol=1e-6)
