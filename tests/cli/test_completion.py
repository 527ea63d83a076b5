"""Shell completion and ``--version``, as a shell asks for them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fst_lightning.version import __version__

ROOT = Path(__file__).parents[2]
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
TYPED = """
eval "$(python purify.py -sc install=bash)" || exit 1
COMP_LINE='{line}' COMP_POINT={point} COMP_CWORD={word}
hydra_bash_completion
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PATH": PATH, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_bash_completes_what_is_typed() -> None:
    line = "python purify.py defense=ft_"
    script = TYPED.format(line=line, point=len(line), word=2)
    done = run("bash", "-c", script)
    assert done.stdout.split() == ["defense=ft_init", "defense=ft_sam"], done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(
    "line",
    ["python purify.py defense=[ see", "python purify.py --nope ", "python purify.py a b=' "],
)
def test_a_half_typed_line_leaves_no_complaint_on_the_terminal(line: str) -> None:
    done = run(sys.executable, "purify.py", "-sc", "query=bash", COMP_LINE=line)
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script(shell: str) -> None:
    done = run(sys.executable, "train.py", "-sc", f"install={shell}")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"-sc query={'fish' if shell == 'fish' else 'bash'}" in done.stdout
    # That of fish asks for this word in the script.
    for script in ("train.py", "purify.py", "detect.py"):
        assert "@hydra.main" in (ROOT / script).read_text(encoding="utf-8")


@pytest.mark.parametrize("flag", ["--version", "--vers"])
def test_the_version_is_that_of_this_project(flag: str) -> None:
    done = run(sys.executable, "purify.py", flag)
    assert (done.returncode, done.stdout) == (0, f"fst_lightning {__version__}\n")
