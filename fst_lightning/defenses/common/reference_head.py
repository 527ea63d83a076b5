"""The head that a network had before its first purification."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_KEY = "fst_lightning_reference"
_SAME = 0.01  # relative distance; a cast to half precision and back moves weights by less


class ReferenceHead:
    """Remember the weight :math:`W_0` that a head had before it was purified for the first time.

    A second fit, or a second purification, must not mistake the purified head for the original one:
    a penalty on it would pull the network back to the backdoor. The record is an attribute of the
    layer, so that copies of the network keep it. It is not part of the ``state_dict``.

    Args:
        linear: The head.

    Example:
        >>> head = nn.Linear(3, 2)
        >>> ReferenceHead(head).original is None
        True
    """

    def __init__(self, linear: nn.Module) -> None:
        self._linear = linear

    @property
    def original(self) -> Tensor | None:
        """The weight before the first purification, float32 on the CPU; None if there was none."""
        original: Tensor | None = self._record.get("original")
        return original

    @property
    def is_known(self) -> bool:
        """Whether the head has the original weight, or the one from the last purification."""
        kept = (self._record.get("original"), self._record.get("left"))
        return any(value is not None and _same(self._weight, value) for value in kept)

    def left_by(self, owner: str) -> bool:
        """Whether this owner purified the head last, and it has not changed since."""
        left: Tensor | None = self._record.get("left")
        return self._record.get("owner") == owner and left is not None and _same(self._weight, left)

    def start(self, original: Tensor, owner: str) -> None:
        """Record the original weight at the start of this owner's purification."""
        record = {"original": original.detach().float().cpu().clone(), "owner": owner}
        setattr(self._linear, _KEY, record)

    def stop(self) -> None:
        """Record the weight at the end of a purification."""
        if self._record:
            self._record["left"] = self._weight.float().cpu().clone()

    @property
    def _record(self) -> dict[str, Any]:
        # Plain values, so that a pickled network can be loaded without this package.
        record: dict[str, Any] = getattr(self._linear, _KEY, {})
        return record

    @property
    def _weight(self) -> Tensor:
        weight: Tensor = self._linear.get_parameter("weight").detach()
        return weight


def _same(weight: Tensor, kept: Tensor) -> bool:
    if weight.shape != kept.shape:
        return False
    distance = (weight.float().cpu() - kept).norm()
    return bool(distance <= _SAME * kept.norm())
