from typing import Any

import pytest
import torch

from fst_lightning import BackdoorDataModule
from fst_lightning.attacks import BadNets
from fst_lightning.data import Fake
from fst_lightning.data.placement import on_device
from tests import tiny

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("placement", ["auto", "host", "device"])
def test_on_a_cpu_there_is_nowhere_else(placement: Any) -> None:
    assert not on_device(placement, 10, CPU)


@pytest.mark.parametrize(("num_bytes", "expected"), [(250, True), (251, False)])
def test_a_gpu_with_four_times_as_much_free(
    num_bytes: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 5000))
    assert on_device("auto", num_bytes, CUDA) == expected
    assert on_device("device", num_bytes, CUDA)
    assert not on_device("host", num_bytes, CUDA)


def test_an_unknown_place_is_refused() -> None:
    with pytest.raises(ValueError, match="`placement` to be one of auto, host, device, but got"):
        Fake(placement="disk")  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("placement", ["host", "device"])
def test_batches_are_the_same_wherever_the_images_lie(placement: Any, tmp_path: Any) -> None:
    source = Fake(num_train=60, num_test=20, image_size=8, placement=placement)
    data = BackdoorDataModule(source, BadNets(poison_ratio=0.1), batch_size=16)
    trainer = tiny.trainer(tmp_path, accelerator="gpu")
    trainer.strategy.setup_environment()
    data.trainer = trainer
    data.setup()
    images, labels, poisoned = (torch.cat(p) for p in zip(*data.train_dataloader(), strict=True))
    assert {t.device.type for t in (images, labels, poisoned)} == {
        "cuda" if placement == "device" else "cpu"
    }
    expected = BackdoorDataModule(source, BadNets(poison_ratio=0.1), batch_size=16)
    expected.setup()
    for found, column in zip(
        (images, labels, poisoned), zip(*expected.train_dataloader(), strict=True), strict=True
    ):
        assert torch.equal(found.cpu(), torch.cat(column))
