"""What a defense is given of the data, and when; and what becomes of what it finds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from fst_lightning.attacks import Attack
from fst_lightning.data import BackdoorDataModule, ImageData, Source
from fst_lightning.defenses import CleanData, DatasetDefense, Defense, PoisonedData
from fst_lightning.pipelines import Run, run_pipeline
from fst_lightning.pipelines.build.delivered import delivered_set
from fst_lightning.pipelines.build.parts import make_attack, make_source
from tests.pipelines.conftest import Results, Start

Go = Callable[..., Results]
MADE: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_made() -> None:
    MADE.clear()


@pytest.fixture
def with_defense(start: Start) -> Callable[..., Run]:
    """Makes a run with one of the defenses below."""

    def make(kind: type[Defense], *overrides: str) -> Run:
        run = start("defense=ft", *overrides)
        run.cfg.defense = OmegaConf.create({"_target_": f"{__name__}.{kind.__name__}"})
        run.choices["defense"] = kind.__name__.lower()
        return run

    return make


class Recorder(Defense):
    """Keeps everything that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []
        self.labels: list[int] = []
        MADE.append(self)

    def prepare(self, *given: Any) -> None:
        self.given += given

    def study(self, *given: Any) -> None:
        self.given += given

    def begin_epoch(self, *given: Any) -> None:
        self.given += given

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        self.given += [images, labels]
        return super().loss(net, images, labels)

    def conclude(self, *given: Any) -> None:
        self.given += given

    def findings(self) -> dict[str, Any]:
        return {"threshold": torch.tensor(0.5), "pruned": {"conv1": [1, 2]}}

    @property
    def clean(self) -> CleanData:
        return next(each for each in self.given if isinstance(each, CleanData))


class Holds(Recorder):
    held_out = 0.2


class Inspects(Recorder):
    needs_poisoned_set = True


class AtOnce(Recorder):
    """Prunes without any training."""

    tunes = False

    def study(self, net: nn.Module, *given: Any) -> None:
        with torch.no_grad():
            next(net.parameters()).zero_()


class Oracle(DatasetDefense):
    """Suspects every row of the target label."""

    def __init__(self) -> None:
        super().__init__()
        MADE.append(self)

    def suspects(
        self, net: nn.Module, poisoned: PoisonedData, generator: torch.Generator
    ) -> Tensor:
        self.delivered = poisoned
        return poisoned.labels == 0


def reachable(start: Any) -> Iterator[Any]:
    """Everything that hangs on an object: attributes, items, hooks; not its class."""
    seen, waiting = set(), [start]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type | str | int | float | None):
            continue
        seen.add(id(thing))
        yield thing
        if isinstance(thing, dict):
            waiting += list(thing.values())
        elif isinstance(thing, list | tuple | set):
            waiting += list(thing)
        if not isinstance(thing, Tensor):
            waiting += list(getattr(thing, "__dict__", {}).values())


@pytest.mark.parametrize("kind", [Recorder, Holds, Inspects])
def test_a_defense_can_reach_neither_test_images_nor_trigger(
    with_defense: Callable[..., Run], kind: type[Recorder]
) -> None:
    run = with_defense(kind, "attack=blended", "attack.poison_ratio=0.2")
    run_pipeline(run)
    data = make_source(run).load()
    (defense,) = MADE
    things = [thing for each in defense.given for thing in reachable(each)]
    forbidden = Attack, Source, ImageData, BackdoorDataModule
    assert not [thing for thing in things if isinstance(thing, forbidden)]
    test = {image.numpy().tobytes() for image in data.test.images}
    stored = [
        t for t in things if isinstance(t, Tensor) and t.dtype == torch.uint8 and t.dim() == 4
    ]
    images = [image.numpy().tobytes() for tensor in stored for image in tensor]
    assert images
    assert not test & set(images)
    # Nothing says which rows are poisoned: no mask, and no row numbers, over the training set.
    assert not [t for t in things if isinstance(t, Tensor) and t.dtype == torch.bool]
    if kind is Inspects:
        assert defense.clean.poisoned is not None
        assert set(vars(defense.clean.poisoned)) == {"images", "labels", "mean", "std", "dtype"}


def test_thresholds_are_chosen_on_images_that_no_step_sees(
    with_defense: Callable[..., Run],
) -> None:
    run = with_defense(
        Holds, "data.num_train=100", "tuning.clean_ratio=0.3", "tuning.augment=false"
    )
    results = run_pipeline(run)
    (defense,) = MADE
    clean = defense.clean
    assert (clean.num_images, clean.held_out.num_images) == (24, 6)
    seen = torch.cat([t for t in defense.given if isinstance(t, Tensor) and t.dim() == 4])
    inside, outside = clean.normalize(clean.images), clean.normalize(clean.held_out.images)
    distances = torch.cdist(seen.flatten(1), torch.cat([inside, outside]).flatten(1))
    assert set(distances.argmin(1).tolist()) == set(range(24))
    assert results["data"]["num_clean_tuning"] == 30
    assert results["data"]["num_clean_held_out"] == 6


def test_findings_and_memory_are_in_the_results(with_defense: Callable[..., Run]) -> None:
    run = with_defense(Recorder)
    results = run_pipeline(run)
    assert results["defense"]["findings"] == {"threshold": 0.5, "pruned": {"conv1": [1, 2]}}
    assert results["seconds"]["purify"] > 0
    assert set(results["peak_memory_mb"]) == {"train", "evaluate", "purify"}
    assert all(50 < peak < 50_000 for peak in results["peak_memory_mb"].values())
    assert json.loads((run.folder / "results.json").read_text()) == results


