import functools

import pytest
import torch
from torch import Tensor

from fst_lightning.attacks import TrojanNN
from fst_lightning.attacks.common.surrogate import Surrogate
from fst_lightning.attacks.trojannn import choose_neurons, features
from tests import tiny
from tests.attacks.colored import colored

CPU = torch.device("cpu")
OPTIONS = {"steps": 25, "surrogate_epochs": 6, "surrogate_width": 4, "mask_size": 16}


@functools.cache
def trained() -> Surrogate:
    images, labels = colored(120, size=16)
    return TrojanNN(**OPTIONS).train_surrogate(images, labels, tiny.NUM_CLASSES, 0, CPU)  # type: ignore[arg-type]


@functools.cache
def fitted(neurons: int = 2, target_activation: float = 100.0) -> TrojanNN:
    """An attack that looked into the surrogate above."""
    images, labels = colored(120, size=16)
    attack = TrojanNN(neurons, target_activation, **OPTIONS)  # type: ignore[arg-type]
    attack.prepare(images, labels, tiny.NUM_CLASSES, seed=0)
    surrogate = trained()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrojanNN, "train_surrogate", lambda *_: surrogate)
        attack.fit_once(images, labels, tiny.NUM_CLASSES, 0, CPU)
    return attack


def test_the_neurons_are_those_that_weigh_most() -> None:
    surrogate = Surrogate(4, 3, width=2, seed=0)
    weight = surrogate.net.fc.weight.tolist()
    sums = [sum(abs(row[n]) for row in weight) for n in range(16)]
    expected = sorted(range(16), key=lambda n: -sums[n])[:3]
    assert choose_neurons(surrogate, 4, 3).tolist() == expected


def test_features_are_what_the_head_gets() -> None:
    surrogate = Surrogate(4, 3, width=2, seed=0).eval()
    images = tiny.images(3) / 255
    logits = surrogate(images)
    seen = features(surrogate, images, 4)
    assert torch.allclose(seen @ surrogate.net.fc.weight.T + surrogate.net.fc.bias, logits)
    assert not surrogate.net.fc._forward_pre_hooks


def test_the_patch_excites_the_chosen_neurons() -> None:
    attack = fitted()
    chosen = choose_neurons(trained(), tiny.NUM_CLASSES, 2)

    def activation(batch: Tensor) -> float:
        return float(features(trained(), batch, tiny.NUM_CLASSES)[:, chosen].mean())

    unit = colored(120, size=16)[0] / 255
    signs = torch.randint(2, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    noises = attack.mask * signs * 76 / 255
    by_chance = max(activation((unit + noise).clamp(0, 1)) for noise in noises)
    assert activation(attack(unit)) > 1.2 * max(by_chance, activation(unit))


def test_the_patch_keeps_to_mask_and_bound() -> None:
    attack = fitted()
    outside = attack.pattern[..., :8, :].abs().sum() + attack.pattern[..., :8].abs().sum()
    assert float(outside) == 0
    assert float(attack.pattern.abs().max()) == pytest.approx(76 / 255, rel=1e-6)
    images = tiny.images(3, size=16) / 255
    assert torch.equal(attack.trigger(images), (images + attack.pattern).clamp(0, 1))


def test_an_activation_within_reach_is_met_rather_than_exceeded() -> None:
    images = colored(120, size=16)[0] / 255
    chosen = choose_neurons(trained(), tiny.NUM_CLASSES, 1)

    def reached(aim: float) -> float:
        stamped = fitted(1, aim)(images)
        return float(features(trained(), stamped, tiny.NUM_CLASSES)[:, chosen].mean())

    low, high = reached(0.0), reached(100.0)
    middle = (low + high) / 2
    assert low < middle < high
    assert reached(middle) == pytest.approx(middle, abs=0.25 * (high - low))


def test_the_state_brings_the_patch_back() -> None:
    images = tiny.images(3, size=16) / 255
    other = TrojanNN(mask_size=16, surrogate_width=4)
    with pytest.raises(ValueError, match="call `fit_once`"):
        other(images)
    other.load_state_dict(fitted().state_dict())
    other.prepare(tiny.images(3, size=16), tiny.labels(3), tiny.NUM_CLASSES, seed=0)
    assert torch.equal(other(images), fitted()(images))
    with pytest.raises(ValueError, match=r"\(3, 16, 16\).*\(3, 8, 8\); call `prepare`"):
        other(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("corner", ["top_left", "top_right", "bottom_left", "bottom_right"])
def test_the_mask_sits_in_its_corner(corner: str) -> None:
    attack = TrojanNN(mask_size=8, corner=corner)  # type: ignore[arg-type]
    attack.prepare(tiny.images(2, size=64), tiny.labels(2), tiny.NUM_CLASSES, seed=0)
    rows, columns = attack.mask[0, 0].nonzero().T
    first = {"top": 0, "bottom": 48, "left": 0, "right": 48}
    down, right = corner.split("_")
    assert (int(rows.min()), int(rows.max())) == (first[down], first[down] + 15)
    assert (int(columns.min()), int(columns.max())) == (first[right], first[right] + 15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neurons": 0}, "`neurons`"),
        ({"neurons": 17, "surrogate_width": 2}, "`neurons` to be at most 16"),
        ({"target_activation": float("nan")}, "`target_activation`"),
        ({"mask_size": 33}, "`mask_size`"),
        ({"corner": "middle"}, "`corner` to be one of top_left"),
        ({"epsilon": 0.0}, "`epsilon`"),
        ({"steps": 0}, "`steps`"),
        ({"step_size": -1.0}, "`step_size`"),
    ],
)
def test_refuses(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrojanNN(**options)  # type: ignore[arg-type]
