"""Stops a run whose checkpoint expects another class order or another normalization."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn

from fst_lightning.data import BackdoorDataModule, ImageFolder
from fst_lightning.defenses import NoDefense
from fst_lightning.metrics import paired_drop_interval, wilson_interval
from fst_lightning.metrics.class_order import other_order
from fst_lightning.modules import PurificationModule
from fst_lightning.pipelines.build.parts import make_trainer
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.measure.score import spread, untouched
from fst_lightning.pipelines.runtime.processes import is_first_process

OnMismatch = Literal["stop", "warn"]
"""Whether a run stops or warns if its checkpoint does not fit the data."""

USUAL = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "images in [-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "images in [0, 1]": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "images in [0, 255]": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
"""The mean and std that most networks are trained with, for images in [0, 1]."""

CLEARLY = 0.05
"""The rise in clean accuracy from which another normalization is clearly better."""

_CONFIDENCE = 0.998
_MOST_IMAGES, _IMAGES_PER_CLASS, _LIMIT = 1000, 20, 5000
_FIRST_IMAGES = 128
_BATCH = 250
_MOST_CLASSES = 2000
# Other words and numbers are quoted, because YAML would read null or 03 as something else.
_PLAIN = re.compile(
    r"(?!(?:null|true|false|nan|inf|yes|no|on|off)$)[a-z_][\w-]*|0|-?[1-9]\d*",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class _Answers:
    """The answers of the network under a normalization.

    Attributes:
        mean: Per channel, of images in [0, 1].
        std: Per channel.
        right: The images that it classifies correctly, ``(N,)`` bool.
        order: The label that it gives each class, if another order than the given one fits.
        right_in_order: Number of correct images in that order.
    """

    mean: Sequence[float]
    std: Sequence[float]
    right: Tensor
    order: list[int] | None
    right_in_order: int

    @property
    def hits(self) -> int:
        """Number of correct images."""
        return int(self.right.sum())

    @property
    def overrides(self) -> list[str]:
        """The normalization as the command line sets it."""
        return [f"data.mean={override_list(self.mean)}", f"data.std={override_list(self.std)}"]


def check_match(run: Run, net: nn.Module, data: BackdoorDataModule) -> None:
    """Check on the defender's images whether a checkpoint fits the data, before the tuning.

    The check uses at most 1,000 clean images (20 of each class, if that is more; never more than
    5,000). First it searches an order of the classes that explains the predictions better than the
    given one (see :func:`~fst_lightning.metrics.class_order.other_order`). Then it searches a
    normalization of :data:`USUAL` that raises the accuracy by more than 5 points, and above the
    share of the largest class. Each one is tried on 128 images, and on all of them only if it does
    better there. If neither is found and the accuracy is at chance, it warns.

    Args:
        run: The run; ``on_mismatch=warn`` turns errors into warnings.
        net: The network, with the weights of the checkpoint; it is not changed.
        data: The defender's images. Its test set is not used.

    Raises:
        ValueError: If another order of the classes or another normalization fits.
    """
    with TemporaryDirectory() as scratch:
        trainer = make_trainer(run, "check", 0, Path(scratch), quiet=True)
        found = _Trial(run, net, data, trainer).finding()
    if found is None:
        return
    stops, text = found
    if stops and run.cfg.on_mismatch == "stop":
        raise ValueError(f"{text} To continue as it is, set on_mismatch=warn.")
    if is_first_process():
        print(f"warning  {text}", flush=True)


class _Trial:
    """Lets a network classify the defender's images under several normalizations."""

    def __init__(
        self, run: Run, net: nn.Module, data: BackdoorDataModule, trainer: L.Trainer
    ) -> None:
        self.run, self.trainer, self.data, self.source = run, trainer, data.data, data.source
        self.module = PurificationModule(net, NoDefense())
        most = min(max(_MOST_IMAGES, _IMAGES_PER_CLASS * self.data.num_classes), _LIMIT)
        rows = spread(len(data.train_rows), most)
        self.images, self.labels = data.train_rows.images[rows], data.train_rows.labels[rows]
        self.first = spread(len(rows), _FIRST_IMAGES)
        channels = self.images.shape[1]
        self.usual = {
            name: (mean[:channels], std[:channels]) for name, (mean, std) in USUAL.items()
        }

    def finding(self) -> tuple[bool, str] | None:
        """Whether to stop, and a text with the reason; None if nothing was found."""
        given = self._answers(self.data.mean, self.data.std)
        if given.order is not None:
            return True, self._about_order(given)
        others = [self._answers(*u) for u in self.usual.values() if self._hopeful(given, *u)]
        better = [other for other in others if self._clearly_better(given, other)]
        if better:
            best = max(better, key=lambda other: other.hits)
            return True, self._about_normalization(given, best)
        # The lower bound, so that a few wrong answers do not look like guessing.
        if wilson_interval(given.hits, len(self.labels))[0] > 1 / self.data.num_classes:
            return None
        return False, self._about_chance(given)

    def _answers(self, mean: Sequence[float], std: Sequence[float]) -> _Answers:
        said = self._predictions(self.images, mean, std)
        classes, order = self.data.classes, None
        if len(classes) <= _MOST_CLASSES:
            # The order of torchvision's ImageFolder, and that of file managers.
            usual = [sorted(classes), sorted(classes, key=str.casefold)]
            ranks = [[names.index(name) for name in classes] for names in usual]
            order = other_order(self.labels, said, len(classes), ranks)
        hits = 0 if order is None else int((said == torch.tensor(order)[self.labels]).sum())
        return _Answers(mean, std, said == self.labels, order, hits)

    def _hopeful(self, given: _Answers, mean: Sequence[float], std: Sequence[float]) -> bool:
        """Whether another normalization does better on some images, and could on all of them."""
        if len(self.labels) - given.hits <= CLEARLY * len(self.labels):
            return False
        said = self._predictions(self.images[self.first], mean, std)
        return int((said == self.labels[self.first]).sum()) > int(given.right[self.first].sum())

    def _clearly_better(self, given: _Answers, other: _Answers) -> bool:
        """Whether it is right on many more images, and not by naming the largest class only."""
        largest = int(self.labels.bincount().max()) / len(self.labels)
        if wilson_interval(other.hits, len(self.labels), _CONFIDENCE)[0] <= largest:
            return False
        lost = int((given.right & ~other.right).sum())
        gained = int((other.right & ~given.right).sum())
        return paired_drop_interval(lost, gained, len(self.labels), _CONFIDENCE)[1] < -CLEARLY

    def _predictions(self, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        device = self.trainer.strategy.root_device
        shift, scale = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (mean, std))
        said = []
        with untouched(self.trainer, self.module):
            for batch in torch.split(images, _BATCH):
                inputs = (batch.to(device).float() / 255 - shift) / scale
                said.append(self.module.net(inputs.to(torch.get_default_dtype())).argmax(1).cpu())
        return torch.cat(said)

    def _about_order(self, given: _Answers) -> str:
        order = given.order or []
        names = [self.data.classes[order.index(label)] for label in range(len(order))]
        advice = f"Set {_command([f'data.classes={override_list(names)}'])}."
        if not isinstance(self.source, ImageFolder):
            advice = (
                f"data={self.run.choices['data']} cannot change its labels. Write the images into "
                f"one folder for each class, set data=image_folder, and s{advice[1:]}"
            )
        return (
            "Expected the classes in the order that the network was trained with, but it gets "
            f"{self._count(given.hits)} of the defender's clean images right, and "
            f"{self._count(given.right_in_order)} with the classes in another order. {advice}"
        )

    def _about_normalization(self, given: _Answers, other: _Answers) -> str:
        name = next(name for name, usual in self.usual.items() if usual == (other.mean, other.std))
        return (
            "Expected images normalized as the network was trained, but it gets "
            f"{self._count(given.hits)} of the defender's clean images right with "
            f"{' '.join(given.overrides)}, and {self._count(other.hits)} with the mean and std of "
            f"{name}. Set {_command(other.overrides)}."
        )

    def _about_chance(self, given: _Answers) -> str:
        return (
            f"The network gets {self._count(given.hits)} of the defender's clean images right, "
            f"which may be guessing among {self.data.num_classes} classes; no other order of the "
            "classes and no usual normalization is clearly better. Check that the checkpoint "
            "belongs to this data, and data.image_size."
        )

    def _count(self, hits: int) -> str:
        return f"{hits:,} of {len(self.labels):,}"


def override_list(values: Sequence[str | float]) -> str:
    r"""Write a list as an override.

    Example:
        >>> override_list([0.5, 1 / 255]), override_list(["cat", "3", "03", "null", "a b"])
        ('[0.5,0.00392157]', '[cat,3,"03","null","a b"]')
    """
    return f"[{','.join(v if isinstance(v, str) else f'{v:.6g}' for v in map(_quoted, values))}]"


def _quoted(value: str | float) -> str | float:
    if not isinstance(value, str) or _PLAIN.fullmatch(value):
        return value
    text = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _command(overrides: Sequence[str]) -> str:
    """Overrides, quoted for a shell."""
    return shlex.join(overrides)
