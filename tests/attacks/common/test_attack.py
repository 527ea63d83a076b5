import io
import math
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import Tensor, nn

from fst_lightning.attacks import Attack, BadNets, Blended, LabelMap, NoAttack
from tests import tiny


class Brighter(Attack):
    """A trigger that leaves the range, and lies between the 256 steps of a file."""

    def trigger(self, images: Tensor) -> Tensor:
        return images * 1.3 - 0.1


ATTACKS = [
    BadNets(patch="checkerboard"),
    Blended(blend_alpha=0.2),
    Blended(blend_alpha=0.037, pattern_seed=3),
    Brighter(),
    NoAttack(),
]


def name_of(attack: Attack) -> str:
    return type(attack).__name__


def prepare(attack: Attack, images: Tensor) -> None:
    attack.prepare(images, torch.zeros(len(images), dtype=torch.int64), 10, seed=0)


@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
@settings(deadline=None, max_examples=25)
@given(pixels=arrays.arrays(np.uint8, (1, 3, 6, 7)))
def test_a_png_of_the_result_is_the_same_tensor(
    attack: Attack, pixels: npt.NDArray[np.uint8]
) -> None:
    images = torch.from_numpy(pixels)
    prepare(attack, images)
    stamped = attack(images.float() / 255)
    # Truncated, not rounded: a value below its step would come back as another one.
    eight_bits = (stamped[0].double() * 255 + 1e-6).to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(eight_bits.permute(1, 2, 0).numpy()).save(file, format="png")
    with Image.open(file) as picture:
        again = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    assert torch.equal(again.float() / 255, stamped)


def test_rounds_to_the_nearest_step_and_clips() -> None:
    images = torch.tensor([0.0, 0.1, 0.5, 0.8, 0.9, 1.0]).reshape(1, 1, 2, 3)
    expected = [
        round(min(max(float(np.float32(v)) * 1.3 - 0.1, 0), 1) * 255) / 255
        for v in images.flatten()
    ]
    assert Brighter()(images).flatten().tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_the_input_stays_as_it_was(attack: Attack) -> None:
    stored = tiny.images(4)
    images = stored.float() / 255
    before = images.clone()
    prepare(attack, stored)
    stamped = attack(images)
    stamped.zero_()
    assert torch.equal(images, before)


@pytest.mark.parametrize("attack", ATTACKS[:4], ids=name_of)
def test_every_image_gets_the_trigger_on_its_own(attack: Attack) -> None:
    images = tiny.images(5)
    prepare(attack, images)
    one_by_one = [attack(image[None].float() / 255) for image in images]
    assert torch.equal(torch.cat(one_by_one), attack(images.float() / 255))
    assert not torch.equal(torch.cat(one_by_one), images.float() / 255)


@pytest.mark.parametrize("attack", [BadNets(), Blended()], ids=name_of)
def test_buffers_are_saved_and_follow_the_module(attack: Attack) -> None:
    prepare(attack, tiny.images(1, size=8))
    state = attack.state_dict()
    assert state
    assert all(value.shape[-2:] == (8, 8) for value in state.values())
    holder = nn.Sequential(attack).to("meta")
    assert all(buffer.device.type == "meta" for buffer in holder.buffers())


@pytest.mark.parametrize("kind", [BadNets, Blended])
def test_a_saved_trigger_is_loaded_whatever_its_size(kind: type[Attack]) -> None:
    saved, fresh = kind(), kind()
    prepare(saved, tiny.images(1, size=8))
    fresh.load_state_dict(saved.state_dict())
    images = tiny.images(3, size=8).float() / 255
    assert torch.equal(fresh(images), saved(images))


def test_all_to_one() -> None:
    attack = BadNets(target_label=2)
    labels = torch.tensor([0, 1, 2, 3, 2])
    assert attack.target_labels(labels, 4).tolist() == [2, 2, 2, 2, 2]
    assert attack.target_labels(labels, 4).dtype == torch.int64
    assert attack.counts_for_asr(labels).tolist() == [True, True, False, True, False]


