"""`defense.alpha=auto` chooses on clean images alone."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fst_lightning.attacks import BadNets
from fst_lightning.data import BackdoorDataModule
from fst_lightning.models import small_resnet
from fst_lightning.pipelines import alpha, run_pipeline
from fst_lightning.pipelines.parts import make_attack, make_source
from tests.pipelines.conftest import Start


def defender(run: Any) -> BackdoorDataModule:
    data = BackdoorDataModule(
        make_source(run), make_attack(run), purpose="purify", batch_size=8, clean_ratio=0.5
    )
    data.setup()
    return data


def test_a_number_is_chosen_and_recorded(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    results = run_pipeline(start("defense.alpha=auto"))
    assert results["defense"]["alpha"] in alpha.CANDIDATES
    assert results["defense"]["auto"] == ["alpha"]
    assert f"alpha={results['defense']['alpha']:g} chosen" in capsys.readouterr().out
    fixed = run_pipeline(start(f"defense.alpha={results['defense']['alpha']}"))
    assert fixed["after"] == results["after"]
    assert "auto" not in fixed["defense"]


def test_neither_trigger_nor_test_images_are_looked_at(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start("defense.alpha=auto")
    data = defender(run)
    held = {image.numpy().tobytes() for image in data.train_rows.images}
    net = small_resnet(3, width=4)
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    seen: list[bytes] = []

    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("not for the defender's eyes")

    monkeypatch.setattr(BadNets, "trigger", refuse)
    monkeypatch.setattr(BackdoorDataModule, "test_dataloader", refuse)
    monkeypatch.setattr(BackdoorDataModule, "val_dataloader", refuse)

    class Watched(DataLoader[Any]):
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                seen.extend(image.numpy().tobytes() for image in batch[0])
                yield batch

    monkeypatch.setattr(alpha, "DataLoader", Watched)
    assert alpha.choose_alpha(run, net, data) in alpha.CANDIDATES
    assert seen
    assert set(seen) <= held
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("accuracies", "chosen"),
    [
        ((0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9), 0.5),
        ((0.2, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9), 0.1),
        ((0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.9), 0.001),
        ((0.2, 0.9, 0.2, 0.9, 0.2, 0.9, 0.95), 0.2),
    ],
)
def test_the_strongest_that_clean_accuracy_bears(
    accuracies: tuple[float, ...], chosen: float, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured is replaced; 6 held-out images: one of them is a sixth."""
    scores = iter(accuracies)

    class Pretended:
        world_size = 1

        def __init__(self, module: Any = None) -> None:
            self.module = module

        def fit(self, module: Any, loader: Any) -> None:
            pass

        def test(self, module: Any, loader: Any, verbose: bool) -> None:
            module.counts = {"ca": (round(1000 * next(scores)), 1000)}

    monkeypatch.setattr(alpha, "make_trainer", lambda *_, **__: Pretended())
    run = start("defense.alpha=auto")
    assert alpha.choose_alpha(run, small_resnet(3, width=4), defender(run)) == chosen


def test_too_few_images_are_refused(start: Start) -> None:
    run = start("defense.alpha=auto", "tuning.clean_ratio=0.034")
    with pytest.raises(ValueError, match="3 or more clean images"):
        run_pipeline(run)


def test_auto_is_for_defenses_that_have_an_alpha(start: Start) -> None:
    run = start("defense=ft", "+defense.alpha=auto")
    with pytest.raises((ValueError, TypeError), match="alpha"):
        run_pipeline(run)
