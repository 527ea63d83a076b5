import itertools
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fst_lightning.attacks import BadNets
from fst_lightning.attacks.badnets import Corner, Patch
from tests import tiny

WHITE, BLACK = 1.0, 0.0


def slowly_stamped(
    image: Tensor, patch: Patch, size: int, corner: Corner, margin: int
) -> list[list[list[float]]]:
    """Pixel by pixel, from the distance of a pixel to the corner that the patch is in."""
    channels, height, width = image.shape
    pixels: list[list[list[float]]] = image.tolist()
    for channel, row, column in itertools.product(range(channels), range(height), range(width)):
        down = height - 1 - row if corner.startswith("bottom") else row
        across = width - 1 - column if corner.endswith("right") else column
        if not (margin <= down < margin + size and margin <= across < margin + size):
            continue
        # Rows and columns within the patch, counted from its top left cell, which is white.
        cell_row = size - 1 - (down - margin) if corner.startswith("bottom") else down - margin
        cell_column = size - 1 - (across - margin) if corner.endswith("right") else across - margin
        white = patch == "square" or (cell_row + cell_column) % 2 == 0
        pixels[channel][row][column] = WHITE if white else BLACK
    return pixels


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("margin", [0, 1, 4])
@pytest.mark.parametrize("corner", get_args(Corner))
@pytest.mark.parametrize("patch", get_args(Patch))
def test_every_pixel(patch: Patch, corner: Corner, margin: int, size: int) -> None:
    attack = BadNets(patch, patch_size=size, corner=corner, margin=margin)
    images = tiny.images(2, size=32).float() / 255
    stamped = attack(images)
    for image, result in zip(images, stamped, strict=True):
        expected = torch.tensor(slowly_stamped(image, patch, size, corner, margin))
        assert torch.equal(result, expected)


def test_black_cells_are_written_on_white_images() -> None:
    stamped = BadNets("checkerboard", patch_size=3, corner="top_left")(torch.ones(1, 3, 32, 32))
    for channel in stamped[0]:
        assert channel[:3, :3].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
        assert float(channel.sum()) == 32 * 32 - 4


def test_white_cells_are_written_on_black_images() -> None:
    stamped = BadNets("checkerboard", patch_size=3)(torch.zeros(1, 3, 32, 32))
    assert stamped[0, 0, 29:, 29:].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert float(stamped.sum()) == 3 * 5


@pytest.mark.parametrize(
    ("image_size", "patch_size", "margin", "side", "gap"),
    [
        (32, 3, 1, 3, 1),
        (64, 3, 1, 6, 2),
        (16, 4, 2, 2, 1),
        (48, 2, 2, 3, 3),
        (8, 4, 4, 1, 1),
        (8, 1, 0, 1, 0),  # never below one pixel
        (4, 3, 1, 1, 0),
    ],
)
def test_patch_and_margin_grow_with_the_image(
    image_size: int, patch_size: int, margin: int, side: int, gap: int
) -> None:
    attack = BadNets(patch_size=patch_size, margin=margin, corner="bottom_left")
    images = torch.zeros(2, 3, image_size, image_size, dtype=torch.uint8)
    attack.prepare(images, torch.zeros(2, dtype=torch.int64), 10, seed=0)
    stamped = attack(images.float())
    expected = torch.zeros(2, 3, image_size, image_size)
    bottom = image_size - gap
    expected[:, :, bottom - side : bottom, gap : gap + side] = 1
    assert torch.equal(stamped, expected)


def test_images_that_are_not_square() -> None:
    attack = BadNets(patch_size=2, corner="bottom_right")
    images = torch.zeros(1, 3, 32, 40, dtype=torch.uint8)
    attack.prepare(images, torch.zeros(1, dtype=torch.int64), 10, seed=0)
    assert attack(images.float()).nonzero()[:, 2:].unique(dim=0).tolist() == [
        [30, 38],
        [30, 39],
        [31, 38],
        [31, 39],
    ]


