import json
from pathlib import Path

import pytest
import torch
from torch import distributed

from fst_lightning.metrics import BackdoorMetrics
from tests.forks import forks


def count_a_share(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    try:
        torch.set_num_threads(1)
        labels = torch.arange(10) % 3
        preds = torch.arange(10) % 4
        mine = slice(0, 7) if rank == 0 else slice(7, 10)
        metrics = BackdoorMetrics()
        metrics.update_clean(preds[mine], labels[mine])
        if rank == 0:  # the other process sees no triggered row at all
            metrics.update_triggered(preds, labels, torch.zeros(10, dtype=torch.int64))
        first, second = metrics.counts(), metrics.counts()
        result = {
            "counts": first,
            "again": second,
            "rates": metrics.compute(),
            "metric": metrics.ca.compute().item(),
            "mine": int(metrics.ca.total),
        }
        Path(folder, f"{rank}.json").write_text(json.dumps(result))
    finally:
        distributed.destroy_process_group()


@pytest.mark.ddp
@pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")
def test_two_processes_read_the_sum_of_their_counts(tmp_path: Path) -> None:
    workers = [forks().Process(target=count_a_share, args=(i, str(tmp_path))) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0, 0]

    labels, preds = [i % 3 for i in range(10)], [i % 4 for i in range(10)]
    right = sum(pred == label for pred, label in zip(preds, labels, strict=True))
    for rank, rows in ((0, 7), (1, 3)):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result["counts"] == {
            "ca": [right, 10],
            "asr": [preds.count(0), 10],
            "ra": [right, 10],
        }
        assert result["again"] == result["counts"]
        assert result["rates"]["ca"] == right / 10
        assert result["metric"] == pytest.approx(right / 10)
        assert result["mine"] == rows
