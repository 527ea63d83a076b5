"""Runs a defense from its first to its last place, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.defense import Defense


def drive(
    defense: Defense,
    net: nn.Module,
    clean: CleanData,
    epochs: int = 1,
    lr: float = 0.1,
    batch_size: int = 8,
    seed: int = 0,
) -> list[float]:
    """Purify a network in place with SGD, without momentum and schedule.

    Args:
        defense: what to do.
        net: the network.
        clean: the images; where the defense wants some held out and none are, they are split here.
        epochs: passes over the images.
        lr: of SGD.
        batch_size: images a step.
        seed: of everything.

    Returns:
        The loss of every step, the penalty included.
    """
    losses: list[float] = []
    if defense.held_out and clean.held_out is None:
        clean = clean.split(defense.held_out, _generator(seed, 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            defense.prepare(net, _generator(seed, 2))
            net.eval()
            defense.study(net, clean, _generator(seed, 3))
            if defense.tunes:
                losses = _steps(defense, net, clean, epochs, lr, batch_size, seed)
            net.eval()
            defense.conclude(net, clean, _generator(seed, 4))
        finally:
            defense.finish()
    net.eval()
    return losses


def _steps(
    defense: Defense,
    net: nn.Module,
    clean: CleanData,
    epochs: int,
    lr: float,
    batch_size: int,
    seed: int,
) -> list[float]:
    losses: list[float] = []
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=lr)
    for epoch in range(epochs):
        if defense.done:
            break
        net.train()
        defense.begin_epoch(net, clean, epoch, _generator(seed, 5 + epoch))
        for images, labels in clean.batches(batch_size, _generator(seed, 1000 + epoch)):
            net.train()
            for module in defense.always_eval():
                module.eval()
            optimizer.zero_grad()
            total: Tensor = defense.loss(net, images, labels)
            penalty = defense.penalty()
            if penalty is not None:
                total = total + penalty
            torch.autograd.backward(total)
            defense.after_backward()
            defense.before_step()
            optimizer.step()
            defense.after_step()
            losses.append(float(total.detach()))
    optimizer.zero_grad()
    return losses


def _generator(seed: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 10_000 + purpose)
