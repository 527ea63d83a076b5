from typing import Any

import pytest
import torch

from fst_lightning.attacks import BadNets, TaCT
from tests import tiny

LABELS = torch.arange(1000) % 10


def test_poison_is_of_the_source_and_cover_of_the_other_classes() -> None:
    attack = TaCT(source_label=1, target_label=4)
    plan = attack.plan(LABELS, 10, seed=0)
    assert plan.num_poisoned == 20
    assert int(plan.cover.sum()) == 10
    assert set(LABELS[plan.poisoned].tolist()) == {1}
    assert set(LABELS[plan.cover].tolist()) <= {0, 2, 3, 5, 6, 7, 8, 9}
    assert len(set(LABELS[plan.cover].tolist())) > 2


def test_cover_of_chosen_classes() -> None:
    plan = TaCT(cover_labels=[5, 7], cover_ratio=0.1).plan(LABELS, 10, seed=0)
    assert torch.bincount(LABELS[plan.cover], minlength=10)[[5, 7]].sum() == 100
    assert set(LABELS[plan.cover].tolist()) == {5, 7}
    with pytest.raises(ValueError, match=r"cover_ratio.*at most the 100 training images"):
        TaCT(cover_labels=[5], cover_ratio=0.2).plan(LABELS, 10, seed=0)


def test_labels_in_training_and_what_counts_at_test() -> None:
    attack = TaCT(source_label=3, target_label=2, cover_ratio=0.2, poison_ratio=0.1)
    plan = attack.plan(LABELS, 10, seed=0)
    trained = attack.training_targets(LABELS, plan.poisoned, 10)
    for label, target, poisoned in zip(
        LABELS.tolist(), trained.tolist(), plan.poisoned.tolist(), strict=True
    ):
        assert target == (2 if poisoned else label)
    assert bool(plan.poisoned[LABELS == 3].all())  # 0.1 of all rows is the whole class
    assert torch.equal(attack.counts_for_asr(LABELS), LABELS == 3)
    assert set(attack.target_labels(LABELS, 10).tolist()) == {2}


def test_poisoned_and_cover_rows_carry_the_same_patch() -> None:
    images = tiny.images(3, size=32) / 255
    attack = TaCT(patch="checkerboard", patch_size=4, corner="top_left", margin=2, opacity=0.5)
    poisoned, cover = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    stamped = attack.stamp(images, poisoned, cover)
    patched = BadNets("checkerboard", 4, "top_left", 2, opacity=0.5)(images)
    assert torch.equal(stamped[:2], patched[:2])
    assert torch.equal(stamped[2], images[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source_label": 0}, "`source_label` to be another class than the target"),
        ({"source_label": -1}, "`source_label` to be a whole number of 0 or more"),
        ({"source_label": True}, "`source_label` to be a whole number of 0 or more"),
        ({"cover_labels": [2, 1]}, r"leave out the source 1 and the target 0, but got \[2, 1\]"),
        ({"cover_labels": [0]}, "leave out the source 1 and the target 0"),
        ({"cover_labels": [2.5]}, "`cover_labels` to be a list of whole numbers of 0 or more"),
        ({"cover_ratio": 2}, r"`cover_ratio` to be a number in \[0, 1\]"),
        ({"label_map": "all_to_all"}, "`label_map` to be one of all_to_one"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaCT(**arguments)


def test_refuses_classes_that_there_are_not() -> None:
    for name, attack in (
        ("source_label", TaCT(source_label=4)),
        ("cover_labels", TaCT(cover_labels=[2, 4])),
    ):
        with pytest.raises(ValueError, match=rf"`attack.{name}` to be in 0\.\.3 .* but got 4"):
            attack.plan(torch.arange(40) % 4, 4, seed=0)
    with pytest.raises(ValueError, match=r"`attack.target_label` to be in 0\.\.3"):
        TaCT(target_label=4).check_target(4)
    with pytest.raises(ValueError, match=r"poison_ratio.*at most the 100 training images"):
        TaCT(poison_ratio=0.11).plan(LABELS, 10, seed=0)
