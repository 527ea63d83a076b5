"""Collects what the report shows of a network before and after a defense; changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from fst_lightning.data import BackdoorDataModule, ImageSet
from fst_lightning.models import Head, inputs_of, is_head, weight_matrix
from fst_lightning.modules import ClassifierModule
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.measure.scan import Scanner
from fst_lightning.pipelines.measure.score import spread, untouched
from fst_lightning.pipelines.runtime.processes import is_first_process
from fst_lightning.reports.results.evidence import (
    Answers,
    Evidence,
    Example,
    Snapshot,
)

MOST_IMAGES = 1000
"""The most clean, and the most triggered, test images that are used."""

_BATCH = 250
_EXAMPLES = 6


class EvidenceCollector:
    """Collects what the report of a run shows, in the first process only.

    It changes neither weights nor modes nor random numbers. It does not raise either; an error is
    recorded in :attr:`trouble`.

    Args:
        run: The run.
        trainer: The Trainer, whose device and precision are used.
        module: The network and its inputs.
        data: The test images.
        scanner: The scanner of the same networks; None if there is none.
    """

    def __init__(
        self,
        run: Run,
        trainer: L.Trainer,
        module: ClassifierModule,
        data: BackdoorDataModule,
        scanner: Scanner | None = None,
    ) -> None:
        self.run = run
        self.trainer = trainer
        self.module = module
        self.data = data
        self.scanner = scanner
        self.trouble: str | None = None
        self._snapshots: dict[str, Snapshot] = {}
        self._weights: dict[str, Tensor] = {}
        self._layers: dict[str, float] = {}

    @property
    def wanted(self) -> bool:
        """Whether a report will be written."""
        report = self.run.cfg.get("report")
        return bool(report and report.enabled)

    def look(self) -> None:
        """Look at the network: before the defense in the first call, after it in the second."""
        if self.trouble or not (self.wanted and is_first_process()):
            return
        when = "after" if "before" in self._snapshots else "before"
        try:
            with untouched(self.trainer, self.module):
                self._look(when)
        except Exception as error:
            self.trouble = f"{type(error).__name__}: {error}"

    def evidence(self) -> Evidence | None:
        """The collected evidence; None if there is none."""
        before, after = self._snapshots.get("before"), self._snapshots.get("after")
        if before is None:
            return None
        measured = self.data.measured
        aims = measured.has_trigger and measured.label_map in ("all_to_one", "clean_label")
        return Evidence(
            classes=self.data.data.classes,
            before=before,
            after=after,
            target=measured.target_label if aims else None,
            examples=self._examples(before, after),
            layers=self._layers,
            recovered={} if self.scanner is None else self.scanner.recovered,
            num_test=len(self.data.data.test),
            num_triggered=len(self.data.triggered_rows) if measured.has_trigger else 0,
            projection=self.run.cfg.report.projection,
        )

    def _look(self, when: str) -> None:
        net, test = self.module.net, self.data.data.test
        head = _head(self.run, net)
        clean = self._answers(test, head, triggered=False)
        stamped = None
        if self.data.measured.has_trigger:
            stamped = self._answers(self.data.triggered_rows, head, triggered=True)
        weight = None if head is None else _array(weight_matrix(head))
        weights = {name: p.detach().float().cpu().clone() for name, p in net.named_parameters()}
        if when == "after":
            self._layers = relative_changes(self._weights, weights)
        self._weights = weights
        self._snapshots[when] = Snapshot(clean, stamped, weight)

    def _answers(self, images: ImageSet, head: Head | None, triggered: bool) -> Answers:
        rows = spread(len(images), MOST_IMAGES)
        device = self.trainer.strategy.root_device
        columns: list[tuple[Tensor, ...]] = []
        watched: AbstractContextManager[list[Tensor]] = nullcontext([])
        if head is not None:
            watched = inputs_of(head)
        with watched as inputs:
            for chunk in torch.split(rows, _BATCH):
                batch, true = images.images[chunk].to(device), images.labels[chunk].to(device)
                logits = self.module.net(self.module.inputs(batch, triggered=triggered)).float()
                sure, said = logits.softmax(1).max(1)
                aim = self.data.measured.wanted_labels(logits, true) if triggered else true
                columns.append((true, said, sure, aim))
        features = [part.detach().flatten(1).float().cpu() for part in inputs]
        labels, predictions, confidence, wanted = (
            _array(torch.cat(parts)) for parts in zip(*columns, strict=True)
        )
        kept = torch.cat(features).numpy() if features else None
        # A head that is called for every patch, or twice, has several features per image.
        usable = kept is not None and len(kept) == len(rows) and bool(np.isfinite(kept).all())
        return Answers(
            labels,
            predictions,
            confidence,
            kept if usable else None,
            wanted if triggered else None,
        )

    def _examples(self, before: Snapshot, after: Snapshot | None) -> tuple[Example, ...]:
        """Images of as many classes as possible."""
        if before.triggered is None:
            return ()
        labels = before.triggered.labels
        first = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)]
        others = [i for i in range(len(labels)) if i not in set(first)]
        chosen = [*(first[i] for i in spread(len(first), _EXAMPLES)), *others][:_EXAMPLES]
        rows = spread(len(self.data.triggered_rows), MOST_IMAGES)[chosen]
        images = self.data.triggered_rows.images[rows]
        inputs = self.module.inputs
        attack = self.data.measured
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            stamped = attack.cpu()(inputs.pixels(images)).clamp(0, 1)
        stored = _pixels(images)
        shown = _pixels((stamped * 255).round().to(torch.uint8))
        answers = None if after is None else after.triggered
        return tuple(
            Example(
                np.ascontiguousarray(stored[i]),
                np.ascontiguousarray(shown[i]),
                int(labels[row]),
                int(before.triggered.predictions[row]),
                None if answers is None else int(answers.predictions[row]),
            )
            for i, row in enumerate(chosen)
        )


def relative_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    r"""How far the parameters of every layer moved: :math:`\|\theta - \theta_0\|/\|\theta_0\|`.

    Args:
        before: Parameters by name; weight and bias of a layer count as one vector.
        after: The same later; those that are missing, or of another shape, are left out.

    Example:
        >>> one = {"fc.weight": torch.tensor([3.0]), "fc.bias": torch.tensor([4.0])}
        >>> relative_changes(one, {"fc.weight": torch.tensor([8.0]), "fc.bias": one["fc.bias"]})
        {'fc': 1.0}
    """
    moved: dict[str, float] = {}
    size: dict[str, float] = {}
    for name, old in before.items():
        new = after.get(name)
        if new is None or new.shape != old.shape:
            continue
        layer = name.rpartition(".")[0] or name
        # In float64, because the square of a float32 may overflow or underflow.
        moved[layer] = moved.get(layer, 0.0) + float((new.double() - old).square().sum())
        size[layer] = size.get(layer, 0.0) + float(old.double().square().sum())
    return {layer: float((moved[layer] / size[layer]) ** 0.5) for layer in moved if size[layer] > 0}


def _head(run: Run, net: nn.Module) -> Head | None:
    head = None if run.head is None else net.get_submodule(run.head)
    return head if head is not None and is_head(head) else None


def _pixels(images: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Images with channels last, ``(N, H, W, 3)``; gray ones get three equal channels."""
    colored: np.ndarray[Any, np.dtype[Any]] = (
        images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    )
    return colored


def _array(tensor: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    tensor = tensor.detach()
    array: np.ndarray[Any, np.dtype[Any]] = (
        (tensor.float() if tensor.is_floating_point() else tensor).cpu().clone().numpy()
    )
    return array
