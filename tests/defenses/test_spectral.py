"""Spectral signatures against a power iteration, row by row."""

import pytest
import torch
from torch import nn

from fst_lightning.defenses import PoisonedData, SpectralSignatures
from fst_lightning.defenses.spectral import spectral_scores
from tests.defenses.delivered import delivered, rates, trained


def test_scores_agree_with_a_power_iteration() -> None:
    features = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)).double()
    features[:, 2] *= 4
    mean = sum(features) / len(features)
    direction = torch.ones(7).double()
    for _ in range(500):
        step = torch.zeros(7).double()
        for row in features:
            step += (row - mean) * ((row - mean) @ direction)
        direction = step / step.norm()
    expected = torch.stack([((row - mean) @ direction) ** 2 for row in features])
    torch.testing.assert_close(spectral_scores(features), expected, rtol=1e-6, atol=1e-9)


def test_the_share_is_taken_of_every_delivered_label() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    labels = torch.tensor([0] * 20 + [2] * 40 + [1] * 2)
    data = PoisonedData(torch.rand(62, 3, 2, 2), labels)
    found = SpectralSignatures(share=0.1).suspects(net, data, torch.Generator())
    assert [int(found[labels == label].sum()) for label in range(3)] == [2, 0, 4]
    features = data.images.flatten(1)
    for label in (0, 2):
        rows = (labels == label).nonzero()[:, 0]
        scores = spectral_scores(features[rows])
        assert scores[found[rows]].min() >= scores[~found[rows]].max()


def test_poisoned_rows_are_found() -> None:
    data, truth = delivered()
    found = SpectralSignatures(share=0.3).suspects(trained(data), data, torch.Generator())
    tpr, fpr = rates(found, truth)
    assert tpr > 0.8
    assert fpr < 0.35


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, True])
def test_a_share_of_nothing_or_all_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="Expected `share`"):
        SpectralSignatures(share=share)
