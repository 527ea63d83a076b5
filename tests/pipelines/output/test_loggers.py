"""What loggers are given, and that none of them makes a run fail."""

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import open_dict
from PIL import Image

from fst_lightning.pipelines import run_pipeline
from fst_lightning.pipelines.output.loggers import final_figures, make_loggers, settings
from fst_lightning.reports import read_results
from tests.pipelines.conftest import Start

ATTACKED = ("attack=badnets", "attack.poison_ratio=0.3", "defense=fst")


def names(folder: Path) -> set[str]:
    """The charts of a run's report."""
    found = {file.stem for file in (folder / "charts").glob("*.png")}
    assert len(found) > 5
    assert (folder / "report.html").read_text("utf-8").count("<svg ") == len(found)
    return found


def test_settings_are_flat_and_complete(start_with_report: Start) -> None:
    run = start_with_report(*ATTACKED, "seed=7")
    found = settings(run)
    assert found["task"] == "purify"
    assert found["seed"] == 7
    assert found["attack"] == "badnets"
    assert found["attack.poison_ratio"] == 0.3
    assert found["tuning.optimizer.lr"] == run.cfg.tuning.optimizer.lr
    assert not any(isinstance(value, dict) for value in found.values())


def test_final_figures_are_those_that_were_measured() -> None:
    results = {
        "before": {"ca": 0.5, "asr": None},
        "after": {"ca": 0.25, "asr": None},
        "der": None,
        "seconds": {"train": None, "purify": 2},
    }
    expected = {"before/ca": 0.5, "after/ca": 0.25, "seconds/purify": 2.0}
    assert final_figures(results) == expected
    del expected["after/ca"]
    assert final_figures({**results, "after": None}) == expected


def test_a_stage_has_its_name_and_folder(start_with_report: Start, tmp_path: Path) -> None:
    run = start_with_report("logger=csv")
    with open_dict(run.cfg):
        run.cfg.logger.csv.save_dir = str(tmp_path / "curves")
        run.cfg.logger.csv.name = "{stage}-curves"
    (logger,) = make_loggers(run, "purify")
    assert logger.save_dir == str(tmp_path / "curves" / "purify")
    assert logger.name == "purify-curves"
    assert run.cfg.logger.csv.name == "{stage}-curves"


def test_tensorboard_has_figures_settings_and_charts(start_with_report: Start) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = start_with_report(*ATTACKED, "logger=[csv,tensorboard]")
    results = run_pipeline(run)
    events = EventAccumulator(str(run.folder / "curves" / "purify"))
    events.Reload()
    tags = events.Tags()
    for name, value in final_figures(results).items():
        assert [event.value for event in events.Scalars(name)] == [pytest.approx(value)]
    assert {"val/ca", "train/loss"} <= set(tags["scalars"])
    assert set(tags["images"]) == {f"report/{name}" for name in names(run.folder)}
    (event,) = events.Images("report/features-before")
    picture = Image.open(io.BytesIO(event.encoded_image_string))
    assert picture.size == (840, 720)
    assert "badnets" in (run.folder / "curves" / "purify" / "hparams.yaml").read_text("utf-8")
    # The other logger is left alone: the report lies beside its file.
    head = (run.folder / "curves" / "purify" / "metrics.csv").read_text("utf-8").splitlines()[0]
    assert "val/ca" in head
    assert "before/ca" not in head


def test_wandb_has_a_run_a_stage_with_report_and_charts(
    start_with_report: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = start_with_report(*ATTACKED, "logger=wandb", "logger.wandb.offline=true")
    run_pipeline(run)
    wandb.finish()
    for stage in ("train", "purify"):
        (folder,) = (run.folder / "curves" / stage / "wandb").glob("offline-run-*")
        media = folder / "files" / "media"
        if stage == "train":
            assert not media.exists()
    (page,) = (media / "html").glob("report_*.html")
    assert page.read_bytes() == (run.folder / "report.html").read_bytes()
    pictures = {file.name.rsplit("_", 2)[0] for file in (media / "images/report").glob("*.png")}
    assert pictures == names(run.folder)


class Terminal(io.StringIO):
    """Somebody who would answer; the third answer is to go on without an account."""

    def __init__(self) -> None:
        super().__init__("3\n" * 9)

    def isatty(self) -> bool:
        return True


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B as it is on a machine where nobody has logged in."""
    wandb = pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    wandb.teardown()  # it reads all of this once
    yield
    wandb.teardown()


@pytest.mark.parametrize("key", [None, "short"])
@pytest.mark.usefixtures("no_account")
def test_wandb_without_an_account_is_refused_before_the_training(
    key: str | None, start_with_report: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ValueError, match=r"wandb login.*logger\.wandb\.offline=true"):
        run_pipeline(start_with_report("logger=wandb"))
    assert sys.stdin is terminal
    assert terminal.read(1) == "3"  # nothing was asked
    assert not list((tmp_path / "store").rglob("*.safetensors"))


def test_mlflow_has_figures_settings_report_and_charts(
    start_with_report: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    from mlflow.tracking import MlflowClient

    address = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)  # MLflow's artifacts lie here
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    run = start_with_report(*ATTACKED, "logger=mlflow")
    results = run_pipeline(run)
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("fst_lightning")
    found = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(found) == {"train", "purify"}
    logged = found["purify"].data
    for name, value in final_figures(results).items():
        assert logged.metrics[name] == pytest.approx(value)
    assert logged.params["attack"] == "badnets"
    artifacts = Path(found["purify"].info.artifact_uri.removeprefix("file://"))
    for name in ("report.html", "results.json"):
        assert (artifacts / name).read_bytes() == (run.folder / name).read_bytes()
    assert {file.stem for file in (artifacts / "charts").glob("*.png")} == names(run.folder)
    assert (artifacts / "charts.pdf").read_bytes() == (run.folder / "charts.pdf").read_bytes()
    assert found["purify"].info.status == "FINISHED"


def test_what_does_not_reach_a_logger_is_a_warning(
    start_with_report: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(SummaryWriter, "add_image", fail)
    run = start_with_report(*ATTACKED, "logger=tensorboard")
    results = run_pipeline(run)
    printed = capsys.readouterr().out
    assert "warning  TensorBoardLogger lacks the report: no space left" in printed
    assert read_results(run.folder / "results.json").results == results
    assert (run.folder / "report.html").is_file()
