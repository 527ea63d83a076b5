"""The documents name what there is."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from fst_lightning.configuration import groups
from website.pages import generated_pages

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(
    "group", ["attack", "defense", "detector", "data", "model", "trainer", "logger"]
)
def test_readme_lists_every_option(group: str) -> None:
    row = re.search(rf"^\| `{group}` \|(.*)\|$", README, re.MULTILINE)
    assert row is not None
    assert set(re.findall(r"`(\w+)`", row[1])) == set(groups()[group])


def _python_block(page: str, mark: str) -> str:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks: list[str] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return next(code for code in blocks if mark in code)


@pytest.mark.parametrize(
    "document",
    [page for page in PAGES if page.name != "CHANGELOG.md"],
    ids=_name,
)
def test_pages_are_short(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    long = [line for line in prose.splitlines() if len(line) > 120 and "|" not in line]
    assert not long, long[0]
    assert len(text.splitlines()) <= 250


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_readme_opens_with_the_two_commands() -> None:
    blocks = re.findall(r"^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert blocks[0].strip() == "pip install -e . && python purify.py attack=blended defense=fst"
    assert blocks[1].strip() == "pip install -e '.[dev]' && pytest"


@pytest.mark.parametrize("document", PAGES, ids=_name)
def test_links_lead_somewhere(document: Path) -> None:
    generated = {ROOT / "docs" / page for page in generated_pages()}
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            file = Path(os.path.normpath(document.parent / target))
            assert file.exists() or file in generated, target


def test_messages_name_pages_and_headings_that_exist() -> None:
    named = []
    for folder in ("fst_lightning", "conf"):
        for file in (ROOT / folder).rglob("*.*"):
            if file.suffix in {".py", ".yaml", ".j2"} and file.name != "documentation.py":
                text = file.read_text(encoding="utf-8")
                named += re.findall(r"\bdocs/([\w/]+\.md)(?:#([\w-]+))?", text)
    html = (ROOT / "fst_lightning" / "reports" / "html").glob("*.py")
    sections = [re.findall(r'explained="([\w-]+)"', file.read_text("utf-8")) for file in html]
    named += [("figures.md", anchor) for anchors in sections for anchor in anchors]
    assert len(named) > 10
    for page, anchor in named:
        assert (ROOT / "docs" / page).is_file(), page
        assert not anchor or anchor in _anchors(page), (page, anchor)


def _anchors(page: str) -> list[str]:
    """The ids that the site gives to the headings of a page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w]+", "-", heading.lower()).strip("-") for heading in headings]


def test_example_of_an_own_defense_runs() -> None:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from fst_lightning import purify

    code = _python_block("extend.md", "class Shrink")
    scope: dict[str, type] = {}
    exec(code, scope)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    data = TensorDataset(torch.rand(8, 3, 2, 2), torch.randint(3, (8,)))
    loader = DataLoader(data, batch_size=4)
    purified = {
        strength: purify(net, loader, scope["Shrink"](strength), max_epochs=2, accelerator="cpu")
        for strength in (0.0, 10.0)
    }
    norms = {strength: float(net[1].weight.detach().norm()) for strength, net in purified.items()}  # type: ignore[index]
    assert norms[10.0] < norms[0.0]


def test_example_of_a_script_runs() -> None:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    code = _python_block("python.md", "return_result=True")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    data = TensorDataset(torch.rand(8, 3, 2, 2), torch.randint(3, (8,)))
    scope: dict[str, Any] = {"net": net, "clean_loader": DataLoader(data, batch_size=4)}
    exec(code, scope)
    assert scope["purified"] is not net
    assert len(scope["losses"]) == 20
