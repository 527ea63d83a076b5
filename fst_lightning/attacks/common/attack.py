"""The interface of all attacks: a trigger, a label map and a plan of the rows to poison."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.argument_repr import ShowsArguments
from fst_lightning.attacks.common.plan import PoisonPlan, draw_rows
from fst_lightning.pixels import check_pixels
from fst_lightning.seeds import derived_seed
from fst_lightning.validate import check_choice, check_number

LabelMap = Literal["all_to_one", "all_to_all", "clean_label", "untargeted"]
RateOf = Literal["total", "target_class"]
Classify = Callable[[Tensor], Tensor]
"""Images ``(N, C, H, W)`` in [0, 1] to logits, including augmentation and normalization."""


class Attack(ShowsArguments, nn.Module, ABC):
    r"""A trigger :math:`T`, a label map :math:`\eta` and a plan of the rows to poison.

    A subclass implements :meth:`trigger`, and overrides what else it needs:

    - Before training: :meth:`draw` draws what depends on the image size, and :meth:`prepare` calls
      it in each run. :meth:`fit` does the expensive work once, and its result is kept.
      :meth:`craft` replaces stored images of the planned rows.
    - In each training step: :meth:`poison` changes poisoned rows, :meth:`cover` changes cover rows,
      and :meth:`loss` replaces the cross-entropy.
    - At test: :meth:`trigger`.

    Tensors of an attack are buffers, so that they move to the device and into checkpoints with the
    module.

    Args:
        poison_ratio: Share of the *whole* training set that is poisoned, 0 to 1. Rows are drawn
            from all classes, so that 1/C of them already have the target label.
        target_label: The attacker's class, 0 to C - 1.
        label_map: How labels change. ``all_to_one``: :math:`\eta(y) = t`. ``all_to_all``:
            :math:`\eta(y) = (y + 1) \bmod C`. ``clean_label``: :math:`\eta(y) = t`, and only images
            of class t are poisoned, so that labels stay true. ``untargeted``: any wrong label,
            drawn anew in each step.
        rate_of: What ``poison_ratio`` is a share of: ``total``, the whole training set, or
            ``target_class``, the images of class t in it.

    Raises:
        ValueError: If a ratio is outside [0, 1], the target label is not a whole number of 0 or
            more, or the attack does not support the label map.
    """

    has_trigger: ClassVar[bool] = True
    """False for the attack that does nothing, which has no attack success rate."""

    eight_bit: ClassVar[bool] = True
    """Whether triggered images are rounded to k/255, as a file stores them; not if the trigger is
    learned together with the classifier."""

    needs_fit: ClassVar[bool] = False
    """Whether :meth:`fit` has to run before training."""

    fit_arguments: ClassVar[tuple[str, ...]] = ()
    """The constructor's arguments that the fit depends on; runs with equal ones share a fit."""

    crafts: ClassVar[bool] = False
    """Whether :meth:`craft` replaces stored images."""

    label_maps: ClassVar[tuple[str, ...]] = get_args(LabelMap)
    """The label maps that the attack supports."""

    def __init__(
        self,
        poison_ratio: float = 0.05,
        target_label: int = 0,
        label_map: LabelMap = "all_to_one",
        rate_of: RateOf = "total",
    ) -> None:
        super().__init__()
        check_number("poison_ratio", poison_ratio, high=1)
        check_choice("label_map", label_map, self.label_maps)
        check_choice("rate_of", rate_of, RateOf)
        check_number("target_label", target_label, whole=True)
        self.poison_ratio = poison_ratio
        self.target_label = target_label
        self.label_map = label_map
        self.rate_of = rate_of
        self.cover_ratio = 0.0
        self.fitted = False
        self._drawn = False
        self._checked = False

    # The trigger

    @abstractmethod
    def trigger(self, images: Tensor) -> Tensor:
        """Add the trigger to each image: ``(N, C, H, W)`` float in [0, 1], to the same."""

    def forward(self, images: Tensor) -> Tensor:
        """Add the trigger, as an 8-bit image file would store it.

        Each value is rounded to k/255, unless the trigger is learned, so that a PNG file of the
        result gives the same tensor: training and test use only what an attacker could put into a
        file. The first batch must be in [0, 1]. An attack that was not prepared draws its trigger
        for the size of that batch.
        """
        self._meet(images)
        stamped = self.trigger(images).clamp(0, 1)
        return torch.round(stamped * 255) / 255 if self.eight_bit else stamped

    # Before training

    def draw(self, channels: int, height: int, width: int) -> None:
        """Draw the trigger for images of this size, from the constructor's arguments alone.

        Args:
            channels: Channels of the images.
            height: Height in pixels.
            width: Width in pixels.
        """

    def prepare(self, images: Tensor, labels: Tensor, num_classes: int, seed: int) -> None:
        """Draw what the trigger needs for images of this size; fast, on the CPU, in each run.

        It calls :meth:`draw`. Override it for a trigger that depends on more than the size.

        Args:
            images: ``(N, C, H, W)`` uint8, the clean training images.
            labels: ``(N,)`` int64.
            num_classes: Number of classes C.
            seed: Seed of the run.
        """
        self._drawn = True
        self.draw(*images.shape[1:])

    def fit(
        self, images: Tensor, labels: Tensor, num_classes: int, seed: int, device: torch.device
    ) -> None:
        """Do the expensive work after `prepare`: a surrogate, an encoder, a fitted perturbation.

        Args:
            images: ``(N, C, H, W)`` uint8, the clean training images.
            labels: ``(N,)`` int64.
            num_classes: Number of classes C.
            seed: Seed of the run.
            device: Device to compute on; the attack is already there.
        """

    def craft(
        self, images: Tensor, labels: Tensor, rows: Tensor, *, cover: bool, seed: int
    ) -> Tensor:
        """Replace the stored images of the planned rows, once, before training.

        Args:
            images: ``(n, C, H, W)`` uint8, the images of these rows.
            labels: ``(n,)``, their true labels.
            rows: ``(n,)`` int64, their row numbers in the training set, ascending.
            cover: Whether they are cover rows instead of poisoned ones.
            seed: Seed of the run.

        Returns:
            ``(n, C, H, W)`` uint8.
        """
        return images

    def memory(self, images: Tensor, num_classes: int) -> int:
        """Estimate the bytes that preparing and fitting will allocate.

        Attacks override it if their arguments set the size of a network or a pool.

        Args:
            images: ``(N, C, H, W)`` uint8, the clean training images; only the shape counts.
            num_classes: Number of classes of the data.
        """
        return 0

    def fit_once(
        self, images: Tensor, labels: Tensor, num_classes: int, seed: int, device: torch.device
    ) -> None:
        """Fit, unless that was done already or the state of an earlier fit was loaded."""
        if self.needs_fit and not self.fitted:
            self.to(device)
            self.fit(images, labels, num_classes, seed, device)
            self.fitted = True

    def attach(self, net: nn.Module) -> None:
        """Inspect the network before it is trained."""

    def begin_epoch(self, epoch: int, num_epochs: int) -> None:
        """Act at the start of an epoch, from 0 to ``num_epochs`` - 1."""

    # In every training step

    def poison(self, images: Tensor) -> Tensor:
        """Change poisoned rows in training; as at test, unless overridden."""
        stamped: Tensor = self(images)
        return stamped

    def cover(self, images: Tensor) -> Tensor:
        """Change cover rows in training, which keep their true label."""
        return self.poison(images)

    def stamp(self, images: Tensor, poisoned: Tensor, cover: Tensor | None = None) -> Tensor:
        """Change the poisoned and the cover rows of a mini-batch.

        Args:
            images: ``(N, C, H, W)`` in [0, 1].
            poisoned: ``(N,)`` bool.
            cover: ``(N,)`` bool; None for none.
        """
        self._meet(images)
        # `where` on whole mini-batches: selecting rows would make the host wait for the device.
        with full_precision(images):
            stamped = torch.where(poisoned[:, None, None, None], self.poison(images), images)
            if cover is not None and self.cover_ratio:
                stamped = torch.where(cover[:, None, None, None], self.cover(images), stamped)
        return stamped

    def loss(
        self,
        classify: Classify,
        images: Tensor,
        labels: Tensor,
        poisoned: Tensor,
        cover: Tensor,
        label_smoothing: float,
    ) -> Tensor:
        """The training loss of a mini-batch, a scalar; cross-entropy unless overridden.

        Args:
            classify: The network, including augmentation and normalization.
            images: ``(N, C, H, W)`` in [0, 1], as they are stored.
            labels: ``(N,)`` true labels.
            poisoned: ``(N,)`` bool.
            cover: ``(N,)`` bool.
            label_smoothing: 0 to 1.
        """
        logits = classify(self.stamp(images, poisoned, cover))
        targets = self.training_targets(labels, poisoned, logits.shape[1])
        return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)

    def after_step(self) -> None:
        """Act after each step of the classifier's optimizer."""

    def training_targets(self, labels: Tensor, poisoned: Tensor, num_classes: int) -> Tensor:
        """The labels for training: the attacker's for poisoned rows, otherwise the true ones."""
        return torch.where(poisoned, self.target_labels(labels, num_classes), labels)

    def _meet(self, images: Tensor) -> None:
        """Check the first batch, and draw the trigger for its size if that is still to do."""
        if not self._checked:
            self._checked = True
            check_pixels(images)
        if not (self._drawn or self.fitted):
            self._drawn = True
            # Tensors made in a validation step could not change in training.
            with torch.inference_mode(False):
                self.draw(*images.shape[1:])
                self.to(images.device)

    def check_shape(
        self, images: Tensor, channels: int | None, height: int | None, width: int | None
    ) -> None:
        """Refuse images of another shape than the trigger was prepared for.

        Args:
            images: ``(N, C, H, W)``.
            channels: Number of channels; None allows any.
            height: Height in pixels; None allows any.
            width: Width in pixels; None allows any.

        Raises:
            ValueError: If a size differs.
        """
        found, wanted = tuple(images.shape[1:]), (channels, height, width)
        fits = [size in (None, got) for size, got in zip(wanted, found, strict=False)]
        if len(found) != len(wanted) or not all(fits):
            sizes = zip("CHW", wanted, strict=True)
            shown = ", ".join(letter if size is None else str(size) for letter, size in sizes)
            raise ValueError(
                f"Expected images of shape ({shown}), which {type(self).__name__} was prepared "
                f"for, but got {found}; call `prepare` with such images."
            )

    @property
    def ready(self) -> bool:
        """Whether the trigger can be measured: it is fitted or learned, if it has to be."""
        return self.fitted or not self.needs_fit

    def check_ready(self) -> None:
        """Refuse a trigger that still has to be fitted or learned.

        Raises:
            ValueError: If nothing was fitted or loaded.
        """
        if not self.ready:
            raise ValueError(
                f"Expected a trigger that was fitted or learned, but {type(self).__name__} is new. "
                "Load the state of the attack that trained the network, which is "
                "`attack.safetensors` beside the model, with `attack.load_state_dict`."
            )

    # Labels

    def target_labels(self, labels: Tensor, num_classes: int) -> Tensor:
        """The labels that the attacker wants for these images.

        Example:
            >>> from fst_lightning.attacks import BadNets
            >>> BadNets(label_map="all_to_all").target_labels(torch.tensor([0, 1, 2]), 3)
            tensor([1, 2, 0])
        """
        if self.label_map == "all_to_all":
            return (labels + 1) % num_classes
        if self.label_map == "untargeted":
            shift = torch.randint_like(labels, 1, max(2, num_classes))
            return (labels + shift) % num_classes
        return torch.full_like(labels, self.target_label)

    def wanted_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The predictions that count as a success for the attacker: ``(N,)``.

        These are the target labels. For ``untargeted`` they are the network's own predictions if
        they are wrong, and otherwise -1, which no network predicts.

        Args:
            logits: ``(N, C)``, the network's output for the triggered images.
            labels: ``(N,)`` true labels.
        """
        if self.label_map == "untargeted":
            predictions = logits.argmax(dim=1)
            return torch.where(predictions == labels, -1, predictions)
        return self.target_labels(labels, logits.shape[1])

    def counts_for_asr(self, labels: Tensor) -> Tensor:
        """The test rows that count for the attack success rate: ``(N,)`` bool.

        An image of the target class would always be a success, so it does not count.
        ``all_to_all`` and ``untargeted`` count all rows.
        """
        if self.label_map in ("all_to_all", "untargeted"):
            return torch.ones_like(labels, dtype=torch.bool)
        return labels != self.target_label

    def check_target(self, num_classes: int) -> None:
        """Refuse a target label that does not exist.

        Raises:
            ValueError: If it is not below the number of classes.
        """
        aims = self.label_map in ("all_to_one", "clean_label")
        if aims and self.target_label >= num_classes:
            raise ValueError(
                f"Expected `attack.target_label` to be in 0..{num_classes - 1} for {num_classes} "
                f"classes, but got {self.target_label}."
            )

    # Rows

    def candidates(self, labels: Tensor) -> Tensor:
        """The training rows that may be poisoned: ``(N,)`` bool."""
        if self.label_map == "clean_label":
            return labels == self.target_label
        return torch.ones_like(labels, dtype=torch.bool)

    def cover_candidates(self, labels: Tensor) -> Tensor:
        """The training rows that may be cover rows if they are not poisoned: ``(N,)`` bool."""
        return torch.ones_like(labels, dtype=torch.bool)

    def plan(self, labels: Tensor, num_classes: int, seed: int) -> PoisonPlan:
        """Choose the rows to poison, and the cover rows.

        Args:
            labels: ``(N,)`` int64, of the clean training set.
            num_classes: Number of classes C.
            seed: The same seed gives the same rows.

        Raises:
            ValueError: If the target label does not exist, the ratio rounds to no row, or too few
                rows may be poisoned.
        """
        self.check_target(num_classes)
        total = int((labels == self.target_label).sum()) if self._rate_of_class else len(labels)
        count = round(self.poison_ratio * total)
        if count == 0:
            counted = "images of the target class" if self._rate_of_class else "training images"
            smallest = f"{1 / total:.2g}" if total else "none"
            raise ValueError(
                f"Expected `attack.poison_ratio` to poison at least one of {total} {counted}, but "
                f"{self.poison_ratio} rounds to none; the smallest ratio that poisons one image is "
                f"{smallest}. Use attack=none for a clean model."
            )
        candidates = self.candidates(labels)
        self._check_enough("poison_ratio", self.poison_ratio, count, candidates, total)
        poisoned = draw_rows(candidates, count, derived_seed(seed, "poison"))
        cover = torch.zeros_like(poisoned)
        covered = round(self.cover_ratio * total)
        if covered:
            candidates = self.cover_candidates(labels) & ~poisoned
            self._check_enough("cover_ratio", self.cover_ratio, covered, candidates, total)
            cover = draw_rows(candidates, covered, derived_seed(seed, "cover"))
        return PoisonPlan(poisoned=poisoned, cover=cover)

    @property
    def _rate_of_class(self) -> bool:
        return self.rate_of == "target_class"

    def _check_enough(
        self, name: str, ratio: float, count: int, candidates: Tensor, total: int
    ) -> None:
        available = int(candidates.sum())
        if count <= available:
            return
        which = f" of class {self.target_label}" if self.label_map == "clean_label" else ""
        largest = available / total
        advice = f"the largest `attack.{name}` is {largest:.4g}"
        if self.label_map == "clean_label" and not self._rate_of_class:
            advice += "; attack.rate_of=target_class counts it as a share of that class instead"
        raise ValueError(
            f"Expected `attack.{name}` to use at most the {available} training images{which} "
            f"that are available, but {ratio} of {total} is {count}; {advice}."
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # Buffers take the shapes that were saved, which depend on the image size.
        for name, buffer in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and saved.shape != buffer.shape:
                self.register_buffer(name, buffer.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self.fitted = True


def full_precision(images: Tensor) -> torch.autocast:
    """Switch autocast off, because a trigger computed in bf16 would be a different one.

    Args:
        images: Images on the device in question.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), full_precision(torch.zeros(1)):
        ...     product = torch.ones(2, 2) @ torch.ones(2, 2)
        >>> product.dtype
        torch.float32
    """
    # Autocast does not support the meta device, which is used to estimate memory.
    device = "cpu" if images.is_meta else images.device.type
    return torch.autocast(device, enabled=False)
