"""Addresses of pages of the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from fst_lightning.documentation import page_address


@pytest.mark.parametrize("site", ["", "  "])
def test_without_a_site_there_is_no_address(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FST_LIGHTNING_DOCS", site)
    assert page_address("docs/hidden.md") is None


def test_an_address_leads_to_the_page_and_its_heading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FST_LIGHTNING_DOCS", "https://docs.example/v1/")
    assert page_address("docs/hidden.md") == "https://docs.example/v1/hidden.html"
    page = page_address("docs/tutorials/sweep.md#a-table")
    assert page == "https://docs.example/v1/tutorials/sweep.html#a-table"


@pytest.mark.parametrize("site", ["build/site", "javascript:alert(1)"])
def test_everything_else_is_a_folder(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FST_LIGHTNING_DOCS", site)
    address = page_address("docs/hidden.md")
    assert address == f"{(tmp_path / site).as_uri()}/hidden.html"
