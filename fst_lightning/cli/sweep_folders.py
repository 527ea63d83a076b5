"""Finds jobs of a sweep that would write into one folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

_UNIQUE = ("${hydra.job.num}", "${hydra.job.id}")
_ADVICE = (
    "Say hydra.sweep.subdir='${hydra.job.num}', or name every swept key in it, as "
    "'${hydra.job.override_dirname}' does."
)


def shared_folder(config: DictConfig) -> str | None:
    """Explain why jobs of a sweep would overwrite each other's results.

    Args:
        config: of the sweep, composed by Hydra, which is running.

    Returns:
        None if every job has its own folder; else one line.
    """
    raw = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    subdir = str(raw["subdir"]) if isinstance(raw, dict) else ""
    if any(name in subdir for name in _UNIQUE):
        return None
    lines = list(config.hydra.overrides.task)
    if str(config.hydra.sweeper._target_).endswith(f".{BasicSweeper.__name__}"):
        params = (config.hydra.sweeper.params or {}).items()
        jobs = _jobs([*(f"{key}={value}" for key, value in params), *lines])
    else:
        # Nobody knows what it will choose; it may choose the same twice.
        fixed = [str(line.input_line) for line in _parsed(lines) if not line.is_sweep_override()]
        jobs = [fixed, fixed]
    seen: dict[str, int] = {}
    for number, job in enumerate(jobs):
        folder = _folder(config, job, number)
        if folder in seen:
            return (
                f"hydra.sweep.subdir={subdir}: jobs {seen[folder]} and {number} would both write "
                f"into {folder}. {_ADVICE}"
            )
        seen[folder] = number
    return _depends_on_resume(config, subdir, jobs[0]) if jobs else None


def _depends_on_resume(config: DictConfig, subdir: str, job: list[str]) -> str | None:
    others = [line for line in job if line.partition("=")[0] not in ("resume", "debug")]
    if len(others) == len(job) or _folder(config, job, 0) == _folder(config, others, 0):
        return None
    return (
        f"hydra.sweep.subdir={subdir}: the folder of a job depends on resume or debug, so that a "
        "resumed sweep would not find its jobs. Leave them out of it, for example with "
        "hydra.job.config.override_dirname.exclude_keys=[resume,debug,...]."
    )


def _jobs(lines: Sequence[str]) -> list[list[str]]:
    batches = BasicSweeper.split_arguments(_parsed(lines), max_batch_size=None)
    return [job for batch in batches for job in batch]


def _parsed(lines: Sequence[str]) -> list[Override]:
    loader = GlobalHydra.instance().config_loader()
    return OverridesParser.create(config_loader=loader).parse_overrides(list(lines))


def _folder(config: DictConfig, job: list[str], number: int) -> str:
    """The folder of a job, as an absolute path."""
    str(config.hydra.sweep.dir)  # a time in it is that of the sweep, which the jobs then take over
    cfg = GlobalHydra.instance().config_loader().load_sweep_config(config, job)
    with open_dict(cfg):
        cfg.hydra.job.num, cfg.hydra.job.id = number, f"job_id_for_{number}"
    return os.path.normpath(Path.cwd() / str(cfg.hydra.sweep.dir) / str(cfg.hydra.sweep.subdir))
