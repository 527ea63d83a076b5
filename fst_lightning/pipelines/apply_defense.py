"""Runs a defense: it tunes the network, trains a fresh one, or takes no training step."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from torch import nn

from fst_lightning.attacks import NoAttack
from fst_lightning.checkpoints import read_checkpoint, write_state
from fst_lightning.data import ImageSet, with_training_images
from fst_lightning.defenses import CleanData, DatasetDefense, Defense, PoisonedData, apply
from fst_lightning.modules import PurificationModule
from fst_lightning.pipelines.assemble import Parts
from fst_lightning.pipelines.backdoored import train_backdoored
from fst_lightning.pipelines.build.parts import make_network
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.runtime.processes import is_first_process
from fst_lightning.pipelines.runtime.resume import resume_point
from fst_lightning.seeds import derived_seed


def apply_defense(
    parts: Parts, trainer: L.Trainer, module: PurificationModule, clean: CleanData, work: Path
) -> None:
    """Run the defense of a module on its network, in place.

    Args:
        parts: The images and the network.
        trainer: Takes the steps, on its device.
        module: Holds the network and the defense.
        clean: The images that the defense may use.
        work: The folder of the last checkpoint.
    """
    defense = module.defense
    if defense.tunes:
        # The last weights are the result: picking an epoch by its ASR would take the trigger.
        ckpt_path = resume_point(parts.run, work, "tune")
        trainer.fit(module, parts.data, ckpt_path=ckpt_path, weights_only=True)
    elif isinstance(defense, DatasetDefense) and clean.poisoned is not None:
        find_rows(parts.run, trainer, parts.net, defense, clean, work)
        retrain(parts, trainer, defense, clean.poisoned, work)
    else:
        apply_at_once(parts.run, trainer, parts.net, defense, clean)


def apply_at_once(
    run: Run, trainer: L.Trainer, net: nn.Module, defense: Defense, clean: CleanData
) -> None:
    """Run a defense without training steps, on the Trainer's device; all processes agree."""
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
    """Let a defense look for suspicious rows; a resumed run reads the rows found before."""
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
    parts: Parts,
    trainer: L.Trainer,
    defense: DatasetDefense,
    poisoned: PoisonedData,
    work: Path,
) -> None:
    """Train a fresh network on the rows that the defense keeps, with the training recipe."""
    run, source = parts.run, parts.data.source

    def fit(fresh: nn.Module, rows: PoisonedData) -> nn.Module:
        images = ImageSet(rows.images.cpu(), rows.labels.cpu())
        left = with_training_images(source, images)
        train_backdoored(run, fresh, left, NoAttack(), parts.card, work)
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
        parts.net.load_state_dict(state)
