"""Gray images: ``data.channels=1``, from training to a checkpoint of somebody else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf, open_dict
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from fst_lightning.data import Fake, ImageFolder
from fst_lightning.data.images import to_gray
from fst_lightning.pipelines import run_pipeline
from tests.pipelines.conftest import Start


class Gray(nn.Sequential):
    """A network of somebody else, for images such as those of MNIST."""

    def __init__(self, num_classes: int) -> None:
        pool, head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, num_classes)
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), pool, nn.Flatten(), head)


def test_gray_is_pillows() -> None:
    pixels = torch.randint(0, 256, (3, 16, 20), generator=torch.Generator().manual_seed(0))
    colored = pixels.to(torch.uint8)
    expected = np.asarray(Image.fromarray(colored.permute(1, 2, 0).numpy()).convert("L"))
    assert torch.equal(to_gray(colored)[0], torch.from_numpy(expected.copy()))


@pytest.mark.parametrize("cache", ["off", "stream"])
def test_a_folder_in_gray(tmp_path: Path, cache: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        for label in "ab":
            for i in range(3):
                path = tmp_path / part / label / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = torch.randint(0, 256, (9, 9, 3), generator=generator).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(path)
    colored = ImageFolder(root=tmp_path, image_size=9).load()
    data = ImageFolder(root=tmp_path, image_size=9, cache=cache, channels=1).load()  # type: ignore[arg-type]
    assert data.image_shape == (1, 9, 9)
    assert torch.equal(data.train.images[:], to_gray(colored.train.images))
    levels = to_gray(colored.train.images).double() / 255
    assert data.mean == pytest.approx([float(levels.mean())])
    assert data.std == pytest.approx([float(levels.std(correction=0))])


def test_wrong_channels_and_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`data\.channels` to be one of 1, 3, but got 2"):
        Fake(channels=2)
    with pytest.raises(ValueError, match="`mean` to be one finite number"):
        Fake(channels=1, mean=[0.5, 0.5, 0.5])


@pytest.mark.parametrize("attack", ["badnets", "blended", "wanet", "sig"])
def test_a_run_in_gray(start: Start, attack: str) -> None:
    results = run_pipeline(start(f"attack={attack}", "data.channels=1", "report.enabled=true"))
    path = results["checkpoints"]["purified"]
    assert load_file(path)["conv1.weight"].shape[1] == 1
    assert not list(Path(path).parent.glob("failure*"))
    page = (Path(path).parent / "report.html").read_text("utf-8")
    assert "data:image" in page
    # The file says what it is: nothing has to be said again.
    again = run_pipeline(start(f"checkpoint={path}", "defense=none"))
    assert again["before"]["ca"] == results["after"]["ca"]


def test_a_checkpoint_of_somebody_else(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "mnist.pth"
    torch.save(Gray(3).state_dict(), file)
    statistics = ("data.mean=[0.13]", "data.std=[0.31]")
    for lines, message in (
        (("data.channels=1", *statistics), None),
        ((), r"to take images of shape \(3, 8, 8\)"),
    ):
        run = start(
            f"checkpoint={file}", "model=small_resnet", "attack=none", "defense=fst", *lines
        )
        with open_dict(run.cfg):
            target = f"{Gray.__module__}.Gray"
            run.cfg.model = OmegaConf.create({"_target_": target, "head": None})
        run.choices["model"] = target
        if message is None:
            assert run_pipeline(run)["model"]["head"] == "4"
        else:
            with pytest.raises(ValueError, match=message) as caught:
                run_pipeline(run)
            assert "data.channels" in str(caught.value)
