"""All pages of the site that are generated."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from website import methods, options, python_api, results_schema
from website.links import ROOT_PAGES, site_links

ROOT = Path(__file__).parents[1]


@functools.cache
def generated_pages() -> Mapping[str, str]:
    """Every generated page in Markdown, by its path below ``docs``."""
    return {
        **methods.method_pages(),
        **options.option_pages(),
        **python_api.api_pages(),
        results_schema.PAGE: results_schema.results_page(),
        **_root_pages(),
    }


def navigation(folder: str, pages: Mapping[str, str]) -> list[str]:
    """The pages of a folder, the overview first, then by title.

    Args:
        folder: Such as ``methods/attack``.
        pages: The generated pages.

    Example:
        >>> navigation("a", {"a/x.md": "# Z", "a/y.md": "# B", "a/index.md": "# All"})
        ['a/index.md', 'a/y.md', 'a/x.md']
    """
    inside = [page for page in pages if page.startswith(f"{folder}/")]
    return sorted(
        inside, key=lambda page: (not page.endswith("/index.md"), pages[page].splitlines()[0])
    )


def _root_pages() -> dict[str, str]:
    pages = {}
    for file, page in ROOT_PAGES.items():
        path = ROOT / file
        if file != "README.md" and path.is_file():
            pages[page] = site_links(path.read_text(encoding="utf-8"), file, page)
    return pages
