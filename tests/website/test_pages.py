"""Every method, option and package has a page, and the pages say what the sources say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fst_lightning.annotations import argument_meanings
from fst_lightning.configuration import conf_folder, groups
from tests.browser import browser, find_chromium
from website.methods import GROUPS, LONGEST_TITLE, Group, method_page, target_of
from website.options import option_file
from website.pages import generated_pages
from website.python_api import PACKAGES
from website.results_schema import SCHEMA, fields

ROOT = Path(__file__).parents[2]
METHODS = [(group, option) for group in GROUPS for option in groups()[group]]


@pytest.mark.parametrize(("group", "option"), METHODS, ids=lambda part: str(part))
def test_a_method_has_a_page_with_all_its_arguments(group: Group, option: str) -> None:
    page = method_page(group, option)
    title = page.splitlines()[0].removeprefix("# ")
    assert title
    assert len(title) <= LONGEST_TITLE
    values = yaml.safe_load(option_file(group, option).read_text(encoding="utf-8"))
    arguments = values if "_target_" in values else values[option]
    prefix = group if "_target_" in values else f"{group}.{option}"
    names = arguments.keys() - {"_target_", "defaults"}
    for name in names:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{prefix}.{name}"))
        assert row.count("|") >= 4
    documented = argument_meanings(target_of(group, option))
    assert names <= documented.keys() | {"patch"}


@pytest.mark.parametrize(("group", "option"), METHODS, ids=lambda part: str(part))
def test_a_method_has_a_page_with_every_section(group: Group, option: str) -> None:
    page = method_page(group, option)
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    wanted = ["Paper", "How it works", "Formula", "Command", "Arguments", "What it needs", "Cost"]
    wanted += ["When it fails", "Limits and departures", "Shape", "In Python", "See also"]
    assert headings == wanted
    texts = dict(zip(headings, re.split(r"^## .+$", page, flags=re.MULTILINE)[1:], strict=True))
    assert all(text.strip() for text in texts.values())
    assert re.search(r"\(https://arxiv\.org/|<https://|no paper", texts["Paper"])
    assert "```math" in texts["Formula"]
    assert "```math" not in texts["How it works"]
    assert f"{group}=" in texts["Command"]
    assert "](../../" in texts["See also"]


def test_measured_costs_are_linked_from_the_page_of_their_method() -> None:
    link = "[Purify an unknown network: defense=auto](../../auto.md)"
    assert link in method_page("defense", "auto")
    assert "[Purify a training set](../../training_set.md)" in method_page("defense", "spectral")
    assert "Measured:" not in method_page("attack", "none")


def test_every_group_and_key_is_in_the_reference() -> None:
    pages = generated_pages()
    for group, options in groups().items():
        page = pages[f"reference/options/{group}.md"]
        for option in options:
            assert f"`{group}={option}`" in page or f"[`{option}`]" in page
    recipes = pages["reference/options/recipe.md"]
    assert "### `digits_rnp`" in recipes
    assert "| `defense.unlearn_batch_size` | `32` |" in recipes
    tuning = pages["reference/options/tuning.md"]
    for key in yaml.safe_load((conf_folder() / "tuning" / "default.yaml").read_text()):
        assert f"`tuning.{key}" in tuning


def test_every_public_package_is_in_the_reference() -> None:
    folders = {path.parent.name for path in (ROOT / "fst_lightning").glob("*/__init__.py")}
    assert folders - {"cli"} == PACKAGES.keys() - {"fst_lightning"}


def test_every_key_of_results_json_is_in_the_reference() -> None:
    page = generated_pages()["reference/results_json.md"]
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert not [field.name for field in fields(schema) if not field.meaning]
    for key in ("before.ca", "attack.implanted", "ci95.change.ca", "detection.before.p_value"):
        assert f"| `{key}` |" in page


def test_no_cell_breaks_its_table() -> None:
    for path, page in generated_pages().items():
        width = None
        for line in page.splitlines():
            if not line.startswith("|"):
                width = None
                continue
            # Bars inside code, or escaped, do not end a cell.
            text = "".join(line.replace("\\|", "").split("`")[::2])
            width = width or text.count("|")
            assert text.count("|") == width, (path, line)


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for page in tmp_path.rglob("*.html"):
        assert 'src="http' not in page.read_text(encoding="utf-8"), page
    if find_chromium() is None:
        pytest.skip("no Chromium")
    with browser() as opened:
        for name in ("index", "choosing", "methods/defense/fst", "reference/api/metrics"):
            for width in (1280, 390):
                expression = ("document.documentElement.scrollWidth",)
                visit = opened.visit(tmp_path / f"{name}.html", width, evaluate=expression)
                assert not visit.complaints, (name, visit.complaints)
                assert all(address.startswith("file:") for address in visit.requests)
                assert visit.results[0] <= width
