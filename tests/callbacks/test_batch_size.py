"""A device that runs out of memory: which batch would have fitted."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from fst_lightning import BackdoorDataModule, BackdoorModule
from fst_lightning.attacks import BadNets
from fst_lightning.callbacks import BatchSizeAdvice
from tests import tiny


class Small(BackdoorModule):
    """On a device that takes so many images and no more."""

    def __init__(self, room: int, **options: Any) -> None:
        super().__init__(tiny.conv_net(), BadNets(poison_ratio=0.1), **options)
        self.room = room
        self.tried: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.tried.append(len(batch[0]))
        if len(batch[0]) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return super().training_step(batch, batch_idx)


def failed(module: Small, folder: Path, batch_size: int = 48) -> BaseException:
    trainer = tiny.trainer(folder, 1, callbacks=[BatchSizeAdvice("training.batch_size")])
    data = BackdoorDataModule(tiny.source(), module.attack, batch_size=batch_size)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer.fit(module, data)
    return caught.value


@pytest.mark.parametrize(("room", "fits"), [(47, 24), (24, 24), (23, 12), (6, 6), (3, 3)])
def test_the_batch_that_fits_is_named(room: int, fits: int, tmp_path: Path) -> None:
    module = Small(room)
    error = failed(module, tmp_path)
    assert str(error) == "CUDA out of memory. Tried to allocate 20.00 GiB."
    assert error.__notes__ == [
        f"A batch of 48 does not fit, one of {fits} does: training.batch_size={fits}, with "
        f"trainer.accumulate_grad_batches={48 // fits} for steps as before."
    ]
    assert module.tried[-1] == fits
    assert all(parameter.grad is None for parameter in module.parameters())


def test_where_nothing_fits(tmp_path: Path) -> None:
    error = failed(Small(0), tmp_path)
    assert error.__notes__ == ["Not even a batch of 2 fits: take a smaller network or images."]


def test_memory_of_the_failed_step_is_free_before_the_next_is_tried(tmp_path: Path) -> None:
    import weakref

    class Holds(Small):
        alive: ClassVar[list[bool]] = []
        held: Any = None

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.held is not None:
                self.alive.append(self.held() is not None)
            activations = batch[0].float()
            self.held = weakref.ref(activations)
            return super().training_step(batch, batch_idx)

    module = Holds(12)
    failed(module, tmp_path)
    assert module.alive == [False, False]


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    module = Small(100)
    trainer = tiny.trainer(tmp_path, 1)
    error = RuntimeError("something else")
    callback = BatchSizeAdvice()
    callback.on_train_batch_start(trainer, module, [torch.zeros(4)], 0)
    callback.on_exception(trainer, module, error)
    assert not hasattr(error, "__notes__")
    callback.on_exception(trainer, module, torch.OutOfMemoryError("in an evaluation"))
    assert module.tried == []
