"""``detect.py``: get a network, scan it, and say whether it looks backdoored."""

from __future__ import annotations

from typing import Any

from fst_lightning.data import BackdoorDataModule
from fst_lightning.defenses import NoDefense
from fst_lightning.modules import PurificationModule
from fst_lightning.pipelines.backdoored import (
    adopt_checkpoint,
    from_file,
    from_store,
    make_card,
)
from fst_lightning.pipelines.build.card_settings import check_adopted
from fst_lightning.pipelines.build.parts import (
    check_outputs,
    make_attack,
    make_network,
    make_source,
    make_trainer,
    with_head,
)
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.measure.mismatch import check_match
from fst_lightning.pipelines.measure.scan import (
    FEWEST_IMAGES,
    Scanner,
    check_scan,
    make_detectors,
    num_images,
)
from fst_lightning.pipelines.measure.score import (
    attack_block,
    data_block,
    environment,
    model_block,
    score,
)
from fst_lightning.pipelines.output.run_folder import finish, prepare_folder
from fst_lightning.pipelines.runtime.costs import Costs
from fst_lightning.reports import build_results


def run_detect(run: Run) -> dict[str, Any]:
    """Scan the network of this configuration, or of its ``checkpoint``.

    Returns:
        What ``results.json`` holds.
    """
    check_scan(run)
    if not make_detectors(run):
        raise ValueError("Expected one detector or more, such as detector=[mm_bd], but got none.")
    run, checkpoint = adopt_checkpoint(run)
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
    scanner = Scanner(run, source, data, costs)
    network = (
        from_store(run, net, source, attack, card, costs)
        if checkpoint is None
        else from_file(run, checkpoint, net, source, attack, card)
    )
    if checkpoint is not None:
        with costs.of("evaluate"):
            check_match(run, net, data)
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
    scanner.look(net, before, trainer.strategy.root_device)
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
        detection=scanner.block(),
    )
    finish(run, results)
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
