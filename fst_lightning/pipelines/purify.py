"""``purify.py``: get a backdoored model, measure it, purify it, measure it again."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from fst_lightning.attacks import NoAttack
from fst_lightning.checkpoints import (
    ModelCard,
    StoreError,
    StoreUse,
    read_checkpoint,
    write_state,
)
from fst_lightning.configuration import ALPHA
from fst_lightning.data import (
    BackdoorDataModule,
    ImageSet,
    Source,
    clean_rows,
    reserve,
    with_training_images,
)
from fst_lightning.data.datamodule import check_crafted
from fst_lightning.defenses import (
    CleanData,
    DatasetDefense,
    Defense,
    NoDefense,
    PoisonedData,
    apply,
)
from fst_lightning.defenses.common.dataset_defense import detection_rates
from fst_lightning.pipelines.backdoored import (
    Backdoored,
    adopt_checkpoint,
    from_file,
    from_store,
    make_card,
    train_backdoored,
)
from fst_lightning.pipelines.build.card_settings import check_adopted
from fst_lightning.pipelines.build.delivered import delivered_set
from fst_lightning.pipelines.build.parts import (
    automatic_keys,
    check_outputs,
    make_attack,
    make_clean,
    make_defense,
    make_module,
    make_network,
    make_source,
    make_store,
    make_trainer,
    with_head,
)
from fst_lightning.pipelines.build.recipe import fit_recipe
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.measure.evidence import EvidenceCollector
from fst_lightning.pipelines.measure.mismatch import check_match
from fst_lightning.pipelines.measure.robustness import check_robustness, make_checks
from fst_lightning.pipelines.measure.scan import Scanner, check_scan
from fst_lightning.pipelines.measure.score import (
    attack_block,
    compare_answers,
    data_block,
    environment,
    findings_block,
    model_block,
    score,
)
from fst_lightning.pipelines.measure.shift import Shift
from fst_lightning.pipelines.output.export_model import check_formats, export_model
from fst_lightning.pipelines.output.run_folder import finish, prepare_folder
from fst_lightning.pipelines.runtime.costs import Costs
from fst_lightning.pipelines.runtime.processes import is_first_process
from fst_lightning.pipelines.runtime.resume import named_digest, resume_point
from fst_lightning.pipelines.search.automatic import choose_settings
from fst_lightning.reports import build_results
from fst_lightning.seeds import derived_seed

_CLEAN_RATIO = 0.02
_COMPARED = 64  # test images on which an exported network must give the same logits


def run_purify(run: Run) -> dict[str, Any]:
    """Purify the model of this configuration, or of its ``checkpoint``.

    Returns:
        What ``results.json`` holds.
    """
    formats = check_formats(run.cfg.export_model)
    run, checkpoint = adopt_checkpoint(run)
    source, attack = make_source(run), make_attack(run)
    defense = make_defense(run)  # Before a training that would be in vain.
    checks = make_checks(run, attack)
    check_scan(run)
    source, reserved = choose_source(run, source)
    if checkpoint is not None:
        clean_set = source.load()
        check_adopted(run, checkpoint, attack, clean_set.train.images, clean_set.num_classes)
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
    data.setup()
    num_poisoned = None
    if checkpoint is None:
        plan = attack.plan(data.data.train.labels, data.data.num_classes, run.cfg.seed)
        num_poisoned = plan.num_poisoned
        check_crafted(attack, data.data.train, plan)
    if defense.needs_poisoned_set:
        data.data.train.check_memory(f"defense={run.choices['defense']}")
    if checks:
        data.data.train.check_memory(f"robustness={','.join(checks)}")
    net = make_network(run, data.data.num_classes, data.data.image_shape)
    check_outputs(run, net, data)
    run = with_head(run, net, data.data.num_classes, defense)
    if "head" in run.cfg.defense:
        defense = make_defense(run)  # The head is known only now.
    card = make_card(run, source, attack)
    if defense.tunes:
        fit_recipe(run, data)
    check_enough_images(net, data)
    prepare_folder(run)

    costs = Costs()
    scanner = Scanner(run, source, data, costs)
    backdoored = (
        from_store(run, net, source, attack, card, costs)
        if checkpoint is None
        else from_file(run, checkpoint, net, source, attack, card)
    )
    if checkpoint is not None:
        with costs.of("evaluate"):
            check_match(run, net, data)
    poisoned, truth = None, None
    if defense.needs_poisoned_set:
        poisoned, truth = delivered_set(source, attack, run.cfg.seed)
        if checkpoint is not None and not attack.has_trigger:
            truth = None  # Nobody knows what is in it.
    searches: dict[str, Any] = {}
    if automatic := automatic_keys(run):
        with costs.of("purify"):
            searches = choose_settings(run, net, data, poisoned)
        defense = make_defense(run)
    trains = defense.tunes or isinstance(defense, DatasetDefense)
    work, in_use = work_folder(run, tuning_key(run, backdoored)) if trains else (run.folder, None)
    clean = make_clean(data, poisoned=poisoned)
    module = make_module(run, net, defense, data, card.to_json(), clean)
    trainer = make_trainer(run, "purify", run.cfg.tuning.max_epochs, work)
    collector = EvidenceCollector(run, trainer, module, data)

    came_in = copy.deepcopy(net) if checks else net

    with costs.of("evaluate"):
        before = score(trainer, module, data)
    right_before = module.right
    device = trainer.strategy.root_device
    scanner.look(net, before, device)
    collector.look()
    shift = Shift(run, trainer, module, data)
    after = before
    if not isinstance(defense, NoDefense):
        with costs.of("purify"):
            if defense.tunes:
                # The last weights are the result: picking an epoch by its ASR would take the
                # trigger.
                ckpt_path = resume_point(run, work, "tune")
                trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
            elif isinstance(defense, DatasetDefense) and poisoned is not None:
                find_rows(run, trainer, net, defense, clean, work)
                retrain(run, trainer, net, source, defense, poisoned, card, work)
            else:
                apply_at_once(run, trainer, net, defense, clean)
        with costs.of("evaluate"):
            after = score(trainer, module, data)
        collector.look()
        scanner.look(net, after, device)
    robustness = None
    if checks:
        with costs.of("robustness"):
            robustness = check_robustness(run, checks, came_in, net, data, attack, device)
    answers = None if after is before else compare_answers(trainer, right_before, module.right)
    findings = findings_block(run, searches, defense, answers)
    if isinstance(defense, DatasetDefense):
        findings |= detection_rates(defense.suspected, truth)

    purified = run.folder / "purified.safetensors"
    exported: dict[str, dict[str, Any]] = {}
    if is_first_process():
        write_state(purified, net.state_dict(), key_map=backdoored.keys, card=card)
        exported = export_model(
            net,
            data.data.test.images[:_COMPARED].float() / 255,
            run.folder,
            formats,
            mean=data.data.mean,
            std=data.data.std,
            card=card.to_json(),
        )
    results = build_results(
        task="purify",
        seed=run.cfg.seed,
        attack=attack_block(run, data),
        defense={
            "name": run.choices["defense"],
            **run.arguments("defense"),
            **({"auto": ["alpha"]} if ALPHA in automatic else {}),
            "findings": findings,
        },
        data=data_block(run, data, num_poisoned=num_poisoned),
        model=model_block(run, net),
        before=before,
        after=after,
        seconds={"purify": 0.0, **costs.seconds},
        peak_memory_mb=costs.peak_memory_mb,
        robustness=robustness,
        detection=scanner.block(),
        environment=environment(run, trainer),
        answers=answers,
        shift=shift.measure(),
        checkpoints={"backdoored": str(backdoored.path), "purified": str(purified)},
        overrides=run.overrides,
        exported=exported,
    )
    finish(run, results, collector)
    if trains and is_first_process():
        # Not before: a run that is killed until then can still go on.
        shutil.rmtree(work, ignore_errors=True)
    if in_use is not None:
        in_use.release()
    return results


def choose_source(run: Run, source: Source) -> tuple[Source, ImageSet | None]:
    """Take the defender's images out of the training set, where the recipe wants that.

    Returns:
        What the backdoored model is trained on, and the images that were taken out.
    """
    if run.cfg.tuning.clean_source == "train":
        return source, None
    data, tuning = source.load(), run.cfg.tuning
    rows = clean_rows(
        data.train.labels, clean_ratio(run), run.cfg.seed, tuning.balanced, data.changed
    )
    return reserve(source, rows)


def apply_at_once(
    run: Run, trainer: L.Trainer, net: nn.Module, defense: Defense, clean: CleanData
) -> None:
    """Run a defense that needs no training steps, on the Trainer's device; the same everywhere."""
    device = trainer.strategy.root_device
    generator = torch.Generator().manual_seed(run.cfg.seed)
    apply(defense, net.to(device), clean.to(device), generator)
    net.cpu()
    if trainer.world_size > 1:
        net.load_state_dict(trainer.strategy.broadcast(net.state_dict()))
        defense.load_state_dict(trainer.strategy.broadcast(defense.cpu().state_dict()))


