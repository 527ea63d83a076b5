"""How far head and features moved, against weights from the files and features by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fst_lightning.data import BackdoorDataModule
from fst_lightning.pipelines import run_pipeline
from fst_lightning.pipelines.build.parts import make_attack, make_network, make_source
from tests.pipelines.conftest import Results, Start


@pytest.mark.parametrize("defense", ["ft", "fst"])
def test_cosines_of_head_and_features(start: Start, defense: str) -> None:
    run = start(f"defense={defense}", "tuning.optimizer.lr=0.1")
    results = run_pipeline(run)
    source, attack = make_source(run), make_attack(run)
    data = BackdoorDataModule(source, attack, purpose="purify", clean_ratio=0.5)
    data.setup()
    images = (data.train_rows.images[:256] / 255).double()
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (data.data.mean, data.data.std))
    heads, features = [], []
    for part in ("backdoored", "purified"):
        net = make_network(run, 3, (3, 8, 8)).double().eval()
        net.load_state_dict(load_file(Path(results["checkpoints"][part])))
        head = net.get_submodule(results["model"]["head"])
        assert isinstance(head, torch.nn.Linear)
        heads.append(head.weight.detach().flatten().numpy())
        head.register_forward_pre_hook(lambda _, x: features.append(x[0].detach().numpy()))
        net((images - mean) / std)

    def cosine(a: "np.ndarray", b: "np.ndarray") -> float:
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    shift = results["shift"]
    assert shift["head_cosine"] == pytest.approx(cosine(*heads), abs=1e-6)
    rows = [cosine(old, new) for old, new in zip(*features, strict=True)]
    assert shift["feature_cosine"] == pytest.approx(np.mean(rows), abs=1e-5)
    assert shift["head_cosine"] < 0.9999
    assert shift["feature_cosine"] < 0.9999


def test_a_network_that_stays_has_not_moved(go: Callable[..., Results]) -> None:
    assert go("defense=none")["shift"] == pytest.approx({"head_cosine": 1, "feature_cosine": 1})
    assert "shift" not in go(task="train")
