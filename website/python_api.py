"""The reference of the Python API: one page for every public package."""

from __future__ import annotations

PACKAGES = {
    "fst_lightning": "The names that most scripts need.",
    "attacks": "Attacks, and what they share.",
    "callbacks": "Callbacks for your own Lightning project.",
    "checkpoints": "Safe reading of checkpoints, and the store of backdoored models.",
    "data": "Data sets and the data module.",
    "defenses": "Defenses, and what they share.",
    "detectors": "Detectors, and the combination of their p-values.",
    "metrics": "Metrics and confidence intervals.",
    "models": "Networks, and the search for the head.",
    "modules": "The LightningModules.",
    "optim": "Optimizers and a schedule that torch does not have.",
    "pipelines": "The sequence of a run.",
    "reports": "Results, tables, charts and pages.",
    "robustness": "Attacks on a purified network.",
}
"""Every public package and what it is for; the first one is the package itself."""


def api_pages() -> dict[str, str]:
    """The pages of the packages and a list of them, by path below ``docs``.

    Example:
        >>> "reference/api/metrics.md" in api_pages()
        True
    """
    pages = {f"reference/api/{name}.md": _page(name, text) for name, text in PACKAGES.items()}
    lines = ["# Python API", "", "| package | what it holds |", "|---|---|"]
    lines += [f"| [`{_dotted(name)}`]({name}.md) | {text} |" for name, text in PACKAGES.items()]
    pages["reference/api/index.md"] = "\n".join(lines) + "\n"
    return pages


def _dotted(name: str) -> str:
    return name if name == "fst_lightning" else f"fst_lightning.{name}"


def _page(name: str, text: str) -> str:
    return f"# `{_dotted(name)}`\n\n{text}\n\n::: {_dotted(name)}\n"
