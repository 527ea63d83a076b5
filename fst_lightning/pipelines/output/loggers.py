"""Sends curves, settings and the charts of the report to CSV, TensorBoard, W&B and MLflow."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from fst_lightning.pipelines.build.instantiate import make
from fst_lightning.pipelines.build.run import Run
from fst_lightning.reports.html.page import Page

_GROUPS = ("attack", "defense", "data", "model", "training", "tuning", "trainer")


def make_loggers(run: Run, stage: str) -> list[Logger]:
    """The loggers of a Trainer, with the settings of the run.

    Args:
        run: The run.
        stage: The name of the stage. It replaces ``{stage}`` in the logger's configuration. A
            logger that writes files gets a folder of this name, because the next stage would empty
            a shared one.

    Raises:
        ValueError: If W&B has no account or cannot be reached.
    """
    loggers = [_make_logger(config, stage) for config in run.parts("logger")]
    for logger in loggers:
        with _without_questions() if isinstance(logger, WandbLogger) else nullcontext():
            logger.log_hyperparams(settings(run))
    return loggers


@contextmanager
def _without_questions() -> Iterator[None]:
    """Let W&B raise an error instead of asking for an account; there may be nobody to answer.

    It asks only if its standard input is a terminal.
    """
    import wandb

    standard_input, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    except wandb.errors.Error as error:
        raise ValueError(
            f"Could not use W&B ({error}). Log in with `wandb login`, or set WANDB_API_KEY; or "
            "keep its files in the run's folder with logger.wandb.offline=true "
            "(WANDB_MODE=offline)."
        ) from error
    finally:
        sys.stdin = standard_input


def settings(run: Run) -> dict[str, Any]:
    """The settings, flat: ``{"seed": 0, "attack": "badnets", "attack.patch_size": 3}``."""
    found: dict[str, Any] = {"task": run.cfg.task, "seed": run.cfg.seed}
    for group in _GROUPS:
        if group in run.cfg:
            found[group] = run.choices.get(group)
            found |= _flat(run.arguments(group), group)
    return found


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}.{name}"
        if isinstance(value, Mapping):
            found |= _flat(value, key)
        else:
            found[key] = value
    return found


def _make_logger(config: DictConfig, stage: str) -> Logger:
    told = {str(name): value for name, value in config.items()}
    values = {n: v.replace("{stage}", stage) for n, v in told.items() if isinstance(v, str)}
    if "save_dir" in values:
        values["save_dir"] = str(Path(values["save_dir"]) / stage)
    if "wandb" in str(config._target_).lower() and "wandb" in sys.modules:
        # Otherwise Lightning would continue the W&B run of the previous stage or job.
        sys.modules["wandb"].finish()
    return make(OmegaConf.create({**told, **values}), Logger)


def log_report(
    trainer: L.Trainer, results: Mapping[str, Any], page: Page | None, folder: Path
) -> list[str]:
    """Send the figures and the report of a run to its loggers.

    Args:
        trainer: The Trainer with the loggers.
        results: The content of results.json.
        page: The report, or None if there is none.
        folder: The folder of the run, with the files of the report.

    Returns:
        One line per logger that failed; the other loggers are complete.
    """
    troubles = []
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            continue  # The report itself and results.json lie beside its file.
        try:
            logger.log_metrics(final_figures(results))
            if isinstance(logger, TensorBoardLogger):
                _to_tensorboard(logger, page)
            elif isinstance(logger, WandbLogger):
                _to_wandb(logger, page, folder)
            elif isinstance(logger, MLFlowLogger):
                _to_mlflow(logger, page, folder)
            logger.save()
        except Exception as error:
            troubles.append(f"{type(logger).__name__} lacks the report: {error}")
    return troubles


def final_figures(results: Mapping[str, Any]) -> dict[str, float]:
    """The figures of results.json, by name: ``before/ca``, ``after/asr``, ``der``, ..."""
    found = {
        f"{when}/{name}": rate
        for when in ("before", "after")
        for name, rate in (results[when] or {}).items()
    }
    found |= {"der": results["der"]}
    for block in ("seconds", "peak_memory_mb"):
        found |= {f"{block}/{name}": value for name, value in results.get(block, {}).items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def _pictures(page: Page | None) -> dict[str, Image.Image]:
    """The charts of the report, by ``report/NAME``."""
    charts = {} if page is None else page.charts()
    return {
        f"report/{name}": Image.open(io.BytesIO(chart.png())).convert("RGB")
        for name, chart in charts.items()
    }


def _to_tensorboard(logger: TensorBoardLogger, page: Page | None) -> None:
    for name, picture in _pictures(page).items():
        logger.experiment.add_image(name, np.asarray(picture), dataformats="HWC")


def _to_wandb(logger: WandbLogger, page: Page | None, folder: Path) -> None:
    import wandb

    if page is not None:
        file = str(folder / "report.html")
        logger.experiment.log({"report": wandb.Html(file, inject=False)})
    pictures = {name: wandb.Image(picture) for name, picture in _pictures(page).items()}
    logger.experiment.log(pictures)


def _to_mlflow(logger: MLFlowLogger, page: Page | None, folder: Path) -> None:
    names = ["results.json"] if page is None else ["report.html", "charts.pdf", "results.json"]
    for file in (folder / name for name in names):
        if file.is_file():
            logger.experiment.log_artifact(logger.run_id, str(file))
    for file in sorted((folder / "charts").glob("*.png")) if page else ():
        logger.experiment.log_artifact(logger.run_id, str(file), "charts")
