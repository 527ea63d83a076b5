"""``purify.py``: load a backdoored model, measure it, purify it, and measure it again."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn

from fst_lightning.checkpoints import StoreError, StoreUse, write_state
from fst_lightning.configuration import ALPHA
from fst_lightning.data import BackdoorDataModule, ImageSet, Source, clean_rows, reserve
from fst_lightning.data.datamodule import check_crafted
from fst_lightning.defenses import DatasetDefense, Defense, NoDefense
from fst_lightning.defenses.common.dataset_defense import detection_rates
from fst_lightning.pipelines.apply_defense import apply_defense
from fst_lightning.pipelines.assemble import Parts, assemble, describe_parts, load_backdoored
from fst_lightning.pipelines.backdoored import Backdoored, adopt_checkpoint
from fst_lightning.pipelines.build.delivered import delivered_set
from fst_lightning.pipelines.build.parts import (
    automatic_keys,
    make_attack,
    make_clean,
    make_defense,
    make_module,
    make_source,
    make_store,
    make_trainer,
)
from fst_lightning.pipelines.build.recipe import fit_recipe
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.measure.evidence import EvidenceCollector
from fst_lightning.pipelines.measure.recipes import recipe_block
from fst_lightning.pipelines.measure.robustness import check_robustness, make_checks
from fst_lightning.pipelines.measure.scan import Scanner, check_scan
from fst_lightning.pipelines.measure.score import compare_answers, findings_block, score
from fst_lightning.pipelines.measure.shift import Shift
from fst_lightning.pipelines.output.export_model import check_formats, export_model
from fst_lightning.pipelines.output.run_folder import finish, prepare_folder
from fst_lightning.pipelines.runtime.costs import Costs
from fst_lightning.pipelines.runtime.processes import is_first_process
from fst_lightning.pipelines.runtime.resume import named_digest
from fst_lightning.pipelines.search.automatic import choose_settings
from fst_lightning.reports import build_results
from fst_lightning.robustness import RobustnessCheck
from fst_lightning.validate import check_number

_CLEAN_RATIO = 0.02
_COMPARED = 64  # test images on which an exported network must give the same logits


def run_purify(run: Run) -> dict[str, Any]:
    """Purify the model of this configuration, or of its ``checkpoint``.

    Returns:
        The content of ``results.json``.
    """
    costs = Costs()
    job = prepare(run, costs)
    backdoored = load_backdoored(job.parts, costs)
    outcome = purify_and_measure(job, backdoored, costs)
    return record(job, backdoored, outcome, costs)


@dataclass(frozen=True)
class Job:
    """A purification that is ready to run.

    Attributes:
        parts: The images and the network.
        defense: The defense; with the alpha of its constructor until one is chosen.
        checks: The checks of the purified network, by name.
        scanner: Scans the network before and after.
        formats: The formats to export the purified network in.
        num_poisoned: The rows that the attack poisons; None for the model of a checkpoint.
    """

    parts: Parts
    defense: Defense
    checks: dict[str, RobustnessCheck]
    scanner: Scanner
    formats: tuple[str, ...]
    num_poisoned: int | None


@dataclass(frozen=True)
class Outcome:
    """A purified network, measured.

    Attributes:
        trainer: Ran the defense.
        collector: Looked at the network before and after, for the report.
        work: The folder of the last checkpoint, to be removed at the end; None if there is none.
        use: Keeps that folder in the store until it is released; None if it is elsewhere.
        blocks: The blocks of ``results.json`` that a purification adds.
    """

    trainer: L.Trainer
    collector: EvidenceCollector
    work: Path | None
    use: StoreUse | None
    blocks: dict[str, Any]


def prepare(run: Run, costs: Costs) -> Job:
    """Make all parts of the run, and refuse settings that would fail later."""
    formats = check_formats(run.cfg.export_model)
    run, checkpoint = adopt_checkpoint(run)
    source, attack = make_source(run), make_attack(run)
    defense = make_defense(run)
    checks = make_checks(run, attack)
    check_scan(run)
    source, reserved = choose_source(run, source)
    data = BackdoorDataModule(
        source,
        attack,
        purpose="purify",
        batch_size=run.cfg.tuning.batch_size,
        clean_ratio=clean_ratio(run),
        balanced=run.cfg.tuning.balanced,
        reserved=reserved,
        held_out=defense.held_out,
        seed=run.cfg.seed,
        num_workers=run.cfg.num_workers,
        val_images=run.cfg.val_images,
    )
    parts = assemble(run, data, checkpoint, defense)
    if "head" in run.cfg.defense:
        defense = make_defense(parts.run)  # The head is known only now.
    num_poisoned = None
    if checkpoint is None:
        plan = attack.plan(data.data.train.labels, data.data.num_classes, run.cfg.seed)
        num_poisoned = plan.num_poisoned
        check_crafted(attack, data.data.train, plan)
    if defense.needs_poisoned_set:
        data.data.train.check_memory(f"defense={run.choices['defense']}")
    if checks:
        data.data.train.check_memory(f"robustness={','.join(checks)}")
    if defense.tunes:
        fit_recipe(parts.run, data)
    check_enough_images(parts.net, data)
    scanner = Scanner(parts.run, source, data, costs)
    prepare_folder(parts.run)
    return Job(parts, defense, checks, scanner, formats, num_poisoned)


def purify_and_measure(job: Job, backdoored: Backdoored, costs: Costs) -> Outcome:
    """Score the network, run the defense on it in place, and score it again."""
    run, net, data, defense = job.parts.run, job.parts.net, job.parts.data, job.defense
    attack = data.attack
    poisoned, truth = None, None
    if defense.needs_poisoned_set:
        poisoned, truth = delivered_set(data.source, attack, run.cfg.seed)
        if job.parts.checkpoint is not None and not attack.has_trigger:
            truth = None  # The poisoned rows are unknown.
    searches: dict[str, Any] = {}
    if automatic := automatic_keys(run):
        with costs.of("purify"):
            searches = choose_settings(run, net, data, poisoned)
        defense = make_defense(run)
    trains = defense.tunes or isinstance(defense, DatasetDefense)
    work, use = work_folder(run, tuning_key(run, backdoored)) if trains else (run.folder, None)
    clean = make_clean(data, poisoned=poisoned)
    module = make_module(run, net, defense, data, job.parts.card.to_json(), clean)
    trainer = make_trainer(run, "purify", run.cfg.tuning.max_epochs, work)
    device = trainer.strategy.root_device
    collector = EvidenceCollector(run, trainer, module, data, job.scanner)
    original = copy.deepcopy(net) if job.checks else net

    with costs.of("evaluate"):
        before = score(trainer, module, data)
    right_before = module.right
    job.scanner.look(net, before, device)
    collector.look()
    shift = Shift(run, trainer, module, data)
    after = before
    if not isinstance(defense, NoDefense):
        with costs.of("purify"):
            apply_defense(job.parts, trainer, module, clean, work)
        with costs.of("evaluate"):
            after = score(trainer, module, data)
        collector.look()
        job.scanner.look(net, after, device)
    robustness = None
    if job.checks:
        with costs.of("robustness"):
            robustness = check_robustness(run, job.checks, original, net, data, attack, device)
    answers = None if after is before else compare_answers(trainer, right_before, module.right)
    findings = findings_block(run, searches, defense, answers)
    if isinstance(defense, DatasetDefense):
        findings |= detection_rates(defense.suspected, truth)
    tuned = defense.tunes and not isinstance(defense, NoDefense)
    ratio = clean_ratio(run)
    blocks = {
        "tuning": recipe_block(run, "tuning", data.source, clean_ratio=ratio) if tuned else None,
        "defense": {
            "name": run.choices["defense"],
            **run.arguments("defense"),
            **({"auto": ["alpha"]} if ALPHA in automatic else {}),
            "findings": findings,
        },
        "before": before,
        "after": after,
        "robustness": robustness,
        "detection": job.scanner.block(),
        "answers": answers,
        "shift": shift.measure(),
    }
    return Outcome(trainer, collector, work if trains else None, use, blocks)


def record(job: Job, backdoored: Backdoored, outcome: Outcome, costs: Costs) -> dict[str, Any]:
    """Write the purified network, the results and the report; then remove the last checkpoint.

    Returns:
        The content of ``results.json``.
    """
    run, net, data, card = job.parts.run, job.parts.net, job.parts.data, job.parts.card
    purified = run.folder / "purified.safetensors"
    exported: dict[str, dict[str, Any]] = {}
    if is_first_process():
        write_state(purified, net.state_dict(), key_map=backdoored.keys, card=card)
        exported = export_model(
            net,
            data.data.test.images[:_COMPARED].float() / 255,
            run.folder,
            job.formats,
            mean=data.data.mean,
            std=data.data.std,
            card=card.to_json(),
        )
    described = describe_parts(job.parts, outcome.trainer, costs, job.num_poisoned)
    described["seconds"] = {"purify": 0.0, **described["seconds"]}
    if isinstance(job.defense, DatasetDefense):  # It trains a fresh network, whatever came in.
        described["training"] = recipe_block(run, "training", data.source)
    results = build_results(
        task="purify",
        checkpoints={"backdoored": str(backdoored.path), "purified": str(purified)},
        exported=exported,
        **described,
        **outcome.blocks,
    )
    finish(run, results, outcome.collector)
    # Only now: until here, a run that is killed can be resumed.
    if outcome.work is not None and is_first_process():
        shutil.rmtree(outcome.work, ignore_errors=True)
    if outcome.use is not None:
        outcome.use.release()
    return results


def choose_source(run: Run, source: Source) -> tuple[Source, ImageSet | None]:
    """Take the defender's images out of the training set if the recipe says so.

    Returns:
        The images that the backdoored model is trained on, and those that were taken out.
    """
    if run.cfg.tuning.clean_source == "train":
        return source, None
    data, tuning = source.load(), run.cfg.tuning
    rows = clean_rows(
        data.train.labels, clean_ratio(run), run.cfg.seed, tuning.balanced, data.changed
    )
    return reserve(source, rows)


def clean_ratio(run: Run) -> float:
    """The share of the training set that the defender holds; a default if the recipe has none."""
    ratio = run.cfg.tuning.clean_ratio
    if ratio is not None:
        check_number("tuning.clean_ratio", ratio, low_open=True, high=1)
        return float(ratio)
    # A folder that comes with a checkpoint and no attack holds the defender's own images.
    own = run.cfg.checkpoint is not None and run.choices["attack"] == "none"
    return 1.0 if own else _CLEAN_RATIO


def check_enough_images(net: nn.Module, data: BackdoorDataModule) -> None:
    """Refuse a tuning set that BatchNorm cannot take, before anything is trained.

    Raises:
        ValueError: If batches hold a single image and the network has BatchNorm.
    """
    batch = min(len(data.train_rows), data.batch_size)
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if batch < 2 and norms:
        raise ValueError(
            f"Expected batches of 2 or more images to tune a network with BatchNorm on, but got "
            f"{len(data.train_rows)} clean images and tuning.batch_size={data.batch_size}. Raise "
            f"tuning.clean_ratio (1 uses all {len(data.data.train)} training images) or the batch "
            "size."
        )


def work_folder(run: Run, key: str) -> tuple[Path, StoreUse | None]:
    """The folder of the last checkpoint: in the store, or in the run's folder if that is read-only.

    Returns:
        The folder, and a lock that keeps it in the store.
    """
    try:
        use = make_store(run).use_work(key)
    except StoreError:
        return run.folder / "work", None
    return use.path, use


def tuning_key(run: Run, backdoored: Backdoored) -> str:
    """The key of this purification's last checkpoint in the store."""
    description = {
        "backdoored": backdoored.identity,
        "attack": run.plain("attack"),  # Its trigger is in the checkpoint.
        "defense": run.plain("defense"),
        "head": run.head,
        "tuning": run.plain("tuning"),
        "data": run.plain("data"),
        "trainer": run.plain("trainer"),
        "seed": run.cfg.seed,
    }
    key = _digest(description)
    digest = named_digest(run, "tune", make_store(run).root / "work" / key)
    return key if digest is None else _digest({**description, "resumed_from": digest})


def _digest(description: dict[str, Any]) -> str:
    text = json.dumps(description, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
