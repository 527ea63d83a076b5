import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fst_lightning.attacks import SIG
from tests import tiny

PERIOD = [0, 36.955, 28.284, -15.307, -40, -15.307, 28.284, 36.955]


def prepared(attack: SIG, images: Tensor) -> SIG:
    attack.prepare(images, tiny.labels(len(images)), tiny.NUM_CLASSES, seed=0)
    return attack


def test_the_published_sinusoid_on_32_columns() -> None:
    gray = torch.full((2, 3, 32, 32), 0.5)
    added = (255 * (SIG().trigger(gray) - gray)).double()
    # 6 periods in 32 columns: sin(3 pi j / 8), the same again after 16.
    expected = [*PERIOD, 0, -36.955, -28.284, 15.307, 40, 15.307, -28.284, -36.955] * 2
    assert added[0, 0, 0].tolist() == pytest.approx(expected, abs=1e-3)
    assert float((added - added[:1, :1, :1]).abs().max()) == 0
    assert float(added[0, 0, 0].mean()) == pytest.approx(0, abs=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    delta=st.floats(0.5, 255),
    frequency=st.floats(0.5, 20),
    size=st.integers(41, 64),
    channels=st.sampled_from([1, 3]),
)
def test_formula(delta: float, frequency: float, size: int, channels: int) -> None:
    stored = tiny.images(2, size=size)[:, :channels]
    stamped = prepared(SIG(delta, frequency), stored).trigger(stored / 255).numpy()
    for column in (0, 1, size // 2, size - 1):
        wave = delta * math.sin(2 * math.pi * column * frequency / size)
        expected = np.clip(stored[..., column].numpy() + wave, 0, 255)
        assert np.abs(255 * stamped[..., column] - expected).max() < 1e-3


@pytest.mark.parametrize(("size", "periods"), [(8, 2), (12, 3), (13, 6)])
def test_columns_too_few_for_the_frequency_show_a_lower_one(size: int, periods: int) -> None:
    attack = prepared(SIG(), tiny.images(1, size=size))
    wave = [40 / 255 * math.sin(2 * math.pi * j * periods / size) for j in range(size)]
    assert attack.signal.flatten().tolist() == pytest.approx(wave, abs=1e-6)


def test_clean_label_poisons_the_target_class_alone() -> None:
    labels = torch.arange(100) % 10
    attack = SIG(poison_ratio=0.1, target_label=3)
    plan = attack.plan(labels, 10, seed=0)
    assert torch.equal(plan.poisoned, labels == 3)
    assert torch.equal(attack.training_targets(labels, plan.poisoned, 10), labels)
    with pytest.raises(ValueError, match=r"10 training images of class 3.*rate_of=target_class"):
        SIG(poison_ratio=0.2, target_label=3).plan(labels, 10, seed=0)


def test_refuses_what_is_no_sinusoid() -> None:
    for delta in (0.0, -1.0, 256.0, math.nan):
        with pytest.raises(ValueError, match=r"`delta` to be a number in \(0, 255\]"):
            SIG(delta=delta)
    for frequency in (0.0, -2.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="`frequency` to be a number greater than 0"):
            SIG(frequency=frequency)
    attack = SIG()
    attack(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\(C, H, 32\).*\(3, 16, 16\); call `prepare`"):
        attack(torch.zeros(1, 3, 16, 16))
