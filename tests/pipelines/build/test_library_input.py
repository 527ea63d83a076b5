"""Networks of torchvision and timm bring the size and the normalization of their images."""

from pathlib import Path

import pytest
from PIL import Image

from fst_lightning.models import timm_input, torchvision_input
from fst_lightning.pipelines import Run, run_pipeline
from fst_lightning.pipelines.build.library_input import adopt_library_input
from tests.pipelines.conftest import Start

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
RESNET = ("model=torchvision", "model.name=resnet18")
VIT = ("model=timm", "model.name=vit_tiny_patch16_224")


def data_of(run: Run) -> tuple[object, object, object]:
    data = adopt_library_input(run).cfg.data
    return data.image_size, data.mean, data.std


def bare(start: Start, *lines: str) -> Run:
    """A run whose image size is that of its data set's file."""
    run = start(*lines)
    if not run.given("data.image_size"):
        run.cfg.data.image_size = None if "npz" in run.choices["data"] else 32
    return run


def test_what_the_libraries_declare() -> None:
    pytest.importorskip("timm")
    assert torchvision_input("resnet18").size == 224
    assert torchvision_input("inception_v3").size == 299
    assert torchvision_input("vit_h_14").size == 224
    assert torchvision_input("vit_h_14", pretrained=True).size == 518
    assert not torchvision_input("swin_t").fixed
    assert timm_input("vit_tiny_patch16_224").mean == (0.5, 0.5, 0.5)
    assert timm_input("vit_tiny_patch16_224").fixed
    assert not timm_input("resnet18").fixed
    for brings in (torchvision_input, timm_input):
        with pytest.raises(ValueError, match=r"got 'resnet81'\..*resnet18"):
            brings("resnet81")


def test_a_fixed_size_is_adopted_for_any_data(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm")
    assert data_of(bare(start, *VIT)) == (224, [0.5] * 3, [0.5] * 3)
    (line,) = capsys.readouterr().out.splitlines()
    assert "data.image_size=224 data.mean=[0.5,0.5,0.5] data.std=[0.5,0.5,0.5]" in line


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("data=image_folder", "data.root=x", *RESNET), (224, *IMAGENET)),
        (("data=fake", *RESNET), (32, *IMAGENET)),
        (("data=cifar10", *RESNET), (32, [0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261])),
        (("data=cifar10", *RESNET, "model.pretrained=true"), (224, *IMAGENET)),
        (("data=fake", *RESNET, "data.image_size=64"), (64, *IMAGENET)),
        (("data=fake", *RESNET, "data.mean=[0,0,0]", "data.std=[1,1,1]"), (32, [0] * 3, [1] * 3)),
        (("data=image_folder", "data.root=x", "model=resnet18"), (32, None, None)),
    ],
)
def test_what_is_not_said_is_adopted(
    start: Start, lines: tuple[str, ...], expected: tuple[object, ...]
) -> None:
    assert data_of(bare(start, *lines)) == expected


def test_a_recipe_wins(start: Start) -> None:
    run = bare(start, "data=image_folder", "data.root=x", *RESNET)
    run.cfg.data.image_size = 48  # of an experiment's file
    run.cfg.data.mean = run.cfg.data.std = [0.5] * 3
    assert data_of(run) == (48, [0.5] * 3, [0.5] * 3)


@pytest.mark.parametrize("task", ["train", "purify"])
def test_another_size_of_a_transformer_is_refused_in_one_line(start: Start, task: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"data\.image_size=224 .* takes no other size") as caught:
        run_pipeline(start(*VIT, "data.image_size=32", task=task))
    assert "\n" not in str(caught.value)


def test_too_small_images_are_refused_with_the_size_that_fits(start: Start) -> None:
    lines = ("model=torchvision", "model.name=inception_v3", "data.image_size=32")
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*it is made for 299") as caught:
        run_pipeline(start(*lines, task="train"))
    assert "\n" not in str(caught.value)


def test_a_folder_is_resized_to_what_the_network_is_made_for(start: Start, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label, level in (("cat", 40), ("dog", 200)):
            for i in range(4):
                path = tmp_path / "images" / part / label / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 20), (level + i,) * 3).save(path)
    lines = ("data=image_folder", f"data.root={tmp_path / 'images'}", "attack=none")
    network = ("model=torchvision", "model.name=squeezenet1_1", "training.batch_size=4")
    run = start(*lines, *network, task="train")
    assert run_pipeline(run)["model"]["head"] == "classifier.1"
    text = (run.folder / "config.yaml").read_text("utf-8")
    assert "image_size: 224" in text
