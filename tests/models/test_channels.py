import pytest
import torch
from torch import nn

from fst_lightning.models import MODELS, airbench, set_input_channels

ARGUMENTS = {"torchvision": {"name": "squeezenet1_1"}, "timm": {"name": "resnet18"}}


@pytest.mark.parametrize("name", [name for name in MODELS if name != "airbench"])
def test_every_network_takes_gray_images(name: str) -> None:
    net = MODELS[name](num_classes=4, **ARGUMENTS.get(name, {})).eval()
    before = {key: value.shape for key, value in net.state_dict().items()}
    set_input_channels(net, 1)
    with torch.no_grad():
        assert net(torch.rand(2, 1, 32, 32)).shape == (2, 4)
    changed = {key for key, value in net.state_dict().items() if value.shape != before[key]}
    assert len(changed) == 1


def test_three_channels_change_nothing() -> None:
    net = nn.Conv2d(3, 4, 3)
    weight = net.weight
    set_input_channels(net, 3)
    assert net.weight is weight


@pytest.mark.parametrize("net", [nn.Linear(3, 4), nn.Conv2d(8, 4, 3), airbench(4, width=2)])
def test_other_networks_are_refused(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="to start with a convolution of 3 channels"):
        set_input_channels(net, 1)
