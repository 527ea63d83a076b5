"""The contestants do the same work: what is compared is how fast."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from benchmarks import attacks, floor, ours, usual
from benchmarks.setting import ALPHA, MEAN, STD, TARGET, WARM_UP, Clock, Setting, head_of
from fst_lightning.attacks import Blended
from fst_lightning.modules import InputPipeline

SETTING = Setting(width=2, batch_size=8, steps=2, num_test=40, device="cpu")


@pytest.mark.parametrize("triggered", [False, True])
def test_a_network_sees_the_same_images(triggered: bool) -> None:
    images = SETTING.images().test
    rows = usual.PilImages(images, torch.full((len(images),), triggered), augment=False)
    expected = torch.stack([rows[row][0] for row in range(len(rows))])
    prepare = floor._Inputs(SETTING)
    pixels = images.images.float() / 255
    by_hand = prepare.normalize(prepare.stamp(pixels) if triggered else pixels)
    assert torch.allclose(by_hand, expected, atol=1e-5)
    attack = Blended(blend_alpha=0.2)
    attack.prepare(images.images, images.labels, 10, 0)
    attack.pattern.copy_(prepare.pattern.reshape(attack.pattern.shape))
    module = InputPipeline(attack, MEAN, STD)
    assert torch.allclose(module(images.images, triggered), expected, atol=1e-5)


@pytest.mark.parametrize("task", ["train", "tune", "evaluate"])
@pytest.mark.parametrize("contestant", [floor, ours])
def test_every_task_has_a_rate(task: str, contestant: object) -> None:
    assert getattr(contestant, task)(SETTING) > 0


def test_the_usual_tuning_is_feature_shift_tuning() -> None:
    net = SETTING.network()
    reference = SETTING.network()
    head, other = head_of(net), head_of(reference)
    original = head.weight.detach().clone()
    tuning = usual._Tuning(net)
    other.load_state_dict(head.state_dict())
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
    loss = functional.cross_entropy(reference(images), labels)
    loss = loss + ALPHA * (other.weight * original).sum()
    assert tuning.step(images, labels) == pytest.approx(float(loss), rel=1e-5)
    assert float(head.weight.detach().norm()) == pytest.approx(float(original.norm()), rel=1e-5)


def test_the_usual_run_reports_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usual, "WORKERS", 0)
    torch.save(SETTING.network().state_dict(), tmp_path / "weights.pt")
    usual.purify(SETTING, tmp_path / "weights.pt", epochs=1)
    before, after = capsys.readouterr().out.splitlines()
    rates = [torch.tensor(json.loads(line)) for line in (before, after)]
    assert all(bool(((rate >= 0) & (rate <= 1)).all()) for rate in rates)


def test_the_clock_leaves_out_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 14.0])
    monkeypatch.setattr("benchmarks.setting.now", lambda _: next(times))
    clock = Clock(SETTING)
    for _ in range(WARM_UP + SETTING.steps):
        clock.step()
    assert clock.rate == pytest.approx(SETTING.steps * SETTING.batch_size / 4.0)


def test_the_target_is_left_out_of_the_triggered_images() -> None:
    clean, triggered = SETTING.test_images()
    assert len(clean) == SETTING.num_test
    assert len(triggered) == int((clean.labels != TARGET).sum())


@pytest.mark.parametrize("name", ["badnets", "wanet", "ssba"])
def test_what_an_attack_costs_is_measured(name: str) -> None:
    setting = Setting(width=2, batch_size=32, steps=2, num_test=20, device="cpu")
    assert ours.train(setting, attacks.lines(name)) > 0
    assert f"attack={name}" in attacks.lines(name)
