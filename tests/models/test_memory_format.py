import copy

import pytest
import torch
from torch import Tensor, nn

from fst_lightning.models import small_resnet, use_fastest_layout
from tests import tiny


class Views(nn.Module):
    """A habit of older networks."""

    def __init__(self, training_only: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4 * 6 * 6, 3)
        self.training_only = training_only

    def forward(self, images: Tensor) -> Tensor:
        maps = self.drop(self.norm(self.conv(images)))
        views = self.training or not self.training_only
        flat = maps.view(len(maps), -1) if views else maps.flatten(1)
        logits: Tensor = self.fc(flat)
        return logits


class ReadsMemory(Views):
    """Takes the numbers in the order in which they lie in memory."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        size = (len(maps), maps[0].numel())
        logits: Tensor = self.fc(torch.as_strided(maps, size, (size[1], 1)))
        return logits


def layout(net: nn.Module) -> str:
    (weight,) = (p for p in net.parameters() if p.dim() == 4)
    return "channels_last" if weight.is_contiguous(memory_format=torch.channels_last) else "as is"


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Views(), "view size is not compatible"),
        (Views(training_only=True), "view size is not compatible"),
        (ReadsMemory(), "its logits differ there"),
    ],
)
def test_a_network_that_cannot_take_it_stays_as_it_is(net: nn.Module, reason: str) -> None:
    before = copy.deepcopy(net.state_dict())
    state = torch.random.get_rng_state()
    found = use_fastest_layout(net, (3, 8, 8))
    assert found is not None
    assert found.startswith(reason)
    assert layout(net) == "as is"
    assert net.training
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    net(torch.rand(2, 3, 8, 8))


def test_other_networks_get_it_and_keep_their_state() -> None:
    net = small_resnet(4, width=4).eval()
    before = copy.deepcopy(net.state_dict())
    assert use_fastest_layout(net, (3, 8, 8)) is None
    assert net.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not net.training
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_a_network_without_convolutions() -> None:
    assert use_fastest_layout(tiny.linear_net(48), (3, 4, 4)) is None


def test_images_that_the_network_cannot_take_are_left_to_others() -> None:
    net = Views()
    assert use_fastest_layout(net, (3, 9, 9)) is None
    assert layout(net) == "as is"


@pytest.mark.parametrize("training", [True, False])
def test_outputs_of_any_kind(training: bool) -> None:
    class Dictionary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"logits": self.conv(images).mean((2, 3))}

    net = Dictionary().train(training)
    assert use_fastest_layout(net, (3, 8, 8)) is None
    assert layout(net) == "channels_last"
