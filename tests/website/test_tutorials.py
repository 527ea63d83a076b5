"""The tutorials run and print what their pages show."""

from __future__ import annotations

from pathlib import Path

import pytest

from website.tutorials import difference, read_steps, run_steps

PAGES = sorted((Path(__file__).parents[2] / "docs" / "tutorials").glob("*.md"))
_QUICK = ("lightning.md",)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if page.name in _QUICK else [pytest.mark.slow], id=page.stem)
        for page in PAGES
    ],
)
def test_a_tutorial_prints_what_its_page_shows(page: Path, tmp_path: Path) -> None:
    steps = read_steps(page.read_text(encoding="utf-8"))
    printed = run_steps(steps, tmp_path)
    for step, output in zip(steps, printed, strict=True):
        assert difference(step.shown, output) is None, output
    assert any(step.shown for step in steps)


def test_a_number_may_differ_a_little() -> None:
    assert difference("CA 0.91\n", "CA 0.95\n") is None
    assert difference("CA 0.91\n", "CA 0.70\n") == "CA 0.91"
    assert difference("CA 91.10 %\n", "CA 99.10 %\n") is None
    assert difference("CA 91.10 %\n", "CA 79.10 %\n") == "CA 91.10 %"


def test_whole_numbers_and_words_must_agree() -> None:
    assert difference("3 of 4\n", "2 of 4\n") == "3 of 4"
    assert difference("gone\n", "there\n") == "gone"


def test_lines_keep_their_order() -> None:
    assert difference("a\n...\nb\n", "a\nx\ny\nb\n") is None
    assert difference("b\na\n", "a\nb\n") == "a"
