"""Another order of the classes is found if, and only if, it is clearly right."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fst_lightning.metrics.class_order import other_order


def answers(labels: Tensor, order: Tensor, accuracy: float, seed: int) -> Tensor:
    """Predictions of a network with this accuracy and errors spread evenly, in another order."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(len(labels), generator=generator) < accuracy
    num_classes = len(order)
    wrong = torch.randint(1, num_classes, (len(labels),), generator=generator)
    return torch.where(right, order[labels], (order[labels] + wrong) % num_classes)


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 30), st.sampled_from([0.7, 0.9, 1.0]), st.integers(0, 1000))
def test_any_order_of_a_good_network_is_found(num_classes: int, accuracy: float, seed: int) -> None:
    order = torch.randperm(num_classes, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(num_classes).repeat(40)
    found = other_order(labels, answers(labels, order, accuracy, seed), num_classes)
    identity = list(range(num_classes))
    assert found == (None if order.tolist() == identity else order.tolist())


@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.2, 0.3, 0.5, 0.9])
def test_the_given_order_is_never_suspected(accuracy: float) -> None:
    """Also at chance, where the best assignment always fits better than the identity."""
    for seed, num_classes in itertools.product(range(25), (2, 10, 43)):
        labels = torch.arange(num_classes).repeat(20)
        # Below chance a network of two classes has them the other way round.
        at_least = max(accuracy, 1 / num_classes)
        predictions = answers(labels, torch.arange(num_classes), at_least, seed)
        assert other_order(labels, predictions, num_classes) is None


def test_the_best_assignment_is_that_of_a_search_through_all_permutations() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        order = torch.arange(5).roll(1)[torch.randperm(5, generator=generator)]
        labels = torch.randint(5, (400,), generator=generator)
        predictions = answers(labels, order, 0.7, 1)
        found = other_order(labels, predictions, 5)
        counts = [(predictions[labels == c, None] == torch.arange(5)).double() for c in range(5)]
        shares = torch.stack([count.mean(0) for count in counts])
        best = max(
            itertools.permutations(range(5)),
            key=lambda each: sum(float(shares[c, p]) for c, p in enumerate(each)),
        )
        assert found == (None if best == tuple(range(5)) else list(best))


def test_a_network_that_always_says_one_class_is_not_suspected() -> None:
    """On unequal classes another order would give it more images: those of the largest class."""
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([20, 300, 30, 50]))
    assert other_order(labels, torch.zeros_like(labels), 4) is None


def test_a_network_of_other_classes_is_not_suspected() -> None:
    """It prefers a label for each class, too, but the same one for several."""
    favorites = torch.tensor([3, 3, 1, 0, 8, 8, 8, 2, 2, 5])
    labels = torch.arange(10).repeat(100)
    assert other_order(labels, answers(labels, favorites, 0.8, 0), 10) is None


def test_a_weak_network_that_mixes_up_two_classes_is_not_suspected() -> None:
    labels = torch.arange(10).repeat(100)
    generator = torch.Generator().manual_seed(0)
    predictions = labels.clone()
    pair = (labels == 3) | (labels == 5)
    # Six of ten images of either class get the label of the other one.
    swapped = pair & (torch.rand(len(labels), generator=generator) < 0.6)
    predictions[swapped] = 8 - labels[swapped]
    assert other_order(labels, predictions, 10) is None


def test_two_classes_that_are_exchanged_are_found_among_a_hundred() -> None:
    labels = torch.arange(100).repeat(20)
    order = torch.arange(100)
    order[[7, 8]] = order[[8, 7]]
    assert other_order(labels, answers(labels, order, 0.8, 0), 100) == order.tolist()


def test_few_images_are_not_enough() -> None:
    labels = torch.arange(3)
    assert other_order(labels.repeat(2), (labels.repeat(2) + 1) % 3, 3) is None
    assert other_order(labels.repeat(30), (labels.repeat(30) + 1) % 3, 3) == [1, 2, 0]


def test_a_usual_order_tells_where_classes_without_images_belong() -> None:
    usual = [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    order = torch.tensor([usual.index(label) for label in range(12)])
    labels = torch.arange(12).repeat(20)
    labels = labels[(labels != 4) & (labels != 7)]
    found = other_order(labels, order[labels], 12, [order.tolist(), list(range(12))[::-1]])
    assert found == order.tolist()
    assert sorted(other_order(labels, order[labels], 12) or []) == list(range(12))


def said(*counts: dict[int, int]) -> tuple[Tensor, Tensor]:
    """Labels and predictions with these counts by class, in an order that halves them evenly."""
    labels = [label for label, row in enumerate(counts) for _ in range(sum(row.values()))]
    predictions = [p for row in counts for p, number in row.items() for _ in range(number)]
    return torch.tensor(labels), torch.tensor(predictions)


def test_one_label_for_two_classes_is_no_order() -> None:
    """Another label than the own one is usual here, and still a third one is the favorite."""
    zero, one = {1: 180, 2: 12, 0: 8}, {1: 192, 3: 8}
    two, three = {0: 192, 2: 8}, {0: 180, 3: 12, 2: 8}
    assert other_order(*said(zero, one, two, three), 4) is None
    # As many images in an order in which each class has a label of its own.
    assert other_order(*said({1: 200}, {0: 200}, {3: 200}, {2: 200}), 4) == [1, 0, 3, 2]


def test_no_class_that_is_moved_prefers_its_own_label() -> None:
    """The larger class alone would decide over both."""
    assert other_order(*said({1: 200}, {1: 12, 0: 8}), 2) is None
    assert other_order(*said({1: 200}, {1: 8, 0: 12}), 2) == [1, 0]
