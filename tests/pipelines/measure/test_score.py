from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from fst_lightning.attacks import BadNets
from fst_lightning.data import ImageSet
from fst_lightning.pipelines.measure.score import attack_block, trigger_examples


def test_examples_are_taken_from_the_whole_test_set(tmp_path: Path) -> None:
    """Folders of images are sorted by class: the first eight would be of one."""
    levels = torch.arange(71, dtype=torch.uint8)[:, None, None, None]
    rows = ImageSet(levels.expand(-1, 3, 32, 32).contiguous(), torch.arange(71) // 8)
    run: Any = SimpleNamespace(folder=tmp_path)
    data: Any = SimpleNamespace(triggered_rows=rows, attack=BadNets())
    assert trigger_examples(run, data) is not None
    with Image.open(tmp_path / "examples.png") as picture:
        middles = np.asarray(picture)[32, 32::66, 0]
    assert middles.tolist() == [0, 10, 20, 30, 40, 50, 60, 70]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_picture_of_the_trigger_is_a_setting_of_the_report(wanted: bool, tmp_path: Path) -> None:
    rows = ImageSet(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.arange(8))
    attack = BadNets()
    run: Any = SimpleNamespace(
        folder=tmp_path,
        cfg=OmegaConf.create({"report": {"examples": wanted}}),
        choices={"attack": "badnets"},
        arguments=lambda group: {},
    )
    data: Any = SimpleNamespace(triggered_rows=rows, attack=attack, measured=attack)
    assert ("trigger" in attack_block(run, data)) == wanted
    assert (tmp_path / "examples.png").exists() == wanted
