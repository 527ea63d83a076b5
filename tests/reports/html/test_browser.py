"""The pages in a real browser: no error, no request, nothing cut, no texts over each other."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fst_lightning.reports import (
    Curves,
    render_leaderboard,
    render_page,
    summarize_sweep,
    write_json,
)
from tests.browser import Browser, browser, find_chromium
from tests.reports.example import example, score
from tests.reports.html.test_run_page import CURVES, EVIL, evidence, snapshot

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the PATH")

# How far the page is wider than the window.
OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"
# Texts of charts that stand outside the page (where it can't be scrolled there), and pairs of them
# that lie over each other. Names at the means of classes may: they lie where the classes lie.
CROWDED = """
(() => {
  const found = [];
  for (const svg of document.querySelectorAll('svg')) {
    const texts = [...svg.querySelectorAll('text:not(.over)')];
    const boxes = texts.map(text => text.getBoundingClientRect());
    boxes.forEach((a, i) => {
      const cut = a.left < 0 || a.right > window.innerWidth;
      if (cut && !svg.closest('.wide')) found.push('outside: ' + texts[i].textContent);
      boxes.slice(i + 1).forEach((b, j) => {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const tall = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        const [one, two] = [texts[i], texts[i + 1 + j]];
        if (one.hasAttribute('transform') || two.hasAttribute('transform')) return;
        if (wide > 1 && tall > 0.4 * Math.min(a.height, b.height))
          found.push(`${one.textContent} | ${two.textContent} in ${svg.ariaLabel}`);
      });
    });
  }
  return found;
})()
"""
CHARTS = "document.querySelectorAll('svg').length"


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    with browser() as chromium:
        yield chromium


def leaderboard(folder: Path) -> str:
    """Four defenses, of which three are close, against three attacks."""
    defenses = {"fst": (912, 10), "ft": (915, 12), "ft_sam": (914, 11), "anp": (800, 700)}
    for attack in ("badnets", "blended", "adaptive_blend"):
        for defense, (right, attacked) in defenses.items():
            for seed in (0, 1):
                results = example(
                    seed=seed,
                    attack={"name": attack},
                    defense={"name": defense},
                    after=score(right - 3 * seed, attacked + 4 * seed, 800),
                )
                write_json(folder / f"{attack}-{defense}-{seed}" / "results.json", results)
    failure = {"error": f"ValueError: {EVIL}", "overrides": [f"attack={EVIL}"]}
    write_json(folder / "job" / "failure.json", failure)
    return render_leaderboard(summarize_sweep(folder))


def many_classes() -> str:
    names = tuple(f"class number {i}" for i in range(43))
    layers = {f"stages.{i}.blocks.{i}.attention.qkv": 0.01 * i for i in range(60)}
    both: dict[str, Any] = {"before": snapshot(43), "after": snapshot(43)}
    seen = evidence(classes=names, layers=layers, recovered={}, **both)
    return render_page(example(), seen, {"purify": long_curves()})


def long_curves() -> Curves:
    values = np.random.default_rng(0).random(300)
    return {
        name: {i: 1e-4 * float(v) for i, v in enumerate(values)}
        for name in ("val/ca", "val/asr", "val/ra", "train/loss", "train/penalty")
    }


@pytest.mark.parametrize("width", [1100, 390])
@pytest.mark.parametrize("which", ["run", "unknown", "many", "leaderboard"])
def test_a_page_opens_without_error_or_request(
    opened: Browser, tmp_path: Path, which: str, width: int
) -> None:
    clean = {"before": snapshot(triggered=False), "after": snapshot(triggered=False)}
    pages: dict[str, Callable[[], str]] = {
        "run": lambda: render_page(example(), evidence(), {"purify": CURVES}, "python purify.py"),
        "unknown": lambda: render_page(example(), evidence(target=None, examples=(), **clean)),
        "many": many_classes,
        "leaderboard": lambda: leaderboard(tmp_path),
    }
    page = tmp_path / "page.html"
    page.write_text(pages[which](), encoding="utf-8")
    visit = opened.visit(page, width, dark=width < 600, evaluate=(OVERFLOW, CROWDED, CHARTS))
    assert visit.complaints == []
    assert visit.requests == []
    overflow, crowded, count = visit.results
    assert overflow <= 0
    assert crowded == []
    assert count > 3


def test_a_page_that_misbehaves_is_seen_to(opened: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        '<script>console.error("no"); undefined_name()</script>'
        '<img src="http://127.0.0.1:9/x.png"><p style="width:3000px">x</p>'
        '<svg width="200" height="50"><text y="20">one</text><text y="22">two</text></svg>'
    )
    visit = opened.visit(page, evaluate=(OVERFLOW, CROWDED))
    assert any("no" in complaint for complaint in visit.complaints)
    assert any("undefined_name" in complaint for complaint in visit.complaints)
    assert visit.requests == ["http://127.0.0.1:9/x.png"]
    assert visit.results[0] > 0
    assert visit.results[1] == ["one | two in null"]


def test_nothing_of_a_hostile_page_runs(opened: Browser, tmp_path: Path) -> None:
    """What slips through escaping would still be stopped by the page's own policy."""
    page = tmp_path / "page.html"
    text = render_page(example(), evidence())
    evil = '<script>window.hit = 1</script><img src="http://127.0.0.1:9/x.png">'
    page.write_text(text.replace("<main>", f"<main>{evil}"), encoding="utf-8")
    visit = opened.visit(page, evaluate=("String(window.hit)",))
    assert visit.results == ["undefined"]
    assert visit.requests == []
    assert visit.complaints  # the policy says what it stopped


def test_a_picture_is_taken_by_day_and_by_night(opened: Browser, tmp_path: Path) -> None:
    import io

    from PIL import Image

    page = tmp_path / "page.html"
    page.write_text(render_page(example()), encoding="utf-8")
    for dark, corner in ((False, (253, 253, 252)), (True, (21, 24, 27))):
        shot = opened.visit(page, 500, dark=dark, picture="png", scale=2, clip=(0, 100))
        picture = Image.open(io.BytesIO(shot.picture)).convert("RGB")
        assert picture.size == (1000, 200)
        assert picture.getpixel((1, 1)) == corner
