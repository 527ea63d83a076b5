"""The commands, run inside the test process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from fst_lightning import cli
from tests.runs import tiny


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def written(self) -> set[str]:
        """The files in the folder that the command ran in."""
        files = (file for file in self.folder.rglob("*") if file.is_file())
        return {str(file.relative_to(self.folder)) for file in files}


Command = Callable[..., Outcome]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs ``command("defense=ft", task="purify")`` in a folder of its own, with tiny data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FST_LIGHTNING_STORE", raising=False)

    def run(*arguments: str, task: str = "purify", small: bool = True) -> Outcome:
        overrides = [line for line in arguments if not line.startswith("-")]
        flags = [line for line in arguments if line.startswith("-")]
        lines = tiny(task, overrides) if small else []
        monkeypatch.setattr(sys, "argv", [f"{task}.py", *flags, *lines, *overrides])
        capsys.readouterr()
        code: object = 0
        said = ""
        try:
            getattr(cli, task)()
        except SystemExit as stop:
            code = stop.code or 0
            if isinstance(code, str):  # Python prints it and exits with 1
                said, code = code, 1
        finally:
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
        out, err = capsys.readouterr()
        assert isinstance(code, int)
        return Outcome(code, out, err + said, tmp_path)

    return run
