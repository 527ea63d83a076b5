"""Extracts images and class numbers from the batches of any loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fst_lightning.data.images import MAX_BYTES, TooLargeError

_IMAGES = ("image", "images", "img", "pixel_values", "x", "input", "inputs")
_LABELS = ("label", "labels", "target", "targets", "y")


def images_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    """Take images and labels out of a batch.

    Args:
        batch: A sequence that starts with images and labels, or a dictionary that holds them under
            a usual name, such as ``image`` and ``label`` or ``pixel_values`` and ``labels``.

    Raises:
        TypeError: If the batch holds no images and labels, or more than one candidate.
        ValueError: If it holds a single image.

    Example:
        >>> images, labels = images_and_labels({"image": torch.zeros(2, 3, 4, 4), "label": [0, 1]})
        >>> labels
        tensor([0, 1])
    """
    if isinstance(batch, Mapping):
        found = [_entry(batch, _IMAGES), _entry(batch, _LABELS)]
    elif isinstance(batch, list | tuple) and len(batch) >= 2:
        found = list(batch[:2])
    else:
        raise TypeError(
            "Expected batches that start with images and labels, or dictionaries such as "
            f"{{'image': ..., 'label': ...}}, but got {type(batch).__name__}. Wrap the loader."
        )
    images, labels = (_as_tensor(value) for value in found)
    if images is None or labels is None:
        raise TypeError(
            "Expected images and labels as tensors, but got "
            f"{type(found[0]).__name__} and {type(found[1]).__name__}."
        )
    if images.ndim < 2 or labels.ndim < 1:
        raise ValueError(
            "Expected batches of images (N, C, H, W) and labels (N,), but got shapes "
            f"{tuple(images.shape)} and {tuple(labels.shape)}. Is this a data set? Pass "
            "DataLoader(dataset, batch_size=128, shuffle=True) instead."
        )
    return images, labels


def class_numbers(
    labels: Tensor,
    num_rows: int,
    num_classes: int | None = None,
    *,
    soft: bool = False,
    check: bool = True,
) -> Tensor:
    """Turn labels into class numbers, and check them.

    Args:
        labels: Integers ``(N,)`` or ``(N, 1)``, or one-hot rows ``(N, C)``.
        num_rows: N, the number of images.
        num_classes: C, if known; labels must lie in 0..C - 1.
        soft: Whether to keep rows of class probabilities ``(N, C)``, such as those of MixUp.
        check: Whether to check the values, which waits for the device. False checks only shape and
            type.

    Returns:
        ``(N,)`` int64, or the probabilities.

    Raises:
        ValueError: If the labels are not class numbers, or the network lacks a class.

    Example:
        >>> class_numbers(torch.tensor([[0, 1], [1, 0]]), 2)
        tensor([1, 0])
    """
    found = f"{labels.dtype} of shape {tuple(labels.shape)}"
    if labels.ndim == 2 and labels.shape[1] == 1 and not labels.is_floating_point():
        labels = labels.squeeze(1)
    elif labels.ndim == 2 and num_classes in (None, labels.shape[1]):
        if soft and labels.is_floating_point() and not (check and _one_hot(labels)):
            return labels
        if not check or _one_hot(labels):
            labels = labels.float().argmax(dim=1)  # bool has none
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.shape != (num_rows,) or not whole:
        raise ValueError(
            f"Expected one class number per image, shape ({num_rows},) and whole numbers, but got "
            f"{found}. Convert the labels, for example with `labels.long()` or "
            "`labels.argmax(dim=1)`."
        )
    labels = labels.long()
    if check and num_rows:
        low, high = torch.stack(torch.aminmax(labels)).tolist()
        if low < 0 or (num_classes is not None and high >= num_classes):
            classes = "0 or more" if num_classes is None else f"in 0..{num_classes - 1}"
            network = "" if num_classes is None else f" for a network with {num_classes} outputs"
            raise ValueError(
                f"Expected labels {classes}{network}, but got labels from {low} to {high}. Do the "
                "network and the loader use the same classes?"
            )
    return labels


def as_network_takes(images: Tensor, net: nn.Module) -> Tensor:
    """Convert floating point images to the type of a network's weights."""
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), images.dtype)
    return images.to(dtype) if images.is_floating_point() else images


def bounded(
    batches: Iterable[Any], num_classes: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Read batches into memory, up to a limit.

    Args:
        batches: Batches in any form that :func:`images_and_labels` takes.
        num_classes: C, if known; larger labels are refused.

    Yields:
        Images and class numbers.

    Raises:
        TooLargeError: If the images take more than ``MAX_BYTES``.
    """
    taken = 0
    for batch in batches:
        images, labels = images_and_labels(batch)
        taken += images.nbytes
        if taken > MAX_BYTES:
            raise TooLargeError(
                f"Expected images that fit into memory, but they take more than "
                f"{MAX_BYTES / 2**30:.0f} GiB",
                "Pass fewer images; is the loader endless?",
            )
        yield images, class_numbers(labels, len(images), num_classes)


def _entry(batch: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    present = [name for name in names if name in batch]
    if len(present) != 1:
        raise TypeError(
            f"Expected batches of images and labels with exactly one of the keys "
            f"{', '.join(names)}, but got {', '.join(map(str, batch))}. Wrap the loader so that "
            "batches are (images, labels)."
        )
    return batch[present[0]]


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        # A tensor made in inference mode can't be used in training.
        return (
            value
            if torch.is_inference_mode_enabled() or not value.is_inference()
            else value.clone()
        )
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _one_hot(labels: Tensor) -> bool:
    ones = labels == 1
    return labels.shape[1] > 1 and bool(((ones | (labels == 0)).all(1) & (ones.sum(1) == 1)).all())
