"""Finds out whether training changes the features that reach a head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.graph import leaves, nodes

_HIDING = "CheckpointFunctionBackward"  # reentrant activation checkpoints


class FeatureWatch:
    """Look at the input of a head during training: does it depend on parameters that train?

    Parameters may train elsewhere in a module without changing the features: those of an auxiliary
    layer, or those in front of a ``detach``. The watch walks the graph behind the head's input. It
    does not see passes without gradients or inside compiled code.

    Args:
        head: The layer whose input is watched.
        trained: The parameters that an optimizer trains.

    Attributes:
        seen: Whether a pass with gradients was seen.
        trains: Whether one of them depended on a trained parameter.

    Example:
        >>> body, head = nn.Linear(4, 3), nn.Linear(3, 2)
        >>> watch = FeatureWatch(head, body.parameters())
        >>> _ = head(body(torch.ones(1, 4)).detach())
        >>> watch.seen, watch.trains
        (True, False)
        >>> _ = head(body(torch.ones(1, 4)))
        >>> watch.trains
        True
        >>> watch.remove()
    """

    def __init__(self, head: nn.Module, trained: Iterable[Tensor]) -> None:
        self.seen = False
        self.trains = False
        self._trained = {id(parameter) for parameter in trained}
        self._handle = head.register_forward_pre_hook(self._look, with_kwargs=True)

    def remove(self) -> None:
        """Stop watching."""
        self._handle.remove()

    def _look(self, head: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        for value in (*arguments, *named.values()):
            if isinstance(value, Tensor):
                self.seen = True
                self.trains = self.trains or self._depends(value)

    def _depends(self, features: Tensor) -> bool:
        if not features.requires_grad:
            return False
        if any(id(leaf) in self._trained for leaf in leaves(features)):
            return True
        # The graph behind such a node is unknown, so the fit is not refused.
        return features.is_leaf or any(node.name() == _HIDING for node in nodes(features))
