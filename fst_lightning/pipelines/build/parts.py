"""The parts of a run, made from its configuration."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from fst_lightning.attacks import Attack
from fst_lightning.callbacks import BatchSizeAdvice, FiniteLoss, progress_callback
from fst_lightning.checkpoints import Store
from fst_lightning.configuration import ALPHA, AUTOMATIC, LEARNING_RATE
from fst_lightning.data import BackdoorDataModule, ImageSet, Source
from fst_lightning.defenses import CleanData, Defense, PoisonedData
from fst_lightning.defenses.common.whole_set import keep_modes
from fst_lightning.defenses.triggers import TriggerSource
from fst_lightning.models import (
    MODELS,
    find_head,
    set_input_channels,
    take_logits,
    use_fastest_layout,
)
from fst_lightning.models.softmax import PROBABILITIES, kind_of_outputs
from fst_lightning.modules import InputPipeline, PurificationModule
from fst_lightning.modules.classifier import OptimizerFactory, SchedulerFactory
from fst_lightning.pipelines.build.arguments import accepted, check_names, located
from fst_lightning.pipelines.build.instantiate import make
from fst_lightning.pipelines.build.library_input import library_input
from fst_lightning.pipelines.build.precision import resolve_precision
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.output.loggers import make_loggers
from fst_lightning.pipelines.runtime.last_checkpoint import LastCheckpoint, WholeFiles
from fst_lightning.pipelines.runtime.processes import is_first_process
from fst_lightning.pipelines.runtime.sigterm import SigtermAsBefore
from fst_lightning.validate import check_number

_LOGGERS = ("lightning.pytorch", "lightning.fabric")

_NUM_CLASSES = "num_classes"
_TRIED = 8  # images on which the output of a network is checked
_NO_ARGUMENTS = ("head",)  # keys of the group `model` that build nothing


def make_attack(run: Run) -> Attack:
    """The attack, before its trigger is prepared from the data."""
    told = told_head(run)
    # An attack on the features needs the head of the network as well.
    takes = told is not None and run.cfg.attack.get("head", "") is None
    return make(run.cfg.attack, Attack, **({"head": told} if takes else {}))


def make_defense(run: Run) -> Defense:
    """The defense; with the default alpha until ``alpha=auto`` is resolved.

    Raises:
        ValueError: If the defense does not use a number that is ``auto``, or its constructor
            raises.
    """
    config = run.cfg.defense
    keys = automatic_keys(run)
    if ALPHA in keys:
        kind = located(config)
        name = run.choices["defense"]
        if "alpha" not in inspect.signature(kind).parameters:
            raise ValueError(
                "Expected a defense with an `alpha` for defense.alpha=auto, such as fst, but "
                f"{name} has none."
            )
        if not getattr(kind, "alpha_is_strength", True):
            raise ValueError(
                "Expected a defense whose `alpha` sets its strength for defense.alpha=auto, such "
                f"as fst, but that of {name} only scales its loss. Give a number, or search the "
                f"rate with {LEARNING_RATE}=auto."
            )
    if ALPHA in keys:
        config = OmegaConf.masked_copy(config, [key for key in config if key != "alpha"])
    takes = run.head is not None and config.get("head", "") is None
    defense = make(config, Defense, **({"head": run.head} if takes else {}))
    if LEARNING_RATE in keys and not defense.tunes:
        raise ValueError(
            f"Expected a defense that tunes the network for {LEARNING_RATE}=auto, such as fst, but "
            f"{run.choices['defense']} takes no steps with it."
        )
    return defense


def automatic_keys(run: Run) -> list[str]:
    """The keys that are ``auto``: the learning rate of the tuning, the alpha, both or none."""
    return [key for key in AUTOMATIC if OmegaConf.select(run.cfg, key) == "auto"]


def make_source(run: Run) -> Source:
    """The source of the images."""
    return make(run.cfg.data, Source)


def make_store(run: Run) -> Store:
    """The store of backdoored models.

    Raises:
        ValueError: If its size limit is no number of at least 0.
    """
    limit = run.cfg.paths.store_limit_gb
    if limit is not None:
        check_number("paths.store_limit_gb", limit)
    return Store(Path(run.cfg.paths.store), None if limit is None else limit * 1e9)


def make_network(run: Run, num_classes: int, image_shape: Sequence[int]) -> nn.Module:
    """The network, in the fastest memory layout for convolutions that it supports.

    A class without an argument ``num_classes`` is called without it.

    Args:
        run: The run.
        num_classes: Number of classes.
        image_shape: ``(C, H, W)`` of the images.

    Raises:
        ValueError: If the class can't be imported or its arguments do not fit.
    """
    torch.manual_seed(run.cfg.seed)
    config = run.cfg.model.copy()  # The copy keeps its key, for errors.
    with open_dict(config):
        for name in _NO_ARGUMENTS:
            config.pop(name, None)
    parameters = accepted(located(config))
    takes = parameters is None or _NUM_CLASSES in parameters
    more = {_NUM_CLASSES: num_classes} if takes and _NUM_CLASSES not in config else {}
    check_names(config, given=more)
    try:
        net = make(config, nn.Module, **more)
    except ValueError as error:
        # A class that passes its keywords on refuses an unknown one only now.
        if parameters is not None or f"'{_NUM_CLASSES}'" not in str(error):
            raise
        net = make(config, nn.Module)
    if run.choices["model"] in MODELS:  # The user's own class is left as it is.
        set_input_channels(net, image_shape[0])
    why = use_fastest_layout(net, image_shape)
    if why is not None and is_first_process():
        name = run.choices["model"]
        print(
            f"model: {name} cannot compute in the memory layout channels_last ({why}), so it uses "
            "the contiguous one.",
            flush=True,
        )
    return net


def check_outputs(run: Run, net: nn.Module, data: BackdoorDataModule) -> None:
    """Try the network on a few clean images; if it returns probabilities, take their logarithm.

    Raises:
        ValueError: If it does not take these images, or does not return one number per class.
    """
    rows = data.train_rows.images[:_TRIED]
    images = InputPipeline(None, data.data.mean, data.data.std)(rows)
    try:
        with keep_modes(net), torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs: object = net.eval()(images)
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        brought = library_input(run)
        raise ValueError(
            f"Expected {run.choices['model']} to take images of shape {tuple(images.shape[1:])}, "
            f"but it raised: {why.rstrip('.')}. Set data.image_size (and "
            "data.channels=1 for gray images) to what it takes"
            f"{'' if brought is None else f' (it is made for {brought.size})'}."
        ) from error
    wanted = (len(images), data.data.num_classes)
    if not isinstance(outputs, Tensor) or outputs.shape != wanted:
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"Expected {run.choices['model']} to return a tensor of shape {wanted} for {wanted[0]} "
            f"images and {wanted[1]} classes, but got {found}."
        )
    if kind_of_outputs(outputs) == "probabilities":
        take_logits(net, warn=False)
        if is_first_process():
            print(f"model: {PROBABILITIES}", flush=True)


def network_arguments(run: Run) -> dict[str, Any]:
    """The arguments of the network's constructor."""
    arguments = run.arguments("model").items()
    return {name: value for name, value in arguments if name not in _NO_ARGUMENTS}


