"""Names of classes, files and settings, made fit for a page and a chart."""

from __future__ import annotations

import re

from fst_lightning.printable import printable


def shorten(text: object, most: int = 26) -> str:
    """Write a name in one line, and cut a long one in the middle: its ends tell it from others.

    Example:
        >>> shorten("layer4.1.conv2.weight", 11)
        'layer…eight'
    """
    line = printable(text)
    if len(line) <= most:
        return line
    first = (most - 1) // 2
    return f"{line[:first]}\N{HORIZONTAL ELLIPSIS}{line[-(most - 1 - first) :]}"


def slug(text: str) -> str:
    """Turn a title into the name of a file or of an anchor: letters, digits and hyphens.

    Example:
        >>> slug("Features, before"), slug("../猫")
        ('features-before', 'untitled')
    """
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))[:80] or "untitled"
