"""Pages of the documentation: the address of a page, if a site is known."""

from __future__ import annotations

import os
from pathlib import Path

SITE = "FST_LIGHTNING_DOCS"
"""The environment variable with the address or the folder of the built site."""


def page_address(page: str) -> str | None:
    """The address of a page, for links in files that people open in a browser.

    Args:
        page: Its path, as messages name it, such as ``docs/figures.md#outcome``.

    Returns:
        The address on the site that ``FST_LIGHTNING_DOCS`` names: an address (``https://...``) or a
        folder. None if the variable is empty or not set.

    Example:
        >>> os.environ["FST_LIGHTNING_DOCS"] = "https://docs.example/"
        >>> page_address("docs/figures.md#outcome")
        'https://docs.example/figures.html#outcome'
        >>> del os.environ["FST_LIGHTNING_DOCS"]
        >>> page_address("docs/figures.md") is None
        True
    """
    site = os.environ.get(SITE, "").strip()
    if not site:
        return None
    if not site.startswith(("https://", "http://", "file://")):
        site = Path(site).absolute().as_uri()
    path, mark, anchor = page.removeprefix("docs/").partition("#")
    return f"{site.rstrip('/')}/{path.removesuffix('.md')}.html{mark}{anchor}"
