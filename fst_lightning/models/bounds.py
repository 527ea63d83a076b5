"""Limits of network sizes, checked before memory is allocated."""

from types import MappingProxyType

from fst_lightning.validate import check_number

BOUNDS = MappingProxyType(
    {
        "num_classes": (1, 100_000),
        "width": (1, 4096),
        "blocks": (1, 50),
    }
)


def check_bounds(**sizes: object) -> None:
    """Refuse sizes that are not whole numbers or are out of their bounds.

    Args:
        sizes: Values by argument name; every name is a key of ``BOUNDS``.

    Raises:
        ValueError: If a value is not an int, or too small or too large.

    Example:
        >>> check_bounds(width=64, blocks=2)
        >>> check_bounds(width=0)
        Traceback (most recent call last):
        ...
        ValueError: Expected `width` to be a whole number from 1 to 4096, but got 0.
    """
    for name, value in sizes.items():
        low, high = BOUNDS[name]
        check_number(name, value, low=low, high=high, whole=True)
