"""Feeds poisoned data to a training run, or a few clean images to a purification."""

from __future__ import annotations

import os
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from fst_lightning.attacks import Attack, NoAttack, PoisonPlan
from fst_lightning.attacks.common.recorded import RecordedTrigger
from fst_lightning.data.defender_images import clean_rows
from fst_lightning.data.images import ImageData, ImageSet
from fst_lightning.data.placement import on_device
from fst_lightning.data.rows import (
    Batch,
    Chunks,
    EpochShuffle,
    Rows,
    ShuffleShare,
    training_loader,
)
from fst_lightning.data.sources.source import Source
from fst_lightning.defenses.common.clean_data import held_out_rows
from fst_lightning.seeds import derived_seed
from fst_lightning.validate import check_choice, check_number

Purpose = Literal["backdoor", "purify"]

# Each holds some batches of decoded images; more have to be asked for.
_MOST_WORKERS = 8
_KNOWS_ITS_CORES = hasattr(os, "sched_getaffinity")  # Linux


class BackdoorDataModule(L.LightningDataModule):
    """A source of images, with the rows that an attack poisons or that a defender holds.

    For ``purpose="backdoor"`` it trains on the whole training set, poisoned by the attack's plan;
    for ``"purify"`` on a few clean images of it. Both evaluate on the test set: a ``clean`` loader
    of all images, and a ``triggered`` loader of those that count for the attack success rate.

    Images stay uint8 in memory, and a batch is one gather; those of a streamed set are decoded for
    each batch. The trigger itself is put on by the module, on the device.

    Args:
        source: Where the images come from.
        attack: Which rows are poisoned, and which test rows count; None for no attack.
        purpose: ``backdoor`` or ``purify``.
        batch_size: Images a training step, 1 or more.
        eval_batch_size: Images an evaluation step, 1 or more; None: 128 on a CPU, whose caches hold
            what they need, and 1,000 elsewhere.
        val_images: So many clean, and so many triggered, test images at most are evaluated after an
            epoch, the same in every one, 1 or more; None: all. Tests always take all.
        clean_ratio: Share of the training set that the defender holds, 0 to 1, drawn from all rows;
            what was poisoned is held as it was before.
        balanced: Draw as many of every class.
        reserved: The images that the defender holds, where they are none of the training set.
        held_out: Share of the defender's images that no step sees, 0 to 1: ``held_out_rows``.
        seed: Of the plan, the defender's draw and the order of the rows.
        num_workers: Processes that load training images, and all that are streamed; None: one a
            core for streamed images, and none for images in memory, which is fastest.

    Raises:
        ValueError: If a size is below 1 or a ratio is outside (0, 1].

    Example:
        >>> from fst_lightning.attacks import BadNets
        >>> from fst_lightning.data import Fake
        >>> data = BackdoorDataModule(Fake(num_train=100), BadNets(poison_ratio=0.1))
        >>> data.setup()
        >>> data.plan.num_poisoned
        10
    """

    def __init__(
        self,
        source: Source,
        attack: Attack | None = None,
        *,
        purpose: Purpose = "backdoor",
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        val_images: int | None = None,
        clean_ratio: float = 0.02,
        balanced: bool = False,
        reserved: ImageSet | None = None,
        held_out: float = 0.0,
        seed: int = 0,
        num_workers: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("purpose", purpose, Purpose)
        check_number("batch_size", batch_size, low=1, whole=True)
        if eval_batch_size is not None:
            check_number("eval_batch_size", eval_batch_size, low=1, whole=True)
        if val_images is not None:
            check_number("val_images", val_images, low=1, whole=True)
        check_number("tuning.clean_ratio", clean_ratio, low_open=True, high=1)
        self.source = source
        self.attack: Attack = NoAttack() if attack is None else attack
        self.measured: Attack
        self.purpose = purpose
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_images = val_images
        self.clean_ratio = clean_ratio
        self.balanced = balanced
        self.reserved = reserved
        self.held_out = held_out
        self.seed = seed
        self.num_workers = num_workers
        self.data: ImageData
        self.plan: PoisonPlan
        self.train_rows: ImageSet
        self.held_out_rows: ImageSet | None = None
        self.triggered_rows: ImageSet
        self._placed: dict[str, ImageSet] = {}
        self._crafted: Tensor | None = None
        self._crafted_rows: Tensor | None = None

    def setup(self, stage: str | None = None) -> None:
        """Load the images and choose the rows; before a training, craft what the attack crafts.

        Raises:
            ValueError: If the attack has no row to poison, its target does not exist, or the
                defender holds no image.
        """
        if not hasattr(self, "data"):
            self._load()
        if stage == "fit" and self.purpose == "backdoor":
            self._craft()

    def _load(self) -> None:
        data = self.source.load()
        train, test = data.train, data.test
        self.attack.check_target(data.num_classes)
        if not self.attack.fitted:
            self.attack.prepare(train.images, train.labels, data.num_classes, self.seed)
        self.measured = self.attack
        if data.triggered is not None:
            self.measured, test = RecordedTrigger(self.attack.target_label), data.triggered
            self.measured.check_target(data.num_classes)
        self.triggered_rows = test.subset(self.measured.counts_for_asr(test.labels).nonzero()[:, 0])
        if self.measured.has_trigger and len(self.triggered_rows) == 0:
            raise ValueError(
                "Expected test images of other classes than the target to put the trigger on, but "
                f"all {len(test)} are of class {self.attack.target_label}."
            )
        if self.purpose == "purify":
            self._choose_clean(train, data.changed)
            self.plan = PoisonPlan.nothing(len(self.train_rows))
        else:
            self.train_rows = train
            self.plan = self.attack.plan(train.labels, data.num_classes, self.seed)
            check_crafted(self.attack, train, self.plan)
        self.data = data

    def _choose_clean(self, train: ImageSet, changed: Tensor | None) -> None:
        """Draw the images that the defender holds, and those of them that no step sees."""
        clean = self.reserved
        if clean is None:
            held = clean_rows(train.labels, self.clean_ratio, self.seed, self.balanced, changed)
            clean = train.subset(held.nonzero()[:, 0])
        # A defense may study them as a whole.
        clean = clean.in_memory(f"tuning.clean_ratio={self.clean_ratio}")
        self.train_rows = clean
        if self.held_out:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "unseen"))
            unseen, kept = held_out_rows(len(clean), self.held_out, generator)
            self.train_rows, self.held_out_rows = clean.subset(kept), clean.subset(unseen)

    def _craft(self) -> None:
        """Let the attack fit its trigger, and replace images of the planned rows."""
        train, trainer = self.data.train, self.trainer
        device = torch.device("cpu") if trainer is None else trainer.strategy.root_device
        num_classes = self.data.num_classes
        self.attack.fit_once(train.images, train.labels, num_classes, self.seed, device)
        if not self.attack.crafts:
            return
        parts: list[tuple[Tensor, Tensor]] = []
        for chosen, cover in ((self.plan.poisoned, False), (self.plan.cover, True)):
            rows = chosen.nonzero()[:, 0]
            if len(rows):
                images, labels = train.images[rows], train.labels[rows]
                crafted = self.attack.craft(images, labels, rows, cover=cover, seed=self.seed)
                parts.append((rows, crafted))
        self._crafted_rows = torch.cat([rows for rows, _ in parts])
        self._crafted = torch.cat([images for _, images in parts])

    @torch.no_grad()
    def delivered(self) -> ImageSet:
        """The training set as an attacker hands it over: triggered, and labeled to match.

        Poisoned and cover rows of an attack that changes them in every step are one draw of it.

        Returns:
            All rows in their order; images uint8, labels as given.
        """
        train, plan = self.data.train.in_memory("The delivered training set"), self.plan
        if self._crafted is None:
            self._craft()
        images, labels = train.images.clone(), train.labels.clone()
        if self._crafted is not None and self._crafted_rows is not None:
            images[self._crafted_rows] = self._crafted
        changed = (plan.poisoned | plan.cover).nonzero()[:, 0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.seed, "delivered"))
            for start in range(0, len(changed), 512):
                rows = changed[start : start + 512]
                poisoned, cover = plan.poisoned[rows], plan.cover[rows]
                stamped = self.attack.cpu().stamp(images[rows] / 255, poisoned, cover)
                images[rows] = (stamped * 255).round().to(torch.uint8)
                labels[rows] = self.attack.training_targets(
                    labels[rows], poisoned, self.data.num_classes
                )
        return ImageSet(images, labels)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches of ``(images, labels, poisoned)``; with cover rows, of those as well."""
        workers = self._workers(self.train_rows)
        rows = self._place("train", self.train_rows, workers)
        cover = self.plan.cover if bool(self.plan.cover.any()) else None
        order: EpochShuffle | ShuffleShare = EpochShuffle(len(rows), self.seed)
        if self.trainer is not None:
            if self.trainer.world_size > 1:
                processes, rank = self.trainer.world_size, self.trainer.global_rank
                order = ShuffleShare(len(rows), self.seed, processes, rank)
            # In a resumed run workers ask for their first rows before Lightning sets the epoch.
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            order.set_epoch(progress.processed)
        return training_loader(
            Rows(rows, self.plan.poisoned, cover, self._crafted, self._crafted_rows),
            self.batch_size,
            order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self._pins(rows),
        )

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """The ``clean`` loader, and the ``triggered`` one where there is a trigger; of a part."""
        return self._evaluation_loaders(self.val_images)

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """The same for the whole test set."""
        return self._evaluation_loaders(None)

    def _evaluation_loaders(self, most: int | None) -> list[DataLoader[Batch]]:
        loaders = [self._evaluation_loader(self.data.test, most, triggered=False)]
        if self.measured.has_trigger:
            loaders.append(self._evaluation_loader(self.triggered_rows, most, triggered=True))
        return loaders

    def _evaluation_loader(
        self, rows: ImageSet, most: int | None, *, triggered: bool
    ) -> DataLoader[Batch]:
        name = "triggered" if triggered else "clean"
        if most is not None and most < len(rows):
            name = f"{most} {name}"
            stream = torch.Generator().manual_seed(derived_seed(self.seed, "validation"))
            rows = rows.subset(torch.randperm(len(rows), generator=stream)[:most].sort().values)
        workers = self._workers(rows) if rows.streamed else 0
        rows = self._place(name, rows, workers)
        trainer = self.trainer
        num_processes = 1 if trainer is None else trainer.world_size
        batch_size = self.eval_batch_size or (128 if self._device.type == "cpu" else 1000)
        chunks = Chunks(rows, triggered, batch_size, num_processes)
        options: dict[str, Any] = {}
        if trainer is not None and num_processes > 1:
            options["sampler"] = DistributedSampler(
                chunks, num_processes, trainer.global_rank, shuffle=False
            )
        return DataLoader(
            chunks,
            batch_size=None,
            num_workers=workers,
            pin_memory=self._pins(rows),
            **options,
        )

    def teardown(self, stage: str | None = None) -> None:
        """Give back the memory of the device."""
        self._placed.clear()

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _workers(self, rows: ImageSet) -> int:
        """How many processes load these rows."""
        if self.num_workers is not None or not rows.streamed:
            return self.num_workers or 0
        cores = len(os.sched_getaffinity(0)) if _KNOWS_ITS_CORES else os.cpu_count() or 1
        processes = 1 if self.trainer is None else self.trainer.num_devices
        return max(1, min(cores // processes, _MOST_WORKERS))

    def _place(self, name: str, rows: ImageSet, workers: int) -> ImageSet:
        """The rows where batches are to be gathered, moved there once."""
        device, placement = self._device, self.source.placement
        # Processes that load batches beside can't share the memory of a GPU.
        if workers or rows.streamed or not on_device(placement, rows.images.nbytes, device):
            return rows
        if name not in self._placed:
            self._placed[name] = ImageSet(rows.images.to(device), rows.labels.to(device))
        return self._placed[name]

    def _pins(self, rows: ImageSet) -> bool:
        return self._device.type == "cuda" and rows.images.device.type == "cpu"


def check_crafted(attack: Attack, train: ImageSet, plan: PoisonPlan) -> None:
    """Refuse an attack that replaces more of streamed images than fit into memory.

    Args:
        attack: What it crafts is kept in memory.
        train: The training images.
        plan: Which of them it changes.

    Raises:
        TooLargeError: If they do not fit; says how much memory they need.
    """
    if attack.crafts:
        changed = (plan.poisoned | plan.cover).nonzero()[:, 0]
        train.subset(changed).check_memory(type(attack).__name__)
