"""How much memory a training step takes, against what it really takes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fst_lightning.attacks import SSBA, Attack, InputAware, LowFrequency, Refool
from fst_lightning.models import small_resnet
from fst_lightning.models.cost import training_memory


def test_a_layer_by_hand() -> None:
    net_bytes, out_bytes = 4 * (5 * 7 + 7), 4 * 2 * 7
    seen = training_memory(lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU()), (2, 5))
    assert seen == 4 * net_bytes + 2 * 2 * out_bytes


def test_nothing_is_allocated() -> None:
    assert training_memory(lambda: small_resnet(10, 4096), (4096, 3, 1024, 1024)) > 10**15


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
@pytest.mark.parametrize(
    ("attack", "size"),
    [
        (SSBA(width=48, fit_epochs=1), 64),
        (InputAware(width=32, mask_epochs=1), 64),
        (LowFrequency(surrogate_width=32, surrogate_epochs=1, steps=1), 32),
        (Refool(num_reflections=300), 128),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Attack) else str(value),
)
def test_attacks_say_about_what_they_take(attack: Attack, size: int) -> None:
    images = torch.randint(0, 256, (64, 3, size, size), dtype=torch.uint8)
    labels = torch.arange(64) % 4
    said = attack.memory(images, 4)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            before = memory("VmRSS")
            attack.prepare(images, labels, 4, 0)
            attack.fit_once(images, labels, 4, 0, torch.device("cpu"))
            os.write(writer, str(memory("VmHWM") - before).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        took = int(file.read())
    os.waitpid(child, 0)
    assert said / 3 < took < 2 * said + 50e6
