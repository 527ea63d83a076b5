"""Buffers whose shape is known only once something was found."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FoundBuffers(nn.Module):
    """A module whose buffers take the shape that they were saved with.

    What is found has the shape of the network, or of the findings. The constructor registers such
    buffers empty (``torch.empty(0)``).

    Example:
        >>> class Found(FoundBuffers):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.register_buffer("values", torch.empty(0))
        >>> found = Found()
        >>> _ = found.load_state_dict({"values": torch.ones(3)})
        >>> found.values
        tensor([1., 1., 1.])
    """

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        for name, buffer in list(self._buffers.items()):
            saved = state_dict.get(prefix + name)
            if not isinstance(saved, Tensor) or name in self._non_persistent_buffers_set:
                continue
            if buffer is None or buffer.shape != saved.shape:
                device = saved.device if buffer is None else buffer.device
                self._buffers[name] = torch.empty_like(saved, device=device)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
