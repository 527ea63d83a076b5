import dataclasses

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import confusion_matrix

from fst_lightning.reports.results.evidence import (
    Answers,
    Snapshot,
    calibration,
    confusion,
    cosines,
    nearer_target,
    project,
)

RANDOM = np.random.default_rng(0)


def answers(count: int = 200, classes: int = 4) -> Answers:
    labels, predictions = RANDOM.integers(0, classes, (2, count))
    return Answers(labels, predictions, RANDOM.uniform(0.25, 1, count))


def test_confusion_is_scikit_learns() -> None:
    found = answers()
    expected = confusion_matrix(found.labels, found.predictions, labels=range(5))
    assert (confusion(found, 5) == expected).all()


def test_calibration_is_a_slow_loop() -> None:
    found = answers()
    confidence, accuracy, number, error = calibration(found)
    expected = 0.0
    for b in range(10):
        inside = [i for i in range(len(found)) if b / 10 < found.confidence[i] <= (b + 1) / 10]
        assert number[b] == len(inside)
        if inside:
            sure = sum(found.confidence[i] for i in inside) / len(inside)
            right = sum(found.labels[i] == found.predictions[i] for i in inside) / len(inside)
            assert (confidence[b], accuracy[b]) == pytest.approx((sure, right))
            expected += len(inside) / len(found) * abs(right - sure)
    assert error == pytest.approx(expected)


def test_a_certain_answer_is_in_the_last_bin() -> None:
    sure = Answers(np.array([1]), np.array([1]), np.array([1.0]))
    assert calibration(sure)[2].tolist() == [0] * 9 + [1]
    assert calibration(sure)[3] == 0.0


def test_answers_of_unknown_confidence_are_left_out() -> None:
    found = answers()
    some = np.arange(len(found)) % 3 > 0
    torn = dataclasses.replace(found, confidence=np.where(some, found.confidence, np.nan))
    rest = Answers(found.labels[some], found.predictions[some], found.confidence[some])
    for ours, theirs in zip(calibration(torn), calibration(rest), strict=True):
        assert ours == pytest.approx(theirs, nan_ok=True)
    nothing = dataclasses.replace(found, confidence=np.full(len(found), np.nan))
    assert calibration(nothing)[2].tolist() == [0] * 10
    assert np.isnan(calibration(nothing)[3])


def test_cosines_are_those_of_angles() -> None:
    angles = np.linspace(0, np.pi, 7)
    turned = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    fixed = np.tile([3.0, 0.0], (7, 1))
    assert cosines(fixed, turned) == pytest.approx(np.cos(angles))
    assert cosines(np.zeros((1, 2)), np.ones((1, 2))).tolist() == [0.0]


@pytest.mark.parametrize("scale", [1e38, 1e-30])
def test_features_of_any_size_are_compared(scale: float) -> None:
    """Squares, and sums over a class, that float32 has no number for."""
    first, second = RANDOM.normal(size=(2, 30, 5)).clip(-3, 3).astype(np.float32)
    large = np.float32(scale)
    assert np.isfinite(first * large).all()
    assert cosines(first * large, second * large) == pytest.approx(cosines(first, second), abs=1e-6)
    labels, aims = np.arange(30) % 3, np.zeros(30, dtype=int)
    shares = [
        nearer_target(
            Snapshot(
                Answers(labels, labels, np.ones(30), first * factor),
                Answers(labels, aims, np.ones(30), second * factor, aims),
            )
        )
        for factor in (np.float32(1), large)
    ]
    assert shares[0] == shares[1]
    assert shares[0] not in (None, 0.0, 1.0)


def test_projection_is_scikit_learns_up_to_signs() -> None:
    features = RANDOM.normal(size=(50, 6)) * np.arange(1, 7)
    ours, theirs = project(features), PCA(2).fit_transform(features)
    signs = np.sign((ours * theirs).sum(axis=0))
    assert ours == pytest.approx(theirs * signs)
    assert project(-features[:, :1]).shape == (50, 2)


def test_tsne_keeps_two_heaps_apart() -> None:
    heaps = np.concatenate([RANDOM.normal(size=(15, 5)), 50 + RANDOM.normal(size=(15, 5))])
    places = project(heaps, "tsne")
    assert places.shape == (30, 2)
    nearest = [np.argsort(((places - place) ** 2).sum(1))[1] for place in places]
    assert all((i < 15) == (j < 15) for i, j in enumerate(nearest))


def test_no_other_projection() -> None:
    with pytest.raises(ValueError, match="one of pca, tsne, but got 'umap'"):
        project(np.zeros((3, 2)), "umap")  # type: ignore[arg-type]


def test_counts_features_that_went_over() -> None:
    """Class 0 points right, class 1 up; of three triggered 1s two point right."""
    sure = np.ones(4)
    clean = np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 3.0]])
    labels = np.array([0, 0, 1, 1])
    stamped = np.array([[5.0, 1.0], [1.0, 0.0], [0.2, 1.0]])
    ones = np.ones(3, dtype=int)
    snapshot = Snapshot(
        Answers(labels, labels, sure, clean),
        Answers(ones, 0 * ones, sure[:3], stamped, 0 * ones),
    )
    assert nearer_target(snapshot) == pytest.approx(2 / 3)
    assert nearer_target(Snapshot(snapshot.clean)) is None
