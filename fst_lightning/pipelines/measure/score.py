"""Scores a network, and builds the blocks of ``results.json``."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import lightning as L
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from fst_lightning.commit import code_commit
from fst_lightning.data import BackdoorDataModule
from fst_lightning.defenses import Defense
from fst_lightning.metrics import paired_drop_interval
from fst_lightning.modules import ClassifierModule
from fst_lightning.pipelines.build.parts import network_arguments, precision_of
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.runtime.processes import is_first_process
from fst_lightning.reports import Score
from fst_lightning.reports.charts.examples import save_examples
from fst_lightning.version import __version__


def score(trainer: L.Trainer, module: ClassifierModule, data: BackdoorDataModule) -> Score:
    """Measure CA, ASR and RA on the test set."""
    trainer.test(module, data, verbose=False)
    return Score.from_counts(module.counts)


def compare_answers(
    trainer: L.Trainer, before: Tensor, after: Tensor
) -> tuple[int, int, int] | None:
    """Count the clean test images that only one of two networks gets right, over all processes.

    Args:
        trainer: The Trainer of both tests.
        before: The images of this process that the network before the defense classified
            correctly, ``(n,)`` bool.
        after: The same for the network after the defense.

    Returns:
        The numbers of images lost, images gained, and all images; None if the two tests used
        different images.
    """
    same = len(before) == len(after)
    counts = [int((before & ~after).sum()), int((~before & after).sum())] if same else [0, 0]
    found = torch.tensor([*counts, len(after), int(not same)], device=trainer.strategy.root_device)
    if trainer.world_size > 1:
        found = trainer.strategy.reduce(found, reduce_op="sum")
    lost, gained, total, different = found.tolist()
    return None if different else (lost, gained, total)


@contextmanager
def untouched(trainer: L.Trainer, module: ClassifierModule) -> Iterator[None]:
    """Compute as in a test on the Trainer's device, and restore modes and random numbers."""
    modes = {part: part.training for part in module.modules()}
    device = trainer.strategy.root_device
    devices = [device] if device.type == "cuda" else []
    module.to(device)
    module.eval()
    try:
        with (
            torch.random.fork_rng(devices),
            torch.no_grad(),
            trainer.precision_plugin.forward_context(),
        ):
            yield
    finally:
        for part, training in modes.items():
            part.training = training
        module.cpu()


def attack_block(run: Run, data: BackdoorDataModule) -> dict[str, Any]:
    """The block ``attack`` of ``results.json``."""
    block: dict[str, Any] = {"name": run.choices["attack"]}
    if data.attack.has_trigger:
        block |= run.arguments("attack")
    wanted = OmegaConf.select(run.cfg, "report.examples", default=True)
    if data.attack.has_trigger and wanted and data.measured is data.attack:
        block["trigger"] = trigger_examples(run, data)
    return block


def spread(count: int, most: int) -> Tensor:
    """At most ``most`` of the rows 0 to ``count`` - 1, evenly spread, ``(n,)``.

    Example:
        >>> spread(9, 3).tolist(), spread(2, 3).tolist()
        ([0, 4, 8], [0, 1])
    """
    return torch.linspace(0, max(0, count - 1), min(count, most)).round().long()


@torch.no_grad()
def trigger_examples(run: Run, data: BackdoorDataModule) -> dict[str, float | None] | None:
    """Write a picture of eight images without and with the trigger, and measure it."""
    if not is_first_process():
        return None
    rows = spread(len(data.triggered_rows), 8)  # Folders of images are sorted by class.
    clean = data.triggered_rows.images[rows] / 255
    triggered = data.attack.cpu()(clean)
    return save_examples(clean, triggered, run.folder / "examples.png")


def data_block(run: Run, data: BackdoorDataModule, num_poisoned: int | None) -> dict[str, Any]:
    """The block ``data`` of ``results.json``: how many images each part has."""
    tuning = data.purpose == "purify"
    held_out = 0 if data.held_out_rows is None else len(data.held_out_rows)
    return {
        "name": run.choices["data"],
        "num_classes": data.data.num_classes,
        "num_train": len(data.data.train),
        "num_poisoned": num_poisoned,
        "num_clean_tuning": len(data.train_rows) + held_out if tuning else None,
        "num_clean_held_out": held_out if tuning else None,
        "num_test": len(data.data.test),
        "num_triggered_test": len(data.triggered_rows) if data.measured.has_trigger else None,
    }


def findings_block(
    run: Run,
    searches: Mapping[str, Any],
    defense: Defense,
    answers: tuple[int, int, int] | None,
) -> dict[str, Any]:
    """The choices of the run and the findings of the defense, with ``shortfalls`` if there are any.

    Automatic settings, and a defense that keeps a budget, must keep it on the test images as well.
    If these show, with 95 % confidence, that the budget was exceeded, that is a shortfall.

    Args:
        run: The run.
        searches: The record of the search for automatic settings; empty without such settings.
        defense: The defense after its run.
        answers: Test images lost, gained, and all; see :func:`compare_answers`.
    """
    findings = {**searches, **defense.findings()}
    missed = list(searches.get("shortfalls", []))
    what = defense.shortfall()
    if what is not None:
        missed.append({"what": what, "why": findings.get("summary", "")})
    budget = float(run.cfg.tuning.max_ca_drop)
    if (searches or defense.keeps_budget) and answers is not None and answers[2]:
        low, high = paired_drop_interval(*answers, 0.9)  # each end is a one-sided 95 % bound
        if low > budget:
            lost, gained, total = answers
            why = (
                f"It lost {100 * (lost - gained) / total:.1f} points ({100 * low:.1f} to "
                f"{100 * high:.1f}) on {total:,} test images; tuning.max_ca_drop allows "
                f"{100 * budget:.1f}."
            )
            missed.append({"what": "The network costs more than the budget", "why": why})
    return findings | ({"shortfalls": missed} if missed else {})


def model_block(run: Run, net: nn.Module) -> dict[str, Any]:
    """The block ``model`` of ``results.json``."""
    return {
        "name": run.choices["model"],
        "head": run.head,
        "num_parameters": sum(parameter.numel() for parameter in net.parameters()),
        "arguments": network_arguments(run),
    }


def environment(run: Run, trainer: L.Trainer) -> dict[str, Any]:
    """The block ``environment`` of ``results.json``: machine, precision and versions."""
    device = trainer.strategy.root_device
    packages = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core")
    code = code_commit()
    return {
        "precision": precision_of(run),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "num_processes": trainer.world_size,
        "commit": code.commit,
        "dirty": code.dirty,
        "versions": {
            "fst_lightning": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    }
