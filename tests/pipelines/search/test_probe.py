"""What a setting costs, on images that no step has seen."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fst_lightning.models import small_resnet
from fst_lightning.pipelines.search.automatic import choose_settings
from fst_lightning.pipelines.search.probe import Comparison, Probe
from tests.pipelines.conftest import Start, defender


@pytest.mark.parametrize(("folds", "held_out"), [(3, 0.0), (5, 0.0), (3, 0.2)])
def test_no_image_is_judged_by_a_network_that_was_tuned_on_it(
    folds: int, held_out: float, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every image of the defender is judged, those that a defense holds out included."""
    run = start("defense.alpha=auto", "tuning.max_ca_drop=1", f"tuning.folds={folds}")
    data = defender(run, held_out)
    everything = len(data.train_rows) + len(data.held_out_rows or ())
    assert everything == 30
    pairs: list[tuple[set[bytes], set[bytes]]] = []
    tuned = Probe._tuned

    def watched(self: Any, rows: Any, unseen: Any) -> Tensor:
        pairs.append(
            tuple({image.numpy().tobytes() for image in part.images} for part in (rows, unseen))  # type: ignore[arg-type]
        )
        return tuned(self, rows, unseen)

    monkeypatch.setattr(Probe, "_tuned", watched)
    choose_settings(run, small_resnet(3, width=4), data)
    assert len(pairs) % folds == 0
    for first in range(0, len(pairs), folds):
        parts = pairs[first : first + folds]
        assert len(set().union(*(unseen for _, unseen in parts))) == everything
        assert sum(len(unseen) for _, unseen in parts) == everything
        assert all(not rows & unseen for rows, unseen in parts)
        assert all(len(rows) + len(unseen) == everything for rows, unseen in parts)


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
    run = start()
    data = defender(run)
    probe = Probe(run, small_resnet(3, width=4), data, None)
    tuned: list[int] = []

    def all_wrong(_: Any, rows: Any, unseen: Any) -> Tensor:
        tuned.append(len(unseen))
        return torch.zeros(len(unseen), dtype=torch.bool)

    monkeypatch.setattr(Probe, "_tuned", all_wrong)
    everything = torch.ones(len(data.train_rows), dtype=torch.bool)
    trial = probe(everything, 0.02)
    assert (len(tuned), int(trial.asked.sum())) == (1, tuned[0])
    assert trial.drop == 1.0
    assert trial.found.drop == tuned[0] / len(everything)
    assert probe(everything, 1.0).asked.all()
    assert len(tuned) == 3  # the first fold was tuned before
    probe.set("defense.alpha", 0.5)
    assert probe(everything, 0.02).drop == 1.0
    assert len(tuned) == 4
