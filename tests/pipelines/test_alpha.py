"""`defense.alpha=auto` chooses on clean images alone."""

import itertools
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fst_lightning.pipelines.alpha import Comparison, choose_alpha, log_grid, strongest
from torch import Tensor

from fst_lightning.attacks import BadNets
from fst_lightning.data import BackdoorDataModule
from fst_lightning.metrics import paired_drop_interval
from fst_lightning.models import find_head, small_resnet
from fst_lightning.modules import InputPipeline
from fst_lightning.pipelines import alpha, run_pipeline
from fst_lightning.pipelines.parts import make_attack, make_defense, make_source
from tests.pipelines.conftest import Start


def defender(run: Any) -> BackdoorDataModule:
    data = BackdoorDataModule(
        make_source(run), make_attack(run), purpose="purify", batch_size=8, clean_ratio=0.5
    )
    data.setup()
    return data


def test_a_number_is_chosen_and_recorded(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    results = run_pipeline(start("defense.alpha=auto"))
    block = results["defense"]
    tried = block["findings"]["alpha_search"]["tried"]
    assert f"{block['alpha']:.3g}" in tried
    assert block["auto"] == ["alpha"]
    assert f"alpha={block['alpha']:.3g} chosen" in capsys.readouterr().out
    fixed = run_pipeline(start(f"defense.alpha={block['alpha']}"))
    assert fixed["after"] == results["after"]
    assert "auto" not in fixed["defense"]


def test_the_search_is_a_part_of_what_a_purification_costs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any) -> tuple[float, dict[str, Any]]:
        time.sleep(2)
        return 0.1, {}

    fixed = run_pipeline(start("defense.alpha=0.1"))["seconds"]
    # The package has a function of the module's name.
    monkeypatch.setattr(sys.modules["fst_lightning.pipelines.purify"], "choose_alpha", slow)
    chosen = run_pipeline(start("defense.alpha=auto"))["seconds"]
    assert fixed["purify"] < 2 < chosen["purify"]


@pytest.mark.parametrize("option", ["anp", "nft", "rnp"])
def test_every_defense_with_an_alpha_has_it_chosen(option: str, start: Start) -> None:
    quick = ["defense.unlearn_epochs=1"] if option == "rnp" else []
    results = run_pipeline(start(f"defense={option}", "defense.alpha=auto", *quick))
    low, high = sorted(make_defense(start(f"defense={option}")).alpha_range(small_resnet(3)))
    assert low <= results["defense"]["alpha"] <= high


def test_neither_trigger_nor_test_images_are_looked_at(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start("defense.alpha=auto")
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
    choose_alpha(run, net, data)
    assert set(seen) == held  # all of them, and nothing else
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())


def test_no_image_is_judged_by_a_network_that_was_tuned_on_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start("defense.alpha=auto", "defense.max_ca_drop=1")
    data = defender(run)
    pairs: list[tuple[set[bytes], set[bytes]]] = []
    tuned = alpha._Probe._tuned

    def watched(self: Any, rows: Any, unseen: Any) -> Tensor:
        pairs.append(
            tuple({image.numpy().tobytes() for image in part.images} for part in (rows, unseen))  # type: ignore[arg-type]
        )
        return tuned(self, rows, unseen)

    monkeypatch.setattr(alpha._Probe, "_tuned", watched)
    choose_alpha(run, small_resnet(3, width=4), data)
    assert len(pairs) % alpha.FOLDS == 0
    for first in range(0, len(pairs), alpha.FOLDS):
        folds = pairs[first : first + alpha.FOLDS]
        assert sum(len(unseen) for _, unseen in folds) == len(data.train_rows)
        assert all(not rows & unseen for rows, unseen in folds)


def pretend(
    monkeypatch: pytest.MonkeyPatch, right: Callable[[float], int], before: int, count: int = 600
) -> list[float]:
    """Replace the tunings: an alpha gets the first ``right(alpha)`` of the images right."""
    asked: list[float] = []

    def first(number: int) -> Tensor:
        return torch.arange(count) < number

    class Pretended:
        def __init__(self, *_: Any) -> None:
            pass

        def before(self) -> Tensor:
            return first(before)

        def __call__(self, value: float, *_: Any) -> tuple[Tensor, Tensor]:
            asked.append(value)
            return first(right(value)), torch.ones(count, dtype=torch.bool)

    monkeypatch.setattr(alpha, "_Probe", Pretended)
    return asked


