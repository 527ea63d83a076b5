"""The training set as an attacker delivers it, for a defense that inspects it."""

from __future__ import annotations

import copy

from torch import Tensor

from fst_lightning.attacks import Attack, TrainedAttack
from fst_lightning.data import BackdoorDataModule, Source
from fst_lightning.defenses.common.clean_data import PoisonedData
from fst_lightning.defenses.common.whole_set import keep_modes


def delivered_set(source: Source, attack: Attack, seed: int) -> tuple[PoisonedData, Tensor]:
    """The images and labels that the victim receives, with the trigger in the planned rows.

    Args:
        source: The clean training images.
        attack: The attack that the backdoored model was trained with.
        seed: Seed of the run, which decides the plan and what the attack draws.

    Returns:
        The images as uint8 with the labels for training, and which rows are poisoned, for
        measuring how well the defense finds them.
    """
    data = BackdoorDataModule(source, attack, seed=seed)
    learned = attack.needs_fit or isinstance(attack, TrainedAttack)
    state = copy.deepcopy(attack.state_dict())
    data.setup()
    if learned:
        attack.load_state_dict(state)  # `prepare` has drawn the trigger again.
    with keep_modes(attack):
        attack.eval()
        rows = data.delivered()
    mean, std = data.data.mean, data.data.std
    return PoisonedData(rows.images, rows.labels, mean=mean, std=std), data.plan.poisoned
