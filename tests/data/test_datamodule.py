from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from fst_lightning import BackdoorDataModule, BackdoorModule
from fst_lightning.attacks import AdaptiveBlend, Attack, BadNets, Blended, NoAttack
from fst_lightning.data import ImageSet, clean_rows
from fst_lightning.data.images import TooLargeError
from fst_lightning.data.stream import StreamedImages
from tests import tiny

Batches = list[tuple[Tensor, Tensor, Tensor]]


def made(
    attack: Attack | None = None, *, num_train: int = 60, **options: Any
) -> BackdoorDataModule:
    data = BackdoorDataModule(tiny.source(num_train), attack, **options)
    data.setup()
    return data


def read(loader: DataLoader[Any]) -> Batches:
    return list(loader)


def images_of(batches: Batches) -> Tensor:
    return torch.cat([images for images, _, _ in batches])


def row_numbers(batches: Batches, rows: ImageSet) -> list[int]:
    """Which rows these images are, found by their pixels."""
    known = {image.numpy().tobytes(): row for row, image in enumerate(rows.images)}
    assert len(known) == len(rows)
    return [known[image.numpy().tobytes()] for image in images_of(batches)]


def test_training_rows_of_a_backdoor() -> None:
    attack = BadNets(poison_ratio=0.2)
    data = made(attack, batch_size=16, seed=7)
    train = data.source.load().train
    batches = read(data.train_dataloader())
    rows = row_numbers(batches, train)
    assert sorted(rows) == list(range(60))
    assert rows != list(range(60))
    labels = torch.cat([labels for _, labels, _ in batches])
    poisoned = torch.cat([poisoned for _, _, poisoned in batches])
    # Labels are the true ones, images untouched: the module poisons on the device.
    assert torch.equal(labels, train.labels[rows])
    plan = BadNets(poison_ratio=0.2).plan(train.labels, tiny.NUM_CLASSES, seed=7)
    assert torch.equal(poisoned, plan.poisoned[rows])
    assert int(poisoned.sum()) == data.plan.num_poisoned == 12


def test_training_rows_of_a_purification() -> None:
    data = made(BadNets(poison_ratio=0.5), purpose="purify", clean_ratio=0.3, batch_size=5)
    train = data.source.load().train
    batches = read(data.train_dataloader())
    rows = row_numbers(batches, train)
    assert len(rows) == len(set(rows)) == 18
    assert not any(bool(poisoned.any()) for _, _, poisoned in batches)
    assert torch.equal(torch.cat([labels for _, labels, _ in batches]), train.labels[rows])
    held = clean_rows(train.labels, 0.3, seed=0)
    assert sorted(rows) == held.nonzero().flatten().tolist()


@settings(deadline=None, max_examples=50)
@given(total=st.integers(1, 2000), ratio=st.floats(0.001, 1), seed=st.integers(0, 2**32 - 1))
def test_the_number_of_clean_rows(total: int, ratio: float, seed: int) -> None:
    labels = tiny.labels(total)
    exact = ratio * total
    if exact <= 0.5:
        with pytest.raises(ValueError, match=r"`tuning.clean_ratio` to leave at least one of"):
            clean_rows(labels, ratio, seed)
        return
    rows = clean_rows(labels, ratio, seed)
    assert rows.shape == (total,)
    assert abs(int(rows.sum()) - exact) <= 0.5 + 1e-9
    assert torch.equal(rows, clean_rows(labels, ratio, seed))


def test_the_defender_draws_independently_of_the_attacker() -> None:
    labels = tiny.labels(400)
    both = 0
    for seed in range(200):
        plan = BadNets(poison_ratio=0.25).plan(labels, tiny.NUM_CLASSES, seed)
        both += int((plan.poisoned & clean_rows(labels, 0.25, seed)).sum())
    # Hypergeometric: mean 25, standard deviation 3.75 a draw; 0.27 over 200 draws.
    assert both / 200 == pytest.approx(25, abs=1.3)


@pytest.mark.parametrize("ratio", [0.01, 0.2])
def test_the_clean_rows_do_not_depend_on_the_attack(ratio: float) -> None:
    attacks: list[Attack | None] = [None, BadNets(poison_ratio=ratio), Blended(poison_ratio=0.5)]
    held = [
        made(attack, num_train=200, purpose="purify", clean_ratio=0.1).train_rows.images
        for attack in attacks
    ]
    assert torch.equal(held[0], held[1])
    assert torch.equal(held[0], held[2])
    other = made(num_train=200, purpose="purify", clean_ratio=0.1, seed=1).train_rows.images
    assert not torch.equal(held[0], other)


