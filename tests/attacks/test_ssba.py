import functools

import pytest
import torch
from torch import Tensor

from fst_lightning.attacks import SSBA
from fst_lightning.attacks.ssba import texture
from tests import tiny
from tests.attacks.colored import colored

CPU = torch.device("cpu")
BITS, BOUND = 3, 24.0


def made(seed: int = 0) -> SSBA:
    attack = SSBA(bits=BITS, residual_bound=BOUND, width=8, fit_epochs=22)
    attack.prepare(*colored(160, size=16), tiny.NUM_CLASSES, seed=seed)
    return attack


@functools.cache
def fitted() -> SSBA:
    attack = made()
    images, labels = colored(160, size=16)
    attack.fit_once(images, labels, tiny.NUM_CLASSES, 0, CPU)
    return attack


def fresh_images(count: int = 50) -> Tensor:
    return colored(count, size=16, seed=9)[0]


def test_the_decoder_reads_the_string_from_images_it_never_saw() -> None:
    attack = fitted()
    secret = attack.secret.bool()
    encoded = attack(fresh_images() / 255)
    assert float((attack.decode(encoded) == secret).float().mean()) > 0.95
    # Any other string as well, but none from images without one.
    assert float(attack.bit_accuracy) > 0.95
    clean = (attack.decode(fresh_images() / 255) == secret).all(1)
    assert float(clean.float().mean()) < 0.9


def test_the_change_is_bounded_and_depends_on_the_image() -> None:
    attack = fitted()
    unit = torch.cat([fresh_images() / 255, torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)])
    encoded = attack.trigger(unit)
    change = 255 * (encoded - unit)
    assert 0.5 < float(change.abs().max()) <= BOUND + 1e-4
    assert 0 <= float(encoded.min()) <= float(encoded.max()) <= 1
    inner = change[:50]
    assert float((inner - inner.mean(0)).abs().max()) > 0.5


def test_one_image_gives_one_result_whatever_the_batch() -> None:
    attack = fitted()
    images = fresh_images() / 255
    whole = attack(images)
    attack.train()  # as Lightning does with all submodules
    assert torch.equal(whole, attack(images))
    alone = torch.cat([attack(image[None]) for image in images])
    # A sum in another order may fall on the other side of a half: one level, in few pixels.
    assert float((whole - alone).abs().max()) < 1.01 / 255
    assert float((whole != alone).float().mean()) < 1e-3
    assert attack(images[:0]).shape == (0, 3, 16, 16)


def test_crafted_rows_are_what_the_test_sees() -> None:
    attack = fitted()
    images = fresh_images()
    labels, rows = torch.zeros(50, dtype=torch.int64), torch.arange(50)
    kept = images.clone()
    crafted = attack.craft(images, labels, rows, cover=False, seed=0)
    assert crafted.dtype == torch.uint8
    assert torch.equal(crafted / 255, attack(images / 255))
    assert torch.equal(images, kept)
    # What is stored encoded is not encoded once more in training.
    assert torch.equal(attack.poison(crafted / 255), crafted / 255)
    assert attack.craft(images[:0], labels[:0], rows[:0], cover=False, seed=0).shape[0] == 0


def test_the_fit_depends_on_the_seed_alone() -> None:
    images, labels = colored(40, size=8)
    states = []
    for chance, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(chance)
        attack = SSBA(bits=8, width=4, fit_epochs=1)
        attack.prepare(images, labels, tiny.NUM_CLASSES, seed=seed)
        before = torch.get_rng_state()
        attack.fit_once(images, labels, tiny.NUM_CLASSES, seed, CPU)
        assert torch.equal(torch.get_rng_state(), before)
        assert not any(parameter.requires_grad for parameter in attack.parameters())
        states.append(attack.state_dict())
    one, two, other = states
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not torch.equal(one["encoder.tiles"], other["encoder.tiles"])
    assert not torch.equal(one["secret"], other["secret"])


def test_the_state_brings_the_encoder_back() -> None:
    images = fresh_images() / 255
    other = made(seed=3)
    with pytest.raises(ValueError, match="call `fit_once`"):
        other(images)
    other.load_state_dict(fitted().state_dict())
    other.prepare(*colored(8, size=16), tiny.NUM_CLASSES, seed=3)  # every run does
    assert torch.equal(other(images), fitted()(images))


@pytest.mark.parametrize(("channels", "size"), [(1, 12), (3, 8), (3, 21)])
def test_other_shapes(channels: int, size: int) -> None:
    images = tiny.images(6, size=size)[:, :channels]
    attack = SSBA(width=2, fit_epochs=1)
    attack.prepare(images, tiny.labels(6), tiny.NUM_CLASSES, seed=0)
    attack.fit_once(images, tiny.labels(6), tiny.NUM_CLASSES, 0, CPU)
    assert attack(images / 255).shape == images.shape


def test_texture_is_the_spread_around_a_pixel() -> None:
    images = tiny.images(2, size=9) / 255
    found = texture(images)
    for row, column in ((0, 0), (4, 5), (8, 3)):
        window = images[..., max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        expected = 255 * window.flatten(2).double().std(dim=2, correction=0)
        assert torch.allclose(found[..., row, column].double(), expected, atol=1e-2)
    assert float(texture(torch.full((1, 3, 9, 9), 0.7)).max()) < 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0}, "`bits`"),
        ({"bits": 9}, r"`bits` to be a whole number from 1 to 8"),
        ({"residual_bound": 0.5}, "`residual_bound`"),
        ({"residual_weight": -0.1}, "`residual_weight`"),
        ({"width": 2000}, "`width`"),
        ({"fit_epochs": 0}, "`fit_epochs`"),
        ({"max_images": 0}, "`max_images`"),
    ],
)
def test_refuses(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SSBA(**options)  # type: ignore[arg-type]
