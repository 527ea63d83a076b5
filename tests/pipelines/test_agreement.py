"""What the first process found, on processes that a launcher started together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fst_lightning.pipelines.runtime.processes import agreed

pytestmark = [pytest.mark.slow, pytest.mark.ddp]

ASK = """
import os, sys, time
import torch
from fst_lightning.pipelines.runtime.processes import agreed

rank, late = int(sys.argv[1]), int(sys.argv[2])
for said in (True, False, True):
    time.sleep(rank == late)
    print(rank, agreed(said if rank == 0 else not said), flush=True)
time.sleep(rank == late)
where = f"tcp://127.0.0.1:{os.environ['MASTER_PORT']}"
torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
print(rank, agreed(rank == 0), flush=True)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def variables(launcher: str, rank: int) -> dict[str, str]:
    if launcher == "torchrun":
        names = {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank}
        names |= {"GROUP_RANK": 0, "LOCAL_WORLD_SIZE": 2}
    else:
        names = {"SLURM_NTASKS": 2, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        names |= {"SLURM_JOB_NAME": "x", "SLURM_JOB_ID": 1, "SLURM_NODEID": 0}
        names |= {"SLURM_NTASKS_PER_NODE": 2}
        names |= {"SLURM_NODELIST": "127.0.0.1"}
    return {name: str(value) for name, value in names.items()}


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_the_first_process_decides(launcher: str, late: int, tmp_path: Path) -> None:
    """Whoever is late, and also when there is a process group already."""
    (tmp_path / "ask.py").write_text(ASK)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    root = str(Path(__file__).parents[2])
    processes = [
        subprocess.Popen(
            [sys.executable, tmp_path / "ask.py", str(rank), str(late)],
            env={**os.environ, "PYTHONPATH": root, **address, **variables(launcher, rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, (out, error) in enumerate(said):
        assert out.splitlines() == [f"{rank} {word}" for word in (True, False, True, True)], error


def test_a_process_alone_decides_itself() -> None:
    assert agreed(True)
    assert not agreed(False)
