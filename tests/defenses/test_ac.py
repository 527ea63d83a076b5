"""Activation clustering against a search over all ways to cut in two, and a silhouette by hand."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fst_lightning.defenses import ActivationClustering, PoisonedData
from fst_lightning.defenses.ac import split_in_two
from tests.defenses.delivered import delivered, rates, trained


def principal(features: Any, count: int) -> Any:
    centered = features - features.mean(axis=0)
    _, directions = np.linalg.eigh(centered.T @ centered)
    return centered @ directions[:, ::-1][:, :count]


def test_the_split_is_the_best_of_all() -> None:
    numbers = np.random.default_rng(0)
    features = numbers.normal(size=(11, 6))
    features[:3] += 2.0
    reduced = principal(features, 2)

    def spread(member: Any) -> float:
        parts = [reduced[member], reduced[~member]]
        return sum(float(((part - part.mean(axis=0)) ** 2).sum()) for part in parts)

    ways = [
        np.isin(np.arange(11), chosen)
        for size in range(1, 6)
        for chosen in itertools.combinations(range(11), size)
    ]
    best = min(ways, key=spread)
    found, silhouette = split_in_two(features, 2, seed=0)
    assert found.tolist() == best.tolist()
    assert silhouette == pytest.approx(silhouette_by_hand(reduced, best), abs=1e-9)


def silhouette_by_hand(points: Any, member: Any) -> float:
    values = []
    for i, point in enumerate(points):
        distances = np.sqrt(((points - point) ** 2).sum(axis=1))
        own = member == member[i]
        own[i] = False
        inside, outside = distances[own].mean(), distances[member != member[i]].mean()
        values.append((outside - inside) / max(inside, outside))
    return float(np.mean(values))


def blobs() -> tuple[nn.Module, PoisonedData]:
    """A label with a far cluster of a fifth, one with a half, one without any, one of two rows."""
    numbers = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 20 + [1] * 20 + [2] * 20 + [3] * 2)
    images = torch.rand(62, 3, 2, 2, generator=numbers)
    images[:4] += 3
    images[20:30] += 3
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), PoisonedData(images, labels)


@pytest.mark.parametrize(
    ("rule", "threshold", "expected"),
    [
        ("relative_size", 0.35, [4, 0]),
        ("silhouette", 0.5, [4, 10]),
        ("smaller", 0.0, [4, 10]),
    ],
)
def test_the_rules(rule: Any, threshold: float, expected: list[int]) -> None:
    net, data = blobs()
    defense = ActivationClustering(rule=rule, threshold=threshold)
    found = defense.suspects(net, data, torch.Generator().manual_seed(0))
    assert [int(found[data.labels == label].sum()) for label in (0, 1)] == expected
    assert found[:4].all()
    assert not found[data.labels == 3].any()  # too few to be split
    assert defense.sizes[0] == pytest.approx(0.2)
    assert defense.silhouettes[0] > 0.5 > defense.silhouettes[2]


def test_no_suspected_row_is_a_shortfall() -> None:
    defense = ActivationClustering()
    assert defense.shortfall() is None  # nothing was looked for yet
    for suspected, expected in ((torch.zeros(4), "No row was suspected"), (torch.ones(4), None)):
        defense.suspected = suspected.bool()
        assert defense.shortfall() == expected
        assert ("None of the 4 rows" in defense.findings().get("summary", "")) is bool(expected)


def test_equal_rows_are_no_two_clusters() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    data = PoisonedData(torch.ones(12, 3, 2, 2), torch.zeros(12).long())
    assert not ActivationClustering().suspects(net, data, torch.Generator()).any()


def test_poisoned_rows_are_found() -> None:
    data, truth = delivered()
    found = ActivationClustering(threshold=0.4).suspects(trained(data), data, torch.Generator())
    tpr, fpr = rates(found, truth)
    assert tpr == 1
    assert fpr < 0.4


@pytest.mark.parametrize(
    "arguments", [{"rule": "largest"}, {"threshold": 1.5}, {"components": 0}, {"components": 2.5}]
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Expected `{next(iter(arguments))}`"):
        ActivationClustering(**arguments)
