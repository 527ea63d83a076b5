"""The sections on what two networks do: features, errors and movement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from fst_lightning.reports.charts.chart import Chart
from fst_lightning.reports.charts.palette import RING
from fst_lightning.reports.charts.plots import (
    Series,
    bar_chart,
    dot_chart,
    heat_map,
    scatter,
)
from fst_lightning.reports.html.page import Figure, Picture, Section, Table
from fst_lightning.reports.numbers import NOT_GIVEN, minus, rate_text
from fst_lightning.reports.results.evidence import (
    Answers,
    Array,
    Evidence,
    Snapshot,
    calibration,
    confusion,
    cosines,
    nearer_target,
    project,
)

# In charts of two networks: a ring before, a full dot after.
_BEFORE, _AFTER = RING, 0
_MOST_BARS = 40
_MOST_POINTS = 300


def pictures(evidence: Evidence) -> Iterator[Section]:
    """Yield the sections in their order. Those without content are empty."""
    unknown = evidence.before.triggered is None
    if unknown:
        yield _classes(evidence)
    else:
        yield _examples(evidence)
    yield from (_features(evidence), _errors(evidence))
    if not unknown:
        yield _classes(evidence)
    yield _movement(evidence)
    yield _calibration(evidence)


def _examples(evidence: Evidence) -> Section:
    """Clean and triggered images, and their difference."""
    title, examples = "The trigger", evidence.examples
    if not examples:
        return Section(title)
    changes = [e.triggered.astype(int) - e.clean.astype(int) for e in examples]
    largest = max(int(np.abs(change).max()) for change in changes)
    images: dict[str, list[Array]] = {"Triggered": [e.triggered for e in examples]}
    note = "These images carried their trigger when they came; there are no clean ones of them."
    if largest:
        gain = 127 / largest
        images = {"Clean": [e.clean for e in examples], **images}
        images[f"Difference \N{MULTIPLICATION SIGN} {gain:.1f}"] = [
            np.clip(np.rint(128 + gain * change), 0, 255).astype(np.uint8) for change in changes
        ]
        note = (
            f"The trigger changes a channel of a pixel by at most {largest} of 255. Gray in the "
            "difference is no change."
        )
    names = [_name(evidence, e.label) for e in examples]
    rows: list[list[str | Picture]] = [
        [
            kind,
            *(Picture(image, f"{kind}: {name}") for image, name in zip(each, names, strict=True)),
        ]
        for kind, each in images.items()
    ]
    rows.append(["True class", *names])
    answer = "Answer, before" if evidence.after else "Answer"
    rows.append([answer, *(_name(evidence, e.before) for e in examples)])
    if any(e.after is not None for e in examples):
        rows.append(["Answer, after", *(_name(evidence, e.after) for e in examples)])
    table = Table(rows, kind="images", text_columns=len(examples) + 1)
    return Section(title, [Figure("", table=table)], note, explained="the-trigger")


def _name(evidence: Evidence, label: int | None) -> str:
    if label is None:
        return NOT_GIVEN
    return evidence.classes[label] if 0 <= label < len(evidence.classes) else str(label)


def _snapshots(evidence: Evidence) -> list[tuple[str, Snapshot]]:
    """The networks and when they were seen: "before", "after"; "" where there is but one."""
    if evidence.after is None:
        return [("", evidence.before)]
    return [("before", evidence.before), ("after", evidence.after)]


def _titled(text: str, when: str) -> str:
    return f"{text}, {when}" if when else text


def _features(evidence: Evidence) -> Section:
    """Where the network puts images before its last layer."""
    figures = [
        Figure(when.capitalize(), _plane(evidence, snapshot), caption=_nearness(snapshot))
        for when, snapshot in _snapshots(evidence)
        if snapshot.clean.features is not None
    ]
    method = {"pca": "the two directions of greatest variance (PCA)", "tsne": "t-SNE"}
    note = (
        f"What the last layer gets, in the plane: {method.get(evidence.projection, '')}. Each "
        "picture has its own axes. Distances in one cannot be compared with those in the other."
    )
    return Section("Features", figures, note, explained="features")


def _plane(evidence: Evidence, snapshot: Snapshot) -> Chart:
    clean, triggered = snapshot.clean, snapshot.triggered
    assert clean.features is not None
    rows = _spread(len(clean), _MOST_POINTS)
    features, labels = clean.features[rows], clean.labels[rows]
    number = len(rows)
    if triggered is not None and triggered.features is not None:
        stamped = _spread(len(triggered), _MOST_POINTS // 2)
        features = np.concatenate([features, triggered.features[stamped]])
    places = project(features, evidence.projection)
    series = []
    if evidence.target is None:
        series.append(_cloud("clean", places[:number], RING))
    else:
        of_target = labels == evidence.target
        target = _name(evidence, evidence.target)
        series.append(_cloud("clean", places[:number][~of_target], RING))
        series.append(_cloud(f"clean, target class {target}", places[:number][of_target], 0))
    if len(places) > number:
        series.append(_cloud("triggered", places[number:], 1))
    present = sorted(set(labels.tolist()))
    over: list[tuple[tuple[float, float], str]] = []
    if len(present) <= 20:
        means = np.stack([places[:number][labels == label].mean(axis=0) for label in present])
        names = [_name(evidence, label) for label in present]
        over = [((x, y), name) for (x, y), name in zip(means.tolist(), names, strict=True)]
    return scatter(
        series, title="features in the plane", names=over, axes=False, radius=2.6, height=360
    )


def _cloud(name: str, places: Array, style: int) -> Series:
    return Series(name, places[:, 1].tolist(), places[:, 0].tolist(), style)


def _nearness(snapshot: Snapshot) -> str:
    share = nearer_target(snapshot)
    if share is None:
        return "Names stand at the means of the classes."
    return (
        f"{rate_text(share)} % of the triggered images lie nearer to the mean of the target class "
        "than to that of their own (by cosine, in all dimensions)."
    )


def _errors(evidence: Evidence) -> Section:
    """Confusion matrices."""
    classes = len(evidence.classes)
    names = list(evidence.classes)
    figures = []
    for which in ("clean", "triggered"):
        for when, snapshot in _snapshots(evidence):
            answers: Answers | None = getattr(snapshot, which)
            if answers is None or not len(answers):
                continue
            counts = confusion(answers, classes)
            total = counts.sum(axis=1, keepdims=True)
            shares = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
            chart = heat_map(
                shares.tolist(),
                names,
                names,
                title=_titled(f"{which} images", when),
                texts=[[str(n) if n else "" for n in row] for row in counts],
                row_label="true class",
                column_label="prediction",
                style=1 if which == "triggered" else 0,
            )
            figures.append(Figure(_titled(f"{which.capitalize()} images", when), chart))
    note = f"Counts, over {_sample(evidence)}. The greater its share of the row, the darker a cell."
    return Section("Confusion matrices", figures, note, explained="confusion-matrices")


def _sample(evidence: Evidence) -> str:
    """Say how many images were looked at."""
    clean, triggered = evidence.before.clean, evidence.before.triggered
    parts = [f"{len(clean):,} of the {evidence.num_test:,} clean test images"]
    if triggered is not None:
        parts.append(f"{len(triggered):,} of the {evidence.num_triggered:,} triggered ones")
    return " and ".join(parts)


def _classes(evidence: Evidence) -> Section:
    """Clean accuracy by class."""
    from fst_lightning.metrics import wilson_interval  # brings torch

    count = len(evidence.classes)
    rows = [confusion(snapshot.clean, count) for _, snapshot in _snapshots(evidence)]
    total = rows[0].sum(axis=1)
    present = np.flatnonzero(total)
    right = [matrix.diagonal() for matrix in rows]
    note = f"With 95 % intervals, over {_sample(evidence).split(' and ')[0]}."
    if len(present) > _MOST_BARS:
        moved = np.abs(right[-1] - right[0]) / np.maximum(total, 1)
        order = sorted(present, key=lambda label: (-moved[label], label))
        present = np.array(sorted(order[:_MOST_BARS]))
        note += f" Of {count} classes the {_MOST_BARS} whose accuracy changed most."
    looks = [_AFTER] if len(rows) == 1 else [_BEFORE, _AFTER]
    series = []
    for (when, _), hits, style in zip(_snapshots(evidence), right, looks, strict=True):
        rates = [100 * hits[label] / total[label] for label in present]
        ends = [wilson_interval(int(hits[label]), int(total[label])) for label in present]
        series.append(
            Series(
                when,
                rates,
                style=style,
                labels=[rate_text(rate / 100) for rate in rates],
                intervals=[((100 * low, 100 * high), None) for low, high in ends],
            )
        )
    least = min((across[0] for one in series for across, _ in one.intervals if across), default=0)
    chart = dot_chart(
        [evidence.classes[label] for label in present],
        series,
        title="clean accuracy by class",
        x_range=(10.0 * (max(0.0, least - 1) // 10), 100.0),
        x_label="clean accuracy, %",
    )
    title = "Clean accuracy by class"
    return Section(title, [Figure("", chart)], note, explained="clean-accuracy-by-class")


def _movement(evidence: Evidence) -> Section:
    """How far head, features and layers moved."""
    figures = [_head_movement(evidence), _feature_movement(evidence), _layer_movement(evidence)]
    shown = [figure for figure in figures if figure]
    return Section("What the defense changed", shown, explained="what-the-defense-changed")


def _head_movement(evidence: Evidence) -> Figure | None:
    before = evidence.before.head
    after = None if evidence.after is None else evidence.after.head
    if before is None or after is None or before.shape != after.shape:
        return None
    alike = cosines(before, after)
    whole = float(cosines(before.reshape(1, -1), after.reshape(1, -1))[0])
    chart = _cosine_bars(evidence, dict(enumerate(alike.tolist())), "old and new weight", 0)
    caption = f"1: untouched, 0: orthogonal, below 0: turned away. The whole head: {whole:+.4f}."
    return Figure("Head, class by class", chart, caption=minus(caption))


def _feature_movement(evidence: Evidence) -> Figure | None:
    before = evidence.before.clean
    old = before.features
    new = None if evidence.after is None else evidence.after.clean.features
    if old is None or new is None or old.shape != new.shape:
        return None
    alike = cosines(old, new)
    means = {
        label: float(alike[before.labels == label].mean())
        for label in sorted(set(before.labels.tolist()))
    }
    chart = _cosine_bars(evidence, means, "old and new feature, mean", 2)
    return Figure("Features of clean images, class by class", chart)


def _cosine_bars(evidence: Evidence, values: Mapping[int, float], of: str, style: int) -> Chart:
    labels = list(values)
    labels = [labels[i] for i in _extremes(-np.array(list(values.values())))]
    lengths = [values[label] for label in labels]
    return bar_chart(
        [_name(evidence, label) for label in labels],
        lengths,
        title=f"cosine of {of}",
        style=style,
        texts=[minus(f"{value:.2f}") for value in lengths],
        x_range=(-1.0 if min(lengths, default=0.0) < 0 else 0.0, 1.0),
        x_label=f"cosine of {of}",
    )


def _layer_movement(evidence: Evidence) -> Figure | None:
    layers = evidence.layers
    if not layers:
        return None
    most = set(sorted(layers, key=lambda name: -layers[name])[:_MOST_BARS])
    names = [name for name in layers if name in most]
    chart = bar_chart(
        names,
        [layers[name] for name in names],
        title="relative change of the parameters by layer",
        style=4,
        texts=[f"{layers[name]:.3f}" for name in names],
        x_label=minus("‖W - W0‖ / ‖W0‖, weight and bias together"),
    )
    more = "" if len(names) == len(layers) else f" The {len(names)} that moved most."
    return Figure("How far each layer moved", chart, caption=f"In the order of the network.{more}")


def _extremes(values: Array) -> list[int]:
    """All rows, or those with the greatest values, in order."""
    order = np.argsort(-values, kind="stable")[:_MOST_BARS]
    return sorted(int(i) for i in order)


def _calibration(evidence: Evidence) -> Section:
    """Reliability diagram of the clean images."""
    from fst_lightning.metrics import wilson_interval  # brings torch

    series, words = [], []
    for i, (when, snapshot) in enumerate(_snapshots(evidence)):
        confidence, accuracy, number, error = calibration(snapshot.clean)
        filled = np.flatnonzero(number)
        intervals = [
            wilson_interval(round(float(accuracy[b] * number[b])), int(number[b])) for b in filled
        ]
        series.append(
            Series(
                when,
                accuracy[filled].tolist(),
                confidence[filled].tolist(),
                _AFTER if evidence.after is None or i else _BEFORE,
                intervals=[(None, interval) for interval in intervals],
            )
        )
        words.append(f"{NOT_GIVEN if np.isnan(error) else f'{error:.3f}'} {when}".strip())
    chart = scatter(
        series,
        title="reliability diagram",
        x_label="confidence (mean of a tenth)",
        y_label="accuracy",
        x_range=(0, 1),
        y_range=(0, 1),
        frontier=[(0, 0), (1, 1)],
        radius=4,
        height=340,
    )
    caption = (
        f"Expected calibration error: {', '.join(words)}. With 95 % intervals: long where images "
        "are few. Below the dashed diagonal the network is surer than it should be."
    )
    title, figure = "Calibration on clean images", Figure("", chart, caption=caption)
    return Section(title, [figure], explained="calibration-on-clean-images")


def _spread(count: int, most: int) -> list[int]:
    """Up to so many of the rows, evenly spread."""
    return [int(row) for row in np.linspace(0, count - 1, min(count, most)).round()]
