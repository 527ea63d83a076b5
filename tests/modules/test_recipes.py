import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from fst_lightning import BackdoorDataModule, BackdoorModule
from fst_lightning.attacks import BadNets
from fst_lightning.models import airbench
from fst_lightning.modules.classifier import with_total_steps
from fst_lightning.optim import LookaheadSGD
from tests import tiny


class Steps:
    """A schedule that keeps the number of steps it is told."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def __call__(self, optimizer: torch.optim.Optimizer, total_steps: int) -> object:
        self.told.append(total_steps)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def test_a_recipe_is_told_its_steps_and_a_network_its_rates(tmp_path: Path) -> None:
    steps = Steps()
    net = airbench(tiny.NUM_CLASSES, width=4)
    data = BackdoorDataModule(tiny.source(num_train=40), BadNets(poison_ratio=0.1), batch_size=8)
    waits: dict[str, Any] = {"total_steps": None}
    optimizer_of = functools.partial(LookaheadSGD, lr=0.1, weight_decay=0.2, **waits)
    schedule_of: Any = functools.partial(steps, **waits)
    module = BackdoorModule(net, data.attack, optimizer_of, schedule_of, "step")
    trainer = tiny.trainer(tmp_path, max_epochs=4, limit_val_batches=0)
    trainer.fit(module, data)
    assert steps.told == [4 * 5]
    optimizer = trainer.optimizers[0]
    assert isinstance(optimizer, LookaheadSGD)
    assert optimizer.total_steps == 20
    rates = {g["lr_scale"]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert rates == {1.0: (0.1, 0.2), 64.0: pytest.approx((6.4, 0.2 / 64))}
    assert with_total_steps(steps, 3)(optimizer) is not None