@pytest.mark.parametrize("purpose", ["backdoor", "purify"])
@pytest.mark.parametrize("eval_batch_size", [4, 100])
def test_evaluation_rows(purpose: Any, eval_batch_size: int) -> None:
    data = made(
        BadNets(poison_ratio=0.2, target_label=1),
        purpose=purpose,
        clean_ratio=0.5,
        eval_batch_size=eval_batch_size,
    )
    test = data.source.load().test
    for loaders in (data.val_dataloader(), data.test_dataloader()):
        clean, triggered = (read(loader) for loader in loaders)
        assert row_numbers(clean, test) == list(range(30))
        assert torch.equal(torch.cat([labels for _, labels, _ in clean]), test.labels)
        assert not any(bool(poisoned.any()) for _, _, poisoned in clean)
        others = [row for row, label in enumerate(test.labels.tolist()) if label != 1]
        assert row_numbers(triggered, test) == others
        labels = torch.cat([labels for _, labels, _ in triggered])
        assert torch.equal(labels, test.labels[others])
        assert all(bool(poisoned.all()) for _, _, poisoned in triggered)
        assert max(len(images) for images, _, _ in clean + triggered) <= eval_batch_size


@pytest.mark.parametrize("val_images", [5, 10**6])
def test_epochs_are_measured_on_a_part(val_images: int) -> None:
    data = made(BadNets(poison_ratio=0.2, target_label=1), val_images=val_images)
    test = data.source.load().test
    parts = [[row_numbers(read(loader), test) for loader in data.val_dataloader()]]
    parts.append([row_numbers(read(loader), test) for loader in data.val_dataloader()])
    assert parts[0] == parts[1]
    clean, triggered = parts[0]
    others = [row for row, label in enumerate(test.labels.tolist()) if label != 1]
    assert len(set(clean)) == min(val_images, 30)
    assert len(set(triggered)) == min(val_images, len(others))
    assert set(triggered) <= set(others)
    assert clean == sorted(clean)  # memory is read in its order
    # The first rows may all be of one class.
    assert len(clean) == 30 or clean != list(range(len(clean)))
    whole = [len(row_numbers(read(loader), test)) for loader in data.test_dataloader()]
    assert whole == [30, len(others)]
    for batch in read(data.val_dataloader()[1]):
        assert bool(batch[2].all())


def test_all_to_all_keeps_every_test_row() -> None:
    data = made(BadNets(poison_ratio=0.2, label_map="all_to_all"))
    assert len(data.triggered_rows) == 30


def test_no_attack_no_triggered_loader() -> None:
    data = made()
    assert isinstance(data.attack, NoAttack)
    assert len(data.val_dataloader()) == len(data.test_dataloader()) == 1
    assert len(data.triggered_rows) == data.plan.num_poisoned == 0


@pytest.mark.parametrize(
    ("num_train", "batch_size", "sizes"),
    [
        (33, 16, [16, 16]),  # a batch of one image is left out
        (34, 16, [16, 16, 2]),
        (32, 16, [16, 16]),
        (17, 16, [16]),
        (16, 16, [16]),
        (5, 16, [5]),
        (1, 16, [1]),  # all there is
        (3, 1, [1, 1, 1]),  # the user's choice
        (5, 2, [2, 2]),
    ],
)
def test_which_last_batches_are_dropped(num_train: int, batch_size: int, sizes: list[int]) -> None:
    data = made(num_train=num_train, batch_size=batch_size)
    assert [len(labels) for _, labels, _ in read(data.train_dataloader())] == sizes


def test_a_dropped_row_comes_in_another_epoch() -> None:
    data = made(num_train=17, batch_size=4)
    loader = data.train_dataloader()
    train, seen = data.source.load().train, set()
    sampler: Any = loader.sampler
    for epoch in range(10):
        sampler.set_epoch(epoch)
        seen |= set(row_numbers(read(loader), train))
    assert seen == set(range(17))


class Record(L.Callback):
    def __init__(self) -> None:
        self.batches: Batches = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(tuple(part.clone() for part in batch))


