"""Extracts the logits from the output of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def logits_of(output: Any) -> Tensor:
    """Take the logits out of a network's output.

    A tensor is the logits. A dictionary, a ``ModelOutput`` of transformers and a named tuple (such
    as torchvision's ``GoogLeNetOutputs``) hold them as ``logits``.

    Args:
        output: What the network returned.

    Returns:
        The logits, ``(N, C)``.

    Raises:
        TypeError: If the output holds no logits.
        ValueError: If the logits are not ``(N, C)`` with two or more classes.

    Example:
        >>> import torch
        >>> logits_of({"logits": torch.zeros(2, 3)}).shape
        torch.Size([2, 3])
    """
    logits = output
    if isinstance(output, Mapping):
        logits = output.get("logits")
    elif not isinstance(output, Tensor):
        logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        found = type(output).__name__
        if isinstance(output, Mapping):
            found += f" with the keys {', '.join(map(str, output))}"
        raise TypeError(
            "Expected the network to return logits (N, C), or a dictionary or an object that "
            f"holds them as `logits`, but it returned a {found}. Wrap the network in a module "
            "whose `forward` returns the logits alone."
        )
    if logits.ndim != 2 or logits.shape[1] < 2:
        one = logits.ndim == 1 or logits.shape[1:] == (1,)
        advice = (
            "For one logit per image, return torch.cat([-logit, logit], dim=1) / 2, which has the "
            "same probabilities."
            if one
            else "Is its classification head missing?"
        )
        raise ValueError(
            "Expected the network to return logits (N, C), one column per class and at least two "
            f"classes, but got shape {tuple(logits.shape)}. {advice}"
        )
    return logits
