"""The section of a page on what the scans of a network found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fst_lightning.reports.charts.plots import Series, dot_chart, scatter
from fst_lightning.reports.html.page import Cell, Figure, Picture, Section, Table
from fst_lightning.reports.numbers import NOT_GIVEN, rate_text, significant
from fst_lightning.reports.results.detection import p_text, sentence
from fst_lightning.reports.results.evidence import Array, Evidence, Recovered

_MOST_CLASSES = 40
_MOST_PICTURES = 4
_HEAD = (
    "detector",
    "p",
    "largest for",
    "recovered trigger works on, %",
    "in the purified network, %",
    "seconds",
)


def detection_section(results: Mapping[str, Any], evidence: Evidence | None) -> Section:
    """Return the section. It is empty if no network was scanned.

    Args:
        results: The content of a results.json.
        evidence: Names of classes and pictures. None leaves the pictures out.
    """
    scans = {when: scan for when, scan in (results.get("detection") or {}).items() if scan}
    classes = () if evidence is None else evidence.classes
    figures: list[Figure] = []
    for when, scan in scans.items():
        also = f", {when}" if len(scans) > 1 else ""
        figures.append(Figure(f"Verdict{also}", table=_table(scan, classes), caption=_said(scan)))
        shown = {} if evidence is None else evidence.recovered.get(when, {})
        for name, found in scan["detectors"].items():
            figures += _detector(name, also, scan, found, classes)
            figures += _pictures(name, also, found, shown.get(name, Recovered()), classes)
    note = (
        "Each detector measures one number per class. A backdoor makes the number of its target "
        "class stand out."
    )
    return Section("Is it backdoored?", figures, note, explained="scans-for-a-backdoor")


def _said(scan: Mapping[str, Any]) -> str:
    text = sentence(scan)
    return f"{text[0].upper()}{text[1:]}."


def _name(classes: tuple[str, ...], label: int) -> str:
    return classes[label] if label < len(classes) else str(label)


def _table(scan: Mapping[str, Any], classes: tuple[str, ...]) -> Table:
    rows: list[list[Cell]] = []
    for name, found in scan["detectors"].items():
        trigger = found.get("trigger") or {}
        rows.append(
            [
                name,
                NOT_GIVEN if found["p_value"] is None else p_text(found["p_value"]),
                f"class {_name(classes, found['suspected_class'])}",
                _with_interval(trigger, ""),
                _with_interval(trigger, "_after"),
                f"{found['seconds']:.1f}",
            ]
        )
    return Table(rows, _HEAD, "dense", text_columns=3)


def _with_interval(trigger: Mapping[str, Any], when: str) -> str:
    rate, ends = trigger.get(f"success{when}"), trigger.get(f"ci95{when}")
    if rate is None or ends is None:
        return NOT_GIVEN
    return f"{rate_text(rate)} ({rate_text(ends[0])} to {rate_text(ends[1])})"


def _detector(
    name: str,
    also: str,
    scan: Mapping[str, Any],
    found: Mapping[str, Any],
    classes: tuple[str, ...],
) -> Iterator[Figure]:
    """The statistics of the classes, and what the p-value comes from."""
    statistics, threshold = found["statistics"], found.get("threshold")
    most = sorted(range(len(statistics)), key=lambda label: -statistics[label])[:_MOST_CLASSES]
    labels = sorted(most)
    limit = threshold if scan["calibration"] == "parametric" else None
    if limit is not None:
        caption = (
            "Right of the dashed line a class stands out (p below 0.05): the detector's null "
            "distribution is fitted to the other classes."
        )
    elif scan["num_references"]:
        caption = "The p-value comes from the clean networks, not from the other classes."
    else:
        caption = "This detector has no null distribution: it needs clean networks to compare with."
    chart = dot_chart(
        [_name(classes, label) for label in labels],
        [
            Series(
                "",
                [statistics[label] for label in labels],
                labels=[significant(statistics[label], 6) for label in labels],
            )
        ],
        title=f"statistic of {name} by class",
        x_label=f"statistic of {name}",
        limit=limit,
    )
    yield Figure(f"{name}, class by class{also}", chart, caption=caption)
    references = sorted(found.get("references") or (), reverse=True)
    if references:
        above = sum(score >= found["score"] for score in references)
        places = [rank + (rank > above) for rank in range(1, len(references) + 1)]
        chart = scatter(
            [
                Series("clean networks", references, places, 5),
                Series("this network", [found["score"]], [above + 1], 1),
            ],
            title=f"scores of {name} among clean networks",
            x_label="rank",
            y_label="score",
            radius=4,
            height=250,
        )
        caption = (
            f"{above} of {len(references)} clean networks score as high or higher: p = "
            f"({above} + 1) / ({len(references)} + 1)."
        )
        yield Figure(f"{name}, among clean networks{also}", chart, caption=caption)


def _pictures(
    name: str,
    also: str,
    found: Mapping[str, Any],
    shown: Recovered,
    classes: tuple[str, ...],
) -> Iterator[Figure]:
    """What was found for the most suspicious classes, and the trigger on images."""
    if shown.by_class:
        statistics = found["statistics"]
        order = sorted(range(len(statistics)), key=lambda label: -statistics[label])
        row: list[Cell] = [
            Picture(shown.by_class[label], f"{name}: class {_name(classes, label)}", [text])
            for label in order[:_MOST_PICTURES]
            for text in (f"class {_name(classes, label)}",)
        ]
        yield Figure(
            f"{name}, the most suspicious classes{also}", table=Table([row], kind="images")
        )
    if shown.triggered:
        label = _name(classes, found["suspected_class"])
        rows = [
            _row("Clean", shown.clean, "clean image"),
            _row("Triggered", shown.triggered, f"with the recovered trigger of class {label}"),
        ]
        yield Figure(
            f"{name}, the recovered trigger{also}",
            table=Table(rows, kind="images"),
            caption=f"It sends images of other classes to class {label}.",
        )


def _row(title: str, images: tuple[Array, ...], text: str) -> list[Cell]:
    return [title, *(Picture(image, text, side=64) for image in images)]
