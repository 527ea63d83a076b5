"""What the checks of a purified network found, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fst_lightning.reports.numbers import percent

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


def robustness_figures(block: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what each figure of a check is, and its value as text."""
    for key, value in block.items():
        if key in _WORDS and (value is None or isinstance(value, int | float)):
            yield _WORDS[key], f"{percent(value)} %"
        elif value is None or isinstance(value, int | float | str):
            yield key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value)


def robustness_lines(results: Mapping[str, Any]) -> list[str]:
    """What the checks found, a line each, for the terminal."""
    lines = []
    for name, block in (results.get("robustness") or {}).items():
        words = [
            f"{words} {text}" for words, text in robustness_figures(block) if text.endswith("%")
        ]
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