@pytest.mark.parametrize("purpose", ["backdoor", "purify"])
def test_a_worker_makes_the_same_batches(tmp_path: Path, purpose: Any) -> None:
    records = []
    for num_workers in (0, 1):
        data = BackdoorDataModule(
            tiny.source(),
            BadNets(poison_ratio=0.2),
            purpose=purpose,
            batch_size=16,
            clean_ratio=0.5,
            num_workers=num_workers,
        )
        record = Record()
        module = BackdoorModule(tiny.conv_net(), data.attack)
        tiny.trainer(tmp_path, 3, callbacks=[record], limit_val_batches=0).fit(module, data)
        records.append(record.batches)
    assert len(records[0]) == len(records[1]) == (12 if purpose == "backdoor" else 6)
    for one, other in zip(*records, strict=True):
        for part, same in zip(one, other, strict=True):
            assert torch.equal(part, same)


def test_lightning_shuffles_every_epoch_anew(tmp_path: Path) -> None:
    orders = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        data = BackdoorDataModule(tiny.source(), batch_size=20, seed=3)
        record = Record()
        module = BackdoorModule(tiny.conv_net(), data.attack)
        tiny.trainer(tmp_path, 3, callbacks=[record]).fit(module, data)
        train = data.source.load().train
        orders.append([row_numbers(record.batches[i : i + 3], train) for i in (0, 3, 6)])
    assert orders[0] == orders[1]
    assert all(sorted(order) == list(range(60)) for order in orders[0])
    assert len({tuple(order) for order in orders[0]}) == 3


def test_the_trigger_is_prepared_for_the_images() -> None:
    attack = Blended(poison_ratio=0.1)
    made(attack)
    assert attack.pattern.shape == (1, 3, tiny.SIZE, tiny.SIZE)


class Counting(BadNets):
    prepared = 0

    def prepare(self, images: Tensor, labels: Tensor, num_classes: int, seed: int) -> None:
        super().prepare(images, labels, num_classes, seed)
        self.prepared += 1


def test_setup_again_changes_nothing() -> None:
    attack = Counting(poison_ratio=0.2)
    data = made(attack)
    plan = data.plan
    for stage in ("fit", "validate", "test", None):
        data.setup(stage)
    assert data.plan is plan
    assert attack.prepared == 1


@pytest.mark.parametrize("purpose", ["backdoor", "purify"])
def test_only_test_images_of_the_target(purpose: Any) -> None:
    train, test = tiny.rows(50), tiny.rows(10)
    test.labels.fill_(2)
    source = tiny.MemorySource(train, test)
    data = BackdoorDataModule(source, BadNets(poison_ratio=0.2, target_label=2), purpose=purpose)
    with pytest.raises(ValueError, match="all 10 are of class 2"):
        data.setup()
    fine = BackdoorDataModule(source, BadNets(poison_ratio=0.2, target_label=1), purpose=purpose)
    fine.setup()
    BackdoorDataModule(source, NoAttack()).setup()


def test_a_target_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"`attack.target_label` to be in 0\.\.3"):
        made(BadNets(target_label=4))


def test_a_ratio_that_poisons_nothing() -> None:
    with pytest.raises(ValueError, match="poison_ratio"):
        made(BadNets(poison_ratio=0.001))


