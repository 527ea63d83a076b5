"""Weights of a library's network, given for one of ours, are told by their name."""

import time

import pytest
import torch
import torchvision
from torch import nn

from fst_lightning.checkpoints import CheckpointError
from fst_lightning.models import resnet18
from fst_lightning.models.build import outline
from fst_lightning.pipelines import run_pipeline
from fst_lightning.pipelines.build.library_networks import library_network
from tests.pipelines.conftest import Start


def test_torchvisions_resnet_is_told_by_its_name(start: Start) -> None:
    run = start("model=resnet18", "attack=none", "checkpoint=theirs.pth")
    net = torchvision.models.resnet18(num_classes=3)
    run.folder.mkdir(parents=True)
    path = run.folder.parent / "theirs.pth"
    torch.save(net.state_dict(), path)
    run.cfg.checkpoint = str(path)
    with pytest.raises(CheckpointError) as caught:
        run_pipeline(run)
    notes = ["Its names and shapes are those of model=torchvision model.name=resnet18."]
    assert caught.value.__notes__ == notes


@pytest.mark.parametrize(
    ("name", "wanted"), [("resnet34", "resnet18"), ("vgg19_bn", "vgg19_bn"), ("vgg11", "vgg19_bn")]
)
def test_another_network_of_the_family_is_found(name: str, wanted: str) -> None:
    net = outline("torchvision", 7, name=name)
    tensors = {f"module.{key}": value for key, value in net.state_dict().items()}
    begin = time.monotonic()
    assert library_network(tensors, wanted) == f"model=torchvision model.name={name}"
    assert time.monotonic() - begin < 20


def test_timms_network_is_told_by_its_name() -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", num_classes=4)
    found = library_network(net.state_dict(), "vit_tiny_patch16_224")
    assert found == "model=timm model.name=vit_tiny_patch16_224"


@pytest.mark.parametrize("net", [resnet18(3, width=4), nn.Linear(2, 3)])
def test_other_networks_are_not(net: nn.Module) -> None:
    assert library_network(net.state_dict(), "resnet18") is None
