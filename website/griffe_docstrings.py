"""The extension of Griffe that lets mkdocstrings show this package's docstrings."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object

from website.docstrings import to_markdown, with_paper_links


class MarkdownDocstrings(Extension):  # type: ignore[misc]  # its types are not followed
    """Rewrites every docstring as Markdown when it is loaded."""

    def on_object(self, *, obj: Object, **options: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = to_markdown(obj.docstring.value).replace("Example:\n", "Examples:\n")
            obj.docstring.value = with_paper_links(text)
