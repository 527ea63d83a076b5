import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fst_lightning.attacks import LowFrequency
from fst_lightning.attacks.common.frequency import cosines
from fst_lightning.attacks.low_frequency import low_pass
from tests import tiny
from tests.attacks.colored import colored

CPU = torch.device("cpu")


def spectrum(planes: Tensor) -> Tensor:
    """The two-dimensional DCT, as matrix products in double precision."""
    height, width = planes.shape[-2:]
    down, across = (
        torch.tensor(
            [[math.cos(math.pi * i * (2 * j + 1) / (2 * n)) for j in range(n)] for i in range(n)]
        ).double()
        for n in (height, width)
    )
    return down @ planes.double() @ across.T


@settings(deadline=None, max_examples=20)
@given(height=st.integers(4, 40), width=st.integers(4, 40), cutoff=st.integers(1, 4))
def test_the_random_pattern_is_low_and_bounded(height: int, width: int, cutoff: int) -> None:
    stored = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    attack = LowFrequency(method="dct", epsilon=20.0, cutoff=cutoff)
    attack.prepare(stored, torch.zeros(2), 4, seed=0)
    energy = spectrum(attack.pattern).square()
    low = energy[..., :cutoff, :cutoff].sum()
    assert float(low / energy.sum()) > 1 - 1e-9
    assert float(attack.pattern.abs().max()) == pytest.approx(20 / 255, rel=1e-6)


def test_low_pass_is_an_orthogonal_projection() -> None:
    vertical, horizontal = cosines(9, 3).float(), cosines(12, 4).float()
    generator = torch.Generator().manual_seed(0)
    plane, other = torch.randn(2, 3, 9, 12, generator=generator)
    once = low_pass(plane, vertical, horizontal)
    assert torch.allclose(low_pass(once, vertical, horizontal), once, atol=1e-6)
    assert float((once * (other - low_pass(other, vertical, horizontal))).sum()) == pytest.approx(
        0, abs=1e-4
    )
    everything = low_pass(plane, cosines(9, 9).float(), cosines(12, 12).float())
    assert torch.allclose(everything, plane, atol=1e-5)


def test_the_fitted_pattern_raises_the_loss_and_stays_low_and_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, labels = colored(200, size=12)
    attack = LowFrequency(epsilon=8.0, cutoff=2, steps=25, surrogate_epochs=12, surrogate_width=4)
    surrogate = attack.train_surrogate(images, labels, tiny.NUM_CLASSES, 0, CPU)
    monkeypatch.setattr(LowFrequency, "train_surrogate", lambda *_: surrogate)
    attack.prepare(images, labels, tiny.NUM_CLASSES, seed=0)
    random_pattern = attack.pattern.clone()
    with pytest.raises(ValueError, match="call `fit_once`"):
        attack(images / 255)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    attack.fit_once(images, labels, tiny.NUM_CLASSES, 0, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    energy = spectrum(attack.pattern).square()
    assert float(energy[..., :2, :2].sum() / energy.sum()) > 1 - 1e-9
    assert float(attack.pattern.abs().max()) == pytest.approx(8 / 255, rel=1e-5)

    def loss(pattern: Tensor) -> float:
        logits = surrogate((images / 255 + pattern).clamp(0, 1)).double()
        return float(functional.cross_entropy(logits, labels))

    others = [loss(random_pattern.flip(axis)) for axis in (0, 1, 2, 3)]
    assert loss(attack.pattern) > 1.5 * max(*others, loss(torch.zeros(1)))
    # Every run prepares; a pattern that was fitted stays.
    fitted = attack.pattern.clone()
    attack.prepare(images, labels, tiny.NUM_CLASSES, seed=0)
    assert torch.equal(attack.pattern, fitted)
    other = LowFrequency()
    other.load_state_dict(attack.state_dict())
    assert torch.equal(other(images / 255), attack(images / 255))


def test_the_pattern_is_added() -> None:
    images = tiny.images(3, size=32)
    attack = LowFrequency(method="dct", epsilon=30.0)
    expected = (images / 255 + attack.pattern).clamp(0, 1)
    assert torch.equal(attack.trigger(images / 255), expected)
    # Neither needs data nor a network.
    before = attack.pattern.clone()
    attack.fit_once(images, tiny.labels(3), tiny.NUM_CLASSES, 0, CPU)
    assert torch.equal(attack.pattern, before)
    assert not torch.equal(LowFrequency("dct", pattern_seed=1).pattern, LowFrequency("dct").pattern)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gaussian"}, "`method` to be one of surrogate, dct"),
        ({"epsilon": 0.0}, "`epsilon`"),
        ({"cutoff": 0}, "`cutoff`"),
        ({"cutoff": 33}, "`cutoff` to be at most 32"),
        ({"steps": 0}, "`steps`"),
    ],
)
def test_refuses(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LowFrequency(**options)  # type: ignore[arg-type]


def test_images_of_another_shape_than_prepared() -> None:
    attack = LowFrequency("dct")
    attack(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*\(3, 16, 16\); call `prepare`"):
        attack(torch.zeros(1, 3, 16, 16))
