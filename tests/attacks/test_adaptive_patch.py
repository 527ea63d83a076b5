from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fst_lightning.attacks import AdaptivePatch
from fst_lightning.attacks.adaptive_patch import drawn_patches
from tests import tiny

CIFAR_LABELS = torch.arange(50_000) % 10
OPACITIES = (0.5, 0.2, 0.5, 0.3)


def prepared(attack: AdaptivePatch, images: Tensor) -> AdaptivePatch:
    attack.prepare(images, tiny.labels(len(images)), tiny.NUM_CLASSES, seed=0)
    return attack


def craft(attack: AdaptivePatch, images: Tensor, cover: bool = False) -> Tensor:
    rows = torch.arange(len(images))
    return attack.craft(images, tiny.labels(len(images)), rows, cover=cover, seed=0)


def test_as_many_rows_as_published_and_no_row_is_both() -> None:
    plan = AdaptivePatch().plan(CIFAR_LABELS, 10, seed=0)
    assert plan.num_poisoned == 150  # 0.003 of 50,000
    assert int(plan.cover.sum()) == 300  # 0.006
    assert not bool((plan.poisoned & plan.cover).any())


def test_four_patches_in_four_corners() -> None:
    masks = AdaptivePatch().masks[:, 0].bool()
    # Rows and columns that are touched; pixel 0 and 31 are the margin.
    near, far = [1, 6], [25, 30]
    for mask, rows, columns in zip(
        masks, (far, near, near, far), (far, near, far, near), strict=True
    ):
        for axis, wanted in ((1, rows), (0, columns)):
            touched = mask.any(dim=axis).nonzero()
            assert [int(touched.min()), int(touched.max())] == wanted
    assert int(masks.sum(dim=0).max()) == 1
    counts = masks.sum(dim=(1, 2)).tolist()
    # The disc: pixels whose center is within the circle of radius 3; the frame lacks its middle.
    centers = np.arange(6) - 2.5
    disc = int((np.add.outer(centers**2, centers**2) <= 9).sum())
    assert counts == [disc, 36, 36, 32]


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_faint_patch_a_row_in_turns(size: int, channels: int) -> None:
    images = tiny.images(10, size=size, seed=9)[:, :channels]
    attack = prepared(AdaptivePatch(), images)
    crafted = craft(attack, images)
    for row, (image, result) in enumerate(zip(images, crafted, strict=True)):
        mask = attack.masks[row % 4].double().numpy()
        pattern = attack.patterns[row % 4].double().numpy()
        alpha = OPACITIES[row % 4] * mask
        expected = np.round(image.numpy() * (1 - alpha) + 255 * alpha * pattern)
        assert np.abs(result.numpy() - expected).max() <= 1
        assert np.array_equal(result.numpy()[..., mask[0] == 0], image.numpy()[..., mask[0] == 0])
        assert not torch.equal(result, image)
    assert torch.equal(craft(attack, images, cover=True), crafted)
    unit = crafted / 255
    assert torch.equal(attack.poison(unit), unit)
    assert torch.equal(attack.cover(unit), unit)


def test_two_patches_at_full_opacity_at_test() -> None:
    images = tiny.images(3, size=32, seed=9) / 255
    attack = AdaptivePatch()
    stamped = attack.trigger(images)
    expected = images.clone()
    for patch in (0, 2):
        covered = attack.masks[patch].expand(3, -1, -1) == 1
        expected[:, covered] = attack.patterns[patch][covered]
    assert torch.equal(stamped, expected)
    only = AdaptivePatch(test_patches=[3]).trigger(images)
    assert torch.equal((only != images).any(dim=1)[0], attack.masks[3, 0] == 1)


def test_patches_differ_from_each_other_and_stay_in_range() -> None:
    for size in (2, 3, 6, 12):
        colors = [colors for colors, _ in drawn_patches(3, size)]
        assert all(patch.shape == (1, 3, size, size) for patch in colors)
        assert 0 <= float(torch.cat(colors).min()) <= float(torch.cat(colors).max()) <= 1
        distances = [float((a - b).abs().mean()) for a in colors for b in colors if a is not b]
        assert min(distances) > 0.1
        assert all(bool(mask.any()) for _, mask in drawn_patches(3, size))


def test_pictures_of_the_user(tmp_path: Path) -> None:
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (90, 90, 90)]
    for number, color in enumerate(colors):
        picture = Image.new("RGBA", (6, 6), (*color, 255))
        picture.putpixel((0, 0), (*color, 0))
        picture.save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    attack = prepared(AdaptivePatch(folder=str(tmp_path), opacities=[1, 1, 1, 1]), images)
    crafted = craft(attack, images)
    for image, color, (top, left) in zip(
        crafted, colors, ((25, 25), (1, 1), (1, 25), (25, 1)), strict=True
    ):
        patch = image[:, top : top + 6, left : left + 6]
        assert patch[:, 0, 0].tolist() == [0, 0, 0]  # transparent
        assert patch[:, 3, 4].tolist() == list(color)
        assert int((image != 0).any(dim=0).sum()) == 35
    (tmp_path / "3.png").unlink()
    with pytest.raises(ValueError, match=r"`folder` to hold 4 pictures, but .* holds 3"):
        AdaptivePatch(folder=str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_size": 0}, "`patch_size` to be a whole number of 1 or more"),
        ({"margin": -1}, "`margin` to be a whole number of 0 or more"),
        ({"patch_size": 16}, "fit beside each other into 32 x 32"),
        ({"opacities": (0.5, 0.5)}, r"`opacities` to be a list of 4 numbers in \[0, 1\]"),
        ({"opacities": (0.5, 0.5, 2, 0)}, r"`opacities` to be a list of 4 numbers in \[0, 1\]"),
        ({"test_patches": ()}, r"`test_patches` to be a list of whole numbers from 0 to 3"),
        ({"test_patches": (4,)}, r"`test_patches` to be a list of whole numbers from 0 to 3"),
        ({"cover_ratio": -0.1}, r"`cover_ratio` to be a number in \[0, 1\]"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptivePatch(**arguments)


def test_refuses_folders_and_images_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is none at .*nowhere"):
        AdaptivePatch(folder=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="there is none in"):
        AdaptivePatch(folder=str(tmp_path))
    attack = AdaptivePatch()
    attack(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*\(3, 16, 16\).*`prepare`"):
        attack(torch.zeros(1, 3, 16, 16))