def told_head(run: Run) -> str | None:
    """The name of the head in the configuration: ``model.head``, or its alias ``defense.head``.

    Raises:
        ValueError: If both are given and differ.
    """
    told = run.cfg.model.get("head")
    alias = run.cfg.defense.get("head") if "defense" in run.cfg else None
    if None not in (told, alias) and told != alias:
        raise ValueError(
            f"Expected one head, but got model.head={told} and defense.head={alias}. Set "
            "model.head alone, which serves every defense."
        )
    return alias if told is None else told


def with_head(run: Run, net: nn.Module, num_classes: int, defense: Defense | None = None) -> Run:
    """The same run with the name of the network's head.

    Args:
        run: The run.
        net: The network.
        num_classes: Number of its classes.
        defense: The defense; None if there is none.

    Raises:
        ValueError: If the configured name is not a linear layer with that many outputs, or if no
            name is configured, no head is found and the defense needs one.
    """
    told = told_head(run)
    try:
        return dataclasses.replace(run, head=find_head(net, told, num_classes)[0])
    except ValueError as error:
        if told is not None:
            raise
        if defense is not None and defense.needs_head:
            raise ValueError(
                f"defense={run.choices['defense']} needs the head of the network. {error}"
            ) from None
        return run


def make_optimizer(recipe: DictConfig) -> tuple[OptimizerFactory, SchedulerFactory | None]:
    """The functions that make the optimizer and the schedule of a recipe."""
    optimizer: OptimizerFactory = make(recipe.optimizer, None)
    scheduler: SchedulerFactory | None = (
        None if recipe.scheduler is None else make(recipe.scheduler, None)
    )
    return optimizer, scheduler


def augmentation(run: Run, recipe: Literal["training", "tuning"], source: Source) -> dict[str, Any]:
    """The random changes of training images, as arguments of the module that trains on them.

    Args:
        run: The run.
        recipe: ``training`` of the backdoored network, or ``tuning`` of a defense.
        source: The images. It declares how far they may be cropped and whether they may be
            mirrored.
    """
    cfg = run.cfg[recipe]
    if recipe == "training":
        own = cfg.crop_padding
        return {
            "crop_padding": source.crop_padding if own is None else own,
            "horizontal_flip": source.horizontal_flip,
            "crop_fill": cfg.crop_fill,
            "alternate_flips": cfg.alternate_flips,
        }
    return {
        "crop_padding": source.crop_padding if cfg.augment else 0,
        "horizontal_flip": cfg.augment and source.horizontal_flip,
    }


