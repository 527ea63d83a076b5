"""Puts together the parts of every run: images, network and backdoored weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L
from torch import nn

from fst_lightning.checkpoints import Checkpoint, ModelCard
from fst_lightning.data import BackdoorDataModule
from fst_lightning.defenses import Defense, NoDefense
from fst_lightning.modules import PurificationModule
from fst_lightning.pipelines.backdoored import Backdoored, from_file, from_store, make_card
from fst_lightning.pipelines.build.card_settings import check_adopted
from fst_lightning.pipelines.build.parts import (
    check_outputs,
    make_network,
    make_trainer,
    with_head,
)
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.measure.mismatch import check_match
from fst_lightning.pipelines.measure.recipes import recipe_block
from fst_lightning.pipelines.measure.score import (
    attack_block,
    data_block,
    environment,
    model_block,
)
from fst_lightning.pipelines.runtime.costs import Costs


@dataclass(frozen=True)
class Parts:
    """The images and the network of a run.

    Attributes:
        run: The run; it knows the head of its network.
        data: The images, loaded.
        net: The network. It has its initial weights until :func:`load_backdoored` loads others.
        card: Describes the network in the files that hold it.
        checkpoint: The file of ``checkpoint=``; None if the run names none.
    """

    run: Run
    data: BackdoorDataModule
    net: nn.Module
    card: ModelCard
    checkpoint: Checkpoint | None


def assemble(
    run: Run,
    data: BackdoorDataModule,
    checkpoint: Checkpoint | None = None,
    defense: Defense | None = None,
) -> Parts:
    """Load the images, build the network, and check that the two fit together.

    Args:
        run: Its configuration, as :func:`~fst_lightning.pipelines.backdoored.adopt_checkpoint`
            returned it.
        data: The images of the run; ``setup`` has not been called.
        checkpoint: The file of ``checkpoint=``; None if the run names none.
        defense: The defense that the network is built for; None if there is none.

    Raises:
        ValueError: If the checkpoint describes an attack that takes too much memory, if the network
            does not take the images or does not return one logit for each class, or if the defense
            needs a head and the network has none.
    """
    if checkpoint is not None:
        loaded = data.source.load()
        check_adopted(run, checkpoint, data.attack, loaded.train.images, loaded.num_classes)
    data.setup()
    net = make_network(run, data.data.num_classes, data.data.image_shape)
    check_outputs(run, net, data)
    run = with_head(run, net, data.data.num_classes, defense)
    return Parts(run, data, net, make_card(run, data.source, data.attack), checkpoint)


def load_backdoored(parts: Parts, costs: Costs) -> Backdoored:
    """Load the backdoored weights into the network: from the checkpoint, or else from the store.

    Args:
        parts: The images and the network. ``parts.net`` is changed in place.
        costs: Measures the training of a model that the store lacks.

    Raises:
        ValueError: If the checkpoint does not fit the images: see
            :func:`~fst_lightning.pipelines.measure.mismatch.check_match`.
    """
    run, net, card = parts.run, parts.net, parts.card
    source, attack = parts.data.source, parts.data.attack
    if parts.checkpoint is None:
        return from_store(run, net, source, attack, card, costs)
    backdoored = from_file(run, parts.checkpoint, net, source, attack, card)
    with costs.of("evaluate"):
        check_match(run, net, parts.data)
    return backdoored


def make_scorer(parts: Parts) -> tuple[L.Trainer, PurificationModule]:
    """The Trainer and the module that score the network as it is."""
    data = parts.data
    module = PurificationModule(
        parts.net,
        NoDefense(),
        attack=data.measured if data.measured.has_trigger else None,
        mean=data.data.mean,
        std=data.data.std,
    )
    return make_trainer(parts.run, "score", 0, parts.run.folder), module


def describe_parts(
    parts: Parts, trainer: L.Trainer, costs: Costs, num_poisoned: int | None
) -> dict[str, Any]:
    """The blocks of ``results.json`` that every run has."""
    run = parts.run
    # How the network of a file was trained is unknown.
    trained_here = parts.checkpoint is None
    return {
        "seed": run.cfg.seed,
        "attack": attack_block(run, parts.data),
        "data": data_block(run, parts.data, num_poisoned=num_poisoned),
        "model": model_block(run, parts.net),
        "training": recipe_block(run, "training", parts.data.source) if trained_here else None,
        "seconds": costs.seconds,
        "peak_memory_mb": costs.peak_memory_mb,
        "environment": environment(run, trainer),
        "overrides": run.overrides,
    }
