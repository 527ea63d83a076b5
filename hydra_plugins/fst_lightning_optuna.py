"""``hydra/sweeper=optuna``: a sweep whose parameters Optuna chooses.

Here, because Hydra takes sweepers from the namespace ``hydra_plugins`` alone. It imports every
module in it whenever a command starts, so Optuna comes in when a sweep begins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fst_lightning.cli.ranks import started_with_others

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution


class OptunaSweeper(Sweeper):
    """Ask Optuna for parameters, run the job, tell it what came out; several trials at a time.

    Trial ``n`` is job ``n``. The study lies in a data base, where it can be stopped and goes on:
    with ``resume=true`` a trial that was interrupted is run again, with the parameters it had, in
    the folder it had. A failing job, or one without a finite figure, is a failed trial.

    Args:
        direction: ``maximize`` or ``minimize``, for every figure that ``objective`` names.
        n_trials: how many the study shall have in all, at least 1.
        n_jobs: so many trials are given to the launcher at a time, at least 1.
        study_name: of the study in the storage.
        storage: URL of a data base; None: ``study.db`` in the sweep's folder.
        sampler: configuration of one of Optuna's samplers.
        params: sweeps by key, beside those of the command line.

    Raises:
        HydraException: where Optuna is missing, or the arguments don't fit together.

    Source: Akiba et al., 2019, https://arxiv.org/abs/1907.10902.
    """

    def __init__(
        self,
        direction: str | Sequence[str],
        n_trials: int,
        n_jobs: int,
        study_name: str,
        storage: str | None,
        sampler: DictConfig,
        params: Mapping[str, str],
    ) -> None:
        self.directions = [direction] if isinstance(direction, str) else list(direction)
        self.n_trials = _positive("n_trials", n_trials)
        self.n_jobs = _positive("n_jobs", n_jobs)
        self.study_name = study_name
        self.storage = storage
        self.sampler = sampler
        self.params = params
        self.config: DictConfig
        self.hydra_context: HydraContext
        self.launcher: Launcher

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take over what Hydra has, and make the launcher of the jobs."""
        if started_with_others():
            raise HydraException(
                "hydra/sweeper=optuna was started in several processes, each of which would ask "
                "for trials of its own. Start it once: the jobs start the processes for "
                "trainer.devices themselves."
            )
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that the study still lacks, and show the best ones.

        Args:
            arguments: overrides of the command line; those with a sweep are what Optuna chooses.
        """
        lines = [*(f"{key}={sweep}" for key, sweep in self.params.items()), *arguments]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(lines)
        space = {o.get_key_element(): o for o in overrides if o.is_sweep_override()}
        fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
        if not space:
            raise HydraException(
                "hydra/sweeper=optuna has nothing to choose. Say what: "
                "'defense.alpha=tag(log,interval(0.001,1))', defense=ft,fst, "
                "'tuning.max_epochs=range(5,21,5)'."
            )
        self._check_objective()
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        study = self._study(folder)
        for batch in self._batches(study, space):
            self._run(study, batch, fixed)
        self._show(study, folder)

    def _check_objective(self) -> None:
        names = self._names
        wrong = [way for way in self.directions if way not in ("maximize", "minimize")]
        if wrong or len(names) != len(self.directions):
            raise HydraException(
                "Expected `hydra.sweeper.direction` to say maximize or minimize for every figure "
                f"of objective=[{','.join(names)}], but got {self.directions}."
            )

    @property
    def _names(self) -> list[str]:
        objective = self.config.objective
        return [objective] if isinstance(objective, str) else [str(name) for name in objective]

    def _study(self, folder: Path) -> optuna.Study:
        try:
            import optuna
        except ImportError as error:
            raise HydraException(
                "hydra/sweeper=optuna needs Optuna: pip install 'fst-lightning[optuna]'."
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        ways = [optuna.study.StudyDirection[way.upper()] for way in self.directions]
        study = optuna.create_study(
            storage=self.storage or f"sqlite:///{(folder / 'study.db').absolute()}",
            study_name=self.study_name,
            directions=ways,
            load_if_exists=True,
        )
        found = [way.name.lower() for way in study.directions]
        if found != self.directions:
            raise HydraException(
                f"The study {self.study_name!r} was begun with hydra.sweeper.direction={found}, "
                f"but got {self.directions}. Choose another hydra.sweeper.study_name or .storage."
            )
        if self.sampler.get("seed") is not None:
            # The same seed again would choose the first parameters again.
            self.sampler.seed += len(study.trials)
        study.sampler = instantiate(self.sampler)
        return study

    def _batches(
        self, study: optuna.Study, space: Mapping[str, Override]
    ) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        """Number and parameters of the trials that are run at a time."""
        distributions = {key: _distribution(override) for key, override in space.items()}
        waiting = self._interrupted(study, set(space)) if self.config.resume is True else []
        while True:
            batch, waiting = waiting[: self.n_jobs], waiting[self.n_jobs :]
            while len(batch) < self.n_jobs and len(study.trials) < self.n_trials:
                trial = study.ask(distributions)
                batch.append((trial.number, trial.params))
            if not batch:
                return
            yield batch

    def _interrupted(self, study: optuna.Study, keys: set[str]) -> list[tuple[int, dict[str, Any]]]:
        from optuna.trial import TrialState

        found = []
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            if set(trial.params) == keys:
                found.append((trial.number, trial.params))
            else:  # Stopped before it had all of its parameters, or of another search.
                study.tell(trial.number, state=TrialState.FAIL)
        return found

    def _run(
        self, study: optuna.Study, batch: list[tuple[int, dict[str, Any]]], fixed: list[str]
    ) -> None:
        from optuna.trial import TrialState

        for run in _consecutive(batch):
            jobs = [
                [*fixed, *(f"{key}={value}" for key, value in params.items())] for _, params in run
            ]
            returns = self.launcher.launch(jobs, initial_job_idx=run[0][0])
            for (number, _), job in zip(run, returns, strict=True):
                try:
                    told = job.return_value
                except Exception as error:  # Its own, of debug=true.
                    print(f"#{number} failed: {error}")
                    told = math.nan
                values = list(told) if isinstance(told, Sequence) else [told]
                if all(isinstance(value, float) and math.isfinite(value) for value in values):
                    _tell(study, number, values)
                else:
                    _tell(study, number, state=TrialState.FAIL)

    def _show(self, study: optuna.Study, folder: Path) -> None:
        best: list[dict[str, Any]] = [
            {
                "job": trial.number,
                "figures": dict(zip(self._names, trial.values, strict=True)),
                "parameters": trial.params,
            }
            for trial in study.best_trials
        ]
        path = folder / "best_trials.json"
        path.write_text(json.dumps(best, indent=1), encoding="utf-8")
        states = [trial.state.name.lower() for trial in study.trials]
        counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        print(f"\nstudy {self.study_name}: {counted}; none is better in everything than")
        for entry in best:
            figures = ", ".join(f"{name} {value:.4f}" for name, value in entry["figures"].items())
            chosen = " ".join(f"{key}={value}" for key, value in entry["parameters"].items())
            print(f"  #{entry['job']}: {figures}  {chosen}")
        print(f"written  {path}")


def _distribution(override: Override) -> BaseDistribution:
    """What Optuna chooses a swept parameter from."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    value = override.value()
    key = override.get_key_element()
    if isinstance(value, IntervalSweep) and value.start is not None and value.end is not None:
        log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=log)
        return FloatDistribution(value.start, value.end, log=log)
    if isinstance(value, RangeSweep):
        steps = sorted(value.range())
        if not steps:
            raise HydraException(f"Expected {key} to be swept over something, but it is empty.")
        step = abs(value.step)
        if all(isinstance(number, int) for number in steps):
            return IntDistribution(int(steps[0]), int(steps[-1]), step=int(step))
        return FloatDistribution(steps[0], steps[-1], step=step)
    # As they stand on a command line, quoted where need be.
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _consecutive(
    batch: list[tuple[int, dict[str, Any]]],
) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Split where the numbers have a gap: a launcher counts its jobs from the first one on."""
    start = 0
    for end in count(1):
        if end == len(batch) or batch[end][0] != batch[end - 1][0] + 1:
            yield batch[start:end]
            start = end
        if end == len(batch):
            return


def _positive(name: str, number: Any) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise HydraException(
            f"Expected `hydra.sweeper.{name}` to be a whole number of 1 or more, but got {number}."
        )
    return number


def _tell(study: optuna.Study, number: int, *values: Any, **state: Any) -> None:
    """Tell Optuna what came of a trial.

    A sampler with nothing left to propose, as that of a grid, asks the study to stop, which it can
    do in a loop of Optuna's own alone. What came of the trial is kept before it says so.
    """
    from optuna.trial import TrialState

    try:
        study.tell(number, *values, **state)
    except RuntimeError:
        if study.trials[number].state == TrialState.RUNNING:
            raise
