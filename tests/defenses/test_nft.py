import pytest
import torch
from torch.nn import functional

from fst_lightning.defenses import NeuralMaskFineTuning
from tests.defenses import pruning
from tests.defenses.drive import drive

FLOORS = {1: 0.4852, 2: 0.2943, 3: 0.1785, 4: 0.1083, 5: 0.0657, 10: 0.0054}


def test_the_floors_of_the_layers() -> None:
    defense = NeuralMaskFineTuning(alpha=0.8, beta=0.5)
    for number, floor in FLOORS.items():
        assert defense.floor(number) == pytest.approx(floor, abs=5e-5)
    assert NeuralMaskFineTuning(alpha=0.8, beta=0).floor(7) == 0.8


def test_masks_are_projected_to_their_floor_and_to_1() -> None:
    net = pruning.network()
    defense = NeuralMaskFineTuning()
    defense.prepare(net, pruning.seeded())
    for value in (-3.0, 0.1, 0.9, 5.0):
        defense.set_masks({n: torch.full_like(m.mask, value) for n, m in defense.masks.items()})
        defense.after_step()
        for number, mask in enumerate(defense.masks.values(), start=1):
            floor = FLOORS.get(number, defense.floor(number))
            expected = min(max(value, floor), 1.0)
            assert mask.mask.tolist() == pytest.approx([expected] * len(mask.mask), abs=5e-5)
    assert list(defense.masks)[:2] == ["bn1", "layer1.0.bn1"]
    defense.finish()


def test_the_loss_mixes_the_batch_with_itself() -> None:
    net, clean = pruning.network(), pruning.clean_data(6)
    images, labels = clean.normalize(clean.images), clean.labels
    defense = NeuralMaskFineTuning(mixup=0.7)
    defense.prepare(net, pruning.seeded())
    torch.manual_seed(11)
    found = defense.loss(net, images, labels)
    torch.manual_seed(11)
    share = torch.distributions.Beta(0.7, 0.7).sample()
    partners = torch.randperm(6).tolist()
    total = torch.zeros(())
    for row in range(6):
        mixed = share * images[row] + (1 - share) * images[partners[row]]
        logits = net(mixed[None])
        for weight, other in ((share, row), (1 - share, partners[row])):
            total = total + weight * functional.cross_entropy(logits, labels[other][None]) / 6
    assert 0.01 < float(share) < 0.99
    assert partners != sorted(partners)
    torch.testing.assert_close(found, total, atol=1e-5, rtol=1e-5)
    defense.finish()


def test_the_penalty_is_the_distance_from_1_a_class() -> None:
    net, clean = pruning.network(), pruning.clean_data(24)
    defense = NeuralMaskFineTuning(eta=0.5)
    defense.prepare(net, pruning.seeded())
    penalty = defense.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == 0
    defense.study(net, clean, pruning.seeded())
    total = 0.0
    for number, mask in enumerate(defense.masks.values(), start=1):
        with torch.no_grad():
            mask.mask.fill_(1 - number / 100)
        total += number / 100 * len(mask.mask)
    penalty = defense.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(0.5 * total / (24 / 4), rel=1e-4)
    penalty.backward()  # type: ignore[no-untyped-call]
    for mask in defense.masks.values():
        assert mask.mask.grad is not None
        assert mask.mask.grad.tolist() == pytest.approx([-0.5 / 6] * len(mask.mask))
    defense.finish()
    assert NeuralMaskFineTuning(eta=0).penalty() is None


def test_only_masks_change() -> None:
    net, clean = pruning.network(), pruning.clean_data()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    defense = NeuralMaskFineTuning()
    drive(defense, net, clean, epochs=2)
    changed = [n for n, value in net.state_dict().items() if not torch.equal(value, before[n])]
    assert changed
    for number, name in enumerate(defense.findings()["mean_mask"], start=1):
        ratio = net.state_dict()[f"{name}.weight"] / before[f"{name}.weight"]
        assert ratio.min() >= defense.floor(number) - 1e-5
        assert ratio.max() <= 1 + 1e-5
        assert defense.findings()["mean_mask"][name] == pytest.approx(float(ratio.mean()), abs=1e-3)
    assert {n for n in changed if not n.endswith("num_batches_tracked")} <= {
        f"{name}.weight" for name in defense.findings()["mean_mask"]
    }


def test_the_network_is_an_ordinary_one_afterwards() -> None:
    pruning.assert_folds(NeuralMaskFineTuning(), pruning.network(), pruning.clean_data())


@pytest.mark.parametrize("arguments", [{"alpha": 1.5}, {"beta": -1}, {"eta": -1}, {"mixup": 0}])
def test_arguments_are_checked(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
        NeuralMaskFineTuning(**arguments)
