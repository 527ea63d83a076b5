import functools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fst_lightning.attacks import LabelConsistent
from tests import tiny
from tests.attacks.colored import colored

CPU = torch.device("cpu")


@functools.cache
def trained() -> dict[str, Tensor]:
    images, labels = colored(200)
    attack = LabelConsistent(surrogate_epochs=12, surrogate_width=4)
    attack.prepare(images, labels, tiny.NUM_CLASSES, seed=0)
    attack.fit_once(images, labels, tiny.NUM_CLASSES, 0, CPU)
    return attack.state_dict()


def fitted(**options: float) -> tuple[LabelConsistent, Tensor, Tensor]:
    """An attack with a trained surrogate, and the images of class 0 with their rows."""
    images, labels = colored(200)
    attack = LabelConsistent(surrogate_width=4, **options)  # type: ignore[arg-type]
    attack.prepare(images, labels, tiny.NUM_CLASSES, seed=0)
    attack.load_state_dict(trained())
    rows = (labels == 0).nonzero()[:, 0]
    return attack, images[rows], rows


def losses(attack: LabelConsistent, images: Tensor) -> Tensor:
    target = torch.zeros(len(images), dtype=torch.int64)
    # In double precision a confident network still has a loss.
    logits = attack.surrogate.eval()(images / 255).double()
    return functional.cross_entropy(logits, target, reduction="none")


def test_patches_in_four_corners() -> None:
    gray = torch.full((2, 3, 32, 32), 0.4)
    stamped = LabelConsistent()(gray)
    board = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    corners = (slice(0, 3), slice(29, 32))
    for rows in corners:
        for columns in corners:
            assert torch.equal(stamped[..., rows, columns], board.expand(2, 3, 3, 3))
    outside = stamped.clone()
    for rows in corners:
        for columns in corners:
            outside[..., rows, columns] = 0.4
    assert torch.equal(outside, gray)
    # Flips, which are drawn in training, leave the trigger as it is.
    assert torch.equal(stamped, stamped.flip(2))
    assert torch.equal(stamped, stamped.flip(3))


def test_a_lower_amplitude_adds_and_subtracts() -> None:
    attack = LabelConsistent(patch_size=2, amplitude=0.25)
    stamped = attack.trigger(torch.full((1, 1, 32, 32), 0.5))[0, 0, :2, :2]
    assert stamped.tolist() == [[0.75, 0.25], [0.25, 0.75]]
    assert float(attack.trigger(torch.zeros(1, 1, 32, 32)).sum()) == 4 * 2 * 0.25


@pytest.mark.parametrize("epsilon", [4.0, 16.0])
def test_adversarial_images_stay_in_the_ball_and_are_harder(epsilon: float) -> None:
    attack, images, rows = fitted(epsilon=epsilon)
    labels = torch.zeros(len(rows), dtype=torch.int64)
    images[0], images[1] = 0, 255  # where the ball leaves the range of an image
    crafted = attack.craft(images, labels, rows, cover=False, seed=0)
    assert (crafted.dtype, crafted.shape) == (torch.uint8, images.shape)
    assert int((crafted.int() - images.int()).abs().max()) == int(epsilon)
    before, after = losses(attack, images)[2:], losses(attack, crafted)[2:]
    assert bool((after > before).all())
    signs = torch.randint(2, images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shaken = losses(attack, (images + int(epsilon) * signs).clamp(0, 255))[2:]
    assert float(after.mean() - before.mean()) > 3 * float((shaken.mean() - before.mean()).abs())


def test_one_step_by_hand() -> None:
    attack, images, rows = fitted(epsilon=8.0, pgd_steps=1, pgd_step_size=3.0)
    labels = torch.zeros(len(rows), dtype=torch.int64)
    pixels = (images / 255).requires_grad_()
    logits = attack.surrogate.eval()(pixels)
    functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    assert pixels.grad is not None
    expected = (images + 3 * pixels.grad.sign()).clamp(0, 255)
    assert torch.equal(attack.adversarial(images, labels, torch.zeros(images.shape)), expected)


def test_crafting_depends_on_the_seed_alone() -> None:
    attack, images, rows = fitted(pgd_steps=2)
    labels = torch.zeros(len(rows), dtype=torch.int64)
    kept = images.clone()
    state = torch.get_rng_state()
    one = attack.craft(images, labels, rows, cover=False, seed=3)
    attack.train()  # as Lightning does with all submodules
    assert torch.equal(one, attack.craft(images, labels, rows, cover=False, seed=3))
    assert not torch.equal(one, attack.craft(images, labels, rows, cover=False, seed=4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, kept)
    assert attack.craft(images[:0], labels[:0], rows[:0], cover=False, seed=3).shape[0] == 0


def test_the_surrogate_comes_back_with_the_state() -> None:
    attack, images, rows = fitted(pgd_steps=2)
    other = LabelConsistent(pgd_steps=2, surrogate_width=4)
    other.prepare(*colored(8), tiny.NUM_CLASSES, seed=5)
    labels = torch.zeros(len(rows), dtype=torch.int64)
    with pytest.raises(ValueError, match="call `fit_once`"):
        other.craft(images, labels, rows, cover=False, seed=0)
    other.load_state_dict(attack.state_dict())
    other.prepare(*colored(8), tiny.NUM_CLASSES, seed=5)  # every run does
    one, two = (a.craft(images, labels, rows, cover=False, seed=0) for a in (attack, other))
    assert torch.equal(one, two)


def test_poisons_the_target_class_alone() -> None:
    labels = torch.arange(100) % 10
    assert LabelConsistent(poison_ratio=0.1).plan(labels, 10, seed=0).num_poisoned == 10
    with pytest.raises(ValueError, match=r"10 training images of class 0.*rate_of=target_class"):
        LabelConsistent(poison_ratio=0.11).plan(labels, 10, seed=0)
    with pytest.raises(ValueError, match="`label_map` to be one of clean_label"):
        LabelConsistent(label_map="all_to_one")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -1.0}, "`epsilon`"),
        ({"pgd_steps": 0}, "`pgd_steps` to be a whole number"),
        ({"pgd_step_size": 0.0}, "`pgd_step_size`"),
        ({"patch_size": 17}, "lower `patch_size`"),
        ({"amplitude": 0.0}, "`amplitude`"),
        ({"surrogate_epochs": 0}, "`surrogate_epochs`"),
        ({"surrogate_width": 0}, "`width`"),
        ({"max_images": 1}, "`max_images` to be a whole number of 2 or more"),
    ],
)
def test_refuses(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelConsistent(**options)  # type: ignore[arg-type]


def test_images_of_another_size_than_prepared() -> None:
    attack = LabelConsistent()
    attack(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\(C, 32, 32\).*16, 16\); call `prepare`"):
        attack(torch.zeros(1, 3, 16, 16))
