import pytest
import torch

from benchmarks.defense_steps import DEFENSES, measure
from fst_lightning.defenses import CleanData
from tests import tiny


@pytest.mark.parametrize("name", list(DEFENSES))
def test_each_step_is_timed_and_the_network_stays(name: str) -> None:
    net = tiny.conv_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    clean = CleanData(tiny.images(16), tiny.labels(16), mean=[0.5] * 3, std=[0.2] * 3)
    whole, seconds = measure(net, clean, name, steps=2, batch_size=8)
    assert whole >= 0
    assert len(seconds) == 2
    assert min(seconds) > 0
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
