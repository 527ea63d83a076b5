"""The files of the package import each other without a circle.

`lint-imports` watches over the layers. This test looks inside them, at every import statement: also
at those in functions and those for type checkers only.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fst_lightning

HEAVY = {
    "IPython",
    "hdbscan",
    "huggingface_hub",
    "hydra_plugins",
    "jsonschema",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "optuna",
    "pandas",
    "scipy",
    "sklearn",
    "tensorboard",
    "timm",
    "transformers",
    "umap",
}
"""What only some runs use: they import it when they use it."""

PACKAGE = Path(fst_lightning.__file__).parent


def modules(package: Path) -> dict[str, Path]:
    """The files of a package, by the names that they are imported by."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, names: set[str]) -> Iterator[str]:
    """The modules that a file names in its import statements.

    ``from package import name`` counts for the module ``package.name`` if there is one, and else
    for the package, whose ``__init__`` brings the name.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module in names and not node.level:
            for alias in node.names:
                longer = f"{node.module}.{alias.name}"
                yield longer if longer in names else node.module


def circle(package: Path) -> list[str] | None:
    """A circle of imports in the files of a package; None if there is none."""
    files = modules(package)
    graph = {name: set(imported(path, set(files))) - {name} for name, path in files.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return None


def test_no_circle_of_files() -> None:
    assert "fst_lightning.cli.job" in modules(PACKAGE)
    found = circle(PACKAGE)
    assert found is None, " <- ".join(found or [])


@pytest.mark.parametrize(
    ("line", "closed"),
    [
        ("import pack.a", True),
        ("from pack.a import f", True),
        ("from pack import a", True),
        ("def g():\n    from pack.a import f", True),
        ("if TYPE_CHECKING:\n    from pack.a import f", True),
        ("import json", False),
        ("from pack import c", False),
    ],
)
def test_a_circle_is_found(line: str, closed: bool, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "__init__.py").write_text("")
    (pack / "a.py").write_text("from pack.b import x\n")
    (pack / "b.py").write_text(f"{line}\n")
    (pack / "c.py").write_text("")
    found = circle(pack)
    assert (found is not None) == closed
    assert not closed or set(found or ()) == {"pack.a", "pack.b"}


def test_a_run_imports_little_beyond_lightning() -> None:
    """Lightning imports torchmetrics, which imports scipy and torchvision; we add nothing heavy."""
    code = (
        "import sys, lightning\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        "import fst_lightning.pipelines\n"
        "print(*{name.partition('.')[0] for name in sys.modules} - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added = set(done.stdout.split())
    assert "fst_lightning" in added
    assert not added & HEAVY