def chosen(start: Start, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[float, Any]:
    """What is chosen on 600 images, and what was tried."""
    run = start("defense.alpha=auto", *overrides)
    data = defender(run)
    monkeypatch.setattr(data, "train_rows", range(600))
    value, findings = choose_alpha(run, head_of_norm(1.0), data)
    return value, findings["alpha_search"]


def head_of_norm(norm: float) -> torch.nn.Module:
    net = small_resnet(3, width=4)
    head = find_head(net)[1]
    with torch.no_grad():
        head.weight.mul_(norm / head.weight.norm())
    return net


def test_the_strongest_that_is_not_shown_to_cost_more(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten more images of 600 are lost with every power of ten."""
    asked = pretend(monkeypatch, lambda value: round(590 - 10 * math.log10(value / 0.01)), 590)
    value, search = chosen(start, monkeypatch)
    grid = log_grid(0.01, 100)
    fitting = [
        number
        for number in grid
        if paired_drop_interval(round(10 * math.log10(number / 0.01)), 0, 600, 0.9)[0] <= 0.02
    ]
    assert 1 < len(fitting) < len(grid)
    assert value == pytest.approx(fitting[-1])
    assert len(asked) <= 2 + math.log2(len(grid))
    assert search["compared_with"] == "before"
    assert chosen(start, monkeypatch, "defense.max_ca_drop=1")[0] == pytest.approx(100)
    assert chosen(start, monkeypatch, "defense.max_ca_drop=0")[0] == pytest.approx(0.01)


def test_what_the_recipe_itself_costs_is_not_charged_to_alpha(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, lambda value: 540 if value < 1.5 else 480, before=600)
    value, search = chosen(start, monkeypatch)
    assert search["compared_with"] == "weakest"
    assert search["weakest_ca_drop"] == pytest.approx(0.1)
    assert value == pytest.approx(max(v for v in log_grid(0.01, 100) if v < 1.5))


def test_a_head_of_another_norm_gets_the_same_penalty() -> None:
    """alpha ||W0||^2 is what is searched over."""
    for norm in (0.5, 7.0):
        low, high = alpha_range(norm)
        assert (low * norm**2, high * norm**2) == pytest.approx((0.01, 100))


def alpha_range(norm: float) -> tuple[float, float]:
    from fst_lightning.defenses import FST

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


@pytest.mark.parametrize("total", [60, 300, 1000])
def test_the_rule_errs_as_often_as_it_says(total: int) -> None:
    """Of settings that cost exactly what is allowed, one in twenty is given up."""
    draws = np.random.default_rng(1).multinomial(total, [0.06, 0.04, 0.9], size=2000)
    given_up = np.mean([not Comparison(int(b), int(c), total).within(0.02) for b, c, _ in draws])
    assert 0.02 < given_up < 0.08
    drops = [Comparison(b, 0, total).within(0.02) for b in range(total)]
    assert drops == sorted(drops, reverse=True)


def test_a_probe_ends_with_the_fold_that_has_cost_too_much(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start("defense.alpha=auto")
    data = defender(run)
    probe = alpha._Probe(run, small_resnet(3, width=4), data, None)
    tuned: list[int] = []

    def all_wrong(_: Any, rows: Any, unseen: Any) -> Tensor:
        tuned.append(len(unseen))
        return torch.zeros(len(unseen), dtype=torch.bool)

    monkeypatch.setattr(alpha._Probe, "_tuned", all_wrong)
    everything = torch.ones(len(data.train_rows), dtype=torch.bool)
    _, asked = probe(1.0, everything, 0.02)
    assert (len(tuned), int(asked.sum())) == (1, tuned[0])
    assert probe(1.0, everything, 1.0)[1].all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("tuning.clean_ratio=0.08",), "6 or more clean images"),
        (("defense.max_ca_drop=2",), "max_ca_drop"),
        (("defense.max_ca_drop=abc",), "max_ca_drop"),
    ],
)
def test_what_can_not_be_used_is_refused(
    overrides: tuple[str, ...], message: str, start: Start
) -> None:
    with pytest.raises(ValueError, match=message):
        run_pipeline(start("defense.alpha=auto", *overrides))


def test_auto_is_for_defenses_that_have_an_alpha(start: Start) -> None:
    with pytest.raises(ValueError, match="such as fst, but ft has none"):
        run_pipeline(start("defense=ft", "+defense.alpha=auto"))
