"""No defense: score a model without touching it."""

from __future__ import annotations

from fst_lightning.defenses.common.defense import Defense


class NoDefense(Defense):
    """Leave the network as it is."""

    tunes = False
