"""``train.py``: train a backdoored classifier, keep it, measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fst_lightning.data import BackdoorDataModule
from fst_lightning.defenses import NoDefense
from fst_lightning.modules import PurificationModule
from fst_lightning.pipelines.backdoored import from_store, make_card
from fst_lightning.pipelines.build.library_input import adopt_library_input
from fst_lightning.pipelines.build.parts import (
    check_outputs,
    make_attack,
    make_network,
    make_source,
    make_trainer,
    with_head,
)
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.measure.evidence import EvidenceCollector
from fst_lightning.pipelines.measure.score import (
    attack_block,
    data_block,
    environment,
    model_block,
    score,
)
from fst_lightning.pipelines.output.export_images import check_export, export_images
from fst_lightning.pipelines.output.run_folder import finish, prepare_folder
from fst_lightning.pipelines.runtime.costs import Costs
from fst_lightning.pipelines.runtime.processes import is_first_process
from fst_lightning.reports import build_results


def run_train(run: Run) -> dict[str, Any]:
    """Train the model of this configuration, unless the store has it, and measure it.

    Returns:
        What ``results.json`` holds.
    """
    run = adopt_library_input(run)
    source, attack = make_source(run), make_attack(run)
    data = BackdoorDataModule(
        source,
        attack,
        batch_size=run.cfg.training.batch_size,
        seed=run.cfg.seed,
        num_workers=run.cfg.num_workers,
    )
    data.setup()
    net = make_network(run, data.data.num_classes, data.data.image_shape)
    check_outputs(run, net, data)
    run = with_head(run, net, data.data.num_classes)
    card = make_card(run, source, attack)
    exported = None if run.cfg.export is None else Path(run.cfg.export)
    if exported is not None:
        check_export(exported, data)
    prepare_folder(run)

    costs = Costs()
    backdoored = from_store(run, net, source, attack, card, costs)
    trainer = make_trainer(run, "score", 0, run.folder)
    module = PurificationModule(
        net, NoDefense(), attack=data.measured, mean=data.data.mean, std=data.data.std
    )
    with costs.of("evaluate"):
        before = score(trainer, module, data)
    collector = EvidenceCollector(run, trainer, module, data)
    collector.look()
    results = build_results(
        task="train",
        seed=run.cfg.seed,
        attack=attack_block(run, data),
        data=data_block(run, data, num_poisoned=data.plan.num_poisoned),
        model=model_block(run, net),
        before=before,
        seconds=costs.seconds,
        peak_memory_mb=costs.peak_memory_mb,
        environment=environment(run, trainer),
        checkpoints={"backdoored": str(backdoored.path)},
        overrides=run.overrides,
    )
    if exported is not None and is_first_process():
        export_images(exported, data)
    finish(run, results, collector)
    return results