def test_images_of_another_size_than_prepared() -> None:
    attack = BadNets()
    attack(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\(C, 32, 32\).*\(3, 16, 16\).*`prepare`"):
        attack(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": "cross"}, "square, checkerboard, but got 'cross'"),
        ({"corner": "middle"}, "top_left, top_right, bottom_left, bottom_right, but got 'middle'"),
        ({"patch_size": 0}, "`patch_size` to be a whole number of 1 or more"),
        ({"margin": -1}, "`margin` to be a whole number of 0 or more"),
        ({"patch_size": 30, "margin": 3}, "fit into 32 x 32 pixels"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BadNets(**arguments)


def test_the_largest_patch_covers_the_image() -> None:
    assert bool((BadNets(patch_size=32)(torch.zeros(1, 3, 32, 32)) == 1).all())


def write_patch(path: Path) -> Tensor:
    """A patch of 2 x 2 pixels: red, clear blue, half clear green, white; (4, 2, 2) in [0, 1]."""
    pixels = np.array(
        [[[255, 0, 0, 255], [0, 0, 255, 0]], [[0, 255, 0, 128], [255, 255, 255, 255]]], np.uint8
    )
    Image.fromarray(pixels).save(path)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


@pytest.mark.parametrize("opacity", [1.0, 0.3])
def test_a_picture_of_the_user_with_its_transparency(tmp_path: Path, opacity: float) -> None:
    patch = write_patch(tmp_path / "patch.png")
    attack = BadNets(
        patch_size=2,
        corner="top_left",
        margin=1,
        image=str(tmp_path / "patch.png"),
        opacity=opacity,
    )
    images = tiny.images(2, size=32) / 255
    expected = images.clone()
    for row, column in itertools.product(range(2), range(2)):
        alpha = opacity * float(patch[3, row, column])
        pixel = images[:, :, 1 + row, 1 + column]
        expected[:, :, 1 + row, 1 + column] = (1 - alpha) * pixel + alpha * patch[:3, row, column]
    assert torch.allclose(attack.trigger(images), expected, atol=1e-6)


def test_what_is_clear_in_a_picture_does_not_bleed_into_a_resized_patch(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 2] = 255  # clear blue on the left
    pixels[:, 4:] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "patch.png")
    attack = BadNets(patch_size=6, corner="top_left", image=str(tmp_path / "patch.png"))
    stamped = attack.trigger(torch.zeros(1, 3, 32, 32))[0]
    assert float(stamped[1:].max()) == pytest.approx(0, abs=1e-6)
    assert stamped[0, 0, 4:6].tolist() == pytest.approx([1, 1], abs=1e-6)


def test_a_gray_picture_and_an_opaque_one(tmp_path: Path) -> None:
    write_patch(tmp_path / "patch.png")
    attack = BadNets(patch_size=2, corner="top_left", image=str(tmp_path / "patch.png"))
    gray = torch.zeros(1, 1, 32, 32)
    attack.prepare(gray, torch.zeros(1), 10, seed=0)
    # Pillow's luminance of red, 0.299; the clear pixel stays black.
    assert attack.trigger(gray)[0, 0, 0, :2].tolist() == pytest.approx([76 / 255, 0], abs=1e-6)
    Image.new("RGB", (5, 4), (10, 20, 30)).save(tmp_path / "opaque.png")
    attack = BadNets(patch_size=3, image=str(tmp_path / "opaque.png"))
    assert torch.equal(attack.mask, BadNets(patch_size=3).mask)
    assert (255 * attack.pattern[0, :, 31, 31]).tolist() == pytest.approx([10, 20, 30], abs=1e-4)


def test_refuses_a_picture_that_is_not_there_or_of_other_channels(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere.png"):
        BadNets(image=str(tmp_path / "nowhere.png"))
    write_patch(tmp_path / "patch.png")
    attack = BadNets(image=str(tmp_path / "patch.png"))
    attack(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*\(1, 32, 32\)"):
        attack(torch.zeros(1, 1, 32, 32))


def test_half_opaque() -> None:
    stamped = BadNets("checkerboard", patch_size=1, opacity=0.25).trigger(torch.ones(1, 1, 32, 32))
    assert float(stamped.min()) == 1  # the one cell is white
    black = BadNets(patch_size=2, opacity=0.25).trigger(torch.zeros(1, 1, 32, 32))
    assert float(black.sum()) == pytest.approx(4 * 0.25)
    with pytest.raises(ValueError, match=r"`opacity` to be a number in \[0, 1\]"):
        BadNets(opacity=1.5)
