"""The base module of training and purification: inputs, optimizer, evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fst_lightning.metrics import BackdoorMetrics, matches
from fst_lightning.models import logits_of, return_as_before, take_logits, takes_logits
from fst_lightning.modules.batches import as_network_takes, class_numbers, images_and_labels
from fst_lightning.modules.inputs import InputPipeline
from fst_lightning.modules.replay import ReplayedNetwork
from fst_lightning.seeds import derived_seed

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]
Interval = Literal["epoch", "step"]

FROZEN = (
    "Expected a network with parameters to train, but all are frozen (requires_grad=False). Call "
    "net.requires_grad_(True) first."
)

sgd: OptimizerFactory = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)
"""The optimizer of the paper's tuning runs; the default."""


def check_factory(name: str, factory: Any, made: type, example: str) -> None:
    """Refuse an existing optimizer or schedule: the module builds one from its parameters.

    Args:
        name: What the error calls it.
        factory: The given value; None is valid.
        made: The type that the factory returns.
        example: A factory, for the error.

    Raises:
        TypeError: If it is not a function.
    """
    if factory is not None and (isinstance(factory, made) or not callable(factory)):
        kind = type(factory).__name__
        found = f"an existing {kind}" if isinstance(factory, made) else f"a {kind}"
        raise TypeError(
            f"Expected `{name}` to be a function that builds one, such as {example}, but got "
            f"{found}."
        )


def total_steps_of(factory: Callable[..., Any]) -> int | None:
    """The number of steps of an optimizer or schedule; None if it is still to be filled in.

    Zero if it takes no number of steps.
    """
    keywords = factory.keywords if isinstance(factory, functools.partial) else {}
    steps: int | None = keywords.get("total_steps", 0)
    return steps


def with_total_steps(factory: Callable[..., Any], total_steps: int) -> Callable[..., Any]:
    """Fill in the number of steps of a training, ``total_steps: null`` in a recipe."""
    return functools.partial(factory, total_steps=total_steps)


