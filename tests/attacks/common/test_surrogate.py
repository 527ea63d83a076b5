import pytest
import torch
from torch.nn import functional

from fst_lightning.attacks.common.surrogate import Surrogate, input_gradient, train_surrogate
from tests import tiny
from tests.attacks.colored import colored

CPU = torch.device("cpu")


def train(seed: int = 0, max_images: int = 200, epochs: int = 12) -> Surrogate:
    images, labels = colored(200)
    return train_surrogate(
        images, labels, 4, seed, CPU, epochs=epochs, width=4, max_images=max_images
    )


def test_it_learns_and_comes_back_frozen() -> None:
    surrogate = train()
    images, labels = colored(100, seed=9)
    predicted = surrogate(images / 255).argmax(1)
    assert float((predicted == labels).float().mean()) > 0.9
    assert not surrogate.training
    assert not any(parameter.requires_grad for parameter in surrogate.parameters())


def test_same_seed_same_network_and_the_global_state_is_left_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = train(epochs=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    two, other = train(epochs=1).state_dict(), train(seed=1, epochs=1).state_dict()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not torch.equal(one["net.fc.weight"], other["net.fc.weight"])


def test_it_sees_no_more_images_than_it_may() -> None:
    images, _ = colored(200)
    # The images that are drawn are those that the statistics are of.
    whole = train(max_images=10_000, epochs=1)
    assert torch.allclose(whole.mean.flatten(), (images / 255).mean(dim=(0, 2, 3)), atol=1e-6)
    few = train(max_images=2, epochs=1)
    pairs = (images / 255).mean(dim=(2, 3))
    pairs = (pairs[:, None] + pairs) / 2
    assert float((pairs - few.mean.flatten()).abs().amax(2).min()) < 1e-6


def test_gray_images() -> None:
    images, labels = colored(40)
    surrogate = train_surrogate(images[:, :1], labels, 4, 0, CPU, epochs=1, width=2, max_images=40)
    assert surrogate(images[:, :1] / 255).shape == (40, 4)
    with pytest.raises(ValueError, match="1 or 3 channels, but got 2"):
        Surrogate(4, 2, 4, seed=0)


def test_the_gradient_is_that_of_the_loss() -> None:
    net = tiny.conv_net().double().eval()
    images, labels = tiny.images(2).double() / 255, torch.tensor([1, 3])
    with torch.no_grad():
        gradient = input_gradient(net, images, labels)
        for place in ((0, 0, 0, 0), (0, 2, 5, 3), (1, 1, 7, 7)):
            step = torch.zeros_like(images)
            step[place] = 1e-6
            up, down = (
                functional.cross_entropy(net(images + sign * step), labels, reduction="sum")
                for sign in (1, -1)
            )
            assert float(gradient[place]) == pytest.approx(float(up - down) / 2e-6, rel=1e-4)
