"""``report.html`` of one run: a page for people, made of its results and of the evidence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from fst_lightning.reports.curves import Curves, without_penalty
from fst_lightning.reports.evidence import (
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
from fst_lightning.reports.layout import NOT_GIVEN, percent, signed_points
from fst_lightning.reports.notes import notes
from fst_lightning.reports.pages import (
    details,
    escape,
    figure,
    figures,
    page,
    picture,
    section,
    table,
)
from fst_lightning.reports.results import RATES
from fst_lightning.reports.svg import Series, bar_chart, heat_map, line_chart, minus, scatter
from fst_lightning.reports.verdict import verdict

_LONG = {"ca": "Clean accuracy", "asr": "Attack success rate", "ra": "Robust accuracy"}
_MEANING = {
    "ca": "clean images that are right",
    "asr": "triggered images taken for the attacker's label",
    "ra": "triggered images that get their true class",
}
_STYLE = {"ca": 0, "asr": 1, "ra": 2}
# In charts of two networks: a pale bar or a ring before, a full one after.
_BEFORE, _AFTER = 5, 0
_MOST_BARS = 40
_MOST_POINTS = 300
_MOST_TEXT = 400


def render_page(
    results: Mapping[str, Any],
    evidence: Evidence | None = None,
    curves: Mapping[str, Curves] | None = None,
    command: str = "",
) -> str:
    """Write the page.

    Args:
        results: the content of a results.json.
        evidence: what was looked at; None leaves its pictures out.
        curves: by stage (train, purify), the curves of the training.
        command: what was typed.

    Returns:
        HTML that needs nothing but itself.
    """
    parts = [*_top(results), _outcome(results), _setting(results), *_charts(curves or {})]
    if evidence is not None:
        parts += [
            _examples(evidence),
            _features(evidence),
            _errors(evidence),
            _classes(evidence),
            _movement(evidence),
            _inversion(evidence),
            _calibration(evidence),
        ]
    parts += [_findings(results), _cost(results), _origin(results, command)]
    return page(f"{results['task']}: {_title(results)}", filter(None, parts))


def _title(results: Mapping[str, Any]) -> str:
    names = [results["attack"]["name"], (results["defense"] or {}).get("name")]
    words = [f"attack={names[0]}", f"defense={names[1]}" if names[1] else ""]
    words += [f"data={results['data']['name']}", f"model={results['model']['name']}"]
    return "  ".join([*filter(None, words), f"seed={results['seed']}"])


def _top(results: Mapping[str, Any]) -> Iterator[str]:
    found = verdict(results)
    tone = f' class="{found.tone}"' if found.tone else ""
    yield f'<p class="kicker">{escape(_title(results))}</p>'
    yield f"<h1{tone}>{escape(found.headline)}</h1>"
    if found.lead:
        yield f'<p class="lead">{escape(found.lead)}</p>'
    for note in notes(results):
        yield f'<p class="warning">{escape(note)}</p>'
    if found.caution:
        yield f'<p class="note">{escape(found.caution)}</p>'


def _outcome(results: Mapping[str, Any]) -> str:
    """The rates with their intervals, and what was attacked and how."""
    before, after = results["before"], results["after"]
    lines = []
    for name in RATES:
        if before[name] is None:
            continue
        cells = [f"<td>{_LONG[name]} ({name.upper()})<small>{escape(_MEANING[name])}</small></td>"]
        for when in ("before", "after") if after is not None else ("before",):
            rate = results[when][name]
            interval = (results["ci95"][when] or {}).get(name)
            small = f"{percent(interval[0])} to {percent(interval[1])}" if interval else ""
            cells.append(
                f'<td class="number" data-key="{when}.{name}">{percent(rate)} %'
                f"<small>{small}</small></td>"
            )
        if after is not None:
            known = after[name] is not None
            change = signed_points(after[name] - before[name] if known else None)
            cells.append(f'<td class="number">{minus(change)}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["", "Before", "After", "Change, points"] if after is not None else ["", "Test set"]
    head = "".join(
        f"<th{' class=number' if i else ''}>{escape(text)}</th>" for i, text in enumerate(heads)
    )
    rates = (
        f'<div class="wide"><table class="rates"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
    rating = ""
    if results["der"] is not None:
        rating = (
            "<p>Defense effectiveness rating (DER): "
            f'<b data-key="der">{results["der"]:.4f}</b> '
            '<span class="note">1 is best, 0.5 is what doing nothing gets</span></p>'
        )
    return section("Outcome", [rates, rating], "Small: 95 % intervals (Wilson).")


def _setting(results: Mapping[str, Any]) -> str:
    """What was attacked, how, and with what it was purified."""
    blocks = [("attack", "Attack"), ("defense", "Defense"), ("data", "Data"), ("model", "Network")]
    items = [figure(_settings(results[block]), name) for block, name in blocks if results[block]]
    return section("What was done", [figures(items)], " ".join(_story(results)))


def _story(results: Mapping[str, Any]) -> Iterator[str]:
    data, attack = results["data"], results["attack"]
    poisoned, train = data["num_poisoned"], data["num_train"]
    if attack["name"] == "none":
        yield "No attack is known."
    elif poisoned is not None and train:
        yield (
            f"The attacker put the {attack['name']} trigger on {poisoned:,} of {train:,} training "
            f"images ({percent(poisoned / train)} %)."
        )
    else:
        yield f"The network came in a file; the trigger is {attack['name']}."
    if results["defense"] is not None and data["num_clean_tuning"] is not None:
        yield (
            f"The defender had {data['num_clean_tuning']:,} clean images; the method is "
            f"{results['defense']['name']}."
        )


def _settings(block: Mapping[str, Any]) -> str:
    rows = []
    for name, value in block.items():
        if name == "findings":
            continue  # They have a section of their own.
        if isinstance(value, Mapping):
            rows += [[f"{name}.{key}", _plain(item)] for key, item in value.items()]
        elif value is not None:
            rows.append([name, _plain(value)])
    return table(["", ""], rows, kind="plain", text_columns=2)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]} …"


# Curves


def _charts(stages: Mapping[str, Curves]) -> Iterator[str]:
    titles = {"train": "Training", "purify": "Purification"}
    for stage, curves in stages.items():
        items = []
        rates = [
            _over_epochs(name.upper(), curves[f"val/{name}"], _STYLE[name], 100.0)
            for name in RATES
            if f"val/{name}" in curves
        ]
        if rates:
            chart = line_chart(
                rates,
                title="rates by epoch",
                x_label="epoch",
                y_label="%",
                y_range=(0, 100),
                whole=True,
            )
            items.append(figure(chart, "Rates on the test set"))
        loss = without_penalty(curves)
        if loss:
            name = "Loss without the penalty" if "train/penalty" in curves else "Loss"
            items.append(figure(_one(loss, name), name, "Means over the batches of an epoch."))
        for name, values in curves.items():
            kind, _, figure_name = name.partition("/")
            if kind == "train" and figure_name != "loss":
                heading = _CURVES.get(figure_name, figure_name)
                items.append(figure(_one(values, heading), heading))
        yield section(f"{titles.get(stage, stage)}, epoch by epoch", [figures(items)])


_CURVES = {
    "penalty": "Penalty on the weights",
    "head_cosine": "cos(W, W0): new head against the one that came in",
    "head_norm": "Norm of the head",
}


def _one(values: Mapping[int, float], title: str) -> str:
    line = _over_epochs("", values, 0)
    return line_chart([line], title=title, x_label="epoch", whole=True, height=220)


def _over_epochs(name: str, values: Mapping[int, float], style: int, factor: float = 1) -> Series:
    epochs = sorted(values)
    return Series(name, [factor * values[e] for e in epochs], [e + 1 for e in epochs], style)


# Evidence


def _examples(evidence: Evidence) -> str:
    """Clean and triggered images, and their difference."""
    examples = evidence.examples
    if not examples:
        return ""
    changes = [e.triggered.astype(int) - e.clean.astype(int) for e in examples]
    largest = max(int(np.abs(change).max()) for change in changes)
    rows: dict[str, list[Array]] = {"Triggered": [e.triggered for e in examples]}
    note = "These images carried their trigger when they came; there are no clean ones of them."
    if largest:
        gain = 127 / largest
        rows = {"Clean": [e.clean for e in examples], **rows}
        rows[f"Difference \N{MULTIPLICATION SIGN} {gain:.1f}"] = [
            np.clip(np.rint(128 + gain * change), 0, 255).astype(np.uint8) for change in changes
        ]
        note = (
            f"The trigger changes a channel of a pixel by at most {largest} of 255; grey in the "
            "difference is no change."
        )
    lines = []
    for name, images in rows.items():
        cells = "".join(
            f"<td>{picture(image, f'{name}: {_name(evidence, e.label)}')}</td>"
            for image, e in zip(images, examples, strict=True)
        )
        lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    said: list[tuple[str, Callable[[int], int | None]]] = [
        ("True class", lambda i: examples[i].label),
        ("Triggered, before", lambda i: examples[i].before),
    ]
    if any(e.after is not None for e in examples):
        said.append(("Triggered, after", lambda i: examples[i].after))
    for name, of in said:
        texts = [_name(evidence, of(i)) for i in range(len(examples))]
        cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
        lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    whole = f'<div class="wide"><table class="images">{"".join(lines)}</table></div>'
    return section("The trigger", [whole], note)


def _name(evidence: Evidence, label: int | None) -> str:
    if label is None:
        return NOT_GIVEN
    return evidence.classes[label] if 0 <= label < len(evidence.classes) else str(label)


def _snapshots(evidence: Evidence) -> list[tuple[str, Snapshot]]:
    both = [("Before", evidence.before)]
    return both if evidence.after is None else [*both, ("After", evidence.after)]


def _features(evidence: Evidence) -> str:
    """Where the network puts images before its last layer."""
    items = [
        figure(_plane(evidence, snapshot), when, _nearness(snapshot))
        for when, snapshot in _snapshots(evidence)
        if snapshot.clean.features is not None
    ]
    method = {"pca": "the two directions of greatest variance (PCA)", "tsne": "t-SNE"}
    note = (
        f"What the last layer gets, in the plane: {method.get(evidence.projection, '')}. Each "
        "picture has axes of its own; distances between the two can't be compared."
    )
    return section("Features", [figures(items)], note)


def _plane(evidence: Evidence, snapshot: Snapshot) -> str:
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
        series.append(_cloud("clean", places[:number], 5))
    else:
        of_target = labels == evidence.target
        target = _name(evidence, evidence.target)
        series.append(_cloud("clean", places[:number][~of_target], 5))
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
        f"{percent(share)} % of the triggered images lie nearer to the mean of the target class "
        "than to that of their own (by cosine, in all dimensions)."
    )


def _errors(evidence: Evidence) -> str:
    """Confusion matrices."""
    classes = len(evidence.classes)
    names = list(evidence.classes)
    items = []
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
                title=f"{which} images, {when.lower()}",
                texts=[[str(n) if n else "" for n in row] for row in counts],
                row_label="true class",
                column_label="prediction",
                style=1 if which == "triggered" else 0,
            )
            items.append(figure(chart, f"{which.capitalize()} images, {when.lower()}"))
    return section(
        "Who is taken for whom",
        [figures(items)],
        f"Counts, over {_sample(evidence)}. The greater its share of the row, the stronger a cell.",
    )


def _sample(evidence: Evidence) -> str:
    """Say how many images were looked at."""
    clean, triggered = evidence.before.clean, evidence.before.triggered
    parts = [f"{len(clean):,} of the {evidence.num_test:,} clean test images"]
    if triggered is not None:
        parts.append(f"{len(triggered):,} of the {evidence.num_triggered:,} triggered ones")
    return " and ".join(parts)


def _classes(evidence: Evidence) -> str:
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
    series, texts, errors = [], [], []
    for (when, _), hits, style in zip(_snapshots(evidence), right, looks, strict=True):
        rates = [100 * hits[label] / total[label] for label in present]
        series.append(Series(when.lower() if len(rows) > 1 else "", rates, style=style))
        texts.append([f"{rate:.1f}" for rate in rates])
        ends = [wilson_interval(int(hits[label]), int(total[label])) for label in present]
        errors.append([(100 * low, 100 * high) for low, high in ends])
    names = [evidence.classes[label] for label in present]
    chart = bar_chart(
        names,
        series,
        title="clean accuracy by class",
        texts=texts,
        errors=errors,
        x_range=(0, 100),
        x_label="clean accuracy, %",
        width=560,
    )
    return section("Clean accuracy by class", [chart], note)


def _movement(evidence: Evidence) -> str:
    """How far head, features and layers moved."""
    items = [_head_movement(evidence), _feature_movement(evidence), _layer_movement(evidence)]
    return section("What the defense changed", [figures(items)])


def _head_movement(evidence: Evidence) -> str:
    before = evidence.before.head
    after = None if evidence.after is None else evidence.after.head
    if before is None or after is None or before.shape != after.shape:
        return ""
    alike = cosines(before, after)
    whole = float(cosines(before.reshape(1, -1), after.reshape(1, -1))[0])
    chart = _cosine_bars(evidence, dict(enumerate(alike.tolist())), "old and new weight", 0)
    caption = f"1: untouched, 0: orthogonal, below 0: turned away. The whole head: {whole:+.4f}."
    return figure(chart, "Head, class by class", minus(caption))


def _feature_movement(evidence: Evidence) -> str:
    before = evidence.before.clean
    old = before.features
    new = None if evidence.after is None else evidence.after.clean.features
    if old is None or new is None or old.shape != new.shape:
        return ""
    alike = cosines(old, new)
    means = {
        label: float(alike[before.labels == label].mean())
        for label in sorted(set(before.labels.tolist()))
    }
    chart = _cosine_bars(evidence, means, "old and new feature, mean", 2)
    return figure(chart, "Features of clean images, class by class")


def _cosine_bars(evidence: Evidence, values: Mapping[int, float], of: str, style: int) -> str:
    labels = list(values)
    labels = [labels[i] for i in _extremes(-np.array(list(values.values())))]
    lengths = [values[label] for label in labels]
    return bar_chart(
        [_name(evidence, label) for label in labels],
        [Series("", lengths, style=style)],
        title=f"cosine of {of}",
        texts=[[minus(f"{value:.2f}") for value in lengths]],
        x_range=(-1.0 if min(lengths, default=0.0) < 0 else 0.0, 1.0),
        x_label=f"cosine of {of}",
    )


def _layer_movement(evidence: Evidence) -> str:
    layers = evidence.layers
    if not layers:
        return ""
    most = set(sorted(layers, key=lambda name: -layers[name])[:_MOST_BARS])
    names = [name for name in layers if name in most]
    chart = bar_chart(
        names,
        [Series("", [layers[name] for name in names], style=3)],
        title="relative change of the parameters by layer",
        texts=[[f"{layers[name]:.3f}" for name in names]],
        x_label=minus("‖W - W0‖ / ‖W0‖, weight and bias together"),
    )
    more = "" if len(names) == len(layers) else f" The {len(names)} that moved most."
    return figure(chart, "How far each layer moved", f"In the order of the network.{more}")


def _extremes(values: Array) -> list[int]:
    """All rows, or those with the greatest values, in order."""
    order = np.argsort(-values, kind="stable")[:_MOST_BARS]
    return sorted(int(i) for i in order)


def _inversion(evidence: Evidence) -> str:
    """Triggers that were recovered from the network alone."""
    items, words = [], []
    for when, found in evidence.inversions.items():
        labels = _extremes(found.index)
        chart = bar_chart(
            [_name(evidence, label) for label in labels],
            [Series("", found.index[labels].tolist(), style=4)],
            title=f"anomaly index by class, {when}",
            texts=[[minus(f"{value:.2f}") for value in found.index[labels]]],
            x_label="anomaly index (above 2: suspicious)",
        )
        items.append(figure(chart, f"Anomaly index, {when}"))
        worst = [int(i) for i in np.argsort(-found.index, kind="stable")[:4]]
        cells = "".join(
            f"<td>{picture(found.patterns[i], f'pattern of {_name(evidence, i)}')}"
            f"{escape(_name(evidence, i))}<br>{found.norms[i]:.1f} pixels<br>"
            f"works on {percent(float(found.rates[i]))} %</td>"
            for i in worst
        )
        table_of = f'<table class="images"><tr>{cells}</tr></table>'
        items.append(figure(table_of, f"Recovered patterns, {when}: the most suspicious"))
        flagged = np.flatnonzero((found.index > 2) & (found.rates >= 0.9))
        names = ", ".join(_name(evidence, int(i)) for i in flagged[:5]) or "none"
        words.append(f"suspicious {when}: {names}")
    note = (
        "For every class the smallest patch that turns all images into it (Neural Cleanse). A "
        "class that needs a much smaller one than the others is suspicious; triggers that cover "
        "the whole image, or depend on it, are often missed. Classes that are "
        f"{'; '.join(words)}."
    )
    return section("Looking for a trigger", [figures(items)], note)


def _calibration(evidence: Evidence) -> str:
    """Reliability diagram of the clean images."""
    series = [Series("perfect", [0.0, 1.0], [0.0, 1.0], 4)]
    words = []
    for i, (when, snapshot) in enumerate(_snapshots(evidence)):
        confidence, accuracy, number, error = calibration(snapshot.clean)
        filled = number > 0
        style = _AFTER if evidence.after is None or i else _BEFORE
        line = Series(when.lower(), accuracy[filled].tolist(), confidence[filled].tolist(), style)
        series.append(line)
        words.append(f"{error:.4f} {when.lower()}")
    chart = line_chart(
        series,
        title="reliability diagram",
        x_label="confidence (mean of a tenth)",
        y_label="accuracy",
        x_range=(0, 1),
        y_range=(0, 1),
        height=320,
        width=400,
    )
    caption = (
        f"Expected calibration error: {', '.join(words)}. Below the diagonal the network is surer "
        "than it should be. Points of few images jump."
    )
    return section("Calibration on clean images", [figures([figure(chart, "", caption)])])


# Cost and origin


def _cost(results: Mapping[str, Any]) -> str:
    rows: list[list[object]] = [
        [name.capitalize(), f"{value:.1f} s"]
        for name, value in results["seconds"].items()
        if value is not None
    ]
    memory = results["environment"].get("peak_memory_mb")
    if memory is not None:
        rows.append(["Peak memory", f"{memory:,.0f} MiB"])
    tuning = results["data"]["num_clean_tuning"]
    if tuning is not None:
        rows.append(["Clean images used", f"{tuning:,}"])
    return section("Time and memory", [table(["", ""], rows)])


def _findings(results: Mapping[str, Any]) -> str:
    """What the defense says that it found and decided."""
    findings = (results["defense"] or {}).get("findings")
    return section("What the defense found", [_settings(findings) if findings else ""])


def _origin(results: Mapping[str, Any], command: str) -> str:
    environment = results["environment"]
    rows = [
        [name, _plain(value)]
        for name, value in environment.items()
        if name != "peak_memory_mb" and value is not None and not isinstance(value, Mapping)
    ]
    rows += [[name, _plain(version)] for name, version in environment.get("versions", {}).items()]
    files = [[f"{kind} network", path] for kind, path in results["checkpoints"].items() if path]
    raw = escape(json.dumps(results, indent=1, ensure_ascii=False))
    return section(
        "Where this comes from",
        [
            f"<pre>{escape(command)}</pre>" if command else "",
            figures(
                [
                    figure(table(["", ""], rows, kind="plain", text_columns=2), "Environment"),
                    figure(table(["", ""], files, kind="plain", text_columns=2), "Files"),
                ]
            ),
            details("results.json", f"<pre>{raw}</pre>"),
        ],
    )


def _spread(count: int, most: int) -> list[int]:
    """Up to so many of the rows, evenly spread."""
    return [int(row) for row in np.linspace(0, count - 1, min(count, most)).round()]