def fused(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Use the fused kernel of an optimizer if it exists and the user did not decide.

    Example:
        >>> fused(functools.partial(torch.optim.SGD, lr=0.1)).keywords
        {'lr': 0.1, 'fused': True}
    """
    if not isinstance(factory, functools.partial) or not isinstance(factory.func, type):
        return factory
    ours = issubclass(factory.func, torch.optim.SGD | torch.optim.Adam | torch.optim.AdamW)
    told = {"fused", "foreach", "differentiable"} & set(factory.keywords)
    return factory if told or not ours else functools.partial(factory, fused=True)


class ClassifierModule(L.LightningModule):
    """A network between an input pipeline and the three rates CA, ASR and RA.

    Validation and test take one or two loaders: clean images first, then images that get the
    trigger here. Batches are ``(images, labels, ...)`` with the *true* labels.

    Args:
        net: The classifier; images ``(N, C, H, W)`` to logits ``(N, num_classes)``.
        inputs: The transform of a mini-batch in front of the network.
        optimizer: Builds the optimizer from the parameters; None for SGD with lr 0.01 and momentum
            0.9.
        scheduler: Builds the learning rate schedule from the optimizer; None for a constant rate.
        scheduler_interval: Whether the schedule steps per ``epoch`` or per ``step``.
        seed: Seeds augmentation and dropout in each epoch, so that a resumed run draws the same
            numbers; None does not seed.
        card: JSON text that describes the network, stored in checkpoints.
        replays: Whether :attr:`replayed` may replay steps as CUDA graphs.

    Attributes:
        replayed: Calls the network; steps with plain cross-entropy use it.
    """

    def __init__(
        self,
        net: nn.Module,
        inputs: InputPipeline,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        scheduler_interval: Interval = "epoch",
        seed: int | None = None,
        card: str | None = None,
        replays: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.replayed = ReplayedNetwork(net, replays)
        self._replays = replays
        self.inputs = inputs
        check_factory(
            "optimizer", optimizer, Optimizer, "functools.partial(torch.optim.SGD, lr=0.01)"
        )
        check_factory(
            "scheduler",
            scheduler,
            LRScheduler,
            "functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10)",
        )
        self.make_optimizer = optimizer or sgd
        self.make_scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        self.seed = seed
        self.card = card
        self.metrics = BackdoorMetrics()
        self.counts: dict[str, tuple[int, int]] = {}
        """Hits and rows of the last test for each rate, over all processes."""
        self.right = torch.empty(0, dtype=torch.bool)
        """Whether each clean image of the last test was classified correctly: ``(n,)``."""
        self._right: list[Tensor] = []
        self._sums: dict[str, Tensor] = {}
        self._num_batches = 0
        self._watches_outputs = False

    def forward(self, images: Tensor) -> Tensor:
        """Classify ``(N, C, H, W)`` images, uint8 or float in [0, 1]: logits ``(N, C)``."""
        logits: Tensor = self.net(self.inputs(images))
        return logits

    # Training

    def take_logits(self) -> None:
        """Take logits from the network during training, even if it ends in a softmax."""
        if not takes_logits(self.net):
            take_logits(self.net)
            self._watches_outputs = True

    def return_as_before(self) -> None:
        """Restore the outputs that the network had before training."""
        if self._watches_outputs:
            return_as_before(self.net)
            self._watches_outputs = False

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters of the optimizer: all trainable ones of the network."""
        return [parameter for parameter in self.net.parameters() if parameter.requires_grad]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer and its schedule."""
        groups = self.parameter_groups()
        if not self.trained_parameters():
            raise ValueError(FROZEN)
        factory = self._timed(self.make_optimizer)
        # In fp16 a fused step unscales the gradients itself, which is too late for clipping.
        if self.device.type == "cuda" and self.trainer.precision != "16-mixed":
            factory = fused(factory)
        optimizer = factory(groups)
        for group in optimizer.param_groups:
            scale = group.get("lr_scale", 1.0)
            group["lr"] *= scale
            # A step shrinks the weights by the product of both.
            group["weight_decay"] = group.get("weight_decay", 0.0) / scale
        if self.make_scheduler is None:
            return optimizer  # type: ignore[no-any-return]
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": self._timed(self.make_scheduler)(optimizer),
                "interval": self.scheduler_interval,
            },
        }

    def parameter_groups(self) -> Any:
        """The parameters for the optimizer, or groups of them as in torch.

        A group may hold ``lr_scale``, by which its learning rate is multiplied.
        """
        return self.trained_parameters()

    def _timed(self, factory: Callable[..., Any]) -> Callable[..., Any]:
        """The factory with the number of steps of this fit, if it is still open."""
        if total_steps_of(factory) is not None:
            return factory
        return with_total_steps(factory, int(self.trainer.estimated_stepping_batches))

    def with_step_hook(self, act: Callable[[], None]) -> OptimizerLRScheduler:
        """The configured optimizer, with a function that runs after each step."""
        configured = ClassifierModule.configure_optimizers(self)
        optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        if isinstance(optimizer, Optimizer):
            # Right after the update, before callbacks see the weights.
            optimizer.register_step_post_hook(lambda *_: act())
        return configured

    def on_train_epoch_start(self) -> None:
        """Seed the epoch and switch to training mode."""
        self._seed_epoch()
        self.inputs.epoch = self.current_epoch
        self.inputs.check_next_batch()
        self.replayed.enabled = self._replays and self.trainer.accumulate_grad_batches == 1
        self.net.train()
        self._sums, self._num_batches = {}, 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the epoch once more, now that its loader was started.

        Starting a loader draws a random number, in the first epoch before the start of the epoch
        and in the others after it. Without a second seeding, a resumed run would draw other
        numbers.
        """
        if batch_idx == 0:
            self._seed_epoch()

    def _seed_epoch(self) -> None:
        if self.seed is not None:
            # One stream per epoch and process; any injective combination of the three works.
            stream = derived_seed(self.seed, "epoch", self.current_epoch, self.global_rank)
            torch.manual_seed(stream)

    def track(self, **values: Tensor) -> None:
        """Sum scalars of a step on the device; their means are logged as ``train/<name>``."""
        for name, value in values.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._num_batches += 1

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means."""
        for name, total in self._sums.items():
            mean = total / self._num_batches
            self.log(f"train/{name}", mean, prog_bar=name == "loss", sync_dist=True)
        self._sums, self._num_batches = {}, 0

    def teardown(self, stage: str) -> None:
        """Free the memory of captured steps, and restore the network's outputs."""
        self.replayed.clear()
        self.return_as_before()

    # Evaluation

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count hits on a clean (loader 0) or a triggered (loader 1) batch."""
        self._evaluate(batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count hits on a clean (loader 0) or a triggered (loader 1) batch."""
        self._evaluate(batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/ca``, ``val/asr`` and ``val/ra``."""
        self._log_rates("val")

    def on_test_epoch_end(self) -> None:
        """Log ``test/ca``, ``test/asr`` and ``test/ra``."""
        self.counts = self.metrics.counts()
        self.right = torch.cat([self.right[:0], *(part.cpu() for part in self._right)])
        self._log_rates("test")

    def _evaluate(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        first = batch_idx == 0  # Not in each step, because checks wait for the device.
        images, labels = images_and_labels(batch)
        images = as_network_takes(images, self.net)
        attack = self.inputs.attack
        if first:
            self.inputs.check_next_batch()
        if dataloader_idx == 0:
            logits = logits_of(self.net(self.inputs(images)))
            labels = class_numbers(labels, len(images), logits.shape[1], check=first)
            self.metrics.update_clean(logits, labels)
            self._right.append(matches(logits.detach(), labels))
            if attack is not None:
                wanted = attack.wanted_labels(logits, labels)
                self.metrics.update_control(logits, wanted, attack.counts_for_asr(labels))
            return
        if attack is None:
            raise ValueError("Expected an attack for the loader of triggered images, but got None.")
        logits = logits_of(self.net(self.inputs(images, triggered=True)))
        labels = class_numbers(labels, len(images), logits.shape[1], check=first)
        if first:
            attack.check_ready()
            attack.check_target(logits.shape[1])
        self.metrics.update_triggered(logits, labels, attack.wanted_labels(logits, labels))

    def _log_rates(self, stage: str) -> None:
        for name, rate in self.metrics.compute().items():
            if rate is not None:
                self.log(f"{stage}/{name}", rate, prog_bar=stage == "val")
        self.metrics.reset()
        self._right.clear()

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the description of the network in the checkpoint."""
        if self.card is not None:
            checkpoint["fst_lightning"] = self.card
