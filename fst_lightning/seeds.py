"""Many independent streams of random numbers from the one seed of a run."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *purpose: str | int) -> int:
    """Derive a separate seed for each purpose.

    Two draws with the run's seed itself would be the same draw: for example, the poisoned rows
    would be the first rows of an epoch that is shuffled with the same seed.

    Args:
        seed: Of the run.
        purpose: What the numbers are used for, for example ``"order", epoch``.

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
