"""A learning rate and an alpha are chosen on clean images alone."""

import itertools
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from fst_lightning.attacks import BadNets
from fst_lightning.configuration import ALPHA, LEARNING_RATE
from fst_lightning.data import BackdoorDataModule
from fst_lightning.defenses import FST
from fst_lightning.metrics import paired_drop_interval
from fst_lightning.models import find_head, small_resnet
from fst_lightning.modules import InputPipeline
from fst_lightning.pipelines import run_pipeline
from fst_lightning.pipelines.build.parts import make_defense
from fst_lightning.pipelines.measure.score import findings_block
from fst_lightning.pipelines.search import automatic
from fst_lightning.pipelines.search.automatic import choose_settings, log_grid, strongest
from fst_lightning.pipelines.search.probe import Trial, compare
from fst_lightning.reports import verdict
from tests.pipelines.conftest import Start, defender

GO_ON = "tuning.on_no_setting=weakest"  # on noise, with one epoch, every setting may cost too much


def test_a_number_is_chosen_and_recorded(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    results = run_pipeline(start("defense.alpha=auto", GO_ON))
    block = results["defense"]
    tried = block["findings"]["alpha_search"]["tried"]
    assert f"{block['alpha']:.3g}" in tried
    assert block["auto"] == ["alpha"]
    assert block["findings"]["alpha_search"]["chosen"] == block["alpha"]
    assert (
        f"The run chose alpha {block['alpha']:.3g} (defense.alpha=auto)" in capsys.readouterr().out
    )
    fixed = run_pipeline(start(f"defense.alpha={block['alpha']}"))
    assert fixed["after"] == results["after"]
    assert "auto" not in fixed["defense"]


def test_the_search_is_a_part_of_what_a_purification_costs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(run: Any, *_: Any) -> dict[str, Any]:
        time.sleep(2)
        run.cfg.defense.alpha = 0.1
        return {}

    fixed = run_pipeline(start("defense.alpha=0.1"))["seconds"]
    # The package has a function of the module's name.
    monkeypatch.setattr(sys.modules["fst_lightning.pipelines.purify"], "choose_settings", slow)
    chosen = run_pipeline(start("defense.alpha=auto"))["seconds"]
    assert fixed["purify"] < 2 < chosen["purify"]


@pytest.mark.parametrize("option", ["anp", "nft"])
def test_every_defense_with_an_alpha_of_its_strength_has_it_chosen(
    option: str, start: Start
) -> None:
    results = run_pipeline(start(f"defense={option}", "defense.alpha=auto", GO_ON))
    low, high = sorted(make_defense(start(f"defense={option}")).alpha_range(small_resnet(3)))
    assert low <= results["defense"]["alpha"] <= high


def test_neither_trigger_nor_test_images_are_looked_at(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start("defense.alpha=auto", GO_ON)
    data = defender(run)
    held = {image.numpy().tobytes() for image in data.train_rows.images}
    net = small_resnet(3, width=4)
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    seen: list[bytes] = []

    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("not for the defender's eyes")

    monkeypatch.setattr(BadNets, "trigger", refuse)
    monkeypatch.setattr(BackdoorDataModule, "test_dataloader", refuse)
    monkeypatch.setattr(BackdoorDataModule, "val_dataloader", refuse)
    look = InputPipeline.forward

    def watched(self: InputPipeline, images: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.extend(image.numpy().tobytes() for image in images)
        return look(self, images, *rest, **options)

    monkeypatch.setattr(InputPipeline, "forward", watched)
    choose_settings(run, net, data)
    assert set(seen) == held  # all of them, and nothing else
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    right: Callable[[float, float], int],
    before: int,
    count: int = 600,
) -> list[tuple[float, float]]:
    """Replace the tunings: a rate and an alpha get the first so many of the images right."""
    asked: list[tuple[float, float]] = []

    def first(number: int) -> Tensor:
        return torch.arange(count) < number

    class Pretended:
        def __init__(self, run: Any, *_: Any) -> None:
            self.settings = {key: OmegaConf.select(run.cfg, key) for key in (LEARNING_RATE, ALPHA)}

        def set(self, key: str, value: float) -> None:
            self.settings[key] = value

        def before(self) -> Tensor:
            return first(before)

        def __call__(self, reference: Tensor, allowed: float) -> Trial:
            setting = (self.settings[LEARNING_RATE], self.settings[ALPHA])
            if setting not in asked:
                asked.append(setting)
            answers, everything = first(right(*setting)), torch.ones(count, dtype=torch.bool)
            return Trial(answers, everything, compare(reference, answers, count))

    monkeypatch.setattr(automatic, "Probe", Pretended)
    return asked


def chosen(start: Start, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Any:
    """What is chosen on 600 images for a head of norm 1: the configuration, what was tried."""
    run = start(*overrides)
    data = defender(run)
    monkeypatch.setattr(data, "train_rows", range(600))
    return run.cfg, choose_settings(run, head_of_norm(1.0), data)


def head_of_norm(norm: float) -> torch.nn.Module:
    net = small_resnet(3, width=4)
    head = find_head(net)[1]
    with torch.no_grad():
        head.weight.mul_(norm / head.weight.norm())
    return net


def test_the_strongest_alpha_that_is_not_shown_to_cost_more(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten more images of 600 are lost with every power of ten."""
    asked = pretend(monkeypatch, lambda _, alpha: round(590 - 10 * math.log10(alpha / 0.01)), 590)
    cfg, found = chosen(start, monkeypatch, "defense.alpha=auto")
    grid = log_grid(0.01, 100)
    fitting = [
        number
        for number in grid
        if paired_drop_interval(round(10 * math.log10(number / 0.01)), 0, 600, 0.9)[0] <= 0.02
    ]
    assert 1 < len(fitting) < len(grid)
    assert cfg.defense.alpha == pytest.approx(fitting[-1])
    assert len(asked) <= 2 + math.log2(len(grid))
    assert found["alpha_search"]["compared_with"] == "before"
    for drop, alpha in ((1, 100), (0, 0.01)):
        overrides = ("defense.alpha=auto", f"tuning.max_ca_drop={drop}")
        assert chosen(start, monkeypatch, *overrides)[0].defense.alpha == pytest.approx(alpha)


def test_what_the_recipe_itself_costs_is_not_charged_to_alpha(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, lambda _, alpha: 540 if alpha < 1.5 else 480, before=600)
    cfg, found = chosen(start, monkeypatch, "defense.alpha=auto", GO_ON)
    search = found["alpha_search"]
    assert search["within_budget"] is False
    assert search["compared_with"] == "0.01"
    assert search["compared_with_ca_drop"] == pytest.approx(0.1)
    assert search["tried"]["0.01"]["ca_drop"] == 0
    assert cfg.defense.alpha == pytest.approx(max(v for v in log_grid(0.01, 100) if v < 1.5))


def valley(rate: float, _: float) -> int:
    """Rates that are too low cost accuracy as well as those that are too high."""
    return 590 if 0.004 < rate < 0.05 else 500


def test_the_highest_rate_that_fits(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, valley, before=592)
    cfg, found = chosen(start, monkeypatch, "tuning.optimizer.lr=auto", "defense.alpha=0.3")
    grid = log_grid(1.0, 0.001)
    assert cfg.tuning.optimizer.lr == pytest.approx(max(rate for rate in grid if rate < 0.05))
    assert found["lr_search"]["chosen"] == cfg.tuning.optimizer.lr
    assert [rate for rate, _ in asked] == [
        rate for rate in grid if rate >= found["lr_search"]["chosen"]
    ]
    assert {alpha for _, alpha in asked} == {0.3}
    assert cfg.defense.alpha == 0.3
    assert "alpha_search" not in found


def test_rates_that_all_cost_too_much_are_measured_by_the_cheapest(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on images that the network knew by heart."""
    cheapest = log_grid(1.0, 0.001)[6]
    asked = pretend(
        monkeypatch, lambda rate, _: 530 + (rate == cheapest) - 50 * (rate > 0.2), before=600
    )
    cfg, found = chosen(start, monkeypatch, "tuning.optimizer.lr=auto", GO_ON)
    assert len(asked) == len(log_grid(1.0, 0.001))
    assert found["lr_search"]["compared_with"] == f"{cheapest:.3g}"
    assert found["lr_search"]["compared_with_ca_drop"] == pytest.approx(69 / 600)
    highest = max(rate for rate in log_grid(1.0, 0.001) if rate < 0.2)
    assert cfg.tuning.optimizer.lr == pytest.approx(highest)


def test_the_rate_comes_first_at_the_weakest_alpha(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = pretend(
        monkeypatch, lambda rate, alpha: 590 - 100 * (rate > 0.05) - 100 * (alpha > 3), before=590
    )
    cfg, found = chosen(
        start, monkeypatch, "tuning.optimizer.lr=auto", "defense.alpha=auto", "seed=3"
    )
    rate = found["lr_search"]["chosen"]
    assert rate == pytest.approx(max(r for r in log_grid(1.0, 0.001) if r <= 0.05))
    assert cfg.defense.alpha == pytest.approx(max(a for a in log_grid(0.01, 100) if a <= 3))
    first = [pair for pair in asked if pair[0] != rate]
    assert asked[: len(first)] == first  # every rate, then every alpha
    assert all(alpha == pytest.approx(0.01) for _, alpha in first)


def test_a_run_stops_if_every_setting_costs_too_much(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a public network: 49.6 % before, and 35 points lost at the least costly rate."""
    least = log_grid(1.0, 0.001)[-1]
    pretend(monkeypatch, lambda rate, _: 88 if rate == pytest.approx(least) else 60, before=298)
    keys = ("tuning.optimizer.lr=auto", "defense.alpha=auto", "tuning.max_ca_drop=0.01")
    low, high = (100 * end for end in paired_drop_interval(210, 0, 600, 0.9))
    with pytest.raises(
        ValueError,
        match=rf"tuning.optimizer.lr=auto .* at most 0.5 points .* got none: 0.001, the least "
        rf"costly of 10 tried, costs 35.0 points \({low:.1f} to {high:.1f}\) on 600 clean images. "
        "Nothing was tuned. .*tuning.on_no_setting=weakest",
    ):
        chosen(start, monkeypatch, *keys)
    cfg, found = chosen(start, monkeypatch, *keys, GO_ON)
    assert cfg.tuning.optimizer.lr == pytest.approx(least)
    assert found["lr_search"]["within_budget"] is False
    assert [each["what"].split()[3] for each in found["shortfalls"]] == [LEARNING_RATE, ALPHA]
    assert "costs 35.0 points" in found["shortfalls"][0]["why"]


def test_images_known_by_heart_are_named_as_the_reason(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for before, named in ((600, True), (540, False)):
        pretend(monkeypatch, lambda *_: 400, before=before)
        with pytest.raises(ValueError, match="costs at most 2") as error:
            chosen(start, monkeypatch, "defense.alpha=auto")
        assert ("tuning.clean_source=heldout" in str(error.value)) is named


def test_a_run_that_stops_tunes_nothing_and_one_that_goes_on_is_no_success(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "tuning.optimizer.lr=auto"
    pretend(monkeypatch, lambda *_: 0, before=30, count=30)
    stopped = start(key)
    with pytest.raises(ValueError, match="Nothing was tuned"):
        run_pipeline(stopped)
    assert not (stopped.folder / "purified.safetensors").exists()
    assert not (stopped.folder / "results.json").exists()

    run = start(key, GO_ON, "report.enabled=true")
    results = run_pipeline(run)
    missed = results["defense"]["findings"]["shortfalls"][0]
    assert (
        missed["what"] == f"No value of {key.split('=')[0]} was within the budget of clean accuracy"
    )
    printed = capsys.readouterr().out
    assert f"warning  {missed['what']}. {missed['why']}" in printed
    last = [line for line in printed.splitlines() if line][-2:]
    assert f"no success: {missed['what']}" in last
    assert last[-1].startswith("no success: ")
    found = verdict(results)
    assert found.headline.startswith(missed["what"])
    assert found.tone != "good"
    assert missed["why"] in (run.folder / "report.html").read_text("utf-8")


def test_a_network_that_breaks_the_budget_on_test_images_is_no_success(start: Start) -> None:
    run = start("defense.alpha=auto")
    defense = make_defense(start("defense=ft"))
    searches = {"alpha_search": {"chosen": 1.0}}
    for lost, gained, total in ((40, 2, 1000), (20, 2, 1000), (12, 2, 60), (1, 0, 60), (0, 9, 100)):
        found = findings_block(run, searches, defense, (lost, gained, total))
        broken = paired_drop_interval(lost, gained, total, 0.9)[0] > 0.02
        assert ("shortfalls" in found) is broken
        if broken:
            assert found["shortfalls"][0]["what"] == "The network costs more than the budget"
            drop = 100 * (lost - gained) / total
            assert f"lost {drop:.1f} points" in found["shortfalls"][0]["why"]
    assert findings_block(run, searches, defense, (40, 2, 1000))["shortfalls"]
    assert findings_block(run, searches, defense, None) == searches
    assert findings_block(run, {}, defense, (40, 2, 1000)) == {}  # nothing was promised


def test_the_rate_takes_half_of_the_budget_if_alpha_is_chosen_too(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, lambda *_: 590, before=590)
    for keys, allowed in (
        (["tuning.optimizer.lr=auto", "defense.alpha=auto"], [0.02, 0.04]),
        (["tuning.optimizer.lr=auto"], [0.04]),
        (["defense.alpha=auto"], [0.04]),
    ):
        _, found = chosen(start, monkeypatch, *keys, "tuning.max_ca_drop=0.04")
        assert [search["max_ca_drop"] for search in found.values()] == allowed


def test_both_are_chosen_and_recorded(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    results = run_pipeline(start("defense.alpha=auto", "tuning.optimizer.lr=auto", GO_ON))
    rate = results["defense"]["findings"]["lr_search"]["chosen"]
    alpha = results["defense"]["alpha"]
    said = capsys.readouterr().out
    assert f"The run chose learning rate {rate:.3g} (tuning.optimizer.lr=auto)" in said
    assert f"The run chose alpha {alpha:.3g} (defense.alpha=auto)" in said
    fixed = run_pipeline(start(f"defense.alpha={alpha}", f"tuning.optimizer.lr={rate}"))
    assert fixed["after"] == results["after"]


def test_a_defense_without_alpha_has_its_rate_chosen(start: Start) -> None:
    results = run_pipeline(start("defense=ft", "tuning.optimizer.lr=auto", GO_ON))
    assert 0.001 <= results["defense"]["findings"]["lr_search"]["chosen"] <= 1.0
    assert "auto" not in results["defense"]


def test_a_head_of_another_norm_gets_the_same_penalty() -> None:
    """alpha ||W0||^2 is what is searched over."""
    for norm in (0.5, 7.0):
        low, high = alpha_range(norm)
        assert (low * norm**2, high * norm**2) == pytest.approx((0.01, 100))


def alpha_range(norm: float) -> tuple[float, float]:
    return FST().alpha_range(head_of_norm(norm))


@pytest.mark.parametrize("last", range(13))
def test_bisection_finds_what_a_walk_finds(last: int) -> None:
    grid = log_grid(0.01, 100)
    assert len(grid) == 13
    asked: list[float] = []

    def fits(value: float) -> bool:
        asked.append(value)
        return value <= grid[last]

    assert strongest(grid, fits) == grid[last]
    assert len(asked) <= 4
    assert all(b / a == pytest.approx(10 ** (1 / 3)) for a, b in itertools.pairwise(grid))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("defense.alpha=auto", "tuning.clean_ratio=0.08"), "6 or more clean images"),
        (("tuning.optimizer.lr=auto", "tuning.clean_ratio=0.08"), "for tuning.optimizer.lr=auto"),
        (("defense.alpha=auto", "tuning.max_ca_drop=2"), "max_ca_drop"),
        (("defense.alpha=auto", "tuning.max_ca_drop=abc"), "max_ca_drop"),
        (("tuning.max_ca_drop=abc",), "`tuning.max_ca_drop` to be a number in"),
        (("tuning.on_no_setting=cheapest",), "on_no_setting` to be one of stop, weakest"),
        (("tuning.folds=1",), "`tuning.folds` to be a whole number of 2 or more"),
        (("defense.alpha=auto", "tuning.folds=31"), "31 or more clean images"),
        (("defense=rnp", "defense.alpha=auto"), "that of rnp only scales its loss"),
        (("tuning.lr_range=[1,0.1]",), "tuning.lr_range"),
        (("tuning.lr_range=0.1",), "tuning.lr_range"),
        (("training.optimizer.lr=auto",), "training.optimizer.lr` to be a number"),
        (("defense=ft", "+defense.alpha=auto"), "such as fst, but ft has none"),
        (("defense=clp", "tuning.optimizer.lr=auto"), "clp takes no steps"),
    ],
)
def test_what_can_not_be_used_is_refused(
    overrides: tuple[str, ...], message: str, start: Start
) -> None:
    with pytest.raises(ValueError, match=message):
        run_pipeline(start(*overrides))