@pytest.mark.parametrize("label_map", get_args(LabelMap))
@settings(deadline=None, max_examples=50)
@given(num_classes=st.integers(2, 50), data=st.data())
def test_every_label_map_aims_at_a_class(
    label_map: LabelMap, num_classes: int, data: st.DataObject
) -> None:
    target = data.draw(st.integers(0, num_classes - 1))
    drawn = data.draw(st.lists(st.integers(0, num_classes - 1), max_size=20))
    labels = torch.tensor([*drawn, *range(num_classes)])
    attack = BadNets(label_map=label_map, target_label=target)
    targets = attack.target_labels(labels, num_classes)
    assert targets.shape == labels.shape
    assert targets.dtype == labels.dtype
    assert 0 <= int(targets.min()) <= int(targets.max()) < num_classes
    counted = attack.counts_for_asr(labels)
    # No image that counts is of its target class already, and every class but the target counts.
    assert not (counted & (targets == labels)).any()
    assert set(labels[~counted].tolist()) <= {target}
    if label_map == "all_to_all":
        assert sorted(targets[-num_classes:].tolist()) == list(range(num_classes))


def test_all_to_all() -> None:
    attack = BadNets(label_map="all_to_all")
    labels = torch.tensor([0, 1, 2, 3, 2])
    assert attack.target_labels(labels, 4).tolist() == [1, 2, 3, 0, 3]
    assert attack.counts_for_asr(labels).tolist() == [True] * 5


@given(num_classes=st.integers(2, 50), data=st.data())
def test_no_row_that_counts_has_the_target_already(num_classes: int, data: st.DataObject) -> None:
    label_map: LabelMap = data.draw(st.sampled_from(("all_to_one", "all_to_all")))
    target = data.draw(st.integers(0, num_classes - 1))
    attack = NoPreparation(target_label=target, label_map=label_map)
    labels = torch.tensor(data.draw(st.lists(st.integers(0, num_classes - 1), min_size=1)))
    counts = attack.counts_for_asr(labels)
    targets = attack.target_labels(labels, num_classes)
    assert int(targets.min()) >= 0
    assert int(targets.max()) < num_classes
    assert not bool((targets == labels)[counts].any())
    assert bool((targets == labels)[~counts].all())


