"""Scans a network with the detectors of the configuration."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fst_lightning.checkpoints import load_into, read_checkpoint
from fst_lightning.data import BackdoorDataModule
from fst_lightning.defenses.common.clean_data import LabelledImages
from fst_lightning.defenses.common.whole_set import accuracy
from fst_lightning.detectors import Detector, Scan, combined
from fst_lightning.metrics import wilson_interval
from fst_lightning.pipelines.build.instantiate import make
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.measure.score import spread
from fst_lightning.pipelines.runtime.costs import Costs
from fst_lightning.pipelines.runtime.processes import is_first_process
from fst_lightning.reports import Score
from fst_lightning.reports.results.detection import Threshold
from fst_lightning.seeds import derived_seed

FEWEST_IMAGES = 10
"""Images that a scan needs."""

_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
_NO_P_VALUE = (
    "none of the chosen detectors has its own null distribution; give it clean networks to "
    "compare with: detector_reference=DIR"
)


def check_scan(run: Run) -> None:
    """Refuse a scan that cannot be made, before anything is trained.

    Raises:
        ValueError: If a detector, a number of images or ``fail_on`` is not valid.
        FileNotFoundError: If ``detector_reference`` names no folder of networks.
    """
    Threshold.parse(run.cfg.get("fail_on"))
    num_images(run)
    if not make_detectors(run) and run.cfg.get("detector_reference") is not None:
        raise ValueError("Expected detector=[...] beside `detector_reference`, but got none.")
    reference_files(run)


def num_images(run: Run) -> int:
    """How many clean images the detectors may use.

    Raises:
        ValueError: If that is no whole number, or too few.
    """
    wanted = run.cfg.detector_images
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < FEWEST_IMAGES:
        raise ValueError(
            f"Expected `detector_images` to be a whole number of {FEWEST_IMAGES} or more, but got "
            f"{wanted!r}."
        )
    return wanted


def make_detectors(run: Run) -> dict[str, Detector]:
    """The detectors that were chosen, by name."""
    parts = run.cfg.get("detector") or {}
    run.parts("detector")  # refuses what is no part
    return {str(name): make(parts[name], Detector) for name in parts}


def reference_files(run: Run) -> list[Path]:
    """The files of the networks that are known to be clean.

    Raises:
        FileNotFoundError: If the folder holds none.
    """
    if run.cfg.get("detector_reference") is None:
        return []
    folder = Path(str(run.cfg.detector_reference)).expanduser()
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"Expected `detector_reference` to be a folder of networks ({', '.join(_SUFFIXES)}) "
            f"that are known to be clean, but found none in {folder.absolute()}."
        )
    return files


def scan_network(
    run: Run,
    costs: Costs,
    net: nn.Module,
    data: BackdoorDataModule,
    device: torch.device,
    measured: Score,
) -> dict[str, Any] | None:
    """Scan a network, and rank it among the reference networks if there are any.

    Args:
        run: Its configuration.
        costs: Measures what it takes.
        net: The network, on the CPU; not changed.
        data: At most ``detector_images`` of the clean images that it trains on are used.
        device: Where to compute.
        measured: What the network scores on the test set.

    Returns:
        The block ``detection.before`` or ``detection.after`` of ``results.json``; None if no
        detector was chosen.

    Raises:
        ValueError: If the network cannot be scanned, or a reference does not fit it.
    """
    detectors, references = make_detectors(run), reference_files(run)
    if not detectors:
        return None
    rows = data.train_rows
    chosen = rows.subset(spread(len(rows), num_images(run))).in_memory("detector")
    images = LabelledImages(chosen.images, chosen.labels, data.data.mean, data.data.std).to(device)
    net = copy.deepcopy(net).float().to(device)
    with costs.of("detect"):
        scans, seconds = scan(run, net, images, detectors)
        scores = [scores_of(run, path, net, images, detectors) for path in references]
    verdict, p_values = combined(scans, scores)
    num_classes = len(next(iter(scans.values())).evidence.statistics)
    reason = guessing(measured, net, images, num_classes)
    return {
        "verdict": "cannot_tell" if reason else verdict.verdict,
        "reason": reason or (None if verdict.p_value is not None else _NO_P_VALUE),
        "p_value": verdict.p_value,
        "suspected_class": None if reason else verdict.suspected_class,
        "calibration": verdict.calibration,
        "num_references": len(references),
        "strongest": verdict.detector,
        "detectors": {
            name: {
                "p_value": p_values[name],
                "suspected_class": each.suspected_class,
                "score": each.score,
                "statistics": each.evidence.statistics.tolist(),
                "seconds": round(seconds[name], 3),
                **each.evidence.details,
            }
            for name, each in scans.items()
        },
    }


def scores_of(
    run: Run,
    path: Path,
    net: nn.Module,
    images: LabelledImages,
    detectors: Mapping[str, Detector],
) -> dict[str, float]:
    """The scores of a reference network, by detector.

    Raises:
        ValueError: If the file does not fit the network.
    """
    if is_first_process():
        print(f"detect: reference {path.name}", flush=True)
    reference = copy.deepcopy(net)
    try:
        load_into(reference, read_checkpoint(path))
        found, _ = scan(run, reference, images, detectors)
    except ValueError as error:
        raise ValueError(f"detector_reference: {path}: {error}") from error
    return {name: each.score for name, each in found.items()}


def scan(
    run: Run, net: nn.Module, images: LabelledImages, detectors: Mapping[str, Detector]
) -> tuple[dict[str, Scan], dict[str, float]]:
    """Run every detector; each has its own random numbers, the same for every network.

    Returns:
        By name, what was found, and the seconds that it took.
    """
    scans, seconds = {}, {}
    for name, detector in detectors.items():
        start = time.perf_counter()
        seed = derived_seed(int(run.cfg.seed), "detector", name)
        scans[name] = detector.scan(net, images, torch.Generator().manual_seed(seed))
        seconds[name] = time.perf_counter() - start
    return scans, seconds


def guessing(measured: Score, net: nn.Module, images: LabelledImages, classes: int) -> str | None:
    """Why nothing can be said about a network that is no better than guessing; None if it is.

    Args:
        measured: Its score on the test set; the clean images are counted if that has no rows.
        net: The network.
        images: Clean images.
        classes: How many classes there are.
    """
    right, rows = measured.counts.get("ca", (0, 0))
    if not rows:
        rows = len(images)
        right = round(accuracy(net, images) * rows)
    low, _ = wilson_interval(right, rows)
    if low > 1 / classes:
        return None
    return (
        f"its clean accuracy, {right} of {rows}, is no better than guessing among {classes} "
        "classes; check the order of the classes, mean and std"
    )
