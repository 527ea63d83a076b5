"""Rewrites links between files of the repository into links between pages of the site."""

from __future__ import annotations

import posixpath
import re

ROOT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "help/changelog.md",
    "CONTRIBUTING.md": "help/contributing.md",
    "CODE_OF_CONDUCT.md": "help/code_of_conduct.md",
    "SECURITY.md": "help/security_policy.md",
}
"""The page of every file at the top of the repository that has one."""

_CODE = r"^ *```.*?^ *```|`[^`\n]+`"
_LINK = re.compile(
    rf"{_CODE}|(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)",
    re.MULTILINE | re.DOTALL,
)


def site_links(markdown: str, source: str, page: str) -> str:
    """Make every relative link lead to a page of the site.

    A link to a file without a page, such as a source file, keeps its text only.

    Args:
        markdown: The text of the file.
        source: Path of the file in the repository, such as ``docs/models.md``.
        page: Path of its page below ``docs``, such as ``models.md``.

    Example:
        >>> site_links("[how](../CONTRIBUTING.md#x)", "docs/models.md", "models.md")
        '[how](help/contributing.md#x)'
        >>> site_links("[models](docs/models.md)", "CONTRIBUTING.md", "help/contributing.md")
        '[models](../models.md)'
        >>> site_links("[code](../purify.py)", "docs/models.md", "models.md")
        'code'
    """
    return _LINK.sub(lambda link: _rewritten(link, source, page), markdown)


def _rewritten(link: re.Match[str], source: str, page: str) -> str:
    if link["target"] is None:  # code
        return link[0]
    path, mark, anchor = link["target"].partition("#")
    if not path or "://" in path or path.startswith("mailto:"):
        return link[0]
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    target = file.removeprefix("docs/") if file.startswith("docs/") else ROOT_PAGES.get(file)
    if target is None:
        return link["text"]
    relative = posixpath.relpath(target, posixpath.dirname(page) or ".")
    return f"{link['image']}[{link['text']}]({relative}{mark}{anchor})"
