"""What holds for every test."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator

import pytest

# Tiny tensors on many threads cost more than they save, and threads of two test processes on the
# same cores wait for each other. Before torch is imported; inherited by the processes tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def no_seed_is_left() -> Iterator[None]:
    """What ``seed_everything`` leaves in the environment would seed processes of later tests."""
    yield
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


@pytest.fixture(params=["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def lose_locks(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], str]:
    """Makes all file systems such that have no locks; returns the reason in their words."""
    number = getattr(errno, request.param)

    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    def lose() -> str:
        monkeypatch.setattr(fcntl, "flock", refuse)
        return os.strerror(number)

    return lose


@pytest.fixture(scope="session", autouse=True)
def results_keep_to_the_schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every results.json that a run has left, in whatever process, is what is published.

    A run has its config.yaml beside it; results that a test has spoilt on purpose have none.
    """
    yield
    import jsonschema

    from fst_lightning.reports import results_schema

    validator = jsonschema.Draft202012Validator(results_schema())
    for file in tmp_path_factory.getbasetemp().rglob("results.json"):
        if (file.parent / "config.yaml").is_file():
            found = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse)
            problem = jsonschema.exceptions.best_match(validator.iter_errors(found))
            assert problem is None, f"{file}: {problem.message} at {problem.json_path}"


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
