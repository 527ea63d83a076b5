"""``report.html`` of one run: a page for people, made of its results and of the evidence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fst_lightning.reports.charts.chart import Chart
from fst_lightning.reports.charts.plots import Point, Series, line_chart
from fst_lightning.reports.html.detection import detection_section
from fst_lightning.reports.html.page import Figure, Page, Section, Table
from fst_lightning.reports.html.pictures import pictures
from fst_lightning.reports.html.robustness import robustness_section
from fst_lightning.reports.numbers import minus, points_text, rate_text, significant
from fst_lightning.reports.results.build import RATES, network_files
from fst_lightning.reports.results.choices import choices
from fst_lightning.reports.results.curves import Curves, steps_per_epoch, without_penalty
from fst_lightning.reports.results.evidence import Evidence
from fst_lightning.reports.results.files import json_text
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


def run_page(
    results: Mapping[str, Any],
    evidence: Evidence | None = None,
    curves: Mapping[str, Curves] | None = None,
    command: str = "",
) -> Page:
    """Put the page together.

    Args:
        results: The content of a results.json.
        evidence: What was looked at. None leaves its pictures out.
        curves: The curves of the training, by stage (train, purify).
        command: What was typed.
    """
    found = verdict(results)
    # If the trigger is unknown, what a scan found is all that can be said of a backdoor.
    unknown = results["before"]["asr"] is None
    return Page(
        title=f"{results['task']}: {_title(results)}",
        kicker=_title(results),
        headline=found.headline,
        tone=found.tone,
        lead=found.lead,
        warnings=notes(results),
        caution=found.caution,
        sections=[
            _outcome(results),
            _setting(results),
            *([detection_section(results, evidence)] if unknown else []),
            *_curves(curves or {}, results),
            *(() if evidence is None else pictures(evidence)),
            *([] if unknown else [detection_section(results, evidence)]),
            robustness_section(results),
            _findings(results),
            _cost(results),
            _origin(results, command),
        ],
    )


def render_page(
    results: Mapping[str, Any],
    evidence: Evidence | None = None,
    curves: Mapping[str, Curves] | None = None,
    command: str = "",
) -> str:
    """Return the HTML of :func:`run_page`, which needs nothing but itself."""
    return run_page(results, evidence, curves, command).html()


def _title(results: Mapping[str, Any]) -> str:
    names = [results["attack"]["name"], (results["defense"] or {}).get("name")]
    words = [f"attack={names[0]}", f"defense={names[1]}" if names[1] else ""]
    words += [f"data={results['data']['name']}", f"model={results['model']['name']}"]
    return "  ".join([*filter(None, words), f"seed={results['seed']}"])


def _outcome(results: Mapping[str, Any]) -> Section:
    """The rates with their intervals."""
    before, after = results["before"], results["after"]
    rates = []
    for name in RATES:
        if before[name] is None:
            continue
        cells = []
        for when in ("before", "after") if after is not None else ("before",):
            ends = (results["ci95"][when] or {}).get(name)
            interval = f"{rate_text(ends[0])} to {rate_text(ends[1])}" if ends else ""
            value = f"{rate_text(results[when][name])} %"
            cells.append({"key": f"{when}.{name}", "value": value, "interval": interval})
        if after is not None:
            change = None if after[name] is None else after[name] - before[name]
            ends = (results["ci95"].get("change") or {}).get(name)
            interval = f"{points_text(ends[0])} to {points_text(ends[1])}" if ends else ""
            cells.append({"key": "", "value": points_text(change), "interval": interval})
        title = f"{_LONG[name]} ({name.upper()})"
        rates.append({"name": title, "meaning": _MEANING[name], "cells": cells})
    control, der = results["attack"].get("control_rate"), results["der"]
    return Section(
        "Outcome",
        note="Small: 95 % intervals (Wilson; of the change in clean accuracy: Tango).",
        explained="outcome",
        template="outcome.html.j2",
        values={
            "head": ["", "Test set"]
            if after is None
            else ["", "Before", "After", "Change, points"],
            "rates": rates,
            "der": None if der is None else significant(der, 3),
            "control": None if control is None else rate_text(control),
            "choices": choices(results),
        },
    )


def _setting(results: Mapping[str, Any]) -> Section:
    """What was attacked, how, and with what it was purified."""
    blocks = [("attack", "Attack"), ("defense", "Defense"), ("data", "Data"), ("model", "Network")]
    figures = [
        Figure(name, table=_settings(results[block]))
        for block, name in blocks
        if results.get(block)
    ]
    return Section("What was done", figures, " ".join(_story(results)), explained="what-was-done")


def _story(results: Mapping[str, Any]) -> Iterator[str]:
    data, attack = results["data"], results["attack"]
    poisoned, train = data["num_poisoned"], data["num_train"]
    if attack["name"] == "none":
        yield "No attack is known."
        if poisoned is None and results["task"] == "purify":
            yield "The network was read from a file."
    elif poisoned is not None and train:
        yield (
            f"The attacker put the {attack['name']} trigger on {poisoned:,} of {train:,} training "
            f"images ({rate_text(poisoned / train)} %)."
        )
    else:
        yield f"The network was read from a file. Its trigger is {attack['name']}."
    if results["defense"] is not None and data["num_clean_tuning"] is not None:
        yield (
            f"The defender had {data['num_clean_tuning']:,} clean images; the method is "
            f"{results['defense']['name']}."
        )


def _settings(block: Mapping[str, Any]) -> Table:
    return Table(list(_rows(block)), text_columns=2)


def _rows(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in block.items():
        if prefix == "" and name == "findings":
            continue  # They have a section of their own.
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]} …"


# Curves


def _curves(stages: Mapping[str, Curves], results: Mapping[str, Any]) -> Iterator[Section]:
    titles = {"train": "Training", "purify": "Purification"}
    for stage, curves in stages.items():
        steps = steps_per_epoch(curves)
        axis = "epoch" if steps is None else f"epoch ({steps:,} steps each)"
        start = results["before"] if stage == "purify" else {}
        figures, flat = [], []
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
            caption = "At 0: the network before the defense, on all test images. " if start else ""
            caption += "Epochs are measured on up to val_images of each kind."
            figures.append(Figure("Rates on the test set", chart, caption=caption))
        if loss := without_penalty(curves):
            name = "Loss without the penalty" if "train/penalty" in curves else "Loss"
            caption = "Means over the mini-batches of an epoch."
            figures.append(Figure(name, _one(loss, name, axis), caption=caption))
        for name in sorted(curves, key=_place):
            kind, _, short = name.partition("/")
            if kind == "train" and short != "loss":
                heading = _CURVES.get(short, short)
                values = curves[name]
                if len(values) > 1 and _constant(values):
                    flat.append(f"{heading}: {minus(f'{next(iter(values.values())):.5g}')}.")
                else:
                    chart = _one(values, heading, axis, _RANGES.get(short))
                    figures.append(Figure(heading, chart))
        note = f"The same in every epoch: {' '.join(flat)}" if flat else ""
        title = f"{titles.get(stage, stage)}, epoch by epoch"
        yield Section(title, figures, note, explained="epoch-by-epoch")


_CURVES = {
    "penalty": "Penalty on the weights",
    "head_cosine": "cos(W, W0): new head against the original one",
    "head_norm": "Norm of the head",
}
_RANGES = {"head_cosine": (-1.1, 1.1)}  # 1: unchanged, 0: orthogonal


def _place(name: str) -> int:
    """What is known by name first, in its order; then the others in theirs."""
    short = name.partition("/")[2]
    return list(_CURVES).index(short) if short in _CURVES else len(_CURVES)


def _constant(values: Mapping[int, float]) -> bool:
    least, most = min(values.values()), max(values.values())
    return most - least <= 1e-5 * max(abs(least), abs(most))


def _one(
    values: Mapping[int, float], title: str, x_label: str, y_range: Point | None = None
) -> Chart:
    line = _over_epochs("", values, 0)
    return line_chart([line], title=title, x_label=x_label, y_range=y_range, whole=True, height=220)


def _over_epochs(name: str, values: Mapping[int, float], style: int, factor: float = 1) -> Series:
    epochs = sorted(values)
    return Series(name, [factor * values[e] for e in epochs], [e + 1 for e in epochs], style)


# Cost and origin


def _cost(results: Mapping[str, Any]) -> Section:
    memory = results.get("peak_memory_mb") or {}
    rows = [
        [name.capitalize(), f"{seconds:.1f} s", _mebibytes(memory.get(name))]
        for name, seconds in results["seconds"].items()
        if seconds is not None
    ]
    if not rows:
        return Section("Time and memory")
    tuning = results["data"]["num_clean_tuning"]
    used = "" if tuning is None else f"Clean images used: {tuning:,}."
    table = Table(rows, ("", "time", "peak memory"), kind="")
    figure = Figure("", table=table, caption=used)
    return Section("Time and memory", [figure], explained="time-and-memory")


def _mebibytes(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} MiB"


def _findings(results: Mapping[str, Any]) -> Section:
    """What the defense says that it found and decided."""
    findings = dict((results["defense"] or {}).get("findings") or {})
    findings.pop("shortfalls", None)  # They are warnings at the top of the page.
    summary = str(findings.pop("summary", ""))
    figures = [Figure("", table=_settings(findings))] if findings else []
    return Section("What the defense found", figures, summary, explained="what-the-defense-found")


def _origin(results: Mapping[str, Any], command: str) -> Section:
    environment = dict(results["environment"])
    versions = environment.pop("versions", None) or {}
    known = {name: value for name, value in environment.items() if value is not None}
    tables: dict[str, list[tuple[str, str]]] = {
        "Recipe of the training": [*_rows(results.get("training") or {})],
        "Recipe of the tuning": [*_rows(results.get("tuning") or {})],
        "Environment": [*_rows(known), *((name, _plain(each)) for name, each in versions.items())],
        "Files": network_files(results),
    }
    return Section(
        "Where this comes from",
        [Figure(name, table=Table(rows, text_columns=2)) for name, rows in tables.items() if rows],
        explained="where-this-comes-from",
        template="origin.html.j2",
        values={"command": command, "json": json_text(results)},
    )
