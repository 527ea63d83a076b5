"""Prints the lowest versions that pyproject.toml claims, as constraints for pip.

Used by ``make test-lowest``: ``torch>=2.9`` becomes ``torch==2.9``.
"""

import re
import tomllib
from pathlib import Path


def lowest(pyproject: Path) -> list[str]:
    """The dependencies, those of the extras too, each at the lowest release that is claimed."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in project.get("optional-dependencies", {}).values():
        lines += extra
    found = (re.fullmatch(r"([\w.-]+)>=([\d.]+)", line) for line in lines)
    return sorted({f"{match[1]}=={match[2]}" for match in found if match})


if __name__ == "__main__":
    print("\n".join(lowest(Path(__file__).parents[1] / "pyproject.toml")))
