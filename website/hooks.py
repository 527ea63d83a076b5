"""The hooks of MkDocs: adds generated pages, their navigation, and links between pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from website.links import site_links
from website.pages import generated_pages, navigation


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace folders in the navigation, such as ``methods/attack/``, by their pages."""
    config.nav = _expanded(config.nav, generated_pages())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, text in generated_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files at the top of the repository lead to their pages."""
    if page.file.generated_by is not None:
        return markdown
    return site_links(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def _expanded(entries: Any, pages: Mapping[str, str]) -> Any:
    if isinstance(entries, list):
        return [_expanded(entry, pages) for entry in entries]
    if isinstance(entries, dict):
        return {name: _expanded(entry, pages) for name, entry in entries.items()}
    if isinstance(entries, str) and entries.endswith("/"):
        return navigation(entries.rstrip("/"), pages)
    return entries
