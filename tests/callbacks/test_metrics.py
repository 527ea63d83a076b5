"""CA, ASR and RA against loops over single images."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fst_lightning.attacks import Attack, BadNets, Blended
from fst_lightning.callbacks import BackdoorMetricsCallback, FSTCallback
from tests.callbacks.projects import NUM_CLASSES, Project, make_loader, make_net, make_trainer

SIZE = 4
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def eight_bit_images(num_rows: int = 43) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (num_rows, 3, SIZE, SIZE), generator=generator) / 255
    return images, torch.randint(NUM_CLASSES, (num_rows,), generator=generator)


def normalised(images: Tensor) -> Tensor:
    return torch.stack([(images[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)


def ready(attack: Attack) -> Attack:
    images, labels = eight_bit_images()
    attack.prepare((images * 255).to(torch.uint8), labels, NUM_CLASSES, seed=0)
    return attack


def slow_rates(
    net: nn.Module, attack: Attack, normalise: bool, *, all_to_all: bool
) -> dict[str, float]:
    """One image at a time."""
    hits: dict[str, list[bool]] = {"ca": [], "asr": [], "ra": []}
    net.eval()
    for image, label in zip(*eight_bit_images(), strict=True):
        stamped = attack(image[None])
        clean, triggered = (
            int(net(normalised(x) if normalise else x).argmax()) for x in (image[None], stamped)
        )
        hits["ca"].append(clean == int(label))
        wanted = (int(label) + 1) % NUM_CLASSES if all_to_all else attack.target_label
        if all_to_all or int(label) != wanted:
            hits["asr"].append(triggered == wanted)
            hits["ra"].append(triggered == int(label))
    assert len(hits["asr"]) > 20
    return {name: sum(values) / len(values) for name, values in hits.items()}


def evaluation_loader(normalise: bool, batch_size: int = 6) -> Any:
    images, labels = eight_bit_images()
    return DataLoader(
        TensorDataset(normalised(images) if normalise else images, labels), batch_size
    )


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("label_map", ["all_to_one", "all_to_all"])
@pytest.mark.parametrize("kind", [BadNets, Blended])
@pytest.mark.parametrize("stage", ["val", "test"])
def test_rates_equal_a_loop(normalise: bool, label_map: Any, kind: Any, stage: str) -> None:
    attack = ready(kind(target_label=2, label_map=label_map))
    options = {"mean": MEAN, "std": STD} if normalise else {}
    trainer = make_trainer(BackdoorMetricsCallback(attack, **options))
    project = Project(make_net(3, batch_norm=True))
    evaluate = trainer.validate if stage == "val" else trainer.test
    (logged,) = evaluate(project, evaluation_loader(normalise), verbose=False)
    expected = slow_rates(
        project.classifier, attack, normalise, all_to_all=label_map == "all_to_all"
    )
    assert len({*expected.values()}) > 1
    for name, rate in expected.items():
        assert logged[f"{stage}/{name}"] == pytest.approx(rate)
    assert "val/own_accuracy" in logged  # what the project logs itself


def test_every_evaluation_counts_anew() -> None:
    attack = ready(BadNets(target_label=2))
    trainer = make_trainer(BackdoorMetricsCallback(attack), num_sanity_val_steps=2, max_epochs=2)
    project = Project(make_net(3))
    trainer.fit(project, make_loader(), evaluation_loader(False))
    expected = slow_rates(project.classifier, attack, False, all_to_all=False)
    for name, rate in expected.items():
        assert float(trainer.callback_metrics[f"val/{name}"]) == pytest.approx(rate)


def test_measuring_changes_nothing() -> None:
    """A fit with the callback ends at the weights of one without, BatchNorm included."""
    nets = []
    for callbacks in ([], [BackdoorMetricsCallback(ready(BadNets()))]):
        project = Project(make_net(batch_norm=True))
        trainer = make_trainer(*callbacks, FSTCallback(seed=0), max_epochs=2)
        trainer.fit(project, make_loader(), evaluation_loader(False))
        nets.append(project.state_dict())
    assert all(torch.equal(value, nets[1][name]) for name, value in nets[0].items())


def test_batches_of_the_target_class_only() -> None:
    images, labels = eight_bit_images(8)
    loader: Any = DataLoader(TensorDataset(images, torch.full_like(labels, 2)), 4)
    trainer = make_trainer(BackdoorMetricsCallback(ready(BadNets(target_label=2))))
    (logged,) = trainer.test(Project(), loader, verbose=False)
    assert "test/ca" in logged
    assert not {"test/asr", "test/ra"} & logged.keys()


def test_further_loaders_are_left_alone() -> None:
    class TwoLoaders(Project):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    attack = ready(BadNets(target_label=2))
    trainer = make_trainer(BackdoorMetricsCallback(attack))
    project = TwoLoaders(make_net(3))
    trainer.validate(project, [evaluation_loader(False), make_loader()], verbose=False)
    expected = slow_rates(project.classifier, attack, False, all_to_all=False)
    assert float(trainer.callback_metrics["val/ca"]) == pytest.approx(expected["ca"])


def test_low_precision_is_that_of_the_trainer() -> None:
    seen: list[torch.dtype] = []

    class Looks(Project):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            seen.append(logits.dtype)
            return logits

    trainer = make_trainer(BackdoorMetricsCallback(ready(BadNets())), precision="bf16-mixed")
    trainer.validate(Looks(), evaluation_loader(False), verbose=False)
    assert set(seen) == {torch.bfloat16}


def test_can_steer_a_checkpoint(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    best = ModelCheckpoint(tmp_path, monitor="val/asr", mode="min")
    callbacks: list[L.Callback] = [BackdoorMetricsCallback(ready(BadNets())), best]
    trainer = make_trainer(*callbacks, enable_checkpointing=True)
    trainer.fit(Project(), make_loader(), evaluation_loader(False))
    assert best.best_model_score is not None


def test_batches_that_are_no_pairs() -> None:
    class Dictionaries(Project):
        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    images, _ = eight_bit_images(4)
    rows: Any = [{"image": image} for image in images]
    trainer = make_trainer(BackdoorMetricsCallback(ready(BadNets())))
    with pytest.raises(TypeError, match="images and labels"):
        trainer.validate(Dictionaries(), DataLoader(rows, 2), verbose=False)


def test_mean_without_std() -> None:
    with pytest.raises(ValueError, match="both or neither"):
        BackdoorMetricsCallback(BadNets(), mean=MEAN)
