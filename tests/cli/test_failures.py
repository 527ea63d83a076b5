"""A run that fails says why in one line, and leaves no results."""

import json
from pathlib import Path

import pytest

from fst_lightning.cli.failure import explained, forget_failure, has_failure, report_failure
from tests.cli.conftest import Command

# The full list is in tests/pipelines/test_settings.py.
BAD = {
    "attack.poison_ratio=2": "poison_ratio",
    "defense.alpha=-1": "alpha",
    "tuning.max_epochs=-1": "tuning.max_epochs",
    "tuning.clean_ratio=0.017": "1 clean images",
    "checkpoint=missing.pt": "missing.pt",
    "seed=-1": "seed",
    "data=image_folder data.root=missing": "missing",
}


@pytest.mark.parametrize(("override", "part"), BAD.items())
def test_a_bad_value(override: str, part: str, command: Command) -> None:
    outcome = command(*override.split(), "hydra.run.dir=run")
    assert outcome.code == 1
    error, hint = outcome.err.splitlines()
    assert error.startswith("error: ")
    assert part in error
    assert "debug=true" in hint
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert "run/results.json" not in outcome.written
    assert {"run/failure.json", "run/traceback.txt"} <= outcome.written
    assert not [name for name in outcome.written if name.startswith("store")]
    failure = json.loads((outcome.folder / "run/failure.json").read_text(encoding="utf-8"))
    assert failure["error"] == error.removeprefix("error: ")
    assert set(override.split()) <= set(failure["overrides"])
    assert "Traceback" in Path(failure["log"]).read_text(encoding="utf-8")


def test_debug_shows_where(command: Command) -> None:
    outcome = command("defense.alpha=-1", "debug=true")
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert "Expected `alpha` to be a number of 0 or more, but got -1." in outcome.err


def test_an_error_that_is_no_message_for_users_has_its_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, said in (
        (KeyError("width"), "KeyError: 'width'"),
        (RuntimeError(), "RuntimeError"),
        (ValueError("two\n  lines"), "two lines"),
        (FileNotFoundError("no file x"), "no file x"),
    ):
        folder = tmp_path / "new" / type(error).__name__
        report_failure(error, ["a=1"], folder)
        shown = capsys.readouterr().err.splitlines()[0]
        assert shown.startswith(f"error: {said}")
        kept = json.loads((folder / "failure.json").read_text(encoding="utf-8"))
        assert kept["overrides"] == ["a=1"]


def test_the_first_process_to_fail_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others only miss it: connection closed by peer."""
    report_failure(ValueError("the reason"), [], tmp_path)
    report_failure(RuntimeError("connection closed by peer"), [], tmp_path)
    assert "peer" not in capsys.readouterr().err
    assert "the reason" in (tmp_path / "failure.json").read_text(encoding="utf-8")
    assert "the reason" in (tmp_path / "traceback.txt").read_text(encoding="utf-8")
    assert has_failure(tmp_path)
    forget_failure(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_does_not_hide_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    report_failure(ValueError("the reason"), [], blocked / "run")
    assert "error: the reason" in capsys.readouterr().err


LOST = (
    "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by "
    "peer [127.0.0.1]:50093. This is typically caused by a remote worker crashing.",
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]",
    "NCCL communicator was aborted on rank 1. Original reason for failure was: timeout",
    "[1] is setting up NCCL communicator and retrieving ncclUniqueId, but store->get failed",
)


@pytest.mark.parametrize("message", LOST)
def test_a_process_that_lost_another_says_so_in_one_line(message: str) -> None:
    """These are gloo's own words when a rank dies, and NCCL's."""
    said = explained(RuntimeError(message))
    assert said.startswith("Another process of this run has ended, and this one cannot go on")
    assert "\n" not in said
    assert "gloo" not in said


def test_other_errors_keep_their_words() -> None:
    assert explained(RuntimeError("No backend gloo is built in")).startswith("RuntimeError: No")
