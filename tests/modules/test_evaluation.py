"""Logged figures against slow loops over the whole test set."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from fst_lightning import BackdoorDataModule, BackdoorModule, PurificationModule
from fst_lightning.attacks import Attack, BadNets, InputAware
from fst_lightning.defenses import FST, FineTuning
from tests import tiny

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
TARGET = 1


def slow_rates(net: nn.Module, data: BackdoorDataModule, label_map: str) -> dict[str, float]:
    """Image by image: stamp by hand, normalize by hand, count by hand."""
    test = data.data.test
    net.eval()
    right = asr = ra = triggered = 0
    for image, label in zip(test.images, test.labels.tolist(), strict=True):
        mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
        clean = image.float() / 255
        stamped = clean.clone()
        stamped[:, -2:, -2:] = 1
        with torch.no_grad():
            answers = [int(net(((x - mean) / std)[None]).argmax()) for x in (clean, stamped)]
        right += answers[0] == label
        target = (label + 1) % tiny.NUM_CLASSES if label_map == "all_to_all" else TARGET
        if target == label:
            continue
        triggered += 1
        asr += answers[1] == target
        ra += answers[1] == label
    return {"ca": right / len(test), "asr": asr / triggered, "ra": ra / triggered}


@pytest.mark.parametrize("label_map", ["all_to_one", "all_to_all"])
@pytest.mark.parametrize("purify", [False, True])
@pytest.mark.parametrize("eval_batch_size", [7, 500])
def test_rates_over_the_whole_test_set(
    tmp_path: Path, label_map: Any, purify: bool, eval_batch_size: int
) -> None:
    attack = BadNets(poison_ratio=0.2, patch_size=8, target_label=TARGET, label_map=label_map)
    data = BackdoorDataModule(
        tiny.source(num_test=61),
        attack,
        purpose="purify" if purify else "backdoor",
        batch_size=20,
        eval_batch_size=eval_batch_size,
        clean_ratio=0.5,
    )
    net = tiny.conv_net(dropout=0.3)
    constants: dict[str, Any] = {"mean": MEAN, "std": STD}
    module: L.LightningModule = (
        PurificationModule(net, FST(), attack=attack, **constants)
        if purify
        else BackdoorModule(net, attack, **constants)
    )
    trainer = tiny.trainer(tmp_path, max_epochs=2, num_sanity_val_steps=2)
    trainer.fit(module, data)
    expected = slow_rates(net, data, label_map)
    for name, rate in expected.items():
        assert float(trainer.callback_metrics[f"val/{name}"]) == pytest.approx(rate, abs=1e-7)

    for _ in range(2):  # a second test counts from zero
        trainer.test(module, data, verbose=False)
        for name, rate in expected.items():
            assert float(trainer.callback_metrics[f"test/{name}"]) == pytest.approx(rate, abs=1e-7)
    counts = module.counts
    assert isinstance(counts, dict)
    triggered = len(data.triggered_rows)
    assert counts["ca"] == (round(expected["ca"] * 61), 61)
    assert counts["asr"] == (round(expected["asr"] * triggered), triggered)
    assert counts["ra"] == (round(expected["ra"] * triggered), triggered)


@pytest.mark.parametrize("label_map", ["all_to_one", "all_to_all", "untargeted"])
@pytest.mark.parametrize("eval_batch_size", [7, 500])
def test_the_control_counts_clean_images_that_get_the_attackers_label(
    tmp_path: Path, label_map: Any, eval_batch_size: int
) -> None:
    attack = BadNets(poison_ratio=0.2, patch_size=8, target_label=TARGET, label_map=label_map)
    data = BackdoorDataModule(
        tiny.source(num_test=61), attack, purpose="purify", eval_batch_size=eval_batch_size
    )
    module = PurificationModule(tiny.conv_net(seed=3), FST(), attack=attack, mean=MEAN, std=STD)
    tiny.trainer(tmp_path).test(module, data, verbose=False)
    hits = total = 0
    rights = []
    for image, label in zip(data.data.test.images, data.data.test.labels.tolist(), strict=True):
        mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
        with torch.no_grad():
            answer = int(module.net(((image.float() / 255 - mean) / std)[None]).argmax())
        rights.append(answer == label)
        if label_map == "untargeted":
            wanted = answer != label
        elif label_map == "all_to_all":
            wanted = answer == (label + 1) % tiny.NUM_CLASSES
        elif label == TARGET:
            continue
        else:
            wanted = answer == TARGET
        hits += wanted
        total += 1
    assert module.counts["control"] == (hits, total)
    assert total == len(data.triggered_rows)
    assert module.right.tolist() == rights


class Losses(L.Callback):
    """Computes every training step's figures once more, before the step, from the weights."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.losses: list[list[float]] = []
        self.penalties: list[list[float]] = []
        self.net = tiny.conv_net().double()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.losses.append([])
        self.penalties.append([])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PurificationModule)
        self.net.load_state_dict(pl_module.net.state_dict())
        self.net.train()
        with torch.no_grad():
            images, labels = batch[0].double() / 255, batch[1]
            loss = float(functional.cross_entropy(self.net(images), labels))
            weight = self.net.get_parameter("head.weight")
            old = tiny.conv_net().get_parameter("head.weight").double()
            penalty = self.alpha * float((weight * old).sum())
        self.losses[-1].append(loss + penalty)
        self.penalties[-1].append(penalty)