def test_a_defense_without_steps_is_applied_at_once(
    with_defense: Callable[..., Run], tmp_path: Path
) -> None:
    results = run_pipeline(with_defense(AtOnce))
    (defense,) = MADE
    assert not [given for given in defense.given if isinstance(given, Tensor)]
    # With its first convolution at zero the network sees nothing: it always gives one answer.
    assert results["after"]["ca"] != results["before"]["ca"] or results["after"]["asr"] in (0, 1)
    assert results["seconds"]["purify"] > 0
    assert not list((tmp_path / "store" / "work").glob("*"))


def test_no_defense_leaves_no_work_folder_and_scores_once(go: Go, tmp_path: Path) -> None:
    results = go("defense=none")
    assert results["after"] == results["before"]
    assert results["seconds"]["purify"] == 0
    assert not list((tmp_path / "store" / "work").glob("*"))


def test_a_delivered_set_has_the_trigger_and_the_label_in_the_planned_rows(start: Start) -> None:
    run = start("attack=blended", "attack.poison_ratio=0.2", "attack.target_label=1")
    source, attack = make_source(run), make_attack(run)
    delivered, poisoned = delivered_set(source, attack, seed=0)
    train = source.load().train
    assert int(poisoned.sum()) == 12
    assert torch.equal(delivered.images[~poisoned], train.images[~poisoned])
    assert torch.equal(delivered.labels[~poisoned], train.labels[~poisoned])
    assert bool((delivered.labels[poisoned] == 1).all())
    stamped = (attack(train.images[poisoned] / 255) * 255).round().to(torch.uint8)
    assert torch.equal(delivered.images[poisoned], stamped)
    assert torch.equal(poisoned, attack.plan(train.labels, 3, seed=0).poisoned)


def test_a_data_set_defense_trains_anew_on_what_it_leaves(
    with_defense: Callable[..., Run], tmp_path: Path
) -> None:
    run = with_defense(Oracle, "attack.poison_ratio=0.2")
    results = run_pipeline(run)
    (defense,) = MADE
    labels = defense.delivered.labels
    plan = make_attack(run).plan(make_source(run).load().train.labels, 3, seed=0).poisoned
    assert results["defense"]["findings"] == pytest.approx(
        {
            "flagged": int((labels == 0).sum()),
            "num_rows": 60,
            "tpr": 1.0,
            "fpr": float((labels[~plan] == 0).float().mean()),
        }
    )
    # Nothing of the target class was left to learn from, neither true images nor poisoned ones.
    assert results["after"] != results["before"]
    assert len(list((tmp_path / "store" / "models").glob("*"))) == 1
    assert not list((tmp_path / "store" / "work").glob("*"))


def test_a_set_of_unknown_origin_is_taken_as_it_is(
    with_defense: Callable[..., Run], go: Go, tmp_path: Path
) -> None:
    trained = go(task="train")["checkpoints"]["backdoored"]
    run = with_defense(Oracle, "attack=none", f"checkpoint={trained}")
    results = run_pipeline(run)
    (defense,) = MADE
    train = make_source(run).load().train
    assert torch.equal(defense.delivered.images, train.images)
    assert torch.equal(defense.delivered.labels, train.labels)
    findings = results["defense"]["findings"]
    assert (findings["tpr"], findings["fpr"]) == (None, None)


def test_held_out_images_are_none_that_the_model_was_trained_on(
    with_defense: Callable[..., Run], go: Go, models: Callable[[], set[str]]
) -> None:
    results = run_pipeline(with_defense(Inspects, "tuning.clean_source=heldout"))
    (defense,) = MADE
    clean = defense.clean
    assert clean.poisoned is not None
    assert (clean.num_images, clean.poisoned.num_images) == (30, 30)
    assert results["data"]["num_train"] == 30
    assert results["data"]["num_poisoned"] == round(30 * 0.05)
    mine = {image.numpy().tobytes() for image in clean.images}
    assert not mine & {image.numpy().tobytes() for image in clean.poisoned.images}
    assert len(models()) == 1
    go("defense=ft", "tuning.clean_source=heldout")
    assert len(models()) == 1
    go("defense=ft")
    assert len(models()) == 2


def test_a_balanced_draw(with_defense: Callable[..., Run]) -> None:
    run_pipeline(with_defense(Recorder, "tuning.balanced=true", "tuning.clean_ratio=0.4"))
    assert MADE[0].clean.labels.bincount().tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    ("override", "message"),
    {
        "tuning.clean_source=foo": "`tuning.clean_source` to be one of train, heldout, but got",
        "tuning.balanced=foo": "`tuning.balanced` to be true or false, but got 'foo'",
    }.items(),
)
def test_a_bad_value_is_refused(override: str, message: str, start: Start) -> None:
    with pytest.raises(ValueError, match=message):
        run_pipeline(start(override))


def test_nothing_left_to_train_on_is_refused(start: Start) -> None:
    with pytest.raises(ValueError, match="nothing would be left to train on"):
        run_pipeline(start("tuning.clean_source=heldout", "tuning.clean_ratio=1"))
