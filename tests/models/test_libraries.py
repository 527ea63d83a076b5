import sys
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from fst_lightning.models import timm_model, torchvision_model


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_32", "squeezenet1_1"])
def test_torchvision_networks_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        ours = torchvision_model(name, num_classes=7)
        theirs = torchvision.models.get_model(name, num_classes=7)
    assert str(ours) == str(theirs)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 32), ("inception_v3", 75)])
def test_networks_return_logits_alone_in_training(name: str, size: int) -> None:
    with torch.device("meta"):
        net = torchvision_model(name, num_classes=7).train()
        logits = net(torch.empty(2, 3, size, size))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 7)


def test_unknown_torchvision_names_list_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"got 'resnet81'\..*nearest names: .*resnet18"):
        torchvision_model("resnet81", num_classes=10)


@pytest.mark.parametrize(
    "name", ["fcn_resnet50", "fasterrcnn_resnet50_fpn", "r3d_18", "raft_small"]
)
def test_networks_for_other_tasks_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="to be a classification network of torchvision"):
        torchvision_model(name, num_classes=10)


@pytest.mark.parametrize(
    ("name", "head"),
    [("resnet18", "fc"), ("vgg11", "classifier.6"), ("inception_v3", "fc"), ("googlenet", "fc")],
)
def test_pretrained_networks_get_a_new_head(
    monkeypatch: pytest.MonkeyPatch, name: str, head: str
) -> None:
    genuine = torchvision.models.get_model

    def without_download(name: str, weights: str) -> Any:
        assert weights == "DEFAULT"
        init = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        # As torchvision: with weights GoogLeNet comes without auxiliary heads, Inception with.
        init |= {"aux_logits": False} if name == "googlenet" else {}
        return genuine(name, weights=None, **init)

    monkeypatch.setattr(torchvision.models, "get_model", without_download)
    with torch.device("meta"):
        net = torchvision_model(name, num_classes=7, pretrained=True)
        size = 75 if name == "inception_v3" else 32
        logits = net.train()(torch.empty(2, 3, size, size))
    assert logits.shape == (2, 7)
    layer = net.get_submodule(head)
    assert isinstance(layer, nn.Linear)
    assert layer.out_features == 7
    assert layer.bias is not None


def test_timm_networks_are_timms() -> None:
    with torch.device("meta"):
        ours = timm_model("resnet18", num_classes=7)
        theirs = timm.create_model("resnet18", num_classes=7)
        tagged = timm_model("resnet18.a1_in1k", num_classes=7)
    assert str(ours) == str(theirs) == str(tagged)


@pytest.mark.parametrize(
    "name", ["hf-hub:someone/something", "hf_hub:a/b", "local-dir:/tmp", "resnet81", "", "../x"]
)
def test_addresses_and_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="to be a classification network of timm"):
        timm_model(name, num_classes=10)


def test_a_missing_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'fst-lightning\[timm\]'"):
        timm_model("resnet18", num_classes=10)
