"""The reactivation attack: its loss against a plain loop, its bound, and what it wakes."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from fst_lightning.defenses.common.whole_set import seeded as global_seed
from fst_lightning.robustness import ReactivationAttack, RetuningAttack
from fst_lightning.robustness.reactivation import Perturbation
from tests.defenses.delivered import delivered, hide, trained
from tests.robustness.subjects import stamp, subject


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_attackers_images_are_clean_and_triggered_with_their_true_labels() -> None:
    whole = subject()
    data = ReactivationAttack(images=20).attackers_images(whole, seeded())
    labels = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(whole.train.images, whole.train.labels, strict=True)
    }
    stamped = {
        stamp(image[None])[0].numpy().tobytes(): int(label)
        for image, label in zip(whole.train.images, whole.train.labels, strict=True)
    }
    stored = (data.images * 255).round().to(torch.uint8)
    for row, (image, label) in enumerate(zip(stored, data.labels, strict=True)):
        known = labels if row < 20 else stamped
        assert known[image.numpy().tobytes()] == int(label)


def test_steps_are_those_of_a_plain_loop() -> None:
    whole = subject()
    retuned, clean = trained(delivered()[0], 30), trained(delivered(poisoned=0)[0], 30)
    attack = ReactivationAttack(images=16, epochs=2, lr=0.05, batch_size=8, width=6, alpha=0.7)
    found = attack.learned(whole, retuned, clean, seeded(2))
    numbers = seeded(2)
    data = attack.attackers_images(whole, numbers)
    with global_seed(numbers, torch.device("cpu")):
        mapping = Perturbation((3, 9, 9), attack.epsilon, 6)
    optimizer = torch.optim.SGD(mapping.parameters(), lr=0.05, momentum=0.9)
    assert data.mean is not None
    assert data.std is not None
    for _ in range(2):
        for images, labels in data.batches(8, numbers):
            near = (mapping(images * data.std + data.mean) - data.mean) / data.std
            wished = retuned(images).softmax(1).detach()
            answers = whole.purified(near).softmax(1)
            apart = (wished * (wished / answers).log()).sum(1).mean()
            optimizer.zero_grad()
            loss = functional.cross_entropy(clean(near), labels) + 0.7 * apart
            torch.autograd.backward(loss)
            optimizer.step()
    for one, two in zip(found.parameters(), mapping.parameters(), strict=True):
        torch.testing.assert_close(one.detach(), two.detach(), rtol=1e-4, atol=1e-6)


def test_a_perturbation_keeps_its_bound_and_the_range() -> None:
    torch.manual_seed(0)
    mapping = Perturbation((3, 9, 9), epsilon=0.1, width=5)
    images = torch.rand(4, 3, 9, 9)
    near = mapping(images)
    assert (near - images).abs().max() <= 0.1 + 1e-6
    assert near.min() >= 0
    assert near.max() <= 1
    assert torch.equal(Perturbation((3, 9, 9), epsilon=0.0, width=5)(images), images)


def test_a_hidden_backdoor_is_woken() -> None:
    hidden = hide(trained(delivered()[0]), 8)
    retuning = RetuningAttack(poisoned_images=5, share=0.5, epochs=5, lr=0.02, batch_size=16)
    attack = ReactivationAttack(
        images=45, epsilon=0.3, alpha=5.0, epochs=60, lr=0.05, width=32, retuning=retuning
    )
    found = attack.run(subject(purified=hidden), seeded())
    assert found["asr_before"] < 0.2
    assert found["asr_after"] > found["asr_before"] + 0.3
    assert found["clean_asr_after"] < found["asr_after"]
    assert found["images"] == 90


@pytest.mark.parametrize(
    "arguments",
    [
        {"images": 0},
        {"epsilon": -0.1},
        {"alpha": -1},
        {"epochs": 0},
        {"lr": 0},
        {"batch_size": 0},
        {"width": 0},
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Expected `{next(iter(arguments))}`"):
        ReactivationAttack(**arguments)
