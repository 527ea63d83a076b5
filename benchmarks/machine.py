"""What a benchmark was measured on, and its figures as a file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


def environment(device: str = "auto", threads: int | None = None) -> dict[str, Any]:
    """The machine and the versions; also sets the number of threads.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: of torch; None leaves its own choice.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    packages = ("torch", "torchvision", "lightning")
    return {
        "device": device,
        "name": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def seconds(command: Sequence[str]) -> float:
    """Of wall time that Python takes for a script of the project, or for ``-c`` and a program."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - started


def bare_trainer(**options: Any) -> Any:
    """Lightning's Trainer for one epoch on the CPU, that shows, keeps and evaluates nothing."""
    import lightning as L  # Seconds, which not every script has to spend.

    return L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        **options,
    )


def spread(values: Sequence[float]) -> str:
    """The least and the greatest of the values."""
    return f"{min(values):.2f}-{max(values):.2f}"


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """Write the figures as JSON, where a file is named."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
