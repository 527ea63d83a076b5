"""Chooses the weight of a penalty without a trigger: on clean images alone."""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from omegaconf import open_dict
from torch import nn
from torch.utils.data import DataLoader

from fst_lightning.data import BackdoorDataModule
from fst_lightning.data.rows import Chunks, EpochShuffle, Rows, training_loader
from fst_lightning.defenses import PoisonedData
from fst_lightning.pipelines.finish import is_first_process
from fst_lightning.pipelines.parts import make_clean, make_defense, make_module, make_trainer
from fst_lightning.pipelines.run import Run
from fst_lightning.seeds import derived_seed

CANDIDATES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001)
"""From strong to weak; the paper's values are among them."""

TOLERANCE = 0.01
"""Clean accuracy, as a fraction, that a strong penalty may cost against the best candidate."""


def choose_alpha(
    run: Run, net: nn.Module, data: BackdoorDataModule, poisoned: PoisonedData | None = None
) -> float:
    """The strongest penalty that clean accuracy bears.

    A fifth of the defender's images is held out; for every candidate a copy of the network is tuned
    on the rest by the same recipe. The largest alpha wins whose held-out clean accuracy is within
    :data:`TOLERANCE` (and within one image) of the best.

    Args:
        run: its configuration, with ``defense.alpha=auto``.
        net: the backdoored network; it stays as it is.
        data: holds the defender's images. Its test set and trigger are not looked at.
        poisoned: the training set as it was delivered, for a defense that inspects it.
    """
    rows = data.train_rows
    stream = torch.Generator().manual_seed(derived_seed(run.cfg.seed, "held out"))
    order = torch.randperm(len(rows), generator=stream)
    held = max(1, len(rows) // 5)
    if len(rows) - held < 2:
        raise ValueError(
            f"Expected 3 or more clean images for defense.alpha=auto, but got {len(rows)}; "
            "give a number, or more images with tuning.clean_ratio."
        )
    tuned, held_out = rows.subset(order[held:]), rows.subset(order[:held])
    accuracies: dict[float, float] = {}
    for alpha in CANDIDATES:
        with open_dict(run.cfg):
            run.cfg.defense.alpha = alpha
        candidate = copy.deepcopy(net)
        clean = make_clean(data, tuned, held_out, poisoned)
        module = make_module(run, candidate, make_defense(run), data, clean=clean)
        loader = training_loader(
            Rows(tuned, torch.zeros(len(tuned), dtype=torch.bool)),
            data.batch_size,
            EpochShuffle(len(tuned), run.cfg.seed),
        )
        with TemporaryDirectory() as scratch:
            trainer = make_trainer(
                run, f"alpha {alpha:g}", run.cfg.tuning.max_epochs, Path(scratch), quiet=True
            )
            trainer.fit(module, loader)
            check = DataLoader(Chunks(held_out, False, 500, trainer.world_size), batch_size=None)
            trainer.test(module, check, verbose=False)
        correct, total = module.counts["ca"]
        accuracies[alpha] = correct / total
    best = max(accuracies.values())
    slack = max(TOLERANCE, 1 / held) + 1e-9
    chosen = next(alpha for alpha in CANDIDATES if accuracies[alpha] >= best - slack)
    listed = ", ".join(f"{alpha:g}: {accuracies[alpha]:.3f}" for alpha in CANDIDATES)
    if is_first_process():
        print(f"alpha={chosen:g} chosen by clean accuracy on {held} held-out images ({listed})")
    return chosen