def find_rows(
    run: Run,
    trainer: L.Trainer,
    net: nn.Module,
    defense: DatasetDefense,
    clean: CleanData,
    work: Path,
) -> None:
    """Let a defense look for the suspicious rows, once: a run that is resumed has them already."""
    found = work / "found.safetensors"
    if run.cfg.resume is True and found.is_file():
        if is_first_process():
            print(f"purify: continues from {found}", flush=True)
        defense.load_state_dict(read_checkpoint(found).state_dict)
        return
    apply_at_once(run, trainer, net, defense, clean)
    if is_first_process():
        write_state(found, defense.state_dict())


def retrain(
    run: Run,
    trainer: L.Trainer,
    net: nn.Module,
    source: Source,
    defense: DatasetDefense,
    poisoned: PoisonedData,
    card: ModelCard,
    work: Path,
) -> None:
    """Train a network anew on the rows that the defense leaves, by the recipe of training."""

    def fit(fresh: nn.Module, rows: PoisonedData) -> nn.Module:
        images = ImageSet(rows.images.cpu(), rows.labels.cpu())
        train_backdoored(run, fresh, with_training_images(source, images), NoAttack(), card, work)
        return fresh

    found = defense.retrain(
        lambda: make_network(run, source.load().num_classes, source.load().image_shape),
        poisoned.to(trainer.strategy.root_device),
        defense.suspected.cpu(),
        torch.Generator().manual_seed(derived_seed(run.cfg.seed, "retrain")),
        fit,
    )
    if found is not None:
        state = found.cpu().state_dict()
        if trainer.world_size > 1:
            state = trainer.strategy.broadcast(state)
        net.load_state_dict(state)