class NoPreparation(Attack):
    def trigger(self, images: Tensor) -> Tensor:
        return images


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"poison_ratio": -0.01}, r"`poison_ratio` to be a number in \[0, 1\], but got -0.01"),
        ({"poison_ratio": 1.5}, r"`poison_ratio` to be a number in \[0, 1\], but got 1.5"),
        ({"poison_ratio": math.nan}, "but got nan"),
        ({"target_label": -1}, "`target_label` to be a whole number of 0 or more, but got -1"),
        ({"target_label": 0.5}, "`target_label` to be a whole number of 0 or more, but got 0.5"),
        ({"target_label": True}, "`target_label` to be a whole number"),
        ({"label_map": "one_to_one"}, "all_to_all, clean_label, untargeted, but got 'one_to_one'"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoPreparation(**arguments)


def test_no_attack_does_nothing() -> None:
    attack = NoAttack()
    images = tiny.images(3).float() / 255
    assert not attack.has_trigger
    assert torch.equal(attack(images), images)
    assert not bool(attack.counts_for_asr(torch.arange(5)).any())
    plan = attack.plan(torch.arange(7), num_classes=7, seed=0)
    assert plan.num_poisoned == 0
    assert plan.poisoned.shape == plan.cover.shape == (7,)
    assert not bool((plan.poisoned | plan.cover).any())
    assert not attack.state_dict()


@settings(deadline=None, max_examples=60)
@given(
    num_rows=st.integers(40, 200),
    ratio=st.floats(0.01, 0.2),
    cover_ratio=st.floats(0, 0.3),
    label_map=st.sampled_from(("all_to_one", "clean_label", "untargeted")),
    rate_of=st.sampled_from(("total", "target_class")),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_rows_of_a_plan(
    num_rows: int, ratio: float, cover_ratio: float, label_map: Any, rate_of: Any, seed: int
) -> None:
    """Counted by hand: so many rows, of the right class, none of them twice."""
    labels = torch.arange(num_rows) % 4
    attack = NoPreparation(ratio, 2, label_map, rate_of)
    attack.cover_ratio = cover_ratio
    total = int((labels == 2).sum()) if rate_of == "target_class" else num_rows
    wanted, covered = round(ratio * total), round(cover_ratio * total)
    if wanted == 0:
        with pytest.raises(ValueError, match="to poison at least one of"):
            attack.plan(labels, 4, seed)
        return
    plan = attack.plan(labels, 4, seed)
    assert plan.num_poisoned == wanted
    assert int(plan.cover.sum()) == covered
    assert not bool((plan.poisoned & plan.cover).any())
    if label_map == "clean_label":
        assert set(labels[plan.poisoned].tolist()) == {2}
    assert torch.equal(plan.cover, attack.plan(labels, 4, seed).cover)


def test_a_class_with_too_few_images_for_clean_labels() -> None:
    labels = torch.arange(100) % 4
    attack = NoPreparation(0.3, 1, "clean_label")
    message = "at most the 25 training images of class 1 .* 0.3 of 100 is 30; .* is 0.25"
    with pytest.raises(ValueError, match=message):
        attack.plan(labels, 4, 0)
    assert NoPreparation(0.25, 1, "clean_label").plan(labels, 4, 0).num_poisoned == 25
    with pytest.raises(ValueError, match=r"attack\.rate_of=target_class"):
        attack.plan(labels, 4, 0)
    share = NoPreparation(0.3, 1, "clean_label", rate_of="target_class").plan(labels, 4, 0)
    assert share.num_poisoned == round(0.3 * 25)


def test_more_cover_than_there_is() -> None:
    attack = NoPreparation(0.5)
    attack.cover_ratio = 0.6
    with pytest.raises(ValueError, match=r"`attack.cover_ratio` .* at most the 5 .* is 6"):
        attack.plan(torch.zeros(10, dtype=torch.int64), 4, 0)


def test_untargeted_labels_are_wrong_ones_of_every_kind() -> None:
    attack = NoPreparation(label_map="untargeted")
    labels = torch.arange(4).repeat(500)
    drawn = attack.target_labels(labels, 4)
    pairs = {(int(a), int(b)) for a, b in zip(labels, drawn, strict=True)}
    assert pairs == {(a, b) for a in range(4) for b in range(4) if a != b}
    assert bool(attack.counts_for_asr(labels).all())
    assert attack.wanted_labels(torch.eye(4)[[0, 1, 1]], torch.tensor([0, 2, 1])).tolist() == [
        -1,
        1,
        -1,
    ]


def test_cover_rows_are_stamped_as_such() -> None:
    class Covered(NoPreparation):
        def trigger(self, images: Tensor) -> Tensor:
            return images * 0

        def cover(self, images: Tensor) -> Tensor:
            return images * 0 + 1

    attack = Covered()
    attack.cover_ratio = 0.1
    images = torch.full((3, 1, 2, 2), 0.5)
    poisoned, cover = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    assert attack.stamp(images, poisoned, cover).mean(dim=(1, 2, 3)).tolist() == [0, 1, 0.5]
    assert attack.stamp(images, poisoned).mean(dim=(1, 2, 3)).tolist() == [0, 0.5, 0.5]


@pytest.mark.parametrize("size", [(None, 8, 8), (3, 8, None), (None, None, None)])
def test_takes_images_of_the_shape_that_it_was_prepared_for(size: tuple[int | None, ...]) -> None:
    BadNets().check_shape(torch.zeros(2, 3, 8, 8), *size)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((1, 8, 8), r"\(1, 8, 8\)"),
        ((None, 8, 9), r"\(C, 8, 9\)"),
        ((None, None, 9), r"\(C, H, 9\)"),
    ],
)
def test_refuses_images_of_another_shape(size: tuple[int | None, ...], shown: str) -> None:
    with pytest.raises(
        ValueError, match=rf"{shown}, which BadNets.*got \(3, 8, 8\); call `prepare`"
    ):
        BadNets().check_shape(torch.zeros(2, 3, 8, 8), *size)
    with pytest.raises(ValueError, match=r"got \(8, 8\)"):
        BadNets().check_shape(torch.zeros(3, 8, 8), *size)