def test_training_figures_are_the_means_of_an_epoch(tmp_path: Path) -> None:
    alpha = 0.7
    record = Losses(alpha)
    module = PurificationModule(tiny.conv_net(), FST(alpha, reinit="uniform"), seed=0)

    trainer = tiny.trainer(tmp_path, max_epochs=3, callbacks=[record])
    trainer.fit(module, tiny.Batches(tiny.rows(30), 8))
    assert [len(losses) for losses in record.losses] == [4, 4, 4]
    for name, values in (("loss", record.losses[-1]), ("penalty", record.penalties[-1])):
        logged = float(trainer.callback_metrics[f"train/{name}"])
        assert logged == pytest.approx(sum(values) / len(values), rel=1e-4, abs=1e-6)
    head = module.defense.statistics()
    for name in ("head_cosine", "head_norm"):
        assert float(trainer.callback_metrics[f"train/{name}"]) == float(head[name])


def test_no_penalty_no_curve(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path)
    trainer.fit(PurificationModule(tiny.conv_net(), FineTuning()), tiny.Batches(tiny.rows(8), 8))
    assert "train/loss" in trainer.callback_metrics
    assert "train/penalty" not in trainer.callback_metrics


class Stop(L.Callback):
    """An interruption in the middle of an epoch."""

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if batch_idx == 1:
            raise RuntimeError("stopped")


def test_what_an_interrupted_epoch_left_is_not_counted(tmp_path: Path) -> None:
    def fitted(interrupted: bool) -> float:
        net = tiny.conv_net()
        module = PurificationModule(net, FineTuning(), lambda p: torch.optim.SGD(p, lr=0.0), seed=0)
        batches = tiny.Batches(tiny.rows(24), 8)
        if interrupted:
            with pytest.raises(RuntimeError, match="stopped"):
                tiny.trainer(tmp_path, callbacks=[Stop()]).fit(module, batches)
            batches = tiny.Batches(tiny.rows(24), 8)
        trainer = tiny.trainer(tmp_path)
        trainer.fit(module, batches)
        return float(trainer.callback_metrics["train/loss"])

    assert fitted(interrupted=True) == fitted(interrupted=False)


def test_triggered_images_without_an_attack(tmp_path: Path) -> None:
    data = BackdoorDataModule(tiny.source(), BadNets(poison_ratio=0.1), batch_size=16)
    module = PurificationModule(tiny.conv_net(), FineTuning())
    with pytest.raises(ValueError, match="Expected an attack for the loader of triggered"):
        tiny.trainer(tmp_path).validate(module, data, verbose=False)


def test_forward_takes_stored_and_float_images() -> None:
    attack: Attack = BadNets()
    module = BackdoorModule(tiny.conv_net(), attack, mean=MEAN, std=STD, crop_padding=3).eval()
    images = tiny.images(5)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    expected = module.net((images.float() / 255 - mean) / std)
    assert torch.allclose(module(images), expected, atol=1e-6)
    assert torch.equal(module(images), module(images.float() / 255))


@pytest.mark.parametrize(
    ("attack", "labels", "message"),
    [
        (BadNets(target_label=9), tiny.labels(8), r"`attack.target_label` to be in 0\.\.3"),
        (BadNets(), tiny.labels(8) + 2, r"labels in 0\.\.3 for a network with 4 outputs"),
        (InputAware(width=2), tiny.labels(8), "fitted or learned, but InputAware is new"),
    ],
    ids=["target", "labels", "not fitted"],
)
def test_classes_that_the_network_lacks_are_refused(
    tmp_path: Path, attack: Attack, labels: Tensor, message: str
) -> None:
    module = PurificationModule(tiny.conv_net(), FineTuning(), attack=attack)
    rows = [(tiny.images(8, 32), labels)]
    loaders: list[Any] = [DataLoader(rows, batch_size=None) for _ in range(2)]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path).test(module, loaders, verbose=False)


@pytest.mark.parametrize("make", [PurificationModule, BackdoorModule])
def test_an_optimizer_that_is_made_already_is_refused(make: Any) -> None:
    net = tiny.conv_net()
    part: Any = FST() if make is PurificationModule else BadNets()
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(TypeError, match=r"`optimizer` to be a function.*an existing Adam"):
        make(net, part, optimizer)
    with pytest.raises(TypeError, match=r"`scheduler` to be a function.*an existing ConstantLR"):
        make(net, part, torch.optim.Adam, schedule)
    with pytest.raises(TypeError, match=r"`optimizer` to be a function.*but got a float"):
        make(net, part, 0.1)
    assert make(net, part, torch.optim.Adam).make_optimizer is torch.optim.Adam


def test_a_frozen_network_is_refused(tmp_path: Path) -> None:
    module = BackdoorModule(tiny.conv_net().requires_grad_(False), BadNets())
    rows = [(tiny.images(8), tiny.labels(8), torch.zeros(8, dtype=torch.bool))]
    loader: Any = DataLoader(rows, batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="all are frozen"):
        tiny.trainer(tmp_path).fit(module, loader)
