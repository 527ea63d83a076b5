"""Every attack and defense on two processes, as torchrun starts them, against one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipelines.two_processes import all_cases, cases, difference

pytestmark = [pytest.mark.slow, pytest.mark.ddp]

OWN = {
    # random numbers in every step, of which each process has its own
    *("attack bpp", "attack input_aware", "attack wanet"),
    # means over the poisoned rows of a batch, of which one process may have more than the other
    *("attack blind", "attack lira"),
    # something found anew in every step, or every round, from the batch of a process
    *("defense bti_dbf", "defense fip", "defense ft_sam", "defense i_bau", "defense mcr"),
    "defense pam",
    # a training on rows whose number does not divide by two, of which one waits
    *("defense abl", "defense spectral"),
}
"""What two processes with half the batch do otherwise than one process, and are meant to."""

KEYS = [f"{group} {name}" for _, group, name in cases()]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return all_cases(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*start, "-m", "tests.pipelines.two_processes", str(folder)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("key", KEYS)
def test_both_processes_end_with_one_network(two: list[dict[str, Any]], key: str) -> None:
    """Or both refuse, with the message that one process alone gives."""
    first, second = two[0][key], two[1][key]
    assert first.keys() == second.keys()
    if "error" in first:
        assert first["error"] == second["error"]
        return
    assert first["num_processes"] == 2
    assert first["counts"] == second["counts"]
    assert difference(first["weights"], second["weights"]) == 0


@pytest.mark.parametrize("key", KEYS)
def test_two_processes_are_one_with_batches_of_both(
    one: dict[str, Any], two: list[dict[str, Any]], key: str
) -> None:
    """The same poisoned rows, weights to 1e-5, and exactly the same counts."""
    alone, together = one[key], two[0][key]
    assert alone.keys() == together.keys(), together.get("trace") or alone.get("trace")
    if "error" in alone:
        assert alone["error"] == together["error"]
        return
    assert alone["num_poisoned"] == together["num_poisoned"]
    if "normed" in alone or key in OWN:
        return  # BatchNorm sees the batch of its own process
    assert difference(alone["weights"], together["weights"]) < 1e-5
    assert alone["counts"] == together["counts"]
