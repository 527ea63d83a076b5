"""One job: everything that it takes to run it, in this process or in another."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fst_lightning.cli.failure import forget_failure, report_failure
from fst_lightning.cli.own_network import own_network
from fst_lightning.cli.paths import complete_paths
from fst_lightning.cli.ranks import is_main_process
from fst_lightning.cli.stopping import end_process, stopped
from fst_lightning.configuration import drop_unused
from fst_lightning.text_files import read_text

_FILE = "job.yaml"
_PATIENCE_SECONDS = 2.0


@dataclass(frozen=True)
class Job:
    """One job, as Hydra composed it.

    Attributes:
        cfg: the configuration.
        choices: the option that was chosen of every group.
        overrides: what the command line said.
        folder: where it writes.
    """

    cfg: DictConfig
    choices: dict[str, str]
    overrides: list[str]
    folder: Path

    @classmethod
    def of_hydra(cls, cfg: DictConfig) -> Job:
        """The job that Hydra is running."""
        hydra = HydraConfig.get()
        drop_unused(cfg)
        # Hydra has changed to the folder of the job: what was typed started at another.
        complete_paths(cfg, Path(hydra.runtime.cwd) if hydra.job.chdir else None)
        folder = Path(hydra.runtime.output_dir).absolute()
        # As they were written: one with ${...} in it need not be right.
        overrides = [str(line) for line in OmegaConf.to_container(hydra.overrides.task) or ()]
        cfg, choices = own_network(cfg, dict(hydra.runtime.choices), overrides)
        return cls(cfg, choices, overrides, folder)

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Read what `save` has written into the folder."""
        saved: Any = OmegaConf.load(folder / _FILE)
        OmegaConf.set_struct(saved.cfg, True)
        return cls(saved.cfg, dict(saved.choices), list(saved.overrides), folder)

    def save(self) -> Path:
        """Write it into its folder, every reference resolved, for another process."""
        plain = {
            "cfg": OmegaConf.to_container(self.cfg, resolve=True),
            "choices": self.choices,
            "overrides": self.overrides,
        }
        path = self.folder / _FILE
        OmegaConf.save(OmegaConf.create(plain), path)
        return path

    def run(self) -> bool:
        """Run it in this process.

        Returns:
            Whether it came to its end; where not, the folder says why.
        """
        if is_main_process():
            forget_failure(self.folder)
        try:
            from fst_lightning.pipelines import Run, run_pipeline

            run_pipeline(Run(self.cfg, self.choices, self.overrides, self.folder))
        except Exception as error:
            if stopped():
                raise KeyboardInterrupt from error
            if not is_main_process():
                # Of a process that is gone the others miss an answer, before they end with it.
                time.sleep(_PATIENCE_SECONDS)
            if self.cfg.get("debug") is True:
                traceback.print_exc()
                end_process(1)
            report_failure(error, self.overrides, self.folder, self.cfg)
            return False
        return True

    def is_refused(self) -> bool:
        """Whether a scan crossed the p-value that ``fail_on`` names."""
        from fst_lightning.reports.results.detection import Threshold

        threshold = Threshold.parse(self.cfg.get("fail_on"))
        return threshold is not None and threshold.crossed(self._results())

    def figures(self, names: Sequence[str]) -> tuple[float, ...]:
        """Figures of its results, by their dotted names; NaN for one that it has not.

        Args:
            names: such as ``after.ca``.
        """
        results = self._results()
        return tuple(_number(results, name) for name in names)

    def _results(self) -> dict[str, Any]:
        try:
            results: dict[str, Any] = json.loads(read_text(self.folder / "results.json"))
        except (OSError, ValueError, RecursionError):
            return {}
        return results


def _number(results: Any, name: str) -> float:
    value = results
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if known else float("nan")
