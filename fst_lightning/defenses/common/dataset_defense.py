"""Purification of a training set: find the poisoned rows, and retrain without them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.clean_data import CleanData, PoisonedData
from fst_lightning.defenses.common.defense import Defense

Fit = Callable[[nn.Module, PoisonedData], nn.Module]
"""Trains a fresh network on these images and labels by the recipe of the backdoored one."""


class DatasetDefense(Defense, ABC):
    """Find suspicious rows of a delivered training set, and retrain without them.

    A subclass implements :meth:`suspects`, which may use the network that was trained on the
    delivered set. A fresh network is then trained on the other rows with their delivered labels.
    """

    tunes = False
    needs_poisoned_set = True

    suspected: Tensor
    """The suspicious rows, ``(N,)`` bool; empty before :meth:`study`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("suspected", torch.empty(0, dtype=torch.bool))

    @abstractmethod
    def suspects(
        self, net: nn.Module, poisoned: PoisonedData, generator: torch.Generator
    ) -> Tensor:
        """Find the suspicious rows.

        Args:
            net: The network that was trained on the set, in evaluation mode.
            poisoned: The training set as it was delivered, on the network's device.
            generator: A CPU generator, the only source of random numbers.

        Returns:
            ``(N,)`` bool.
        """

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Find the suspicious rows, and keep them.

        Raises:
            ValueError: If :meth:`suspects` does not return one bool per row.
        """
        if clean.poisoned is None:
            raise ValueError(
                f"Expected the delivered training set, which {type(self).__name__} inspects, but "
                "got none. Pass `CleanData(..., poisoned=...)`."
            )
        found = self.suspects(net, clean.poisoned, generator)
        if found.dtype != torch.bool or found.shape != clean.poisoned.labels.shape:
            raise ValueError(
                f"Expected `suspects` to return ({clean.poisoned.num_images},) bools, but got "
                f"{tuple(found.shape)} of {found.dtype}."
            )
        self.suspected = found.detach().cpu()

    def retrain(
        self,
        make_net: Callable[[], nn.Module],
        poisoned: PoisonedData,
        suspects: Tensor,
        generator: torch.Generator,
        fit: Fit,
    ) -> nn.Module | None:
        """Train a fresh network on the remaining rows.

        Args:
            make_net: Makes a network with new weights.
            poisoned: The training set as it was delivered.
            suspects: ``(N,)`` bool.
            generator: A CPU generator.
            fit: Trains a network by the recipe of the original network.

        Returns:
            The network; None keeps the original one, which is the case if no row is suspected.

        Raises:
            ValueError: If no row is left.
        """
        if not bool(suspects.any()):
            return None
        if bool(suspects.all()):
            raise ValueError(
                f"Expected rows to train on, but {type(self).__name__} suspects all "
                f"{len(suspects)} of them."
            )
        return fit(make_net(), poisoned.subset(~suspects))

    def findings(self) -> dict[str, Any]:
        """The number of suspected rows."""
        found: dict[str, Any] = {
            "flagged": int(self.suspected.sum()),
            "num_rows": len(self.suspected),
        }
        if self.shortfall() is not None:
            rows = f"{found['num_rows']:,} rows of the training set"
            found["summary"] = f"None of the {rows} was removed, and no network was retrained."
        return found

    def shortfall(self) -> str | None:
        """``No row was suspected`` if no network was retrained."""
        return "No row was suspected" if len(self.suspected) and not self.suspected.any() else None


def detection_rates(suspects: Tensor, poisoned: Tensor | None) -> dict[str, float | None]:
    """The share of the poisoned rows that are suspected (tpr), and of the others (fpr).

    Args:
        suspects: ``(N,)`` bool.
        poisoned: ``(N,)`` bool, the poisoned rows; None if they are unknown.

    Returns:
        Each in [0, 1]; None if there are no such rows, or they are unknown.

    Example:
        >>> found = torch.tensor([True, True, False, False, False])
        >>> truth = torch.tensor([True, False, False, False, False])
        >>> detection_rates(found, truth)
        {'tpr': 1.0, 'fpr': 0.25}
    """
    if poisoned is None:
        return {"tpr": None, "fpr": None}
    rates: dict[str, float | None] = {}
    for name, rows in (("tpr", poisoned), ("fpr", ~poisoned)):
        rates[name] = float(suspects[rows].float().mean()) if bool(rows.any()) else None
    return rates
