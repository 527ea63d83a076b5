"""What the checks of a purified network found, for the report and as a picture of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fst_lightning.reports.files import write_text
from fst_lightning.reports.layout import percent
from fst_lightning.reports.pages import figure, figures, section, table
from fst_lightning.reports.style import STYLE
from fst_lightning.reports.svg import Series, line_chart

_LINES = {"ca": ("clean accuracy", 0), "asr": ("attack success rate", 1), "ra": ("robust", 2)}
_WORDS = {
    "o_asr": "ASR before the retuning (O-ASR)",
    "p_asr": "ASR after it (P-ASR)",
    "ca_before": "Clean accuracy before",
    "ca_after": "Clean accuracy after",
    "ra_before": "Robust accuracy before",
    "ra_after": "Robust accuracy after",
    "asr_before": "ASR before",
    "asr_after": "ASR with the perturbation",
    "clean_asr_before": "ASR of a network that was never backdoored",
    "clean_asr_after": "The same with the perturbation",
    "clean_o_asr": "ASR of a network that was never backdoored",
    "clean_p_asr": "The same after the retuning",
}


def robustness_section(results: Mapping[str, Any]) -> str:
    """The part of the page on what becomes of the purified network; "" where nothing was asked."""
    found = results.get("robustness") or {}
    items = [item for name, block in found.items() for item in _of(name, block)]
    note = (
        "What an attacker gets who knows the trigger. On at most 2,000 clean and 2,000 triggered "
        "test images, in float32: figures may differ a little from those above."
    )
    return section("After the defense", [figures(items)], note)


def _of(name: str, block: Mapping[str, Any]) -> Iterator[str]:
    title = name.replace("_", " ").capitalize()
    if "t" in block:
        yield figure(connectivity_chart(block), title, _meaning(block))
        return
    rows = [[words, text] for words, text in _figures(block)]
    yield figure(table(["", ""], rows), title)


def _figures(block: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in block.items():
        if key in _WORDS and (value is None or isinstance(value, int | float)):
            yield _WORDS[key], f"{percent(value)} %"
        elif value is None or isinstance(value, int | float | str):
            yield key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value)


def robustness_lines(results: Mapping[str, Any]) -> list[str]:
    """What the checks found, a line each, for the terminal."""
    lines = []
    for name, block in (results.get("robustness") or {}).items():
        words = [f"{words} {text}" for words, text in _figures(block) if text.endswith("%")]
        if "t" in block:
            rates = [100 * rate for rate in block["asr"]]
            words = [f"ASR from {rates[0]:.1f} % to {rates[-1]:.1f} %"]
            last = max(
                (t for t, rate in zip(block["t"], rates, strict=True) if rate >= 50), default=None
            )
            if last is not None:
                words.append(f"50 % or more up to t = {last:.2f}")
        lines.append(f"{name}: {'; '.join(words)}")
    return lines


def _meaning(block: Mapping[str, Any]) -> str:
    words = "From the backdoored weights (0) to the purified ones (1), in a straight line."
    images = block.get("batchnorm_images")
    if images:
        words += f" Statistics of BatchNorm computed anew at every point, on {images:,} images."
    return words


def connectivity_chart(block: Mapping[str, Any]) -> str:
    """The rates between two networks, as SVG.

    Args:
        block: ``t``, and rates in [0, 1] as long as it.
    """
    places = [float(t) for t in block["t"]]
    lines = [
        Series(word, [None if y is None else 100 * y for y in block[key]], places, style)
        for key, (word, style) in _LINES.items()
        if key in block
    ]
    return line_chart(
        lines,
        title="rates between the backdoored and the purified network",
        x_label="t",
        y_label="%",
        x_range=(0, 1),
        y_range=(0, 100),
    )


def write_connectivity(folder: Path, results: Mapping[str, Any]) -> list[Path]:
    """Write every such chart into the run's folder, as an SVG file that needs nothing else."""
    written = []
    for name, block in (results.get("robustness") or {}).items():
        if "t" in block:
            chart = connectivity_chart(block)
            opened = chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
            head, rest = opened.split(">", 1)
            path = folder / f"{name}.svg"
            write_text(path, f"{head}><style>{STYLE}</style>{rest}\n")
            written.append(path)
    return written
