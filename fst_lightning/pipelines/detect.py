"""``detect.py``: load a network, scan it, and say whether it looks backdoored."""

from __future__ import annotations

from typing import Any

from fst_lightning.data import BackdoorDataModule
from fst_lightning.pipelines.assemble import assemble, describe_parts, load_backdoored, make_scorer
from fst_lightning.pipelines.backdoored import adopt_checkpoint
from fst_lightning.pipelines.build.parts import make_attack, make_source
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.measure.evidence import EvidenceCollector
from fst_lightning.pipelines.measure.scan import (
    FEWEST_IMAGES,
    Scanner,
    check_scan,
    make_detectors,
    num_images,
)
from fst_lightning.pipelines.measure.score import score
from fst_lightning.pipelines.output.run_folder import finish, prepare_folder
from fst_lightning.pipelines.runtime.costs import Costs
from fst_lightning.reports import build_results


def run_detect(run: Run) -> dict[str, Any]:
    """Scan the network of this configuration, or of its ``checkpoint``.

    Returns:
        The content of ``results.json``.
    """
    check_scan(run)
    if not make_detectors(run):
        raise ValueError("Expected one detector or more, such as detector=[mm_bd], but got none.")
    run, checkpoint = adopt_checkpoint(run)
    source = make_source(run)
    data = BackdoorDataModule(
        source,
        make_attack(run),
        purpose="purify",
        batch_size=128,
        clean_ratio=image_share(run, len(source.load().train)),
        seed=run.cfg.seed,
        num_workers=run.cfg.num_workers,
    )
    parts = assemble(run, data, checkpoint)
    prepare_folder(parts.run)

    costs = Costs()
    scanner = Scanner(parts.run, source, data, costs)
    network = load_backdoored(parts, costs)
    trainer, module = make_scorer(parts)
    with costs.of("evaluate"):
        before = score(trainer, module, data)
    scanner.look(parts.net, before, trainer.strategy.root_device)
    collector = EvidenceCollector(parts.run, trainer, module, data, scanner)
    collector.look()
    results = build_results(
        task="detect",
        before=before,
        detection=scanner.block(),
        checkpoints={"backdoored": str(network.path)},
        **describe_parts(parts, trainer, costs, num_poisoned=None),
    )
    finish(parts.run, results, collector)
    return results


def image_share(run: Run, num_train: int) -> float:
    """The share of the training images that the detectors may use.

    Raises:
        ValueError: If there are too few images.
    """
    if num_train < FEWEST_IMAGES:
        raise ValueError(
            f"Expected {FEWEST_IMAGES} clean images or more to scan with, but got {num_train}."
        )
    return min(1.0, num_images(run) / num_train)
