"""CA, ASR and RA against loops over single images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fst_lightning.attacks import Attack, BadNets, Blended, InputAware, LabelMap
from fst_lightning.callbacks import BackdoorMetricsCallback, FSTCallback
from tests.callbacks.projects import NUM_CLASSES, Project, make_loader, make_net, make_trainer

SIZE = 4
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def eight_bit_images(num_rows: int = 43) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (num_rows, 3, SIZE, SIZE), generator=generator) / 255
    return images, torch.randint(NUM_CLASSES, (num_rows,), generator=generator)


def normalized(images: Tensor) -> Tensor:
    return torch.stack([(images[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)


def ready(attack: Attack) -> Attack:
    images, labels = eight_bit_images()
    attack.prepare((images * 255).to(torch.uint8), labels, NUM_CLASSES, seed=0)
    return attack


def slow_rates(net: nn.Module, attack: Attack, normalize: bool) -> dict[str, float]:
    """One image at a time."""
    hits: dict[str, list[bool]] = {"ca": [], "asr": [], "ra": []}
    net.eval()
    for image, label in zip(*eight_bit_images(), strict=True):
        stamped = attack(image[None])
        clean, triggered = (
            int(net(normalized(x) if normalize else x).argmax()) for x in (image[None], stamped)
        )
        hits["ca"].append(clean == int(label))
        if attack.label_map in ("all_to_one", "clean_label") and int(label) == attack.target_label:
            continue
        if attack.label_map == "untargeted":
            hits["asr"].append(triggered != int(label))
        elif attack.label_map == "all_to_all":
            hits["asr"].append(triggered == (int(label) + 1) % NUM_CLASSES)
        else:
            hits["asr"].append(triggered == attack.target_label)
        hits["ra"].append(triggered == int(label))
    assert len(hits["asr"]) > 20
    return {name: sum(values) / len(values) for name, values in hits.items()}


def evaluation_loader(normalize: bool, batch_size: int = 6) -> Any:
    images, labels = eight_bit_images()
    return DataLoader(
        TensorDataset(normalized(images) if normalize else images, labels), batch_size
    )


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("label_map", get_args(LabelMap))
@pytest.mark.parametrize("kind", [BadNets, Blended])
@pytest.mark.parametrize("stage", ["val", "test"])
def test_rates_equal_a_loop(normalize: bool, label_map: Any, kind: Any, stage: str) -> None:
    attack = ready(kind(target_label=2, label_map=label_map))
    options = {"mean": MEAN, "std": STD} if normalize else {}
    trainer = make_trainer(BackdoorMetricsCallback(attack, **options))
    project = Project(make_net(3, batch_norm=True))
    evaluate = trainer.validate if stage == "val" else trainer.test
    (logged,) = evaluate(project, evaluation_loader(normalize), verbose=False)
    expected = slow_rates(project.classifier, attack, normalize)
    assert len({*expected.values()}) > 1
    for name, rate in expected.items():
        assert logged[f"{stage}/{name}"] == pytest.approx(rate)
    assert "val/own_accuracy" in logged  # what the project logs itself


def test_every_evaluation_counts_anew() -> None:
    attack = ready(BadNets(target_label=2))
    trainer = make_trainer(BackdoorMetricsCallback(attack), num_sanity_val_steps=2, max_epochs=2)
    project = Project(make_net(3))
    trainer.fit(project, make_loader(), evaluation_loader(False))
    expected = slow_rates(project.classifier, attack, False)
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
    expected = slow_rates(project.classifier, attack, False)
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


class AnyBatch(Project):
    """A project with batches and outputs of some other form."""

    def __init__(self, answer: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(self.classifier(images.to(self.dtype)))

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...


def validated(
    images: Tensor, labels: Tensor, callback: BackdoorMetricsCallback, module: Project | None = None
) -> dict[str, float]:
    rows: Any = DataLoader(TensorDataset(images, labels), 6)
    trainer = make_trainer(callback)
    trainer.validate(module or AnyBatch(), rows, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_measuring_untargeted_attacks_draws_nothing() -> None:
    state = torch.get_rng_state()
    attack = ready(BadNets(label_map="untargeted"))
    validated(*eight_bit_images(), BackdoorMetricsCallback(attack), AnyBatch())
    loader_draws = torch.get_rng_state()
    torch.set_rng_state(state)
    validated(*eight_bit_images(), BackdoorMetricsCallback(ready(BadNets())), AnyBatch())
    assert torch.equal(torch.get_rng_state(), loader_draws)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (normalized, {}, "Expected images in .0, 1.*pass the `mean` and `std`"),
        (lambda x: x * 255, {}, "from 0 to 255.*mean=.0.0. . 3 and std=.1 / 255. . 3"),
        (lambda x: x, {"mean": MEAN, "std": STD}, "Expected normalized images.*from 0 to 1"),
        (lambda x: x * 255, {"mean": MEAN, "std": STD}, "undone with the given `mean` and `std`"),
        (lambda x: (x * 255).byte(), {"mean": MEAN, "std": STD}, "but got uint8"),
        (
            lambda x: normalized(x)[:, :1],
            {"mean": MEAN, "std": STD},
            "images with 3 channels.*but got 1",
        ),
    ],
)
def test_images_of_another_range_are_refused(
    change: Callable[[Tensor], Tensor], options: dict[str, Any], message: str
) -> None:
    images, labels = eight_bit_images()
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])

    class TakesAnything(AnyBatch):
        def forward(self, images: Tensor) -> Any:
            return torch.zeros(len(images), NUM_CLASSES)

    callback = BackdoorMetricsCallback(BadNets(), **options)
    with pytest.raises(ValueError, match=message):
        validated(change(images), labels, callback, TakesAnything())


def test_every_evaluation_looks_at_its_first_batch() -> None:
    images, labels = eight_bit_images()
    callback = BackdoorMetricsCallback(ready(BadNets()))
    validated(images, labels, callback)
    with pytest.raises(ValueError, match=r"Expected images in \[0, 1\]"):
        validated(images * 255, labels, callback)


def test_images_of_8_bit_come_back_as_such() -> None:
    """A module that scales its images itself gets triggered ones as it gets clean ones."""
    images, labels = eight_bit_images()

    class Scales(AnyBatch):
        def forward(self, images: Tensor) -> Any:
            assert images.dtype == torch.uint8
            return super().forward(images / 255)

    rates = validated(
        (images * 255).byte(), labels, BackdoorMetricsCallback(ready(BadNets())), Scales()
    )
    assert rates == validated(images, labels, BackdoorMetricsCallback(ready(BadNets())))


@pytest.mark.parametrize(
    "change",
    [lambda y: y[:, None], lambda y: y.int(), lambda y: torch.eye(NUM_CLASSES)[y]],
    ids=["(N, 1)", "int32", "one-hot"],
)
def test_class_numbers_in_other_forms_give_the_same(change: Callable[[Tensor], Tensor]) -> None:
    images, labels = eight_bit_images()
    expected = validated(images, labels, BackdoorMetricsCallback(ready(BadNets())))
    changed = change(labels)
    assert validated(images, changed, BackdoorMetricsCallback(ready(BadNets()))) == expected


def test_dictionaries_of_images_and_logits_give_the_same() -> None:
    images, labels = eight_bit_images()
    expected = validated(images, labels, BackdoorMetricsCallback(ready(BadNets())))
    rows = [{"image": x, "label": y} for x, y in zip(images, labels, strict=True)]
    trainer = make_trainer(BackdoorMetricsCallback(ready(BadNets())))
    loader: Any = DataLoader(rows, 6)  # type: ignore[arg-type]
    trainer.validate(AnyBatch(lambda logits: {"logits": logits}), loader, verbose=False)
    assert {name: float(rate) for name, rate in trainer.callback_metrics.items()} == expected


@pytest.mark.parametrize(
    ("attack", "label", "answer", "message"),
    [
        (BadNets(target_label=4), 0, lambda y: y, r"`attack.target_label` to be in 0..3.*got 4"),
        (BadNets(), 4, lambda y: y, r"labels in 0..3.*from 0 to 4"),
        (BadNets(), -1, lambda y: y, r"labels in 0..3.*from -1 to"),
        (BadNets(), 0, lambda y: y[:, :1], r"at least two classes.*\(6, 1\)"),
        (BadNets(), 0, lambda y: y[:, 0], r"logits \(N, C\).*\(6,\)"),
        (InputAware(width=2), 0, lambda y: y, "fitted or learned, but InputAware is new"),
    ],
    ids=["target", "label too large", "negative label", "one logit", "no column", "not fitted"],
)
def test_classes_that_the_network_lacks_are_refused(
    attack: Attack, label: int, answer: Callable[[Tensor], Any], message: str
) -> None:
    images, labels = eight_bit_images()
    labels[:2] = torch.tensor([label, 0])
    with pytest.raises(ValueError, match=message):
        validated(images, labels, BackdoorMetricsCallback(attack), AnyBatch(answer))


@pytest.mark.parametrize(("channels", "size"), [(1, 4), (3, 6), (3, 64)])
def test_an_attack_that_was_not_prepared_fits_the_first_batch(channels: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, channels, size, size), generator=generator)
    labels = torch.arange(12) % NUM_CLASSES

    seen: list[Tensor] = []

    class Sees(AnyBatch):
        def forward(self, images: Tensor) -> Any:
            seen.append(images)
            return images.flatten(1)[:, :NUM_CLASSES]

    validated(images / 255, labels, BackdoorMetricsCallback(Blended()), Sees())
    prepared = Blended()
    prepared.prepare(images.byte(), labels, NUM_CLASSES, seed=0)
    assert torch.equal(seen[1], prepared(images[:6][labels[:6] != 0] / 255))
