"""``train.py``: train a backdoored classifier, keep it and measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fst_lightning.data import BackdoorDataModule
from fst_lightning.pipelines.assemble import assemble, describe_parts, load_backdoored, make_scorer
from fst_lightning.pipelines.build.library_input import adopt_library_input
from fst_lightning.pipelines.build.parts import make_attack, make_source
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.measure.evidence import EvidenceCollector
from fst_lightning.pipelines.measure.score import score
from fst_lightning.pipelines.output.export_images import check_export, export_images
from fst_lightning.pipelines.output.run_folder import finish, prepare_folder
from fst_lightning.pipelines.runtime.costs import Costs
from fst_lightning.pipelines.runtime.processes import is_first_process
from fst_lightning.reports import build_results


def run_train(run: Run) -> dict[str, Any]:
    """Train the model of this configuration, unless the store holds it, and measure it.

    Returns:
        The content of ``results.json``.
    """
    run = adopt_library_input(run)
    data = BackdoorDataModule(
        make_source(run),
        make_attack(run),
        batch_size=run.cfg.training.batch_size,
        seed=run.cfg.seed,
        num_workers=run.cfg.num_workers,
    )
    parts = assemble(run, data)
    exported = None if run.cfg.export is None else Path(run.cfg.export)
    if exported is not None:
        check_export(exported, data)
    prepare_folder(parts.run)

    costs = Costs()
    backdoored = load_backdoored(parts, costs)
    trainer, module = make_scorer(parts)
    with costs.of("evaluate"):
        before = score(trainer, module, data)
    collector = EvidenceCollector(parts.run, trainer, module, data)
    collector.look()
    results = build_results(
        task="train",
        before=before,
        checkpoints={"backdoored": str(backdoored.path)},
        **describe_parts(parts, trainer, costs, num_poisoned=data.plan.num_poisoned),
    )
    if exported is not None and is_first_process():
        export_images(exported, data)
    finish(parts.run, results, collector)
    return results
