"""Images and class numbers in batches of other people."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fst_lightning.modules.batches import (
    as_network_takes,
    bounded,
    class_numbers,
    images_and_labels,
)

IMAGES, LABELS = torch.zeros(3, 3, 2, 2), torch.tensor([2, 0, 1])


@pytest.mark.parametrize(
    "batch",
    [
        (IMAGES, LABELS),
        [IMAGES, LABELS, "more"],
        {"image": IMAGES, "label": LABELS, "path": ["a", "b", "c"]},
        {"pixel_values": IMAGES, "labels": LABELS.tolist()},
        {"x": IMAGES.numpy(), "y": LABELS.numpy()},
    ],
)
def test_images_and_labels_are_found(batch: Any) -> None:
    images, labels = images_and_labels(batch)
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, LABELS)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (IMAGES, "start with images and labels.*got Tensor"),
        ([IMAGES], "start with images and labels.*got list"),
        ({"image": IMAGES}, "keys label, labels"),
        ({"image": IMAGES, "x": IMAGES, "label": LABELS}, "exactly one of the keys image"),
        ((["a"], LABELS), "as tensors, but got list"),
    ],
)
def test_other_batches_are_refused(batch: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        images_and_labels(batch)


def test_a_row_of_a_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="Is this a data set"):
        images_and_labels((IMAGES[0], 2))


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=9))
@settings(deadline=None, max_examples=20)
def test_every_form_gives_the_same_numbers(labels: list[int]) -> None:
    numbers = torch.tensor(labels)
    for form in (
        numbers,
        numbers[:, None],
        numbers.int(),
        numbers.byte(),
        torch.eye(5)[numbers],
        torch.eye(5, dtype=torch.int64)[numbers],
        torch.eye(5, dtype=torch.bool)[numbers],
    ):
        for check in (True, False):
            found = class_numbers(form, len(labels), 5, check=check)
            assert found.dtype == torch.int64
            assert found.tolist() == labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS.float(), "whole numbers, but got torch.float32"),
        (LABELS > 0, "whole numbers, but got torch.bool"),
        (LABELS[:2], r"shape \(3,\)"),
        (torch.full((3, 5), 0.2), r"torch.float32 of shape \(3, 5\)"),
        (torch.eye(4)[LABELS], r"of shape \(3, 4\)"),
        (LABELS + 3, "labels in 0..4 for a network with 5 outputs.*from 3 to 5"),
        (LABELS - 1, "labels in 0..4.*from -1 to 1"),
    ],
)
def test_what_is_no_class_is_refused(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_numbers(labels, 3, 5)


def test_probabilities_stay_where_a_loss_takes_them() -> None:
    probabilities = torch.full((3, 5), 0.2)
    for check in (True, False):
        assert class_numbers(probabilities, 3, 5, soft=True, check=check) is probabilities


def test_without_a_check_values_are_not_looked_at() -> None:
    assert class_numbers(LABELS + 9, 3, 5, check=False).tolist() == [11, 9, 10]


def test_images_get_the_type_of_the_weights() -> None:
    net = nn.Linear(1, 1).double()
    assert as_network_takes(IMAGES, net).dtype == torch.float64
    assert as_network_takes(IMAGES.byte(), net).dtype == torch.uint8
    assert as_network_takes(IMAGES, nn.Flatten()) is IMAGES


def test_tensors_of_inference_mode_can_be_trained_on() -> None:
    with torch.inference_mode():
        batch = torch.ones(2, 3), torch.tensor([0, 1])
        assert images_and_labels(batch)[0] is batch[0]
    images, _ = images_and_labels(batch)
    assert not images.is_inference()
    assert torch.equal(images, batch[0])


def test_no_more_is_read_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [(IMAGES, LABELS)] * 4
    monkeypatch.setattr("fst_lightning.modules.batches.MAX_BYTES", 4 * IMAGES.nbytes)
    assert len(list(bounded(batches))) == 4
    monkeypatch.setattr("fst_lightning.modules.batches.MAX_BYTES", 4 * IMAGES.nbytes - 1)
    with pytest.raises(ValueError, match="is the loader endless"):
        list(bounded(batches))
