"""Runs the configured attacks that test whether the purified network stays clean."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from omegaconf import OmegaConf, open_dict
from torch import Tensor, nn

from fst_lightning.attacks import Attack, NoAttack, full_precision
from fst_lightning.configuration import conf_folder
from fst_lightning.data import BackdoorDataModule, ImageSet, Source
from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.pipelines.backdoored import from_store, make_card
from fst_lightning.pipelines.build.delivered import delivered_set
from fst_lightning.pipelines.build.instantiate import make
from fst_lightning.pipelines.build.parts import make_network
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.measure.score import spread
from fst_lightning.pipelines.runtime.costs import Costs
from fst_lightning.robustness import RobustnessCheck, Subject
from fst_lightning.seeds import derived_seed

MOST_IMAGES = 2000
"""The most clean, and the most triggered, test images to measure with."""


def make_checks(run: Run, attack: Attack) -> dict[str, RobustnessCheck]:
    """The checks of the configuration, by name.

    Raises:
        ValueError: If the trigger that they need is unknown.
    """
    configs = run.cfg.get("robustness") or {}
    checks = {str(name): make(config, RobustnessCheck) for name, config in configs.items()}
    if checks and not attack.has_trigger:
        raise ValueError(
            f"Expected an attack whose trigger is known for robustness={','.join(checks)}, but got "
            f"attack={run.choices['attack']}. Set attack=NAME, or robustness=[]."
        )
    return checks


def check_robustness(
    run: Run,
    checks: dict[str, RobustnessCheck],
    backdoored: nn.Module,
    purified: nn.Module,
    data: BackdoorDataModule,
    attack: Attack,
    device: torch.device,
) -> dict[str, Any]:
    """Run the checks in float32, each with its own random numbers.

    Args:
        run: The run.
        checks: The checks, by name.
        backdoored: The network before the defense.
        purified: The network after it; neither is changed.
        data: The images to measure with.
        attack: The attack that the backdoored network was trained with.
        device: The device to compute on.

    Returns:
        The findings of every check, for ``results.json``.
    """
    source = data.source
    delivered, planned = delivered_set(source, attack, run.cfg.seed)
    subject = Subject(
        backdoored=_ready(backdoored, device),
        purified=_ready(purified, device),
        train=_images(source.load().train, data).to(device),
        poisoned=delivered.subset(planned).to(device),
        stamp=lambda images: stamped(attack, images),
        test=_images(_some(data.data.test), data).to(device),
        triggered=_images(_some(data.triggered_rows), data, data.measured).to(device),
        wanted=data.measured.wanted_labels,
        make_clean=lambda: _ready(clean_network(run, source), device),
    )
    found = {}
    for name, check in checks.items():
        seed = derived_seed(run.cfg.seed, "robustness", name)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            found[name] = check.run(subject, torch.Generator().manual_seed(seed))
    return found


def clean_network(run: Run, source: Source) -> nn.Module:
    """The network of this configuration without an attack, from the store or trained now."""
    cfg = run.cfg.copy()
    with open_dict(cfg):
        cfg.attack = OmegaConf.load(conf_folder() / "attack" / "none.yaml")
        cfg.retrain = False
    clean = replace(run, cfg=cfg, choices={**run.choices, "attack": "none"})
    net = make_network(clean, source.load().num_classes, source.load().image_shape)
    attack = NoAttack()
    card = make_card(clean, source, attack)
    from_store(clean, net, source, attack, card, Costs())
    return net


def stamped(attack: Attack, images: Tensor) -> Tensor:
    """Put the trigger on stored images; uint8, or floats in [0, 1] if the attack does not round."""
    with torch.no_grad(), full_precision(images):
        found: Tensor = attack.to(images.device)(images.float() / 255)
    return (found * 255).round().to(torch.uint8) if attack.eight_bit else found


def _ready(net: nn.Module, device: torch.device) -> nn.Module:
    return copy.deepcopy(net).float().to(device).eval()


def _some(rows: ImageSet) -> ImageSet:
    return rows.subset(spread(len(rows), MOST_IMAGES))


def _images(
    rows: ImageSet, data: BackdoorDataModule, trigger: Attack | None = None
) -> LabeledImages:
    rows = rows.in_memory("robustness")
    images = rows.images if trigger is None else stamped(trigger.cpu(), rows.images)
    return LabeledImages(images, rows.labels, data.data.mean, data.data.std)
