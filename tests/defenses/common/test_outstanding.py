"""Which classes stand out, against medians by hand."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from fst_lightning.defenses.common.outstanding import outstanding_classes


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([0.01, 0.04, 0.04, 0.05], [0]),
        ([0.03, 0.04, 0.04, 0.05], []),
        ([0.01, math.inf], [0]),  # Nothing reaches the other class.
        ([math.inf] * 4, []),
        ([0.01, 0.011, 0.04, 0.04, 0.04, 0.05], [0, 1]),
        ([0.01], []),
        ([], []),
    ],
)
def test_far_below_the_median_of_the_others(sizes: list[float], expected: list[int]) -> None:
    assert outstanding_classes(torch.tensor(sizes), 0.6).tolist() == expected


@pytest.mark.parametrize("count", [2, 5, 10])
def test_against_a_slow_loop(count: int) -> None:
    torch.manual_seed(count)
    sizes = torch.rand(200, count).double()
    for row in sizes:
        values = row.tolist()
        expected = [
            k
            for k in range(count)
            if values[k] < 0.5 * statistics.median_low(values[:k] + values[k + 1 :])
        ]
        assert outstanding_classes(row, 0.5).tolist() == expected