def make_module(
    run: Run,
    net: nn.Module,
    defense: Defense,
    data: BackdoorDataModule,
    card: str | None = None,
    clean: CleanData | None = None,
    triggers: Sequence[TriggerSource] | None = None,
) -> PurificationModule:
    """The module that runs the defense with the tuning recipe.

    Args:
        run: The run.
        net: The network to purify, in place.
        defense: The defense.
        data: The defender's images.
        card: JSON text that describes the network, stored in checkpoints.
        clean: All clean images; None gathers them from the loader.
        triggers: Sources of triggers, which may have studied the network already; None makes those
            of the configuration.
    """
    optimizer, scheduler = make_optimizer(run.cfg.tuning)
    return PurificationModule(
        net,
        defense,
        optimizer,
        scheduler,
        run.cfg.tuning.scheduler_interval,
        attack=data.measured if data.measured.has_trigger else None,
        mean=data.data.mean,
        std=data.data.std,
        **augmentation(run, "tuning", data.source),
        triggers=make_triggers(run) if triggers is None else triggers,
        cuda_graphs=run.cfg.cuda_graphs,
        seed=run.cfg.seed,
        card=card,
        clean=clean,
    )


def make_triggers(run: Run) -> list[TriggerSource]:
    """The configured sources of triggers for the tuning images, in their order."""
    parts = run.cfg.tuning.get("triggers") or {}
    return [make(part, TriggerSource) for part in parts.values()]


def make_clean(
    data: BackdoorDataModule,
    rows: ImageSet | None = None,
    held_out: ImageSet | None = None,
    poisoned: PoisonedData | None = None,
) -> CleanData:
    """The clean images for the defense, which gets nothing else of the data.

    Args:
        data: The defender's images.
        rows: The images to tune on; None for all tuning images of the data module.
        held_out: Images that no step sees; None for those that the data module holds out.
        poisoned: The training set as it was delivered, for a defense that inspects it.
    """
    rows = data.train_rows if rows is None else rows
    held_out = data.held_out_rows if held_out is None else held_out
    mean, std = data.data.mean, data.data.std
    return CleanData(
        rows.images,
        rows.labels,
        None if held_out is None else CleanData(held_out.images, held_out.labels, None, mean, std),
        mean,
        std,
        poisoned,
    )


def make_trainer(
    run: Run, title: str, max_epochs: int, work: Path, *, quiet: bool = False
) -> L.Trainer:
    """Make the Trainer of one stage of a run.

    Args:
        run: The run.
        title: The name of the stage in progress lines.
        max_epochs: Epochs of the recipe.
        work: The folder of the last checkpoint, for an interrupted run.
        quiet: Whether to show no progress, write no curves and call no user callbacks.
    """
    quiet_lightning()
    options = {name: value for name, value in run.arguments("trainer").items() if value is not None}
    options["precision"] = precision_of(run)
    callbacks: list[L.Callback] = [LastCheckpoint(work), SigtermAsBefore()]
    if not quiet:
        recipe = "training" if title == "train" else "tuning"
        callbacks += [
            FiniteLoss(
                f"Try a lower {recipe}.optimizer.lr, or trainer.gradient_clip_val=1 (with resume= "
                "and that checkpoint, to go on from it)."
            ),
            BatchSizeAdvice(f"{recipe}.batch_size"),
        ]
        callbacks += [make(callback, L.Callback) for callback in run.parts("callbacks")]
        callbacks.append(progress_callback(title))
    loggers = [] if quiet else make_loggers(run, title)
    return make(
        OmegaConf.create({"_target_": run.cfg.trainer._target_}),
        L.Trainer,
        max_epochs=max_epochs,
        callbacks=callbacks,
        logger=loggers or False,
        plugins=[WholeFiles()],
        default_root_dir=run.folder,
        enable_progress_bar=not quiet,
        **options,
    )


def precision_of(run: Run) -> str:
    """The resolved precision of this run."""
    return resolve_precision(run.cfg.trainer.precision, run.cfg.trainer.accelerator)


def quiet_lightning() -> None:
    """Silence Lightning's messages on the machine and on choices that are made on purpose here."""
    if not sys.warnoptions:
        for message in (
            ".*does not have many workers.*",  # workers would only copy images that are in memory
            ".*is smaller than the logging interval.*",
            ".*Checkpoint directory .* exists and is not empty.*",
            ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
            ".*Experiment logs directory .* exists and is not empty.*",
            ".*sync_dist=True.*",
            ".*Using `DistributedSampler` with the dataloaders.*",  # ours repeats no row
            ".*The dirpath has changed from .*",  # resume=PATH
            ".*You defined a `validation_step` but have no `val_dataloader`.*",
            ".*`training_step` returned `None`.*",  # a batch of one image, for BatchNorm
        ):
            warnings.filterwarnings("ignore", message)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning like :func:`quiet_lightning`, within the block only."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        quiet_lightning()
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
