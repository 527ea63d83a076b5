"""The seed fixes everything that is random, whatever loads the data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fst_lightning.attacks import Attack
from fst_lightning.data import BackdoorDataModule
from fst_lightning.modules import InputPipeline
from fst_lightning.pipelines import run_pipeline
from fst_lightning.pipelines.build.parts import make_attack, make_network, make_source
from tests.cli.processes import Started
from tests.pipelines.conftest import Start
from tests.runs import make_run, tiny

LINES = (
    "trainer.deterministic=true",
    "training.max_epochs=2",
    "data.crop_padding=1",
    "data.horizontal_flip=true",
    "report.enabled=false",
)
ATTACKS = ("blended", "wanet", "lira", "input_aware", "ssba", "label_consistent", "sig")
DEFENSES = ("fst", "ft_sam", "nad", "i_bau", "anp", "fp", "bti_dbf")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def weights(results: dict[str, Any]) -> list[dict[str, Tensor]]:
    return [load_file(path) for path in results["checkpoints"].values() if path is not None]


def same(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_two_runs_with_any_number_of_workers(workers: int, tmp_path: Path) -> None:
    found = []
    for name, count in (("one", 0), ("other", workers)):
        lines = [*LINES, f"num_workers={count}", "attack=blended"]
        run = make_run("purify", tmp_path / name, *lines, store=tmp_path / f"store of {name}")
        found.append(weights(run_pipeline(run)))
        assert torch.are_deterministic_algorithms_enabled()
    assert len(found[0]) == 2
    assert same(*found)


def test_another_seed_is_another_run(start: Start) -> None:
    one, other = (weights(run_pipeline(start(*LINES, f"seed={seed}"))) for seed in (0, 1))
    assert not same(one, other)


def draws(start: Start, *lines: str) -> dict[str, Tensor]:
    """Everything that a training draws, by name."""
    run = start("data.crop_padding=2", "data.horizontal_flip=true", *lines, task="train")
    source, attack = make_source(run), make_attack(run)
    data = BackdoorDataModule(
        source, attack, batch_size=20, seed=run.cfg.seed, num_workers=run.cfg.num_workers
    )
    data.setup()
    attack = data.attack
    assert isinstance(attack, Attack)
    net = make_network(run, data.data.num_classes, data.data.image_shape)
    images, labels, poisoned = next(iter(data.train_dataloader()))
    pipeline = InputPipeline(
        attack, data.data.mean, data.data.std, source.crop_padding, source.horizontal_flip
    )
    torch.manual_seed(run.cfg.seed)
    return {
        "rows": data.plan.poisoned,
        "order": labels,
        "trigger": attack(images[:1] / 255),
        "weights": torch.cat([p.detach().flatten() for p in net.parameters()]),
        "augmented": pipeline(images, augment=True),
        "marks": poisoned,
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_seed_fixes(workers: int, start: Start) -> None:
    one, again, other = (
        draws(start, f"seed={seed}", f"num_workers={count}", "attack=blended")
        for seed, count in ((3, 0), (3, workers), (4, 0))
    )
    for name in one:
        assert torch.equal(one[name], again[name]), name
    for name in ("rows", "order", "weights", "augmented"):
        assert not torch.equal(one[name], other[name]), name


def pair(folder: Path, workers: tuple[int, int], lines: list[str]) -> bool:
    """Two processes, each with a store of its own: whether they leave the same weights."""
    found = []
    for name, count in zip(("one", "other"), workers, strict=True):
        more = [*LINES, "hydra.run.dir=run", f"num_workers={count}", *lines]
        done = Started("purify", [*tiny("purify", more), *more], folder / name).wait(300)
        assert done.code == 0, done.err
        files = sorted((folder / name).rglob("*.safetensors"))
        found.append([load_file(file) for file in files])
    assert len(found[0]) >= 2
    return same(*found)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_pairs_of_attacks(attack: str, tmp_path: Path) -> None:
    assert pair(tmp_path, (0, 2), [f"attack={attack}", "defense=ft"])


@pytest.mark.slow
@pytest.mark.parametrize("defense", DEFENSES)
def test_pairs_of_defenses(defense: str, tmp_path: Path) -> None:
    assert pair(tmp_path, (0, 2), ["attack=badnets", f"defense={defense}"])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "preact_resnet18", "torchvision", "airbench"])
def test_pairs_of_networks(model: str, tmp_path: Path) -> None:
    assert pair(tmp_path, (0, 1), [f"model={model}", "defense=fst"])
