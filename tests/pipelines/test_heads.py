"""The head is a setting of the network, and only what needs it asks for it."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf, open_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from fst_lightning.pipelines import Run, run_pipeline
from fst_lightning.pipelines.build.parts import make_attack, make_defense, with_head
from tests.pipelines.conftest import Results, Start


class TwoHeads(nn.Module):
    """The mean of two equally good heads."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        self.head = nn.Linear(6, num_classes)
        self.head_dist = nn.Linear(6, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images).flatten(1)
        mean: Tensor = (self.head(features) + self.head_dist(features)) / 2
        return mean


class ConvHead(nn.Sequential):
    """A 1x1 convolution on maps of one pixel."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(TwoHeads(num_classes).body, nn.Conv2d(6, num_classes, 1), nn.Flatten())


def of(run: Run, network: type[nn.Module], **settings: Any) -> Run:
    """The same run with a network of this file."""
    target = f"{network.__module__}.{network.__qualname__}"
    with open_dict(run.cfg):
        model = {"_target_": target, "head": None, **settings}
        run.cfg.model = OmegaConf.create(model)
    return run


def go(run: Run) -> Results:
    return run_pipeline(run)


def test_training_needs_no_head(start: Start) -> None:
    results = go(of(start(task="train"), TwoHeads))
    assert results["model"]["head"] is None
    assert results["before"]["ca"] is not None


@pytest.mark.parametrize("option", ["none", "ft", "anp", "clp", "ft_sam"])
def test_methods_without_a_head_run_on_two(start: Start, option: str) -> None:
    results = go(of(start(f"defense={option}"), TwoHeads))
    assert results["model"]["head"] is None
    assert results["after"]["ca"] is not None


@pytest.mark.parametrize("option", ["fst", "lp", "ft_init", "fp", "ngf", "bti_dbf", "spectral"])
def test_methods_with_a_head_say_so_before_any_training(
    start: Start, models: Any, option: str
) -> None:
    with pytest.raises(ValueError, match="More than one layer could be the head") as caught:
        go(of(start(f"defense={option}"), TwoHeads))
    message = str(caught.value)
    assert f"defense={option} needs the head of the network" in message
    assert "`head`, `head_dist`" in message
    assert "model.head=dotted.name on the command line" in message
    assert models() == set()


def test_plain_fine_tuning_that_keeps_a_norm_needs_the_head(start: Start) -> None:
    with pytest.raises(ValueError, match="defense=ft needs the head"):
        go(of(start("defense=ft", "defense.project_norm=true"), TwoHeads))


@pytest.mark.parametrize("key", ["model", "defense"])
def test_the_head_that_is_named_is_tuned(start: Start, key: str) -> None:
    told = {"head": "head_dist"} if key == "model" else {}
    lines = ["defense.head=head_dist"] if key == "defense" else []
    run = of(start("defense=fst", "defense.reinit=orthogonal", *lines), TwoHeads, **told)
    results = go(run)
    assert results["model"]["head"] == "head_dist"
    old = load_file(results["checkpoints"]["backdoored"])
    new = load_file(results["checkpoints"]["purified"])
    norms = [float(state["head_dist.weight"].norm()) for state in (old, new)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    cosine = torch.cosine_similarity(
        old["head_dist.weight"].flatten(), new["head_dist.weight"].flatten(), dim=0
    )
    assert abs(float(cosine)) < 0.5
    kept = torch.cosine_similarity(
        old["head.weight"].flatten(), new["head.weight"].flatten(), dim=0
    )
    assert float(kept) > 0.9


def test_the_head_is_no_argument_and_trains_no_other_model(start: Start, models: Any) -> None:
    go(of(start(task="train"), TwoHeads))
    go(of(start(task="train"), TwoHeads, head="head"))
    go(of(start("defense=lp"), TwoHeads, head="head_dist"))
    assert len(models()) == 1


def test_an_attack_on_the_features_takes_the_same_head(start: Start) -> None:
    run = of(start("attack=bypass", task="train"), TwoHeads, head="head_dist")
    assert make_attack(run).head == "head_dist"
    run = of(start("attack=bypass", "attack.head=head", task="train"), TwoHeads, head="head_dist")
    assert make_attack(run).head == "head"


def test_two_names_that_differ_are_refused(start: Start) -> None:
    run = of(start("defense=fst", "defense.head=head"), TwoHeads, head="head_dist")
    with pytest.raises(ValueError, match=r"model\.head=head_dist and defense\.head=head"):
        go(run)


@pytest.mark.parametrize("task", ["train", "purify"])
def test_a_wrong_name_is_refused_whatever_needs_it(start: Start, task: str) -> None:
    lines = ["defense=ft"] if task == "purify" else []
    with pytest.raises(ValueError, match=r"`body\.0` is Conv2d"):
        go(of(start(*lines, task=task), TwoHeads, head="body.0"))


def test_fst_on_a_convolutional_head(start: Start) -> None:
    results = go(of(start("defense=fst"), ConvHead))
    assert results["model"]["head"] == "1"
    assert results["shift"]["head_cosine"] is not None
    assert results["shift"]["feature_cosine"] is not None


def test_the_number_of_classes_is_known(start: Start) -> None:
    """Only the pipeline knows it; the defense is told which layer that makes."""
    run = start("defense=fst")
    net = nn.Module()
    net.fc, net.critic = nn.Linear(8, 3), nn.Linear(8, 4)
    defense = make_defense(with_head(run, net, 3, make_defense(run)))
    assert defense.head == "fc"