def clean_ratio(run: Run) -> float:
    """The share of the training set that the defender holds, where the recipe leaves it open."""
    ratio = run.cfg.tuning.clean_ratio
    if ratio is not None:
        if isinstance(ratio, bool) or not isinstance(ratio, int | float):
            raise ValueError(
                f"Expected `tuning.clean_ratio` to be null or in (0, 1], but got {ratio!r}."
            )
        return float(ratio)
    # A folder that comes with a checkpoint and no attack holds the defender's own images.
    own = run.cfg.checkpoint is not None and run.choices["attack"] == "none"
    return 1.0 if own else _CLEAN_RATIO


def check_enough_images(net: nn.Module, data: BackdoorDataModule) -> None:
    """Refuse a tuning set that BatchNorm can't take, before anything is trained.

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
    """Where the run keeps its last checkpoint: in its own folder if the store is read only.

    Returns:
        The folder, and what keeps others from removing it from the store.
    """
    try:
        use = make_store(run).use_work(key)
    except StoreError:
        return run.folder / "work", None
    return use.path, use


def tuning_key(run: Run, backdoored: Backdoored) -> str:
    """Where this very purification keeps its last checkpoint while it runs."""
    description = {
        "backdoored": backdoored.identity,
        "attack": run.plain("attack"),  # Its trigger is in the checkpoint, to measure with.
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
