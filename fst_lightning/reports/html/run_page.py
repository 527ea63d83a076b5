"""``report.html`` of one run: a page for people, made of its results and of the evidence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fst_lightning.reports.html.pages import details, escape, figure, figures, page, section, table
from fst_lightning.reports.html.pictures import pictures
from fst_lightning.reports.html.robustness import robustness_section
from fst_lightning.reports.html.svg import Point, Series, line_chart, minus
from fst_lightning.reports.numbers import percent, signed_points
from fst_lightning.reports.results.build import RATES, network_files
from fst_lightning.reports.results.curves import Curves, steps_per_epoch, without_penalty
from fst_lightning.reports.results.evidence import Evidence
from fst_lightning.reports.results.notes import notes
from fst_lightning.reports.results.verdict import verdict

_LONG = {"ca": "Clean accuracy", "asr": "Attack success rate", "ra": "Robust accuracy"}
_MEANING = {
    "ca": "clean images that are right",
    "asr": "triggered images taken for the attacker's label",
    "ra": "triggered images that get their true class",
}
_STYLE = {"ca": 0, "asr": 1, "ra": 2}
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
    parts = [*_top(results), _outcome(results), _setting(results), *_charts(curves or {}, results)]
    if evidence is not None:
        parts += pictures(evidence)
    parts += [
        robustness_section(results),
        _findings(results),
        _cost(results),
        _origin(results, command),
    ]
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
            ends = (results["ci95"].get("change") or {}).get(name)
            small = f"{signed_points(ends[0])} to {signed_points(ends[1])}" if ends else ""
            cells.append(f'<td class="number">{minus(change)}<small>{minus(small)}</small></td>')
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
    control = results["attack"].get("control_rate")
    if control is not None:
        rating += (
            f'<p>Control: <b data-key="attack.control_rate">{percent(control)} %</b> of the clean '
            "images of other classes get the attacker's label without the trigger, before the "
            "defense.</p>"
        )
    note = "Small: 95 % intervals (Wilson; of the change in clean accuracy: Tango)."
    return section("Outcome", [rates, rating], note)


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
        if poisoned is None and results["task"] == "purify":
            yield "The network came in a file."
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


def _charts(stages: Mapping[str, Curves], results: Mapping[str, Any]) -> Iterator[str]:
    titles = {"train": "Training", "purify": "Purification"}
    for stage, curves in stages.items():
        steps = steps_per_epoch(curves)
        axis = "epoch" if steps is None else f"epoch ({steps:,} steps each)"
        items, flat = [], []
        start = results["before"] if stage == "purify" else {}
        rates = []
        for name in RATES:
            if f"val/{name}" in curves:
                known = {} if start.get(name) is None else {-1: start[name]}
                values = {**known, **curves[f"val/{name}"]}
                rates.append(_over_epochs(name.upper(), values, _STYLE[name], 100.0))
        if rates:
            chart = line_chart(
                rates,
                title="rates by epoch",
                x_label=axis,
                y_label="%",
                y_range=(0, 100),
                whole=True,
            )
            caption = "At 0 the network that came in, on all test images. " if start else ""
            caption += "Epochs are measured on up to val_images of each kind."
            items.append(figure(chart, "Rates on the test set", caption))
        loss = without_penalty(curves)
        if loss:
            name = "Loss without the penalty" if "train/penalty" in curves else "Loss"
            chart = _one(loss, name, axis)
            items.append(figure(chart, name, "Means over the batches of an epoch."))
        for name in sorted(curves, key=_place):
            kind, _, short = name.partition("/")
            if kind == "train" and short != "loss":
                heading = _CURVES.get(short, short)
                values = curves[name]
                if len(values) > 1 and _constant(values):
                    flat.append(f"{heading}: {minus(f'{next(iter(values.values())):.5g}')}.")
                else:
                    chart = _one(values, heading, axis, _RANGES.get(short))
                    items.append(figure(chart, heading))
        note = f"The same in every epoch: {' '.join(flat)}" if flat else ""
        yield section(f"{titles.get(stage, stage)}, epoch by epoch", [figures(items)], note)


_CURVES = {
    "penalty": "Penalty on the weights",
    "head_cosine": "cos(W, W0): new head against the one that came in",
    "head_norm": "Norm of the head",
}
_RANGES = {"head_cosine": (-1.1, 1.1)}  # 1: as it came in, 0: orthogonal


def _place(name: str) -> int:
    """What is known by name first, in its order; then the others in theirs."""
    short = name.partition("/")[2]
    return list(_CURVES).index(short) if short in _CURVES else len(_CURVES)


def _constant(values: Mapping[int, float]) -> bool:
    least, most = min(values.values()), max(values.values())
    return most - least <= 1e-5 * max(abs(least), abs(most))


def _one(
    values: Mapping[int, float], title: str, x_label: str, y_range: Point | None = None
) -> str:
    line = _over_epochs("", values, 0)
    return line_chart([line], title=title, x_label=x_label, y_range=y_range, whole=True, height=220)


def _over_epochs(name: str, values: Mapping[int, float], style: int, factor: float = 1) -> Series:
    epochs = sorted(values)
    return Series(name, [factor * values[e] for e in epochs], [e + 1 for e in epochs], style)


# Cost and origin


def _cost(results: Mapping[str, Any]) -> str:
    memory = results.get("peak_memory_mb") or {}
    rows: list[list[object]] = [
        [name.capitalize(), f"{seconds:.1f} s", _mebibytes(memory.get(name))]
        for name, seconds in results["seconds"].items()
        if seconds is not None
    ]
    tuning = results["data"]["num_clean_tuning"]
    used = "" if tuning is None else f"<p>Clean images used: {tuning:,}.</p>"
    return section("Time and memory", [table(["", "time", "peak memory"], rows), used])


def _mebibytes(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} MiB"


def _findings(results: Mapping[str, Any]) -> str:
    """What the defense says that it found and decided."""
    findings = dict((results["defense"] or {}).get("findings") or {})
    findings.pop("shortfalls", None)  # They are warnings at the top of the page.
    summary = str(findings.pop("summary", ""))
    return section("What the defense found", [_settings(findings) if findings else ""], summary)


def _origin(results: Mapping[str, Any], command: str) -> str:
    environment = results["environment"]
    rows = [
        [name, _plain(value)]
        for name, value in environment.items()
        if value is not None and not isinstance(value, Mapping)
    ]
    rows += [[name, _plain(version)] for name, version in environment.get("versions", {}).items()]
    files = [list(file) for file in network_files(results)]
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
