"""Purifies a network in Python, without a configuration or a Trainer."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, overload

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fst_lightning.callbacks import FiniteLoss, progress_callback, stage
from fst_lightning.catalog import create_defense
from fst_lightning.defenses import (
    CleanData,
    DatasetDefense,
    Defense,
    NoDefense,
    PoisonedData,
    apply,
)
from fst_lightning.defenses.common.whole_set import fresh_copy, keep_modes
from fst_lightning.defenses.triggers import TriggerSource
from fst_lightning.models import logits_of, return_as_before, take_logits
from fst_lightning.modules import PurificationModule
from fst_lightning.modules.batches import as_network_takes, bounded, class_numbers
from fst_lightning.modules.classifier import FROZEN, OptimizerFactory, SchedulerFactory
from fst_lightning.pipelines.build.clean_loader import first_batch, readable_again
from fst_lightning.pipelines.build.parts import quiet
from fst_lightning.seeds import derived_seed
from fst_lightning.validate import check_number

_BATCH_SIZE = 128

_TITLE = "purify"
_NO_STEPS = (
    "Expected at least one step per epoch, or the network would be prepared and not tuned. Does "
    "the loader give batches in every pass (an iterator gives them once, drop_last may drop them "
    "all), with two or more images each for BatchNorm? Do the Trainer's options (max_steps, "
    "max_time, limit_train_batches) allow steps?"
)
_STAGES = {"study": "studies the clean images", "conclude": "decides what to change"}


@dataclass(frozen=True, eq=False)
class PurifyResult:
    """What :func:`purify` returns with ``return_result=True``.

    Attributes:
        net: The purified network, on the CPU, in evaluation mode.
        findings: What the defense found and decided; empty for one that looks for nothing.
        history: The logged figures of every epoch, such as ``train/loss``.
    """

    net: nn.Module
    findings: dict[str, Any]
    history: list[dict[str, float]]


@overload
def purify(
    net: nn.Module,
    clean_loader: Iterable[Any],
    defense: Defense | str,
    max_epochs: int = 10,
    *,
    lr: float | None = None,
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    seed: int | None = None,
    poisoned_loader: Iterable[Any] | None = None,
    triggers: Sequence[TriggerSource] = (),
    progress: bool = False,
    return_result: Literal[False] = False,
    **trainer_options: Any,
) -> nn.Module: ...


@overload
def purify(
    net: nn.Module,
    clean_loader: Iterable[Any],
    defense: Defense | str,
    max_epochs: int = 10,
    *,
    lr: float | None = None,
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    seed: int | None = None,
    poisoned_loader: Iterable[Any] | None = None,
    triggers: Sequence[TriggerSource] = (),
    progress: bool = False,
    return_result: Literal[True],
    **trainer_options: Any,
) -> PurifyResult: ...


def purify(
    net: nn.Module,
    clean_loader: Iterable[Any],
    defense: Defense | str,
    max_epochs: int = 10,
    *,
    lr: float | None = None,
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    seed: int | None = None,
    poisoned_loader: Iterable[Any] | None = None,
    triggers: Sequence[TriggerSource] = (),
    progress: bool = False,
    return_result: bool = False,
    **trainer_options: Any,
) -> nn.Module | PurifyResult:
    """Purify a copy of a network on a few clean images.

    Args:
        net: The classifier. It returns logits ``(N, C)``, alone or as ``logits`` of a dictionary or
            an object. It is not changed.
        clean_loader: Batches of images and labels, or dictionaries of both. Images are normalized
            as the network expects; uint8 images are divided by 255. An iterator is read into
            memory. So are all images if the defense holds some of them out of the steps.
        defense: A defense, e.g. ``FST(alpha=0.2)``, or the name of one (see
            :func:`~fst_lightning.list_defenses`).
        max_epochs: Passes over the loader, 1 or more; for a defense that cleans a training set,
            passes over the rows that it keeps.
        lr: Learning rate of the default optimizer (SGD with momentum 0.9), above 0; None takes the
            rate that the defense recommends, 0.01 for most.
        optimizer: A function that makes another optimizer from the parameters; ``lr`` is then
            not used.
        scheduler: A function that makes the schedule, per epoch; None for a cosine to zero over
            ``max_epochs``.
        seed: Of the defense's random numbers; None takes ``torch.initial_seed()``.
        poisoned_loader: Batches of the training set as it was delivered, for a defense that
            inspects it.
        triggers: Sources of triggers for the tuning images, which keep their labels; see
            :mod:`fst_lightning.defenses.triggers`. They are copied.
        progress: Whether to print stages, epochs and losses.
        return_result: Whether to return a :class:`PurifyResult` instead of the network.
        trainer_options: For ``lightning.Trainer``, e.g. ``accelerator``, ``precision``.

    Returns:
        The purified network, on the CPU, in evaluation mode; or the whole result.

    Raises:
        ValueError: If an epoch has no batch or no step can be taken, so that a network that was
            prepared but not tuned is never returned. If no linear head is found, or the network is
            frozen, cannot be copied or does not take the images. If a label is not one of its
            classes, an argument is out of its range, or the defense needs ``poisoned_loader``.
        TypeError: If an argument, a batch or the network's output has the wrong type.
        FloatingPointError: If the loss or the weights are no longer finite.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from fst_lightning.defenses import FST
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> images, labels = torch.rand(16, 3, 2, 2), torch.randint(3, (16,))
        >>> loader = DataLoader(TensorDataset(images, labels), batch_size=8)
        >>> purified = purify(net, loader, FST(alpha=0.2), max_epochs=1, accelerator="cpu")
        >>> bool(torch.isclose(purified[3].weight.norm(), net[3].weight.norm()))
        True
    """
    by = _made(defense)
    sources = copy.deepcopy(list(triggers))  # Their findings belong to this network.
    if sources and not by.tunes:
        raise ValueError(
            f"Expected no `triggers` for {type(by).__name__}, which takes no steps on the images."
        )
    lr = by.recommended_lr if lr is None else lr
    _check(net, by, max_epochs, lr, poisoned_loader, trainer_options)
    start = torch.initial_seed() if seed is None else seed
    optimizer = optimizer or functools.partial(torch.optim.SGD, lr=lr, momentum=0.9)
    scheduler = scheduler or functools.partial(
        torch.optim.lr_scheduler.CosineAnnealingLR, T_max=max_epochs
    )
    history = _History()

    # The caller may be inside `no_grad` or `inference_mode`.
    with quiet(), torch.inference_mode(False), torch.enable_grad():
        net = _copied(net)
        loader = readable_again(clean_loader, "clean_loader")
        (images, labels), loader = first_batch(loader, "clean_loader")
        if isinstance(by, NoDefense):
            return _result(net, by, history, return_result)
        num_classes = _logits(net, images).shape[1]
        take_logits(net)
        class_numbers(labels, len(images), num_classes, soft=True)
        clean, loader = _clean_data(loader, num_classes, by, start, poisoned_loader)
        options = _options(trainer_options, history, progress)

        def fit(
            tuned: nn.Module, way: Defense, rows: Iterable[Any], all_: CleanData | None
        ) -> None:
            module = _Module(
                tuned,
                way,
                optimizer,
                scheduler,
                triggers=[*sources],
                seed=seed,
                clean=all_,
                num_classes=num_classes,
            )
            module.shows = progress
            L.Trainer(max_epochs=max_epochs, **options).fit(module, train_dataloaders=rows)

        if by.tunes:
            fit(net, by, loader, clean)
            return _result(net, by, history, return_result)
        if clean is None:
            clean = CleanData.gather(bounded(loader, num_classes))
        device = L.Trainer(max_epochs=0, **options).strategy.root_device
        floats = (p.dtype for p in net.parameters() if p.is_floating_point())
        clean = clean.to(device, next(floats, torch.float32))
        with _shown(by, "study") if progress else nullcontext():
            apply(by, net.to(device), clean, torch.Generator().manual_seed(start))
        if isinstance(by, DatasetDefense) and clean.poisoned is not None:
            weights = torch.Generator().manual_seed(derived_seed(start, "weights"))

            def train(fresh: nn.Module, rows: PoisonedData) -> nn.Module:
                fit(fresh, Defense(), _shuffled(rows, _batch_size(poisoned_loader), start), None)
                return fresh

            found = by.retrain(
                lambda: fresh_copy(net.cpu(), weights),
                clean.poisoned,
                by.suspected.cpu(),
                torch.Generator().manual_seed(derived_seed(start, "retrain")),
                train,
            )
            net = net if found is None else found
        return _result(net, by, history, return_result)


class _Module(PurificationModule):
    """Refuses a network that was prepared but not tuned, and shows stages that have no epochs."""

    shows = False
    _has_tuned = False

    def on_after_backward(self) -> None:
        """Note that a step is taken."""
        super().on_after_backward()
        self._has_tuned = True

    def on_train_epoch_end(self) -> None:
        """Refuse an epoch without a step."""
        if self._num_batches == 0 and not (self.defense.done or self.trainer.should_stop):
            raise ValueError(f"{_NO_STEPS} Epoch {self.current_epoch + 1} had none.")
        super().on_train_epoch_end()

    def on_fit_end(self) -> None:
        """Refuse a fit without a step."""
        if not (self._has_tuned or self.defense.done):
            raise ValueError(_NO_STEPS)
        super().on_fit_end()

    def act(self, place: str, *context: int) -> None:
        """Call a method of the defense, and show its stage."""
        with _shown(self.defense, place) if self.shows else nullcontext():
            super().act(place, *context)


class _History(L.Callback):
    """Keeps the logged figures of every epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the epoch before, which the module has logged completely only now."""
        if trainer.current_epoch > 0:
            self._keep(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the last epoch."""
        self._keep(trainer)

    def _keep(self, trainer: L.Trainer) -> None:
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if figures:
            self.epochs.append(figures)


