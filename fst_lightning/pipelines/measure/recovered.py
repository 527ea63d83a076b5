"""Measures how well a recovered trigger works, before and after a purification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.detectors import Scan
from fst_lightning.metrics import wilson_interval
from fst_lightning.pipelines.measure.score import spread
from fst_lightning.reports.results.evidence import Array, Recovered

_BATCH = 250
_SHOWN = 6  # images


@dataclass(frozen=True)
class Success:
    """How often a trigger works.

    Attributes:
        hits: Number of images of other classes that it sends to its class.
        control: Number of these images that get this class without the trigger.
        images: Number of images of other classes.
    """

    hits: int
    control: int
    images: int


def success(net: nn.Module, found: Scan, images: LabeledImages) -> Success | None:
    """Count the images of other classes that the recovered trigger sends to its class.

    Args:
        net: The network, in evaluation mode, on the device of the images; not changed.
        found: The scan that recovered the trigger, perhaps on another network.
        images: Images that the scan has not seen.

    Returns:
        The counts; None if the detector recovers no trigger, or there are no images.
    """
    trigger, label = found.evidence.trigger, found.suspected_class
    if trigger is None:
        return None
    others = images.subset(images.labels != label)
    if not len(others):
        return None
    hits, control = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        for batch, _ in others.batches(_BATCH):
            hits += (net(trigger(batch)).argmax(1) == label).sum().cpu()
            control += (net(batch).argmax(1) == label).sum().cpu()
    return Success(int(hits), int(control), len(others))


def trigger_block(before: Success | None, after: Success | None = None) -> dict[str, Any] | None:
    """The entry of a recovered trigger for ``results.json``: rates with Wilson's 95 % intervals.

    Example:
        >>> trigger_block(Success(9, 1, 10))["success"], trigger_block(None)
        (0.9, None)
    """
    if before is None:
        return None
    block: dict[str, Any] = {"images": before.images}
    for when, counts in (("", before), ("_after", after)):
        if counts is None:
            block |= {f"success{when}": None, f"ci95{when}": None, f"control{when}": None}
            continue
        block[f"success{when}"] = counts.hits / counts.images
        block[f"ci95{when}"] = list(wilson_interval(counts.hits, counts.images))
        block[f"control{when}"] = counts.control / counts.images
    return block


def recovered(found: Scan, images: LabeledImages) -> Recovered:
    """What a detector found, as pictures for the report.

    Args:
        found: What it found.
        images: Images to put the recovered trigger on.
    """
    by_class = found.evidence.pictures
    shown = stamped(found, images, _SHOWN)
    return Recovered(
        () if by_class is None else _pixels(by_class),
        *(() if shown is None else (_pixels(shown[0]), _pixels(shown[1]))),
    )


def _pixels(images: Tensor) -> tuple[Array, ...]:
    """Images in [0, 1] as pictures have them; gray ones in three equal channels."""
    levels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    colored = levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    return tuple(colored)


def stamped(found: Scan, images: LabeledImages, count: int) -> tuple[Tensor, Tensor] | None:
    """Some images without and with the recovered trigger, for the report.

    Returns:
        Two tensors ``(n, C, H, W)`` in [0, 1], on the CPU; None if the detector recovers no
        trigger, or the normalization is unknown.
    """
    others = images.subset(images.labels != found.suspected_class)
    if found.evidence.trigger is None or images.mean is None or not len(others):
        return None
    batch, _ = next(others.subset(spread(len(others), count)).batches(count))
    with torch.no_grad():
        changed = found.evidence.trigger(batch)
    clean, shown = (images.pixels(each).clamp(0, 1).float().cpu() for each in (batch, changed))
    return clean, shown
