"""Links between files become links between pages."""

from __future__ import annotations

from website.links import site_links


def test_links_that_stay() -> None:
    text = "[a](https://x.org/y.md) [b](#here) `[c](../README.md)`\n```\n[d](../README.md)\n```\n"
    assert site_links(text, "docs/models.md", "models.md") == text


def test_images_and_anchors() -> None:
    text = "![p](docs/images/a.webp) [q](docs/security.md#who)"
    assert site_links(text, "SECURITY.md", "help/security_policy.md") == (
        "![p](../images/a.webp) [q](../security.md#who)"
    )


def test_a_file_without_a_page_keeps_its_text() -> None:
    assert site_links("see [`x.py`](../x.py)", "docs/a.md", "a.md") == "see `x.py`"
