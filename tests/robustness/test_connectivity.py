"""The way between two networks, point by point against networks that are put together by hand."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fst_lightning.defenses.common.whole_set import recompute_batchnorm
from fst_lightning.robustness import LinearConnectivity, rates_of
from tests.defenses.delivered import delivered, trained
from tests.robustness.subjects import subject


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_points_are_mixed_parameter_by_parameter() -> None:
    purified = trained(delivered(poisoned=0)[0])
    whole = subject(purified=purified)
    found = LinearConnectivity(points=5, images=40).run(whole, seeded(3))
    assert found["t"] == [0, 0.25, 0.5, 0.75, 1]
    assert found["batchnorm_images"] == 40
    order = torch.randperm(len(whole.train), generator=seeded(3))
    clean = whole.train.subset(order[:40])
    old, new = dict(whole.backdoored.named_parameters()), dict(purified.named_parameters())
    for i, t in enumerate(found["t"]):
        net = copy.deepcopy(purified)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                parameter.copy_((1 - t) * old[name] + t * new[name])
        recompute_batchnorm(net, clean)
        rates = rates_of(net, whole)
        assert (found["ca"][i], found["asr"][i], found["ra"][i]) == pytest.approx(
            (rates.ca, rates.asr, rates.ra), abs=0.02
        )
    assert found["asr"][0] > 0.8 > found["asr"][-1]


def test_without_batchnorm_the_ends_are_the_networks_themselves() -> None:
    torch.manual_seed(0)
    one, other = (nn.Sequential(nn.Flatten(), nn.Linear(243, 3)) for _ in range(2))
    whole = subject(backdoored=one, purified=other)
    found = LinearConnectivity(points=3).run(whole, seeded())
    assert found["batchnorm_images"] is None
    for place, net in ((0, one), (2, other)):
        rates = rates_of(net, whole)
        assert (found["ca"][place], found["asr"][place], found["ra"][place]) == (
            rates.ca,
            rates.asr,
            rates.ra,
        )


@pytest.mark.parametrize("arguments", [{"points": 1}, {"images": 1}, {"points": 2.5}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Expected `{next(iter(arguments))}`"):
        LinearConnectivity(**arguments)
