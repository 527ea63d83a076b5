"""Checks a fit that runs a defense, and refuses one that cannot purify."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from fst_lightning.defenses import Defense, HeadDefense
from fst_lightning.defenses.common.feature_watch import FeatureWatch
from fst_lightning.defenses.common.preparation import Preparation


class FitGuard:
    """Prepare a network for a fit, and check that the fit can purify it.

    - Before the first step, the head must still be the one that the defense prepared.
    - The head must train, if the defense trains it.
    - Parameters in front of the head must train, if the defense wants the features to change.
    - A fit without any step (a learning rate finder, a refused fit, ``max_steps=0``) leaves the
      network as it was.

    The Trainer may come from ``lightning.pytorch`` or ``pytorch_lightning``.

    Args:
        defense: The defense that the fit runs.
    """

    def __init__(self, defense: Defense) -> None:
        self.defense = defense
        self._preparation: Preparation | None = None
        self._first_step = 0
        self._resumed = False
        self._checked = False
        self._waits = False
        self._open = False
        self._watch: FeatureWatch | None = None

    def prepare(self, trainer: Any, net: nn.Module, generator: torch.Generator) -> None:
        """Let the defense prepare the network."""
        self._first_step = trainer.global_step
        self._resumed = self._checked = self._waits = False
        self._preparation = Preparation(net)
        self._open = True
        self.defense.prepare(net, generator)
        self.settle()

    def settle(self) -> None:
        """Record the prepared network. Call it again after the defense has studied it."""
        if self._preparation is not None:
            self._preparation.settle()

    def resume(self) -> None:
        """Record that the weights come from a checkpoint of this fit."""
        self._resumed = True

    def check(self, trainer: Any) -> None:
        """Check the fit right before its first step; later calls do nothing.

        Raises:
            ValueError: If the head was replaced.
            MisconfigurationException: If the head does not train, or no features can change.
        """
        if self._checked:
            return
        self._checked = True
        if not (isinstance(self.defense, HeadDefense) and self.defense.knows_head):
            return
        # The other processes have the head of the first one.
        if not self._resumed and trainer.is_global_zero:
            self.defense.check_weights()
        if self.defense.train_head and not self._trains_head(trainer.optimizers):
            raise MisconfigurationException(
                f"Expected an optimizer to train the head, as {type(self.defense).__name__} does, "
                "but none trains it: its weight is frozen (requires_grad=False), or was not given "
                "to the optimizer."
            )
        features = self.defense.needs_features or self.defense.has_features()
        if not (self.defense.train_features and features):
            return
        self._waits = self._unfreezes_later(trainer)
        if not self._waits:
            self._check_features(trainer)
            self._watch = FeatureWatch(self.defense.linear, trained_parameters(trainer.optimizers))

    def before_step(self, optimizer: Optimizer) -> None:
        """Check that the head's input depends on what trains; once, before the first step.

        Raises:
            MisconfigurationException: If it does not.
        """
        if self._watch is None or not self._watch.seen:
            return
        # Another optimizer may step while the classifier is frozen.
        train_head = isinstance(self.defense, HeadDefense) and self.defense.train_head
        if train_head and not self._trains_head([optimizer]):
            return
        trains = self._watch.trains
        self._stop_watching()
        if not trains:
            raise self._no_features("the head's input does not depend on a parameter that trains")

    def end(self, trainer: Any) -> None:
        """Check after a fit whether it changed anything.

        Raises:
            MisconfigurationException: If a callback was to unfreeze the features and never did.
        """
        if self._waits:
            self._check_features(trainer)
        if self._untouched(trainer):
            rank_zero_warn(
                f"{type(self.defense).__name__}: the fit took no step, and the network did not "
                "change. Check max_epochs, max_steps and the length of the data loader."
            )
        elif self._checked and isinstance(self.defense, HeadDefense) and self.defense.knows_head:
            self.defense.check_tuned()

    def finish(self) -> None:
        """Let the defense finish, once per fit."""
        if self._open:
            self._open = False
            self.defense.finish()

    def close(self, trainer: Any) -> None:
        """Undo the preparation if no step followed it. Call it when a fit ends in any way."""
        self._stop_watching()
        self.finish()
        preparation, self._preparation = self._preparation, None
        if preparation is not None and self._untouched(trainer):
            preparation.undo()

    def _untouched(self, trainer: Any) -> bool:
        no_steps: bool = trainer.global_step == self._first_step
        return no_steps and not self._resumed and not self.defense.done

    def _trains_head(self, optimizers: Iterable[Optimizer]) -> bool:
        weight = self._head().get_parameter("weight")
        return any(parameter is weight for parameter in trained_parameters(optimizers))

    def _check_features(self, trainer: Any) -> None:
        head = {id(parameter) for parameter in self._head().parameters()}
        trained = trained_parameters(trainer.optimizers)
        if all(id(parameter) in head for parameter in trained):
            raise self._no_features("the optimizers train no parameter but the head's")

    def _unfreezes_later(self, trainer: Any) -> bool:
        """Whether one of Lightning's fine-tuning callbacks unfreezes parameters later on."""
        for callback in trainer.callbacks:
            # By name: both Lightning packages have these classes.
            names = {cls.__name__ for cls in type(callback).__mro__}
            if "BackboneFinetuning" in names and trainer.max_epochs not in (None, -1):
                epoch = callback.unfreeze_backbone_at_epoch
                if epoch >= trainer.max_epochs:
                    raise self._no_features(
                        f"{type(callback).__name__} unfreezes them at epoch {epoch}, after the "
                        f"last of {trainer.max_epochs} epochs"
                    )
            if "BaseFinetuning" in names:
                return True
        return False

    def _head(self) -> nn.Module:
        return self.defense.linear if isinstance(self.defense, HeadDefense) else nn.Module()

    def _no_features(self, found: str) -> MisconfigurationException:
        return MisconfigurationException(
            "Expected parameters in front of the head to train, because "
            f"{type(self.defense).__name__} changes the features, but {found}. Unfreeze the layers "
            "in front of the head (requires_grad=True), give them to the optimizer, and keep them "
            "out of `torch.no_grad` and `detach`. To tune the head alone, use LinearProbing."
        )

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.remove()
        self._watch = None


def trained_parameters(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    """The parameters that these optimizers train."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return [
        parameter for group in groups for parameter in group["params"] if parameter.requires_grad
    ]
