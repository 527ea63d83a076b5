"""Many independent streams of random numbers from the one seed of a run."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A seed of its own for every purpose.

    Two draws that take the run's seed as it is would be the same draw: the rows that are poisoned
    would, for one, be the first rows of an epoch that is shuffled with the same seed.

    Args:
        seed: of the run.
        purpose: what the numbers are for, e.g. ``"order", epoch``.

    Returns:
        A number from 0 to 2**63 - 1; the same on every machine.

    Example:
        >>> derived_seed(0, "order", 1) == derived_seed(0, "order", 1)
        True
        >>> derived_seed(0, "order", 1) == derived_seed(0, "order", 2)
        False
    """
    text = repr((seed, *purpose)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
