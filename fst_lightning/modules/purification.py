"""Runs any defense on a network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, DistributedSampler

from fst_lightning.attacks import Attack
from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.defense import Defense
from fst_lightning.defenses.common.pixel_range import PixelRange
from fst_lightning.defenses.common.whole_set import keep_modes, seeded
from fst_lightning.defenses.triggers import (
    TriggerSource,
    TriggerSources,
    put_triggers,
    study_sources,
)
from fst_lightning.modules.batches import (
    as_network_takes,
    bounded,
    class_numbers,
    images_and_labels,
)
from fst_lightning.modules.classifier import (
    ClassifierModule,
    Interval,
    OptimizerFactory,
    SchedulerFactory,
)
from fst_lightning.modules.fit_guard import FitGuard
from fst_lightning.modules.inputs import InputPipeline
from fst_lightning.seeds import derived_seed


class PurificationModule(ClassifierModule):
    """Tune a backdoored network on clean images by any defense.

    Mini-batches are ``(images, labels, ...)``. The defense prepares the network when a fit is set
    up: after the data, and before the optimizer is built and a checkpoint is restored. It then
    studies the clean images, unless the fit resumes from a checkpoint. After the last step it
    concludes and finishes; it also finishes if the fit fails. A fit without a step, such as that of
    ``Tuner.lr_find``, does not change the network. A second fit continues with the same reference
    head.

    Args:
        net: The network to purify, in place.
        defense: The defense to run.
        optimizer: Builds the optimizer from the parameters; None for SGD with lr 0.01 and momentum
            0.9.
        scheduler: Builds the schedule from the optimizer; None for a constant rate.
        scheduler_interval: ``epoch`` or ``step``.
        attack: The attack whose trigger measures the success rate; the defense never sees it. None
            measures CA only.
        mean: Per channel, of images in [0, 1]; None for images that are normalized already.
        std: Per channel.
        crop_padding: Pixels of padding for random crops; 0 for none.
        horizontal_flip: Whether to mirror half of the images while tuning.
        triggers: Sources of triggers for the images that are tuned on, which keep their labels;
            each mini-batch passes through them in their order. If the images are normalized
            already (no ``mean`` and ``std``), their least and largest values count as black and
            white.
        seed: Seed of the defense's random numbers and of each epoch; None takes
            ``torch.initial_seed()`` for the defense.
        card: JSON text that describes the network, stored in checkpoints.
        cuda_graphs: Replay the network's steps as CUDA graphs on one GPU, if the defense's loss is
            cross-entropy; see :class:`~fst_lightning.modules.replay.ReplayedNetwork`.
        clean: All clean images, for a defense that needs them at once; None gathers them from the
            Trainer's training loader. It is required by a defense that needs held-out images or the
            delivered training set: see :meth:`~fst_lightning.defenses.CleanData.split`.
        num_classes: Number of classes, if known; larger labels are then refused.

    Raises:
        ValueError: If the defense lacks images that it needs, or the head's weights were replaced
            between the preparation and the start of a fit.
        MisconfigurationException: If nothing in front of the head trains at the start of a fit
            although the defense has to change the features.
        TypeError: If the optimizer or the schedule is not a function that makes one.

    Example:
        >>> from fst_lightning.defenses import FST
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        >>> module = PurificationModule(net, FST(alpha=0.2))
        >>> module.defense.alpha
        0.2
    """

    def __init__(
        self,
        net: nn.Module,
        defense: Defense,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        scheduler_interval: Interval = "epoch",
        *,
        attack: Attack | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_padding: int = 0,
        horizontal_flip: bool = False,
        triggers: Sequence[TriggerSource] = (),
        cuda_graphs: bool = True,
        seed: int | None = None,
        card: str | None = None,
        clean: CleanData | None = None,
        num_classes: int | None = None,
    ) -> None:
        inputs = InputPipeline(
            attack,
            mean,
            std,
            crop_padding,
            horizontal_flip,
        )
        # Another loss may compute the gradients twice, which a replayed step does not allow.
        replays = cuda_graphs and not defense.overrides("loss")
        super().__init__(net, inputs, optimizer, scheduler, scheduler_interval, seed, card, replays)
        self.defense = defense
        self.clean = clean
        self.triggers = TriggerSources(triggers)
        # Kept in lists so that `nn.Module` does not register them.
        self._untouched: list[nn.Module] = []
        self._pixel_range: list[PixelRange] = []
        self.num_classes = num_classes
        self._learns_from_one: bool | None = None
        self._tuned = self.replayed if replays else net
        self._defense_seed = 0
        self._guard = FitGuard(defense)
        check_given(defense, clean)

    def setup(self, stage: str) -> None:
        """Let the defense prepare the network."""
        if stage == "fit":
            self.take_logits()
            if self.inputs.attack is not None:
                # A learned trigger is not trained here, and DDP would wait for its gradients.
                self.inputs.attack.requires_grad_(False)
            self._defense_seed = torch.initial_seed() if self.seed is None else self.seed
            generator = torch.Generator().manual_seed(self._defense_seed)
            if any(not source.ready for source in self.triggers):
                # They study the network as it is now; the device is not known to hold it yet.
                self._untouched = [copy.deepcopy(self.net)]
            self._guard.prepare(self.trainer, self.net, generator)

    def teardown(self, stage: str) -> None:
        """Undo a preparation that no step followed."""
        super().teardown(stage)
        if stage == "fit":
            self._guard.close(self.trainer)

    def configure_callbacks(self) -> list[L.Callback]:
        """Add a callback for exceptions, which a module itself does not get."""
        watching = any(
            isinstance(callback, _FinishOnException) and callback.guard is self._guard
            for callback in getattr(self.trainer, "callbacks", [])
        )
        return [] if watching else [_FinishOnException(self._guard)]

    def on_fit_start(self) -> None:
        """Skip the steps if none are needed."""
        self.net.train()  # Otherwise Lightning warns about modules in evaluation mode.
        if self.trainer.ckpt_path is not None:
            self._guard.resume()
        self._stop_if_done()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Let the defense study, and build the optimizer; the defense acts after each step."""
        # Only here the Trainer tells whether a run is resumed; its checkpoint, which contains the
        # results of the study, has been restored.
        if self._untouched and self.trainer.ckpt_path is None:
            self._study_sources(*self._untouched)
        self._untouched = []
        if self.defense.overrides("study") and self.trainer.ckpt_path is None:
            self.act("study")
        self._guard.settle()
        return self.with_step_hook(self.defense.after_step)

    def on_train_epoch_start(self) -> None:
        """Seed the epoch, switch to training mode and let the defense begin it."""
        super().on_train_epoch_start()
        if self.defense.overrides("begin_epoch"):
            self.act("begin_epoch", self.current_epoch)
            self._stop_if_done()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the modes for the defense; in each step, because a run may resume mid-epoch."""
        super().on_train_batch_start(batch, batch_idx)
        self._guard.check(self.trainer)
        for module in self.defense.always_eval():
            module.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """The defense's loss on a clean batch, and its penalty on the weights.

        None skips a batch of a single image if BatchNorm can't learn from it.
        """
        images, labels = images_and_labels(batch)
        # In other places the check would wait for the device in each step.
        check = batch_idx == 0 or labels.device.type == "cpu"
        labels = class_numbers(labels, len(images), self.num_classes, soft=True, check=check)
        images = as_network_takes(images, self.net)
        if len(images) == 1 and not self._can_learn_from_one(images):
            return None
        if len(self.triggers):
            images = self._triggered(images, labels)
        loss = self.defense.loss(self._tuned, self.inputs(images, augment=True), labels)
        penalty = self.defense.penalty()
        if penalty is None:
            self.track(loss=loss)
            return loss
        total = loss + penalty
        self.track(loss=total, penalty=penalty)
        return total

    def on_after_backward(self) -> None:
        """Let the defense restore the weights that its loss has moved."""
        self.defense.after_backward()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Let the defense change the gradients: unscaled, averaged, not yet clipped."""
        self._guard.before_step(optimizer)
        self.defense.before_step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop if no further steps are needed."""
        self._stop_if_done()

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means and the statistics of the defense."""
        super().on_train_epoch_end()
        for name, value in self.defense.statistics().items():
            self.log(f"train/{name}", value)

    def on_fit_end(self) -> None:
        """Let the defense conclude, and leave an ordinary network."""
        self._guard.end(self.trainer)
        if self.defense.overrides("conclude"):
            device = self.device
            self.act("conclude")
            self.to(device)  # Lightning has moved the module off the accelerator.
        self._guard.finish()

    @torch.no_grad()
    def _can_learn_from_one(self, images: Tensor) -> bool:
        """Whether a single image has a loss: BatchNorm needs two values per channel."""
        if self._learns_from_one is None:
            self._learns_from_one = True
            probe = copy.deepcopy(self.net)  # Running statistics change with every forward pass.
            with seeded(torch.Generator().manual_seed(0), images.device):
                try:
                    probe(self.inputs(images))
                except ValueError as error:
                    if "more than 1 value per channel" not in str(error):
                        raise
                    self._learns_from_one = False
        return self._learns_from_one

    def _triggered(self, images: Tensor, labels: Tensor) -> Tensor:
        """Put triggers on images: in [0, 1], or normalized by numbers that are not known here.

        The result has the type that the network takes, as stored images are scaled to it.
        """
        dtype = images.dtype if images.is_floating_point() else torch.get_default_dtype()
        if self.inputs.normalizes:
            pixels = self.inputs.pixels(images)
            return put_triggers(self.triggers, pixels, labels, self._classify).to(dtype)
        if not self._pixel_range:
            self._pixel_range = [PixelRange.of(self._all_clean())]
        (pixel_range,) = self._pixel_range
        values = images if images.is_floating_point() else images.float() / 255
        pixels = pixel_range.to_pixels(values)
        triggered = put_triggers(self.triggers, pixels, labels, self._classify)
        return pixel_range.to_inputs(triggered).to(dtype)

    def _classify(self, pixels: Tensor) -> Tensor:
        """The logits of images in [0, 1] from the network as it is now."""
        for pixel_range in self._pixel_range:
            pixels = pixel_range.to_inputs(pixels)
        with keep_modes(self.net):
            self.net.eval()
            logits: Tensor = self.net(self.inputs.from_pixels(pixels))
        return logits

    def _study_sources(self, net: nn.Module) -> None:
        """Let the sources look at the network from before the purification."""
        study_sources(self.triggers, net.to(self._moved()), self._all_clean(), self._defense_seed)
        self._agree()

    def _stop_if_done(self) -> None:
        if self.defense.done:
            self.trainer.should_stop = True

    def act(self, place: str, *context: int) -> None:
        """Call a method of the defense that uses all clean images.

        It has its own random numbers, so that its draws do not change others.
        """
        device = self._moved()
        clean = self._all_clean()
        seed = derived_seed(self._defense_seed, place, *context)
        generator = torch.Generator().manual_seed(seed)
        mixed = self.defense.searches_in_bfloat16 and self.trainer.precision == "bf16-mixed"
        with (
            keep_modes(self.net),
            seeded(generator, device),
            torch.enable_grad(),
            # Weights that a search trains must not be served from autocast's cache.
            torch.autocast(device.type, torch.bfloat16, mixed, cache_enabled=False),
        ):
            self.net.train(place == "begin_epoch")
            getattr(self.defense, place)(self.net, clean, *context, generator)
        self._agree()

    def _moved(self) -> torch.device:
        """Move the module to the device of the run, and name it."""
        device = self.trainer.strategy.root_device
        self.to(device)
        return device

    def _all_clean(self) -> CleanData:
        """All the clean images, on the device, as the network takes them."""
        floats = (p.dtype for p in self.net.parameters() if p.is_floating_point())
        if self.clean is None:
            self.clean = self._gather()
        device = self.trainer.strategy.root_device
        self.clean = self.clean.to(device, next(floats, torch.float32))
        return self.clean

    def _gather(self) -> CleanData:
        """All images of the training loader, including those of other processes."""
        loader: Any = self.trainer.fit_loop._data_source.dataloader()
        if isinstance(getattr(loader, "sampler", None), DistributedSampler):
            loader = DataLoader(
                loader.dataset, loader.batch_size or 1, collate_fn=loader.collate_fn
            )
        with seeded(torch.Generator().manual_seed(self._defense_seed), torch.device("cpu")):
            clean = CleanData.gather(bounded(loader, self.num_classes))
        if self.inputs.normalizes:
            self.inputs.pixels(clean.images)
            return CleanData(clean.images, clean.labels, mean=self.inputs.mean, std=self.inputs.std)
        return CleanData(self.inputs(clean.images.to(self.device)), clean.labels)

    def _agree(self) -> None:
        """Copy the first process to all others, because kernels may differ in the last digit."""
        if self.trainer.world_size > 1:
            parts: tuple[nn.Module, ...] = self.net, self.defense, self.triggers
            states = [
                {name: value.cpu() for name, value in part.state_dict().items()} for part in parts
            ]
            for part, state in zip(parts, self.trainer.strategy.broadcast(states), strict=True):
                part.load_state_dict(state)


class _FinishOnException(L.Callback):
    """Removes masks and freezes if a fit fails."""

    def __init__(self, guard: FitGuard) -> None:
        self.guard = guard

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Finish the defense, undo a preparation without steps, and restore the outputs."""
        self.guard.close(trainer)
        if isinstance(pl_module, ClassifierModule):
            pl_module.return_as_before()


def check_given(defense: Defense, clean: CleanData | None) -> None:
    """Refuse to run a defense without the images that it needs.

    Raises:
        ValueError: If images are missing; names them.
    """
    name = type(defense).__name__
    if defense.held_out and (clean is None or clean.held_out is None):
        raise ValueError(
            f"Expected clean images that are held out from the steps, which {name} chooses by, but "
            "got none. Pass `clean=CleanData(images, labels).split(share, generator)` and train on "
            "its images, or use fst_lightning.purify, which does both."
        )
    if defense.needs_poisoned_set and (clean is None or clean.poisoned is None):
        raise ValueError(
            f"Expected the training set as it was delivered, which {name} inspects, but got none. "
            "Pass `clean=CleanData(..., poisoned=PoisonedData(images, labels))`."
        )
