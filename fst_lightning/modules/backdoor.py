"""Trains a classifier on poisoned data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from fst_lightning.attacks import Attack, TrainedAttack
from fst_lightning.modules.classifier import (
    ClassifierModule,
    Interval,
    OptimizerFactory,
    SchedulerFactory,
)
from fst_lightning.modules.inputs import CropFill, InputPipeline


class BackdoorModule(ClassifierModule):
    r"""Train a network on data of which some rows carry a trigger and the attacker's label.

    Minimizes :math:`\mathrm{CE}(f(T(x)), \eta(y))` on the poisoned rows and
    :math:`\mathrm{CE}(f(x), y)` on the others, or the loss of the attack. Mini-batches are
    ``(images, labels, poisoned)``, with ``cover`` as a fourth item if the attack has cover rows, as
    :class:`~fst_lightning.data.BackdoorDataModule` makes them.

    Args:
        net: The classifier.
        attack: Trigger and label map.
        optimizer: Builds the optimizer from the parameters; None for SGD with lr 0.01 and momentum
            0.9.
        scheduler: Builds the schedule from the optimizer; None for a constant rate.
        scheduler_interval: ``epoch`` or ``step``.
        mean: Mean per channel, of images in [0, 1]; None does not normalize.
        std: Per channel.
        crop_padding: Pixels of padding for random crops; 0 for none.
        horizontal_flip: Whether to mirror half of the training images.
        crop_fill: Content of the padding: ``zeros``, or the mirrored image (``reflect``).
        alternate_flips: Whether to mirror the two halves of the images in alternate epochs.
        label_smoothing: 0 to 1.
        cuda_graphs: Replay the network's steps as CUDA graphs on one GPU; see
            :class:`~fst_lightning.modules.replay.ReplayedNetwork`.
        compile_network: Train with ``torch.compile``, which takes a minute and a C++ compiler. The
            keys of the network and its evaluation do not change.
        seed: Seeds the random numbers of each epoch.
        card: JSON text that describes the network, stored in checkpoints.

    Example:
        >>> from fst_lightning.attacks import BadNets
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        >>> module = BackdoorModule(net, BadNets(target_label=0))
        >>> module(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        net: nn.Module,
        attack: Attack,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        scheduler_interval: Interval = "epoch",
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_padding: int = 0,
        horizontal_flip: bool = False,
        crop_fill: CropFill = "zeros",
        alternate_flips: bool = False,
        label_smoothing: float = 0.0,
        cuda_graphs: bool = True,
        compile_network: bool = False,
        seed: int | None = None,
        card: str | None = None,
    ) -> None:
        inputs = InputPipeline(
            attack, mean, std, crop_padding, horizontal_flip, crop_fill, alternate_flips
        )
        # Another loss may compute the gradients twice, which a replayed step does not allow.
        replays = cuda_graphs and type(attack).loss is Attack.loss
        super().__init__(net, inputs, optimizer, scheduler, scheduler_interval, seed, card, replays)
        self.attack = attack
        self.label_smoothing = label_smoothing
        self._answer: Callable[[Tensor], Tensor]
        if compile_network:
            # A function, because a compiled module would own the weights a second time.
            # There are at most two sizes of mini-batches, so that shapes can be constants.
            self._answer = torch.compile(functools.partial(_answer, net), dynamic=False)
        else:
            self._answer = self.replayed

    def setup(self, stage: str) -> None:
        """Show the network to the attack, and exclude the attack's networks from DDP.

        Raises:
            MisconfigurationException: If the trigger is learned and the precision is fp16.
        """
        if stage != "fit":
            return
        if self._answer is self.replayed:  # An uninitialized network cannot be compiled.
            self.take_logits()
        if isinstance(self.attack, TrainedAttack):
            if str(self.trainer.precision).startswith("16"):
                raise MisconfigurationException(
                    f"Expected a precision with the range of float32 for "
                    f"{type(self.attack).__name__}, whose trigger is learned with its own "
                    f"optimizer, but got {self.trainer.precision}: its gradients would be scaled. "
                    "Use trainer.precision=bf16-mixed or 32-true."
                )
            # The attack averages its gradients itself, without those that it does not train.
            names = [name for name, _ in self.attack.named_parameters()]
            names += [name for name, _ in self.attack.named_buffers()]
            self._ddp_params_and_buffers_to_ignore = [
                f"{owner}.{name}" for owner in ("attack", "inputs.attack") for name in names
            ]
        self.attack.to(self.trainer.strategy.root_device)
        self.attack.attach(self.net)

    def parameter_groups(self) -> Any:
        """One group of parameters, unless the network sets learning rates for some of them."""
        scale_of = getattr(self.net, "learning_rate_scale", None)
        if scale_of is None:
            return self.trained_parameters()
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.net.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(scale_of(name), []).append(parameter)
        return [{"params": group, "lr_scale": scale} for scale, group in groups.items()]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and its schedule; the attack acts after each step."""
        return self.with_step_hook(self.attack.after_step)

    def on_train_epoch_start(self) -> None:
        """Tell the attack that an epoch starts."""
        super().on_train_epoch_start()
        self.attack.begin_epoch(self.current_epoch, self.trainer.max_epochs or 1)
        begin_epoch = getattr(self.net, "begin_epoch", None)
        # DDP waits for a gradient of each parameter that had one at the start.
        if begin_epoch is not None and self.trainer.world_size == 1:
            begin_epoch(self.current_epoch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The attack's loss on a mini-batch with poisoned rows."""
        images, labels, poisoned, *more = batch
        cover = more[0] if more else torch.zeros_like(poisoned)
        loss = self.attack.loss(
            self._classify,
            self.inputs.pixels(images),
            labels,
            poisoned,
            cover,
            self.label_smoothing,
        )
        self.track(loss=loss)
        return loss

    def _classify(self, pixels: Tensor) -> Tensor:
        inputs = self.inputs.from_pixels(pixels, augment=True)
        # In bf16-true and 64-true, the weights have the default type.
        logits: Tensor = self._answer(inputs.to(torch.get_default_dtype()))
        return logits


def _answer(net: nn.Module, inputs: Tensor) -> Tensor:
    logits: Tensor = net(inputs)
    return logits
