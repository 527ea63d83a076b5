"""What a report shows beside the figures of results.json: plain arrays, taken from two networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fst_lightning.validate import check_choice

Projection = Literal["pca", "tsne"]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Answers:
    """What a network said of N images.

    Args:
        labels: ``(N,)`` true classes.
        predictions: ``(N,)`` classes.
        confidence: ``(N,)`` softmax of the predicted class, in [0, 1].
        features: ``(N, d)``, what the head got; None where there is no linear head, or where they
            are too large for float32.
        wanted: ``(N,)`` the attacker's labels, -1 for none; None for clean images.
    """

    labels: Array
    predictions: Array
    confidence: Array
    features: Array | None = None
    wanted: Array | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One network, before or after the defense.

    Args:
        clean: its answers to clean test images.
        triggered: its answers to triggered ones; None without an attack.
        head: ``(C, d)`` weight of the last linear layer; None where there is none.
    """

    clean: Answers
    triggered: Answers | None = None
    head: Array | None = None


@dataclass(frozen=True, eq=False)
class Example:
    """A test image without and with the trigger.

    Args:
        clean: ``(H, W, 3)`` uint8.
        triggered: the same with the trigger.
        label: the true class.
        before: what the backdoored network says of the triggered one.
        after: what the purified network says of it; None where there is none.
    """

    clean: Array
    triggered: Array
    label: int
    before: int
    after: int | None = None


@dataclass(frozen=True, eq=False)
class Recovered:
    """What a detector found in a network, as pictures of ``(H, W, 3)`` uint8.

    Args:
        by_class: One per class: a recovered trigger, or the image that the class is most sure of.
        clean: Test images of other classes than the suspected one.
        triggered: The same with the recovered trigger of the suspected class.
    """

    by_class: tuple[Array, ...] = ()
    clean: tuple[Array, ...] = ()
    triggered: tuple[Array, ...] = ()


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that was looked at.

    Args:
        classes: the names of the classes.
        before: the network that came in.
        after: the purified one; None where nothing was purified.
        target: the attacker's label, where there is a single one.
        examples: images for the eye.
        layers: by layer, how far its weight moved: ``||W - W0|| / ||W0||``.
        recovered: what detectors found, by "before" and "after" and by detector.
        num_test: how many clean test images there are in all.
        num_triggered: how many triggered ones there are in all.
        projection: how features are put into the plane: ``pca`` or ``tsne``.
    """

    classes: tuple[str, ...]
    before: Snapshot
    after: Snapshot | None = None
    target: int | None = None
    examples: tuple[Example, ...] = ()
    layers: Mapping[str, float] = field(default_factory=dict)
    recovered: Mapping[str, Mapping[str, Recovered]] = field(default_factory=dict)
    num_test: int = 0
    num_triggered: int = 0
    projection: Projection = "pca"


def confusion(answers: Answers, num_classes: int) -> Array:
    """Count the images of every true class (rows) by the predicted one (columns).

    Example:
        >>> zeros = np.zeros(3)
        >>> confusion(Answers(np.array([0, 0, 1]), np.array([0, 1, 1]), zeros), 2).tolist()
        [[1, 1], [0, 1]]
    """
    places = answers.labels * num_classes + answers.predictions
    counts = np.bincount(places, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


def calibration(answers: Answers, bins: int = 10) -> tuple[Array, Array, Array, float]:
    r"""Compare confidence with accuracy.

    Bin :math:`b` holds the images whose confidence is in :math:`((b - 1)/B, b/B]`;
    :math:`\mathrm{ECE} = \sum_b \frac{n_b}{N} |\mathrm{acc}_b - \mathrm{conf}_b|`.

    Source: Guo et al., "On calibration of modern neural networks", 2017, arXiv 1706.04599.

    Args:
        answers: to N images, 1 or more; those whose confidence is NaN, for their logits are
            infinite, are left out.
        bins: B, 1 or more.

    Returns:
        By bin: mean confidence, accuracy (both NaN where it is empty) and number; the ECE, NaN
        where all are empty.

    Example:
        >>> right, sure = np.array([0, 0]), np.array([0.9, 0.9])
        >>> round(calibration(Answers(right, np.array([0, 1]), sure))[3], 6)
        0.4
    """
    known = ~np.isnan(answers.confidence)
    right = (answers.labels == answers.predictions)[known].astype(float)
    sure = answers.confidence[known].astype(float)
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    number = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, sure, minlength=bins) / number
        accuracy = np.bincount(place, right, minlength=bins) / number
        error = float(np.nansum(np.abs(accuracy - confidence) * number) / number.sum())
    return confidence, accuracy, number, error


def cosines(first: Array, second: Array) -> Array:
    """The cosine between the rows of two matrices of one shape; 0 for a row of zeros.

    In float64, for squares of a float32 may be too large, or too small, for another one.

    Example:
        >>> cosines(np.array([[1.0, 0.0]]), np.array([[-2.0, 0.0]])).tolist()
        [-1.0]
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(axis=1)
    result: Array = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return result


def nearer_target(snapshot: Snapshot) -> float | None:
    """The share of triggered images whose feature is nearer to the target class than to its own.

    Near is by cosine, to the means of the clean features of the classes.
    """
    clean, triggered = snapshot.clean, snapshot.triggered
    if clean.features is None or triggered is None or triggered.features is None:
        return None
    if triggered.wanted is None:
        return None
    means = {
        int(c): clean.features[clean.labels == c].mean(axis=0, dtype=np.float64)
        for c in set(clean.labels)
    }
    nearer = []
    for feature, own, wanted in zip(
        triggered.features, triggered.labels, triggered.wanted, strict=True
    ):
        if int(own) in means and int(wanted) in means and own != wanted:
            both = np.stack([means[int(own)], means[int(wanted)]])
            near = cosines(np.stack([feature, feature]), both)
            nearer.append(near[1] > near[0])
    return float(np.mean(nearer)) if nearer else None


def project(features: Array, method: Projection = "pca") -> Array:
    """Put N features into the plane, ``(N, 2)``.

    Args:
        features: ``(N, d)``.
        method: ``pca``: the two directions of greatest variance, each signed so that its largest
            entry is positive; ``tsne``: scikit-learn's t-SNE, with a fixed seed.

    Raises:
        ValueError: for another method.
    """
    check_projection(method)
    centered = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    if method == "pca":
        _, _, directions = np.linalg.svd(centered, full_matrices=False)
        directions = directions[:2]
        largest = np.abs(directions).argmax(axis=1)
        directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
        plane = centered @ directions.T
        return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    from sklearn.manifold import TSNE  # dear to import

    near = min(30.0, max(1.0, (len(features) - 1) / 3))
    plane = TSNE(perplexity=near, init="random", random_state=0).fit_transform(centered)
    return np.asarray(plane)


def check_projection(method: object) -> None:
    """Refuse what features can't be put into the plane with.

    Raises:
        ValueError: saying what is valid.
    """
    check_choice("report.projection", method, Projection)
