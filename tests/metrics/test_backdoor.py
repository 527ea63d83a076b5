import warnings

import pytest
import torch
from torch import nn

from fst_lightning.metrics import BackdoorMetrics


def test_counts_what_a_slow_loop_counts() -> None:
    generator = torch.Generator().manual_seed(3)
    clean = torch.randn(40, 4, generator=generator)
    triggered = torch.randn(30, 4, generator=generator)
    clean_labels = torch.randint(4, (40,), generator=generator)
    labels = torch.randint(1, 4, (30,), generator=generator)
    targets = torch.zeros(30, dtype=torch.int64)
    metrics = BackdoorMetrics()
    for start in range(0, 40, 7):
        metrics.update_clean(clean[start : start + 7], clean_labels[start : start + 7])
    metrics.update_triggered(triggered, labels, targets)

    guesses = [row.index(max(row)) for row in triggered.tolist()]
    expected = {
        "ca": sum(
            row.index(max(row)) == label
            for row, label in zip(clean.tolist(), clean_labels.tolist(), strict=True)
        ),
        "asr": sum(guess == 0 for guess in guesses),
        "ra": sum(guess == label for guess, label in zip(guesses, labels.tolist(), strict=True)),
    }
    assert metrics.counts() == {
        "ca": (expected["ca"], 40),
        "asr": (expected["asr"], 30),
        "ra": (expected["ra"], 30),
    }
    rates = metrics.compute()
    assert rates["ca"] == pytest.approx(expected["ca"] / 40)
    assert rates["asr"] is not None
    assert rates["ra"] is not None
    assert rates["asr"] + rates["ra"] <= 1


def test_rates_without_rows_are_none_and_nothing_warns() -> None:
    metrics = BackdoorMetrics()
    metrics.update_clean(torch.eye(2), torch.tensor([0, 1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.compute() == {"ca": 1.0, "asr": None, "ra": None}


def test_reset_forgets_everything() -> None:
    metrics = BackdoorMetrics()
    metrics.update_clean(torch.eye(2), torch.tensor([0, 1]))
    metrics.update_triggered(torch.eye(2), torch.tensor([0, 1]), torch.tensor([1, 0]))
    metrics.reset()
    assert metrics.counts() == {"ca": (0, 0), "asr": (0, 0), "ra": (0, 0)}


def test_is_a_submodule_that_adds_no_key_to_the_state_dict() -> None:
    outer = nn.Sequential(nn.Linear(2, 2), BackdoorMetrics())
    assert set(outer.state_dict()) == {"0.weight", "0.bias"}
    outer.to("meta")
    inner = outer[1]
    assert isinstance(inner, BackdoorMetrics)
    assert inner.ca.correct.device.type == "meta"


def test_the_control_is_told_if_it_was_counted() -> None:
    """Clean images with the attacker's label, among the rows that the attack is measured on."""
    metrics = BackdoorMetrics()
    metrics.update_clean(torch.eye(4), torch.arange(4))
    assert metrics.counts() == {"ca": (4, 4), "asr": (0, 0), "ra": (0, 0)}
    guesses, targets = torch.tensor([0, 0, 1, 0]), torch.zeros(4, dtype=torch.int64)
    counted = torch.tensor([False, True, True, True])
    metrics.update_control(guesses, targets, counted)
    expected = sum(
        int(guess == target)
        for guess, target, row in zip(guesses, targets, counted, strict=True)
        if row
    )
    assert metrics.counts()["control"] == (expected, 3) == (2, 3)
    assert metrics.compute() == {"ca": 1.0, "asr": None, "ra": None}
    metrics.reset()
    assert "control" not in metrics.counts()
