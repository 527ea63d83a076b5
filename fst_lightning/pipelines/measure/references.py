"""Clean networks to compare a scanned network with."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf, open_dict
from torch import nn

from fst_lightning.attacks import NoAttack
from fst_lightning.checkpoints import load_into, read_checkpoint
from fst_lightning.configuration import conf_folder
from fst_lightning.data import Source
from fst_lightning.pipelines.backdoored import from_store, make_card
from fst_lightning.pipelines.build.parts import make_network
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.runtime.costs import Costs
from fst_lightning.pipelines.runtime.processes import is_first_process
from fst_lightning.validate import check_number

FIRST_SEED = 1_000_000
"""The seed of the first trained reference; a run's own seed is rarely as large."""

_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")


def check_references(run: Run) -> None:
    """Refuse references that do not exist, before anything is trained.

    Raises:
        ValueError: If both kinds are asked for, or a number is none.
        FileNotFoundError: If ``detector_reference`` names no folder of networks.
    """
    count = num_trained(run)
    if count and run.cfg.get("detector_reference") is not None:
        raise ValueError(
            "Expected one of `detector_reference` and `detector_train_reference`, but got both."
        )
    reference_files(run)


def num_trained(run: Run) -> int:
    """Number of clean networks to train.

    Raises:
        ValueError: If that is no whole number of 1 or more, or null.
    """
    wanted = run.cfg.get("detector_train_reference")
    if wanted is None:
        return 0
    check_number("detector_train_reference", wanted, low=1, whole=True)
    return int(wanted)


def reference_files(run: Run) -> list[Path]:
    """The files of the clean networks.

    Raises:
        FileNotFoundError: If the folder holds none.
    """
    if run.cfg.get("detector_reference") is None:
        return []
    folder = Path(str(run.cfg.detector_reference)).expanduser()
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"Expected `detector_reference` to be a folder of networks ({', '.join(_SUFFIXES)}) "
            f"that are known to be clean, but found none in {folder.absolute()}."
        )
    return files


def references(run: Run, net: nn.Module, source: Source) -> Iterator[tuple[str, nn.Module]]:
    """The clean networks, one after the other, on the CPU.

    Args:
        run: The run.
        net: The scanned network; the files of ``detector_reference`` have its architecture.
        source: The images; the networks of ``detector_train_reference`` are trained on its whole
            training set, without an attack.

    Yields:
        The name of the network in messages, and the network.

    Raises:
        ValueError: If a file does not fit the network.
    """
    for path in reference_files(run):
        reference = copy.deepcopy(net).cpu()
        try:
            load_into(reference, read_checkpoint(path))
        except ValueError as error:
            raise ValueError(f"detector_reference: {path}: {error}") from error
        yield f"detector_reference: {path}", reference
    count = num_trained(run)
    for number in range(count):
        name = f"detector_train_reference: network {number + 1} of {count}"
        if is_first_process():
            print(f"detect: {name}", flush=True)
        yield name, _trained(run, source, FIRST_SEED + number)


def _trained(run: Run, source: Source, seed: int) -> nn.Module:
    """Train a clean network with the run's settings and this seed, or load it from the store."""
    cfg = run.cfg.copy()
    with open_dict(cfg):
        cfg.attack = OmegaConf.load(conf_folder() / "attack" / "none.yaml")
        cfg.seed = seed
        cfg.resume = cfg.resume is True  # A named checkpoint belongs to another network.
        cfg.retrain = False
    clean = dataclasses.replace(run, cfg=cfg, choices={**run.choices, "attack": "none"})
    data, attack = source.load(), NoAttack()
    net = make_network(clean, data.num_classes, data.image_shape)
    card = make_card(clean, source, attack)
    from_store(clean, net, source, attack, card, Costs())
    return net.cpu()
