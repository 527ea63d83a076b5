"""How much memory a training step takes, against what it really takes."""

from __future__ import annotations

import json
import sys

import pytest
from torch import nn

from fst_lightning.models import small_resnet
from fst_lightning.models.cost import training_memory
from tests.forks import forks
from tests.models.memory_of_attacks import measure


def test_a_layer_by_hand() -> None:
    net_bytes, out_bytes = 4 * (5 * 7 + 7), 4 * 2 * 7
    seen = training_memory(lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU()), (2, 5))
    assert seen == 4 * net_bytes + 2 * 2 * out_bytes


def test_nothing_is_allocated() -> None:
    assert training_memory(lambda: small_resnet(10, 4096), (4096, 3, 1024, 1024)) > 10**15


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """What attacks say and take, by name, each in a child of a process that has done nothing."""
    file = tmp_path_factory.mktemp("memory") / "of_attacks.json"
    process = forks().Process(target=measure, args=(file,))
    process.start()
    process.join()
    found: dict[str, dict[str, int]] = json.loads(file.read_text(encoding="utf-8"))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
@pytest.mark.parametrize("name", ["SSBA", "InputAware", "LowFrequency", "Refool"])
def test_attacks_say_about_what_they_take(name: str, measured: dict[str, dict[str, int]]) -> None:
    said, took = measured[name]["said"], measured[name]["took"]
    assert said / 3 < took < 2 * said + 50e6
