"""Networks that call ``view`` on a convolution's output, and images that a network can't take."""

from typing import Any

import pytest
from omegaconf import OmegaConf, open_dict
from torch import Tensor, nn

from fst_lightning.pipelines import Run, run_pipeline
from tests.pipelines.conftest import Start


class Views(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 8 * 8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(images).relu().view(len(images), -1))
        return logits


def of(run: Run) -> Run:
    with open_dict(run.cfg):
        run.cfg.model = OmegaConf.create({"_target_": f"{Views.__module__}.Views", "head": None})
    return run


@pytest.mark.parametrize("option", ["none", "fst", "ft_sam", "dbd"])
def test_a_network_that_views_is_trained_purified_and_measured(
    start: Start, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [f"defense.{key}=1" for key in ("pretrain_epochs", "semi_epochs", "head_epochs")]
    results = run_pipeline(of(start(f"defense={option}", *(short if option == "dbd" else []))))
    assert results["after"]["ca"] is not None
    printed = capsys.readouterr().out
    assert "cannot compute in the memory layout channels_last (view size is not" in printed
    assert "so it uses the contiguous one" in printed


@pytest.mark.parametrize("task", ["train", "purify"])
def test_images_of_another_size_are_refused_in_one_line(
    start: Start, task: str, models: Any
) -> None:
    with pytest.raises(ValueError, match=r"to take images of shape \(3, 9, 9\)") as caught:
        run_pipeline(of(start("data.image_size=9", task=task)))
    message = str(caught.value)
    assert "\n" not in message
    assert "Set data.image_size" in message
    assert models() == set()