def _made(defense: Any) -> Defense:
    if isinstance(defense, str):
        return create_defense(defense)
    if not isinstance(defense, Defense):
        name = defense.__name__ if isinstance(defense, type) else type(defense).__name__
        raise TypeError(
            f"Expected `defense` to be a Defense, such as FST(alpha=0.2), or a name, but got {name}"
            f"{f'; pass {name}()' if isinstance(defense, type) else ''}."
        )
    return defense


def _check(
    net: Any,
    defense: Defense,
    max_epochs: int,
    lr: float,
    poisoned_loader: Iterable[Any] | None,
    trainer_options: dict[str, Any],
) -> None:
    """Refuse wrong arguments before any work is done."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"Expected `net` to be an nn.Module, but got {type(net).__name__}.")
    # Lightning takes -1 for "for ever".
    check_number("max_epochs", max_epochs, low=1, whole=True)
    check_number("lr", lr, low_open=True)
    unknown = trainer_options.keys() - inspect.signature(L.Trainer).parameters.keys()
    if unknown:
        raise TypeError(
            "Expected arguments of purify or options of lightning.Trainer, but got "
            f"{', '.join(f'`{name}`' for name in sorted(unknown))}."
        )
    if trainer_options.get("fast_dev_run"):
        raise ValueError(
            "Expected no `fast_dev_run`: after a step or two the network would be returned as "
            "purified. Use max_epochs=1 for a quick look."
        )
    if defense.needs_poisoned_set and poisoned_loader is None:
        raise ValueError(
            f"Expected `poisoned_loader`, the training set as it was delivered, which "
            f"{type(defense).__name__} inspects, but got None."
        )
    tunes = defense.tunes and not isinstance(defense, NoDefense)
    if tunes and not any(parameter.requires_grad for parameter in net.parameters()):
        raise ValueError(FROZEN)


def _copied(net: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(net)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        normed = [
            f"`{name}`" for name, part in net.named_modules() if "weight_g" in part._parameters
        ]
        if normed:
            why = (
                f"torch.nn.utils.weight_norm at {', '.join(normed)} stands in the way. Fold it in "
                "with torch.nn.utils.remove_weight_norm, or use "
                "torch.nn.utils.parametrizations.weight_norm, which can be copied"
            )
        else:
            why = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"Expected a network that copy.deepcopy can copy, but got {type(net).__name__}: {why}."
        ) from error


def _logits(net: nn.Module, images: Tensor) -> Tensor:
    """The network's logits of a batch.

    Raises:
        ValueError: If the network does not take the images.
    """
    device = next((parameter.device for parameter in net.parameters()), images.device)
    inputs = images.float() / 255 if images.dtype == torch.uint8 else images
    inputs = as_network_takes(inputs.to(device), net)
    devices = [device] if device.type == "cuda" else []
    try:
        with keep_modes(net), torch.no_grad(), torch.random.fork_rng(devices):
            output = net.eval()(inputs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        raise ValueError(
            "Expected the network to take the batches of `clean_loader`, but it fails on "
            f"{images.dtype} images of shape {tuple(images.shape)}: {error}"
        ) from error
    return logits_of(output)


def _options(trainer_options: dict[str, Any], history: _History, progress: bool) -> dict[str, Any]:
    callbacks: list[L.Callback] = [history, FiniteLoss("Try a lower `lr`.")]
    if progress:
        callbacks.append(progress_callback(_TITLE))
    given = trainer_options.get("callbacks") or []
    return {
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": progress,
        "enable_model_summary": False,
        **trainer_options,
        "callbacks": [*callbacks, *([given] if isinstance(given, L.Callback) else given)],
    }


@contextmanager
def _shown(defense: Defense, place: str) -> Iterator[None]:
    if place in _STAGES and (defense.overrides(place) or not defense.tunes):
        with stage(_TITLE, f"{type(defense).__name__} {_STAGES[place]}"):
            yield
    else:
        yield


def _result(
    net: nn.Module, defense: Defense, history: _History, whole: bool
) -> nn.Module | PurifyResult:
    return_as_before(net)
    _warn_of_shortfall(defense)
    net = net.cpu().eval()
    return PurifyResult(net, defense.findings(), history.epochs) if whole else net


def _warn_of_shortfall(defense: Defense) -> None:
    """Warn if the defense did not do its work, such as pruning; the network does not show it."""
    what = defense.shortfall()
    if what is not None:
        summary = defense.findings().get("summary", "")
        rank_zero_warn(f"{type(defense).__name__}: {what}. {summary}".rstrip())


def _clean_data(
    loader: Iterable[Any],
    num_classes: int,
    defense: Defense,
    seed: int,
    poisoned_loader: Iterable[Any] | None,
) -> tuple[CleanData | None, Iterable[Any]]:
    """The clean images if the module cannot gather them itself, and the loader of the steps."""
    if not (defense.held_out or defense.needs_poisoned_set):
        return None, loader
    clean = CleanData.gather(bounded(loader, num_classes))
    generator = torch.Generator().manual_seed(derived_seed(seed, "unseen"))
    clean = clean.split(defense.held_out, generator)
    if poisoned_loader is not None:
        delivered_loader = readable_again(poisoned_loader, "poisoned_loader")
        delivered = CleanData.gather(bounded(delivered_loader, num_classes))
        clean.poisoned = PoisonedData(delivered.images, delivered.labels)
    if not defense.held_out:
        return clean, loader
    return clean, _shuffled(clean, _batch_size(loader), seed)


def _shuffled(data: CleanData | PoisonedData, batch_size: int, seed: int) -> Iterable[Any]:
    count = len(data)
    return DataLoader(
        TensorDataset(data.images.cpu(), data.labels.cpu()),
        batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(derived_seed(seed, "order")),
        drop_last=count > batch_size and count % batch_size == 1,  # BatchNorm can't take one image
    )


def _batch_size(loader: Iterable[Any] | None) -> int:
    """The batch size of a loader, or a default if it declares none."""
    size = getattr(loader, "batch_size", None)
    return size if isinstance(size, int) else _BATCH_SIZE
