"""Runs the code of a tutorial and compares what it prints with what the page shows.

``python -m website.tutorials docs/tutorials/lightning.md`` runs a page and prints its output.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(
    r"^```(?P<kind>\w+)(?: title=\"(?P<file>[^\"]+)\")?\n(?P<text>.*?)^```", re.M | re.S
)
_NUMBER = re.compile(r"-?\d+\.\d+")
_MARK = "<<end of block>>"
_NEAR_FRACTION, _NEAR = 0.1, 10.0


class Step(NamedTuple):
    """A piece of code in a tutorial.

    Attributes:
        kind: ``python``, ``bash``, or the file name of a block that is written to a file.
        code: The code.
        shown: The output that the page shows below it; empty for none.
    """

    kind: str
    code: str
    shown: str


def read_steps(page: str) -> list[Step]:
    r"""Find the code of a page: fences named ``python`` and ``bash``, with ``text`` below them.

    A fence with a title is a file: ``title="nets.py"``.

    Example:
        >>> read_steps("```python\nprint(1)\n```\n\n```text\n1\n```\n")
        [Step(kind='python', code='print(1)\n', shown='1\n')]
    """
    steps: list[Step] = []
    for fence in _FENCE.finditer(page):
        if fence["file"]:
            steps.append(Step(fence["file"], fence["text"], ""))
        elif fence["kind"] == "text" and steps:
            steps[-1] = steps[-1]._replace(shown=fence["text"])
        elif fence["kind"] in ("python", "bash"):
            steps.append(Step(fence["kind"], fence["text"], ""))
    return steps


def run_steps(steps: list[Step], folder: Path) -> list[str]:
    """Run the code in a folder and return what each step printed.

    Files are written first. All steps run in one process, so that Python code sees earlier names.

    Args:
        steps: Of one page.
        folder: An empty folder; gets the commands of this project and the files of the page.

    Raises:
        RuntimeError: If a step fails.
    """
    for command in ("train.py", "purify.py", "detect.py"):
        (folder / command).symlink_to(ROOT / command)
    for step in steps:
        if step.kind not in ("python", "bash"):
            file = folder / step.kind
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(step.code, encoding="utf-8")
    script = "\n".join(f"{_as_python(step)}\nprint({_MARK!r}, flush=True)" for step in steps)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(_search_path())}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = [sys.executable, "-W", "ignore", "-c", script]
    ended = subprocess.run(run, cwd=folder, capture_output=True, text=True, env=environment)
    if ended.returncode != 0:
        raise RuntimeError(f"The tutorial failed.\n{ended.stdout}\n{ended.stderr}")
    return ended.stdout.split(f"{_MARK}\n")[:-1]


def difference(shown: str, printed: str) -> str | None:
    r"""The first line of a page that the code did not print, in its order; None if there is none.

    A line ``...`` stands for any lines. Numbers with a decimal point differ from one processor to
    the next: fractions may differ by 0.1, others, such as per cent, by 10.

    Example:
        >>> difference("CA 0.91\n...\ndone\n", "CA 0.93\nsome line\ndone\n")
        >>> difference("CA 0.91\n", "CA 0.41\n")
        'CA 0.91'
    """
    lines = iter(printed.splitlines())
    for expected in shown.splitlines():
        if expected.strip() not in ("", "...") and not any(
            _alike(expected, line) for line in lines
        ):
            return expected
    return None


def _alike(expected: str, line: str) -> bool:
    if _words(expected) != _words(line):
        return False
    pairs = zip(_NUMBER.findall(expected), _NUMBER.findall(line), strict=True)
    return all(_near(float(first), float(second)) for first, second in pairs)


def _words(line: str) -> str:
    return " ".join(_NUMBER.sub("#", line).split())


def _near(first: float, second: float) -> bool:
    return abs(first - second) <= (_NEAR_FRACTION if max(abs(first), abs(second)) <= 1 else _NEAR)


def _as_python(step: Step) -> str:
    """The code of a step, to be run in one process with the other steps."""
    if step.kind == "python":
        return step.code
    if step.kind == "bash":
        shell = ["bash", "-euo", "pipefail", "-c", step.code]
        return f"import subprocess; subprocess.run({shell!r}, check=True)"
    return ""


def _search_path() -> Iterator[str]:
    yield str(ROOT)
    if os.environ.get("PYTHONPATH"):
        yield os.environ["PYTHONPATH"]


def _main() -> None:
    parser = argparse.ArgumentParser(description="Run the code of a tutorial.")
    parser.add_argument("page", type=Path)
    page = parser.parse_args().page
    steps = read_steps(page.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        for step, printed in zip(steps, run_steps(steps, Path(folder)), strict=True):
            missing = difference(step.shown, printed)
            print(f"{step.code}{'-' * 40}\n{printed}")
            if missing is not None:
                print(f"The page shows a line that was not printed: {missing}")


if __name__ == "__main__":
    _main()
