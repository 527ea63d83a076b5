"""A page as data: what is left out, how charts are named, which files it writes."""

import re
from pathlib import Path

import pytest

from fst_lightning.reports.charts.plots import Series, line_chart
from fst_lightning.reports.html.page import Figure, Page, Section, Table, address_of
from tests.reports.html.pages import read


def page(*titles: str) -> Page:
    """A page with a chart under each title."""
    chart = line_chart([Series("", [0.0, 1.0])], title="t")
    sections = [Section(title, [Figure("Same name", chart)]) for title in titles]
    return Page("t", "A headline", [*sections, Section("Empty")])


def test_the_contents_lead_to_every_section_that_is_there() -> None:
    text = page("First", "Second").html()
    found = read(text)
    assert [link["href"] for link in found.named("a")] == ["#first", "#second"]
    assert [section["id"] for section in found.named("section")] == ["first", "second"]
    assert "Empty" not in found.text


def test_a_section_names_the_page_that_explains_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FST_LIGHTNING_DOCS", raising=False)
    explained = Page("t", "h", [Section("s", [Figure("", table=Table([["1"]]))], "", "outcome")])
    found = read(explained.html())
    assert "How to read this: docs/figures.md#outcome" in found.text
    assert [link["href"] for link in found.named("a")] == ["#s"]
    monkeypatch.setenv("FST_LIGHTNING_DOCS", 'https://docs.example/">')
    links = re.findall(r'<a href="([^"]*)">docs/figures.md#outcome</a>', explained.html())
    assert links == ["https://docs.example/&#34;&gt;/figures.html#outcome"]


def test_charts_have_names_that_are_no_paths_and_differ() -> None:
    names = list(page("../up", "Up", "Up", "\u732b").charts())
    assert names == ["up-same-name", "up-same-name-2", "up-same-name-3", "same-name"]
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)


def test_charts_lie_beside_the_page_and_older_ones_go(tmp_path: Path) -> None:
    page("First", "Second").write(tmp_path / "report.html")
    page("First").write(tmp_path / "report.html")
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert files == {"report.html", "charts.pdf", "charts/first-same-name.png"}


def test_characters_that_turn_the_writing_become_visible() -> None:
    rows = [["a\u202eb\x1b[2J", "\udcff"]]
    text = Page("t", "h", [Section("s", [Figure("", table=Table(rows))])]).html()
    assert r"a\u202eb\x1b[2J" in read(text).text
    assert r"\udcff" in text


@pytest.mark.parametrize("path", ["javascript:x", "//evil.example/x", "a b/#?.html", "\udcff"])
def test_an_address_stays_below_the_page(path: str) -> None:
    address = address_of(path)
    assert re.fullmatch(r"\./[\w./%~-]+", address)
    assert not address.startswith("//")
