"""``detect.py``: get a network, scan it, and say whether it looks backdoored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fst_lightning.checkpoints import CheckpointError, load_into, read_checkpoint
from fst_lightning.data import BackdoorDataModule
from fst_lightning.defenses import NoDefense
from fst_lightning.defenses.clean import LabelledImages
from fst_lightning.defenses.train import accuracy
from fst_lightning.detectors import Detector, Scan, combined
from fst_lightning.metrics import wilson_interval
from fst_lightning.modules import PurificationModule
from fst_lightning.pipelines.backdoored import from_file, from_store, make_card
from fst_lightning.pipelines.costs import Costs
from fst_lightning.pipelines.finish import finish, is_first_process, prepare_folder
from fst_lightning.pipelines.instantiate import make
from fst_lightning.pipelines.known import adopt_card, check_adopted
from fst_lightning.pipelines.parts import (
    check_outputs,
    make_attack,
    make_network,
    make_source,
    make_trainer,
    with_head,
)
from fst_lightning.pipelines.run import Run
from fst_lightning.pipelines.score import (
    attack_block,
    data_block,
    environment,
    model_block,
    score,
)
from fst_lightning.reports import Score, build_results
from fst_lightning.reports.detection import Threshold
from fst_lightning.seeds import derived_seed

_FEWEST_IMAGES = 10
_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")


def run_detect(run: Run) -> dict[str, Any]:
    """Scan the network of this configuration, or of its ``checkpoint``.

    Returns:
        What ``results.json`` holds.
    """
    Threshold.parse(run.cfg.fail_on)
    detectors = make_detectors(run)
    references = reference_files(run)
    checkpoint = None
    if run.cfg.checkpoint is not None:
        key = None if run.cfg.checkpoint_key is None else str(run.cfg.checkpoint_key)
        checkpoint = read_checkpoint(Path(run.cfg.checkpoint), key)
        run = adopt_card(run, checkpoint)
    source, attack = make_source(run), make_attack(run)
    clean_set = source.load()
    if checkpoint is not None:
        check_adopted(run, checkpoint, attack, clean_set.train.images, clean_set.num_classes)
    data = BackdoorDataModule(
        source,
        attack,
        purpose="purify",
        batch_size=128,
        clean_ratio=image_share(run, len(clean_set.train)),
        seed=run.cfg.seed,
        num_workers=run.cfg.num_workers,
    )
    data.setup()
    net = make_network(run, data.data.num_classes, data.data.image_shape)
    check_outputs(run, net, data)
    run = with_head(run, net, data.data.num_classes)
    card = make_card(run, source, attack)
    prepare_folder(run)

    costs = Costs()
    network = (
        from_store(run, net, source, attack, card, costs)
        if checkpoint is None
        else from_file(run, checkpoint, net, source, attack, card)
    )
    trainer = make_trainer(run, "score", 0, run.folder)
    module = PurificationModule(
        net,
        NoDefense(),
        attack=data.measured if data.measured.has_trigger else None,
        mean=data.data.mean,
        std=data.data.std,
    )
    with costs.of("evaluate"):
        before = score(trainer, module, data)
    device = trainer.strategy.root_device
    rows = data.train_rows
    images = LabelledImages(rows.images, rows.labels, data.data.mean, data.data.std).to(device)
    with costs.of("detect"):
        detection = detect(run, net.to(device).float(), images, detectors, references, before)
    net.cpu()
    results = build_results(
        task="detect",
        seed=run.cfg.seed,
        attack=attack_block(run, data),
        data=data_block(run, data, num_poisoned=None),
        model=model_block(run, net),
        before=before,
        seconds=costs.seconds,
        peak_memory_mb=costs.peak_memory_mb,
        environment=environment(run, trainer),
        checkpoints={"backdoored": str(network.path)},
        overrides=run.overrides,
        detection={"before": detection, "after": None},
    )
    finish(run, results)
    return results


def make_detectors(run: Run) -> dict[str, Detector]:
    """The detectors that were chosen, by name.

    Raises:
        ValueError: If none was chosen.
    """
    parts = run.cfg.get("detector") or {}
    run.parts("detector")
    found = {str(name): make(parts[name], Detector) for name in parts}
    if not found:
        raise ValueError("Expected one detector or more, such as detector=[mm_bd], but got none.")
    return found


def reference_files(run: Run) -> list[Path]:
    """The files of the networks that are known to be clean.

    Raises:
        FileNotFoundError: If the folder holds none.
    """
    if run.cfg.detector_reference is None:
        return []
    folder = Path(str(run.cfg.detector_reference)).expanduser()
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"Expected `detector_reference` to be a folder of networks ({', '.join(_SUFFIXES)}) "
            f"that are known to be clean, but found none in {folder.absolute()}."
        )
    return files


def image_share(run: Run, num_train: int) -> float:
    """The share of the training images that the detectors may use.

    Raises:
        ValueError: If that is no whole number, or too few images.
    """
    wanted = run.cfg.detector_images
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < _FEWEST_IMAGES:
        raise ValueError(
            f"Expected `detector_images` to be a whole number of {_FEWEST_IMAGES} or more, but got "
            f"{wanted!r}."
        )
    if num_train < _FEWEST_IMAGES:
        raise ValueError(
            f"Expected {_FEWEST_IMAGES} clean images or more to scan with, but got {num_train}."
        )
    return min(1.0, wanted / num_train)


def detect(
    run: Run,
    net: nn.Module,
    images: LabelledImages,
    detectors: Mapping[str, Detector],
    references: Sequence[Path],
    measured: Score,
) -> dict[str, Any]:
    """Scan a network, and rank it among the reference networks if there are any.

    Args:
        run: Its configuration.
        net: The network, on the device of the images; not changed.
        images: Clean images of the user's.
        detectors: What to scan with, by name.
        references: Files of clean networks of the same architecture.
        measured: What the network scores on the test set.

    Returns:
        The block ``detection.before`` of ``results.json``.

    Raises:
        CheckpointError: If a reference does not fit the network.
    """
    scans, seconds = scan(run, net, images, detectors)
    scores: list[dict[str, float]] = []
    own = {name: value.detach().clone() for name, value in net.state_dict().items()}
    for number, path in enumerate(references, start=1):
        if is_first_process():
            print(f"detect: reference {number} of {len(references)}, {path.name}", flush=True)
        try:
            load_into(net, read_checkpoint(path))
            scores.append({n: s.score for n, s in scan(run, net, images, detectors)[0].items()})
        except (CheckpointError, ValueError) as error:
            raise type(error)(f"detector_reference: {path}: {error}") from error
        finally:
            net.load_state_dict(own)
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


_NO_P_VALUE = (
    "none of the chosen detectors has a null distribution of its own; give it clean networks to "
    "compare with: detector_reference=DIR"
)


def scan(
    run: Run, net: nn.Module, images: LabelledImages, detectors: Mapping[str, Detector]
) -> tuple[dict[str, Scan], dict[str, float]]:
    """Run every detector; each has random numbers of its own, the same for every network.

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
