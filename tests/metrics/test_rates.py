import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score
from torch import Tensor
from torchmetrics import Metric

from fst_lightning.metrics import AttackSuccessRate, CleanAccuracy, RobustAccuracy

METRICS = [CleanAccuracy, AttackSuccessRate, RobustAccuracy]
AnyRate = CleanAccuracy | AttackSuccessRate | RobustAccuracy


def draw(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator)
    return logits, torch.randint(classes, (rows,), generator=generator)


def slow_count(logits: Tensor, target: Tensor) -> int:
    right = 0
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        right += row.index(max(row)) == label
    return right


@pytest.mark.parametrize("metric_class", METRICS)
@pytest.mark.parametrize("as_labels", [False, True])
def test_agrees_with_sklearn_and_with_a_slow_count(
    metric_class: type[AnyRate], as_labels: bool
) -> None:
    logits, target = draw(157, 5)
    preds = torch.from_numpy(np.argmax(logits.numpy(), axis=1))
    metric = metric_class()
    metric.update(preds if as_labels else logits, target)

    expected = accuracy_score(target.numpy(), preds.numpy())
    assert metric.compute().item() == pytest.approx(expected, abs=1e-7)
    assert metric.counts() == (slow_count(logits, target), 157)


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    classes=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_batches_count_like_the_whole(sizes: list[int], classes: int, seed: int) -> None:
    logits, target = draw(sum(sizes), classes, seed)
    batched, whole = RobustAccuracy(), RobustAccuracy()
    whole.update(logits, target)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    for start, end in zip([0, *ends], ends, strict=False):
        batched.update(logits[start:end], target[start:end])

    assert batched.counts() == whole.counts() == (slow_count(logits, target), sum(sizes))
    torch.testing.assert_close(batched.compute(), whole.compute(), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_takes_logits_of_any_precision(dtype: torch.dtype) -> None:
    metric = CleanAccuracy()
    metric.update(torch.eye(4, dtype=dtype), torch.tensor([0, 1, 2, 0]))
    assert metric.counts() == (3, 4)


def test_counts_are_exact_integers_of_any_size() -> None:
    metric = CleanAccuracy()
    metric.correct += 2**40
    metric.total += 2**40
    metric.update(torch.tensor([1, 2]), torch.tensor([1, 1]))
    assert metric.correct.dtype == metric.total.dtype == torch.int64
    assert metric.counts() == (2**40 + 1, 2**40 + 2)


def test_nothing_counted_is_nan_and_reset_returns_to_it() -> None:
    metric = CleanAccuracy()
    metric.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert metric.compute().isnan()
    metric.update(torch.eye(3), torch.arange(3))
    assert metric.compute() == 1
    metric.reset()
    assert metric.counts() == (0, 0)


def test_a_row_with_nan_is_never_right() -> None:
    logits = torch.tensor([[float("nan")] * 2, [float("nan"), 1.0], [float("inf"), 0.0]])
    for target in ([0, 0, 0], [1, 1, 0]):
        metric = AttackSuccessRate()
        metric.update(logits, torch.tensor(target))
        assert metric.counts() == (1, 3)


@pytest.mark.parametrize(
    ("preds", "target", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), "same number of rows.*3 and 2"),
        (torch.zeros(2, 2), torch.zeros(2), "`target` to hold integers.*float32"),
        (torch.zeros(2, 2), torch.zeros(2, dtype=torch.bool), "`target` to hold integers.*bool"),
        (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64), r"shape \(N,\).*\(2, 2\)"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64), "integer labels.*float32"),
        (torch.zeros(2, 2).long(), torch.zeros(2, dtype=torch.int64), "floating point.*int64"),
        (torch.zeros(2, 0), torch.zeros(2, dtype=torch.int64), "a column for each class"),
        (torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64), r"\(2, 3, 4\)"),
        (torch.tensor(1), torch.zeros(1, dtype=torch.int64), r"logits \(N, C\) or labels"),
    ],
)
def test_refuses_what_it_would_count_wrongly(preds: Tensor, target: Tensor, message: str) -> None:
    metric = CleanAccuracy()
    with pytest.raises(ValueError, match=message):
        metric.update(preds, target)
    assert metric.counts() == (0, 0)


def test_update_never_waits_for_the_device() -> None:
    # A tensor on the meta device has no values: reading one, as `.item()` does, raises.
    metric = CleanAccuracy().to("meta")
    metric.update(
        torch.zeros(4, 3, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta")
    )
    assert metric.total.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.parametrize("metric_class", METRICS)
def test_update_does_not_synchronize_cuda(metric_class: type[AnyRate]) -> None:
    logits, target = (tensor.cuda() for tensor in draw(64, 5))
    metric = metric_class().cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        metric.update(logits, target)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert metric.counts() == (slow_count(logits.cpu(), target.cpu()), 64)


@pytest.mark.parametrize("metric_class", METRICS)
def test_survives_pickle_and_state_dict(metric_class: type[AnyRate]) -> None:
    metric = metric_class()
    metric.persistent(True)
    metric.update(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 0]))

    assert pickle.loads(pickle.dumps(metric)).counts() == (2, 3)
    fresh = metric_class()
    fresh.persistent(True)
    fresh.load_state_dict(metric.state_dict())
    assert fresh.counts() == (2, 3)


def test_forward_gives_the_batch_and_keeps_the_sum() -> None:
    metric = CleanAccuracy()
    assert metric(torch.tensor([0, 1]), torch.tensor([0, 1])) == 1
    assert metric(torch.tensor([0, 1]), torch.tensor([1, 1])) == 0.5
    assert metric.compute() == 0.75


@pytest.mark.parametrize(
    ("metric_class", "better"),
    [(CleanAccuracy, True), (AttackSuccessRate, False), (RobustAccuracy, True)],
)
def test_says_what_it_is(metric_class: type[AnyRate], better: bool) -> None:
    metric: Any = metric_class()
    assert isinstance(metric, Metric)
    assert metric.higher_is_better is better
    assert metric.is_differentiable is False
    assert metric.full_state_update is False


def test_a_rate_can_be_plotted(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the means of torchmetrics, which draws with matplotlib."""
    drawn: list[Any] = []

    def draw(values: Any, **options: Any) -> tuple[str, str]:
        drawn.append((float(values), options["lower_bound"], options["upper_bound"]))
        return "figure", "axes"

    monkeypatch.setattr("torchmetrics.metric.plot_single_or_multi_val", draw)
    for kind in (CleanAccuracy, AttackSuccessRate, RobustAccuracy):
        metric = kind()
        metric.update(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 0, 0]))
        assert metric.plot() == ("figure", "axes")
        assert drawn.pop() == (0.5, 0.0, 1.0)


def test_a_rate_is_drawn() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    metric = CleanAccuracy()
    metric.update(torch.tensor([0, 1]), torch.tensor([0, 0]))
    figure, axes = metric.plot()
    assert axes is not None
    pyplot.close(figure)
