"""What every attack is: a trigger, a label map and a plan of the rows to poison."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fst_lightning.attacks.plan import PoisonPlan, draw_rows
from fst_lightning.seeds import derived_seed

LabelMap = Literal["all_to_one", "all_to_all"]


class Attack(nn.Module, ABC):
    r"""A trigger :math:`T`, a label map :math:`\eta` and a plan of the rows to poison.

    A subclass writes :meth:`trigger`, and :meth:`prepare` where the trigger depends on the size of
    the images or has to be fitted first. Tensors that it keeps are buffers, so that they move to
    the device and into checkpoints with the module.

    Args:
        poison_ratio: share of the *whole* training set that is poisoned, 0 to 1; rows are drawn
            from all classes, so that 1/C of them already have the target label.
        target_label: the attacker's class for ``all_to_one``, 0 to C - 1.
        label_map: ``all_to_one``: :math:`\eta(y) = t`; ``all_to_all``:
            :math:`\eta(y) = (y + 1) \bmod C`.

    Raises:
        ValueError: for a ratio outside [0, 1], a label that is no whole number of 0 or more, or an
            unknown label map.
    """

    has_trigger: bool = True
    """False for the attack that does nothing: there is no attack success rate to measure."""

    def __init__(
        self,
        poison_ratio: float = 0.05,
        target_label: int = 0,
        label_map: LabelMap = "all_to_one",
    ) -> None:
        super().__init__()
        if not 0 <= poison_ratio <= 1:
            raise ValueError(f"Expected `poison_ratio` to be in [0, 1], but got {poison_ratio}.")
        if label_map not in get_args(LabelMap):
            valid = ", ".join(get_args(LabelMap))
            raise ValueError(f"Expected `label_map` to be one of {valid}, but got {label_map!r}.")
        # True is an int in Python, and 0.5 would be cut off to another class.
        if not isinstance(target_label, int) or isinstance(target_label, bool) or target_label < 0:
            raise ValueError(
                f"Expected `target_label` to be a whole number of 0 or more, but got "
                f"{target_label!r}."
            )
        self.poison_ratio = poison_ratio
        self.target_label = target_label
        self.label_map = label_map

    @abstractmethod
    def trigger(self, images: Tensor) -> Tensor:
        """Put the trigger on every image: ``(N, C, H, W)`` float in [0, 1], to the same."""

    def prepare(self, images: Tensor, labels: Tensor, num_classes: int, seed: int) -> None:
        """Make what the trigger needs from the clean training set; called once, on the CPU.

        Args:
            images: ``(N, C, H, W)`` uint8, the clean training images.
            labels: ``(N,)`` int64.
            num_classes: C.
            seed: of the run.
        """

    def forward(self, images: Tensor) -> Tensor:
        """Put the trigger on, as an 8-bit image file would keep it.

        Every value is rounded to k/255, so that a PNG of the result, read again, is the same
        tensor: what is trained and measured is what an attacker could put into a file.
        """
        return torch.round(self.trigger(images).clamp(0, 1) * 255) / 255

    def target_labels(self, labels: Tensor, num_classes: int) -> Tensor:
        """What the attacker wants these images to be taken for.

        Example:
            >>> from fst_lightning.attacks import BadNets
            >>> BadNets(label_map="all_to_all").target_labels(torch.tensor([0, 1, 2]), 3)
            tensor([1, 2, 0])
        """
        if self.label_map == "all_to_all":
            return (labels + 1) % num_classes
        return torch.full_like(labels, self.target_label)

    def counts_for_asr(self, labels: Tensor) -> Tensor:
        """Which test rows tell something about the trigger: ``(N,)`` bool.

        An image that is of the target class anyway would be a free success, so ``all_to_one``
        leaves it out; ``all_to_all`` keeps every row.
        """
        if self.label_map == "all_to_all":
            return torch.ones_like(labels, dtype=torch.bool)
        return labels != self.target_label

    def check_target(self, num_classes: int) -> None:
        """Refuse a target label that no class has.

        Raises:
            ValueError: saying which labels there are.
        """
        if self.label_map == "all_to_one" and self.target_label >= num_classes:
            raise ValueError(
                f"Expected `attack.target_label` to be in 0..{num_classes - 1} for {num_classes} "
                f"classes, but got {self.target_label}."
            )

    def plan(self, labels: Tensor, num_classes: int, seed: int) -> PoisonPlan:
        """Choose the rows to poison.

        Args:
            labels: ``(N,)`` int64 of the clean training set.
            num_classes: C.
            seed: same seed, same rows.

        Raises:
            ValueError: where the target label does not exist or the ratio rounds to no row.
        """
        self.check_target(num_classes)
        count = round(self.poison_ratio * len(labels))
        if count == 0:
            raise ValueError(
                f"Expected `attack.poison_ratio` to poison at least one of {len(labels)} training "
                f"images, but {self.poison_ratio} rounds to none; the smallest ratio that poisons "
                f"one image is {1 / len(labels):.2g}. Use attack=none for a clean model."
            )
        everywhere = torch.ones(len(labels), dtype=torch.bool)
        poisoned = draw_rows(everywhere, count, derived_seed(seed, "poison"))
        return PoisonPlan(poisoned=poisoned, cover=torch.zeros_like(poisoned))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # A trigger is drawn for the size of the images: it takes the one that it was saved with.
        for name, buffer in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and saved.shape != buffer.shape:
                self.register_buffer(name, buffer.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
