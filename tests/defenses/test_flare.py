"""FLARE: scores against SciPy's normal density in a loop, and cuts of trees that are known."""

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from fst_lightning.defenses import FLARE
from fst_lightning.defenses.flare import batchnorm_scores, outside_stable_cluster, stable_cut
from tests.defenses.delivered import delivered, trained

pytest.importorskip("hdbscan")


def test_scores_agree_with_a_loop() -> None:
    data, _ = delivered(count=12, poisoned=2)
    net = trained(data, steps=5)
    scores = batchnorm_scores(net, data, batch_size=5)
    assert scores.shape == (12, 2)
    (images, _), *_ = data.batches(12)
    for row in range(12):
        value, column = images[row : row + 1], 0
        for layer in net:
            if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                least = min(
                    norm.logpdf(float(number), float(mean), float(variance + 1e-5) ** 0.5)
                    for mean, variance, channel in zip(
                        layer.running_mean, layer.running_var, value[0], strict=True
                    )
                    for number in channel.detach().flatten()
                )
                assert scores[row, column] == pytest.approx(least, rel=1e-4)
                column += 1
            value = layer(value)


def test_an_image_that_is_shifted_scores_less() -> None:
    data, _ = delivered(count=12, poisoned=0)
    net = trained(data)
    usual = batchnorm_scores(net, data)
    data.images[3] = 255 - data.images[3]
    shifted = batchnorm_scores(net, data)
    assert (shifted[3] < usual[3]).all()
    others = torch.arange(12) != 3
    torch.testing.assert_close(shifted[others], usual[others])


def tree(*rows: tuple[int, int, float, int]) -> Any:
    kinds = [("parent", int), ("child", int), ("lambda_val", float), ("child_size", int)]
    return np.array(list(rows), dtype=kinds)


@pytest.mark.parametrize(
    ("rows", "depth", "expected"),
    [
        # The larger child lives from 1 to 3 and splits: cut just above the split.
        ([(9, 10, 1.0, 30), (9, 11, 1.0, 70), (11, 12, 3.0, 30), (11, 13, 3.0, 40)], 3, 1 / 2.9999),
        # It splits at once, and its larger child lives on until its last point has left.
        (
            [
                *((9, 10, 1.0, 30), (9, 11, 1.0, 70), (11, 12, 1.01, 30), (11, 13, 1.01, 40)),
                *((13, 0, 5.0, 1), (13, 1, 9.0, 1)),
            ],
            3,
            1 / (1.01 + 0.01),
        ),
        ([(9, 10, 1.0, 30), (9, 11, 1.0, 70), (11, 12, 1.01, 30), (11, 13, 1.01, 40)], 1, None),
        ([(9, 0, 1.0, 1), (9, 1, 2.0, 1)], 3, None),
    ],
)
def test_a_tree_is_cut_where_a_large_cluster_is_whole(
    rows: list[Any], depth: int, expected: float | None
) -> None:
    cut = stable_cut(tree(*rows), stability=0.02, depth=depth)
    assert cut == (None if expected is None else pytest.approx(expected))


def test_the_far_cluster_is_outside_and_noise_is_not() -> None:
    numbers = np.random.default_rng(0)
    points = numbers.normal(size=(241, 2))
    points[:40] += 30
    points[240] = (-200, -200)
    found = outside_stable_cluster(points, min_cluster_size=20, stability=0.02, depth=3)
    assert found is not None
    assert found[:40].all()
    assert not found[240]
    assert found[40:240].mean() < 0.1


def test_of_few_rows_nothing_is_suspected() -> None:
    """And UMAP, which is dear, is not started."""
    data, _ = delivered()
    found = FLARE(min_cluster_size=60).suspects(trained(data, 2), data, torch.Generator())
    assert found.shape == (90,)
    assert not found.any()


def test_a_network_without_batchnorm_is_refused() -> None:
    with pytest.raises(ValueError, match="BatchNorm layers for FLARE"):
        FLARE().prepare(nn.Linear(3, 2), torch.Generator())


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "umap" else find(name)
    )
    with pytest.raises(
        ImportError, match=r"umap can't be imported; pip install 'fst-lightning\[flare\]'"
    ):
        FLARE()


@pytest.mark.parametrize(
    "arguments",
    [{"stability": -1}, {"depth": 0}, {"min_cluster_size": 1}, {"neighbors": 1}, {"batch_size": 0}],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Expected `{next(iter(arguments))}`"):
        FLARE(**arguments)


@pytest.mark.slow
def test_poisoned_rows_are_found() -> None:
    pytest.importorskip("umap")
    data, truth = delivered(count=900, poisoned=60)
    defense = FLARE(min_cluster_size=30)
    net = trained(data)
    defense.prepare(net, torch.Generator())
    found = defense.suspects(net, data, torch.Generator().manual_seed(0))
    assert float(found[truth].float().mean()) > 0.9
    assert float(found[~truth].float().mean()) < 0.05
    again = defense.suspects(net, data, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)
