"""Every attack and defense on two processes, as torchrun starts them, against one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipelines.several_processes import all_cases, cases, difference

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


def torchrun(folder: Path, processes: int, *keys: str) -> list[dict[str, Any]]:
    """What each process found."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start += [f"--nproc-per-node={processes}", "-m", "tests.pipelines.several_processes"]
    done = subprocess.run(
        [*start, str(folder), *keys],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return torchrun(tmp_path_factory.mktemp("two"), 2)


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


def test_four_processes_are_one_with_batches_of_all(tmp_path: Path, one: dict[str, Any]) -> None:
    keys = ("attack blended", "defense fst", "defense ft")
    four = torchrun(tmp_path, 4, *keys)
    assert [sorted(found) for found in four] == [sorted(keys)] * 4
    for key in keys:
        assert four[0][key]["num_processes"] == 4
        for found in four:
            assert found[key]["counts"] == one[key]["counts"]
            assert found[key]["num_poisoned"] == one[key]["num_poisoned"]
            assert difference(found[key]["weights"], one[key]["weights"]) < 1e-5
