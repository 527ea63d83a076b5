"""Scans a network with the detectors of the configuration."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fst_lightning.data import BackdoorDataModule, ImageSet, Source
from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.defenses.common.whole_set import accuracy
from fst_lightning.detectors import (
    ALARM,
    FEWEST_REFERENCES,
    Detector,
    Scan,
    Verdict,
    check_num_classes,
    combined,
)
from fst_lightning.metrics import wilson_interval
from fst_lightning.pipelines.build.instantiate import make
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.measure.recovered import (
    Success,
    recovered,
    success,
    trigger_block,
)
from fst_lightning.pipelines.measure.references import check_references, references
from fst_lightning.pipelines.measure.score import spread
from fst_lightning.pipelines.runtime.costs import Costs
from fst_lightning.pipelines.runtime.processes import is_first_process
from fst_lightning.reports import Score
from fst_lightning.reports.results.detection import Threshold
from fst_lightning.reports.results.evidence import Recovered
from fst_lightning.seeds import derived_seed
from fst_lightning.validate import check_number

FEWEST_IMAGES = 10
"""Images that a scan needs."""

_MOST_TEST_IMAGES = 1000
_NO_P_VALUE = (
    "none of the chosen detectors has its own null distribution; give it clean networks to "
    "compare with: detector_reference=DIR, or detector_train_reference=19"
)


def check_scan(run: Run) -> None:
    """Refuse a scan that cannot be made, before anything is trained.

    Raises:
        ValueError: If a detector, a number of images or ``fail_on`` is not valid.
        FileNotFoundError: If ``detector_reference`` names no folder of networks.
    """
    Threshold.parse(run.cfg.get("fail_on"))
    num_images(run)
    for key in ("detector_reference", "detector_train_reference"):
        if not make_detectors(run) and run.cfg.get(key) is not None:
            raise ValueError(f"Expected detector=[...] beside `{key}`, but got none.")
    check_references(run)


def num_images(run: Run) -> int:
    """Number of clean images that the detectors may use.

    Raises:
        ValueError: If it is not a whole number, or too small.
    """
    wanted = run.cfg.detector_images
    check_number("detector_images", wanted, low=FEWEST_IMAGES, whole=True)
    return int(wanted)


def make_detectors(run: Run) -> dict[str, Detector]:
    """The chosen detectors, by name."""
    parts = run.cfg.get("detector") or {}
    run.parts("detector")  # refuses parts without a `_target_`
    return {str(name): make(parts[name], Detector) for name in parts}


class Scanner:
    """Scans the networks of a run; the first one is the network before a purification.

    All networks are scanned with the same images, detectors and random numbers, and compared with
    the same clean networks.

    Args:
        run: The run.
        source: The images that clean networks are trained on.
        data: The data module. At most ``detector_images`` of its clean images are used. Recovered
            triggers are measured on its test images.
        costs: Measures time and memory.

    Raises:
        ValueError: If the data has too few classes.
    """

    def __init__(self, run: Run, source: Source, data: BackdoorDataModule, costs: Costs) -> None:
        self.run = run
        self.source = source
        self.data = data
        self.costs = costs
        self.detectors = make_detectors(run)
        if self.detectors:
            check_num_classes(data.data.num_classes)
        self.found: list[dict[str, Scan]] = []
        self.recovered: dict[str, dict[str, Recovered]] = {}
        self._blocks: list[dict[str, Any]] = []
        self._references: list[dict[str, float]] | None = None
        self._success: dict[str, Success | None] = {}

    def look(self, net: nn.Module, measured: Score, device: torch.device) -> None:
        """Scan a network; do nothing if no detector was chosen.

        Args:
            net: The network, on the CPU; it is not changed.
            measured: Its score on the test set.
            device: The device to compute on.

        Raises:
            ValueError: If the network cannot be scanned, or a reference does not fit it.
        """
        if not self.detectors:
            return
        net = copy.deepcopy(net).float().to(device).eval()
        images = self._images(self.data.train_rows, num_images(self.run), device)
        references = self._compared(net, images)
        with self.costs.of("detect"):
            scans, seconds = scan(self.run, net, images, self.detectors)
        verdict, p_values = combined(scans, references)
        reason = guessing(measured, net, images) or _undecided(verdict, len(references))
        self._blocks.append(
            {
                "verdict": "cannot_tell" if reason else verdict.verdict,
                "reason": reason,
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
                        "threshold": each.threshold,
                        "references": [scores[name] for scores in references],
                        "statistics": each.evidence.statistics.tolist(),
                        "seconds": round(seconds[name], 3),
                        **each.evidence.details,
                    }
                    for name, each in scans.items()
                },
            }
        )
        self.found.append(scans)
        test = self._images(self.data.data.test, _MOST_TEST_IMAGES, device)
        self._try_triggers(net, test)
        when = "after" if self.recovered else "before"
        self.recovered[when] = {name: recovered(each, test) for name, each in scans.items()}

    def block(self) -> dict[str, Any] | None:
        """The block ``detection`` of ``results.json``; None if no network was scanned."""
        if not self._blocks:
            return None
        before, *after = self._blocks
        return {"before": before, "after": after[0] if after else None}

    def _images(self, rows: ImageSet, most: int, device: torch.device) -> LabeledImages:
        chosen = rows.subset(spread(len(rows), most)).in_memory("detector")
        data = self.data.data
        return LabeledImages(chosen.images, chosen.labels, data.mean, data.std).to(device)

    def _compared(self, net: nn.Module, images: LabeledImages) -> list[dict[str, float]]:
        """The scores of the clean networks, by detector; the same for every scan of the run."""
        if self._references is None:
            self._references = []
            for name, reference in references(self.run, net, self.source):
                if is_first_process():
                    print(f"detect: scans {name}", flush=True)
                self._references.append(self._scores(name, reference, images))
        return self._references

    def _scores(self, name: str, net: nn.Module, images: LabeledImages) -> dict[str, float]:
        net = net.float().to(images.device).eval()
        try:
            with self.costs.of("detect"):
                found, _ = scan(self.run, net, images, self.detectors)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        problem = guessing(Score(None), net, images)
        if problem is not None and is_first_process():
            print(f"warning  {name}: it is useless as a reference, because {problem}")
        return {detector: each.score for detector, each in found.items()}

    def _try_triggers(self, net: nn.Module, images: LabeledImages) -> None:
        """Count how often recovered triggers work; on later networks, those of the first too."""
        for name, each in self.found[-1].items():
            now = success(net, each, images)
            self._blocks[-1]["detectors"][name]["trigger"] = trigger_block(now)
            if len(self.found) == 1:
                self._success[name] = now
            else:
                later = success(net, self.found[0][name], images)
                block = trigger_block(self._success[name], later)
                self._blocks[0]["detectors"][name]["trigger"] = block


def _undecided(verdict: Verdict, num_references: int) -> str | None:
    """Why the detectors decide nothing; None if they do."""
    if verdict.p_value is None:
        return _NO_P_VALUE
    if verdict.verdict != "cannot_tell":
        return None
    count = (
        "is its only reference" if num_references == 1 else f"are its {num_references} references"
    )
    return (
        f"it is more suspicious than {count}, but a p-value of {ALARM:g} needs "
        f"{FEWEST_REFERENCES} references or more"
    )


def scan(
    run: Run, net: nn.Module, images: LabeledImages, detectors: Mapping[str, Detector]
) -> tuple[dict[str, Scan], dict[str, float]]:
    """Run every detector with its own random numbers, which are the same for every network.

    Returns:
        The scans and their seconds, both by the detector's name.
    """
    scans, seconds = {}, {}
    for name, detector in detectors.items():
        start = time.perf_counter()
        seed = derived_seed(int(run.cfg.seed), "detector", name)
        scans[name] = detector.scan(net, images, torch.Generator().manual_seed(seed))
        seconds[name] = time.perf_counter() - start
    return scans, seconds


def guessing(measured: Score, net: nn.Module, images: LabeledImages) -> str | None:
    """Why a scan cannot judge a network that guesses; None if it is better than guessing.

    Args:
        measured: Its score on the test set. If that is empty, the clean images count instead.
        net: The network.
        images: Clean images.
    """
    right, rows = measured.counts.get("ca", (0, 0))
    if not rows:
        rows = len(images)
        right = round(accuracy(net, images) * rows)
    with torch.no_grad():
        classes = net(next(images.batches(1))[0]).shape[1]
    low, _ = wilson_interval(right, rows)
    if low > 1 / classes:
        return None
    return (
        f"its clean accuracy, {right} of {rows}, is no better than guessing among {classes} "
        "classes; check the order of the classes, mean and std"
    )
