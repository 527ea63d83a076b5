"""Prints the lowest versions that pyproject.toml claims, as constraints for pip.

``make test-lowest`` uses it: ``torch>=2.9`` becomes ``torch==2.9``, and ``name[extra]>=1,<2``
becomes ``name==1``.
"""

import re
import tomllib
from pathlib import Path


def lowest(pyproject: Path) -> list[str]:
    """Return the dependencies, also those of the extras, each at its lowest claimed release."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in project.get("optional-dependencies", {}).values():
        lines += extra
    found = (re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\d.]+)", line) for line in lines)
    return sorted({f"{match[1]}=={match[2]}" for match in found if match})


if __name__ == "__main__":
    print("\n".join(lowest(Path(__file__).parents[1] / "pyproject.toml")))
