"""Measures how much memory attacks say that they take, and how much they take.

A process reuses memory that it has freed, without growing. Therefore each attack runs in a child of
a process that has done nothing yet.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from fst_lightning.attacks import SSBA, Attack, InputAware, LowFrequency, Refool

CASES: list[tuple[Attack, int]] = [
    (SSBA(width=48, fit_epochs=1), 64),
    (InputAware(width=32, mask_epochs=1), 64),
    (LowFrequency(surrogate_width=32, surrogate_epochs=1, steps=1), 32),
    (Refool(num_reflections=300), 128),
]


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def taken(attack: Attack, size: int) -> int:
    """How many bytes a child grows by while it prepares and fits an attack."""
    images = torch.randint(0, 256, (64, 3, size, size), dtype=torch.uint8)
    labels = torch.arange(64) % 4
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
    return took


def measure(file: Path) -> None:
    """Write what each attack says and takes, as JSON."""
    took = {type(attack).__name__: taken(attack, size) for attack, size in CASES}
    found = {}
    for attack, size in CASES:
        images = torch.zeros(64, 3, size, size, dtype=torch.uint8)
        name = type(attack).__name__
        found[name] = {"said": attack.memory(images, 4), "took": took[name]}
    file.write_text(json.dumps(found), encoding="utf-8")