def test_a_ratio_that_holds_nothing() -> None:
    with pytest.raises(ValueError, match=r"0.001 rounds to none; tuning.clean_ratio=1 uses them"):
        made(purpose="purify", clean_ratio=0.001)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"purpose": "cure"}, "`purpose` to be one of backdoor, purify, but got 'cure'"),
        ({"batch_size": 0}, "`batch_size` to be a whole number of 1 or more, but got 0"),
        ({"val_images": 0}, "`val_images` to be a whole number of 1 or more, but got 0"),
        ({"eval_batch_size": 0}, "`eval_batch_size` to be a whole number of 1 or more, but got 0"),
        ({"clean_ratio": 0.0}, r"in \(0, 1\], but got 0.0"),
        ({"clean_ratio": 1.01}, r"in \(0, 1\], but got 1.01"),
        ({"clean_ratio": float("nan")}, r"in \(0, 1\], but got nan"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BackdoorDataModule(tiny.source(), **arguments)


class Crafter(Attack):
    """Fits a number, and writes it and the row's number into the images of its rows."""

    needs_fit = True
    crafts = True
    fits = 0

    def trigger(self, images: Tensor) -> Tensor:
        return images

    def fit(self, images: Any, labels: Any, num_classes: int, seed: int, device: Any) -> None:
        self.fits += 1

    def craft(
        self, images: Tensor, labels: Tensor, rows: Tensor, *, cover: bool, seed: int
    ) -> Tensor:
        assert len(images) == len(labels) == len(rows)
        values = rows + 100 * cover
        return values.to(torch.uint8)[:, None, None, None].expand_as(images)


def test_an_attack_fits_and_crafts_before_a_training_and_not_otherwise() -> None:
    attack = Crafter(poison_ratio=0.2)
    attack.cover_ratio = 0.3
    data = BackdoorDataModule(tiny.source(num_train=20), attack, batch_size=20)
    data.setup()
    assert attack.fits == 0
    data.setup("fit")
    data.setup("fit")
    assert attack.fits == 1
    images, _, poisoned, cover = next(iter(data.train_dataloader()))
    assert int(poisoned.sum()) == 4
    assert int(cover.sum()) == 6
    expected = data.plan.poisoned.nonzero()[:, 0].tolist()
    expected += (data.plan.cover.nonzero()[:, 0] + 100).tolist()
    found = images[poisoned | cover]
    assert sorted(found[:, 0, 0, 0].tolist()) == sorted(expected)
    assert bool((found == found[:, :1, :1, :1]).all())

    defender = BackdoorDataModule(
        tiny.source(num_train=20), Crafter(), purpose="purify", clean_ratio=1
    )
    defender.setup("fit")
    assert defender.attack.fits == 0


def streamed(folder: Path, num_train: int = 40, num_test: int = 20) -> tiny.MemorySource:
    """The tiny source, from files."""
    source = tiny.source(num_train, num_test)
    parts = []
    for name, rows in zip(("train", "test"), source.parts[:2], strict=True):
        paths = [folder / f"{name} {row}.png" for row in range(len(rows))]
        for path, image in zip(paths, rows.images, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        parts.append(ImageSet(StreamedImages(paths, tiny.SIZE).as_tensor(), rows.labels))
    return tiny.MemorySource(parts[0], parts[1])


@pytest.mark.parametrize("workers", [0, 2, None])
@pytest.mark.parametrize("purpose", ["backdoor", "purify"])
def test_streamed_batches_are_those_from_memory(
    purpose: Any, workers: int | None, tmp_path: Path
) -> None:
    found, delivered = [], []
    for source in (tiny.source(40, 20), streamed(tmp_path)):
        attack = AdaptiveBlend(poison_ratio=0.1)  # replaces images, and has cover rows
        options: dict[str, Any] = {"batch_size": 16, "eval_batch_size": 7, "val_images": 9}
        data = BackdoorDataModule(
            source, attack, purpose=purpose, num_workers=workers, clean_ratio=0.3, **options
        )
        data.setup("fit")
        loaders = [data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()]
        found.append([batch for loader in loaders for batch in loader])
        assert data.train_rows.streamed == (source.parts[0].streamed and purpose == "backdoor")
        if purpose == "backdoor":
            delivered.append(data.delivered().images)
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not delivered or torch.equal(*delivered)


@pytest.mark.parametrize(("cores", "asked", "expected"), [(3, None, 3), (99, None, 8), (3, 1, 1)])
def test_streamed_images_are_decoded_beside(
    cores: int,
    asked: int | None,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    # Streamed images stay where they are, whatever room a GPU has.
    monkeypatch.setattr("fst_lightning.data.datamodule.on_device", lambda *_: True)
    data = BackdoorDataModule(streamed(tmp_path), BadNets(poison_ratio=0.1), num_workers=asked)
    data.setup()
    loaders = [data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()]
    assert {loader.num_workers for loader in loaders} == {expected}
    assert not data._placed
    plain = made(BadNets(poison_ratio=0.1), num_workers=asked)
    assert plain.train_dataloader().num_workers == (asked or 0)
    assert {loader.num_workers for loader in plain.test_dataloader()} == {0}


def test_what_streamed_images_have_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fst_lightning.data.images.MAX_BYTES", 5 * 3 * tiny.SIZE**2)
    source = streamed(tmp_path)
    for held, fits in ((0.1, True), (0.2, False)):
        data = BackdoorDataModule(source, purpose="purify", clean_ratio=held)
        if fits:
            data.setup()
            continue
        with pytest.raises(TooLargeError, match=r"^tuning.clean_ratio=0.2 needs images in memory"):
            data.setup()
    for ratio, fits in ((0.05, True), (0.1, False)):
        attack = AdaptiveBlend(poison_ratio=ratio, cover_ratio=ratio)
        data = BackdoorDataModule(source, attack)
        if fits:
            data.setup()
            continue
        with pytest.raises(TooLargeError, match=r"AdaptiveBlend needs .*, but 8 images of 8x8"):
            data.setup()
    data = BackdoorDataModule(source, BadNets(poison_ratio=0.2))
    data.setup()
    with pytest.raises(TooLargeError, match=r"delivered training set needs .* 40 images"):
        data.delivered()
