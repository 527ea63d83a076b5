import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import fst_lightning.models
from fst_lightning.models import MODELS, check_description, find_head
from fst_lightning.models.libraries import torchvision_model

CONF = Path(__file__).parents[2] / "conf" / "model"

SMALL: dict[str, dict[str, Any]] = {
    "airbench": {"width": 2},
    "small_resnet": {"width": 4},
    "resnet18": {"width": 4},
    "preact_resnet18": {"width": 4, "final_norm": False},
    "vgg19_bn": {},
    "torchvision": {"name": "mobilenet_v3_small"},
    "timm": {"name": "resnet18"},
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_built_with_its_classes(name: str) -> None:
    with torch.device("meta"):
        net = MODELS[name](num_classes=7, **SMALL[name])
        assert net(torch.empty(2, 3, 64, 64)).shape == (2, 7)


def test_every_model_has_a_configuration_and_the_reverse() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_configurations_give_every_argument_its_default(name: str) -> None:
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"model={name}" in text.splitlines()[0]
    config: dict[str, Any] = dict(OmegaConf.create(text))
    # A setting of the run, which builds nothing.
    assert config.pop("head") is None
    keys = list(config)
    assert keys[0] == "_target_"
    module, _, attribute = config.pop("_target_").rpartition(".")
    assert module == "fst_lightning.models"
    assert getattr(fst_lightning.models, attribute) is MODELS[name]
    parameters = dict(inspect.signature(MODELS[name]).parameters)
    del parameters["num_classes"]
    assert keys[1:] == list(parameters)
    for key, parameter in parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            assert config[key] == parameter.default
    with torch.device("meta"):
        assert isinstance(MODELS[name](num_classes=10, **config), nn.Module)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet81", {}, "to be one of small_resnet, resnet18, .* but got 'resnet81'"),
        ("small_resnet", {"depth": 3}, "no argument 'depth'; its arguments: `width`, `blocks`"),
        ("small_resnet", {"num_classes": 3}, "no argument 'num_classes'"),
        ("vgg19_bn", {"width": 3}, "no argument 'width'; its arguments: none"),
        ("small_resnet", {"width": 10**9}, r"`width` to be a whole number from 1 to 4096"),
        ("small_resnet", {"blocks": 0}, r"`blocks` to be a whole number from 1 to 50"),
        ("small_resnet", {"width": True}, "`width` of model `small_resnet` to be int"),
        ("small_resnet", {"width": 16.0}, "`width` of model `small_resnet` to be int"),
        ("small_resnet", {"width": [16]}, "`width` of model `small_resnet` to be int"),
        ("preact_resnet18", {"final_norm": 1}, "`final_norm` .* to be bool"),
        ("torchvision", {}, "`torchvision` needs `name`"),
        ("torchvision", {"name": None}, "`name` of model `torchvision` to be str"),
        ("timm", {"name": "x" * 1000}, "at most 128 characters, but got 1000"),
        ("timm", {"name": "hf-hub:someone/something"}, "classification network of timm"),
    ],
)
def test_bad_arguments_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_description(name, 10, arguments)


@pytest.mark.parametrize("num_classes", [0, -1, 10**6, True, "10"])
@pytest.mark.parametrize("name", MODELS)
def test_bad_numbers_of_classes_are_refused(name: str, num_classes: Any) -> None:
    with pytest.raises(ValueError, match="Expected `num_classes` to be a whole number from"):
        MODELS[name](num_classes=num_classes, **SMALL[name])


def test_a_description_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(name: str, num_classes: int, pretrained: bool = False) -> nn.Module:
        seen.append(pretrained)
        return torchvision_model(name, num_classes)

    monkeypatch.setitem(MODELS, "torchvision", watched)
    arguments = {"name": "mobilenet_v3_small", "pretrained": True}
    assert check_description("torchvision", 10, arguments)["pretrained"] is False
    assert seen
    assert not any(seen)
    assert arguments["pretrained"] is True


def test_a_network_whose_widths_are_computed_with_tensors_is_checked() -> None:
    arguments = check_description("torchvision", 3, {"name": "regnet_x_400mf"})
    net = MODELS["torchvision"](num_classes=3, **arguments)
    assert find_head(net, num_classes=3)[0] == "fc"


def test_a_network_too_large_for_any_file_takes_no_memory() -> None:
    # 4096 * 8 channels: the last convolutions alone would take 38 GB each.
    with pytest.raises(ValueError, match=r"at most 1,000,000,000 parameters, .* with \d+,"):
        check_description("small_resnet", 10, {"width": 4096, "blocks": 50})
